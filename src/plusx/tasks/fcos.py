"""FCOS (Tian et al. 2019, with the improvements of the 2020 journal version): the assignment of
boxes to positions of levels, the loss, and boxes from the outputs."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from plusx.data.batch import Batch
from plusx.tasks.suppression import Suppression


RADIUS = 1.5  # strides around the centre of a box within which positions predict it
REACH = 8  # largest distance, in strides, to the farthest side of a box that a level predicts

Level = Float[Tensor, "n _ _ _"]  # (n, channels, height, width)
Strides = Sequence[tuple[int, int]]  # of the levels: input positions per step, down and right


def loss_of_batch(net: Any, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss of a network with an FCOS head, and its terms by name."""
    return loss(net(batch.inputs), net.level_strides, batch.known_targets)


def detections(net: Any, inputs: Tensor, suppression: Suppression) -> list[dict[str, Tensor]]:
    """Return the detections of each image by a network with an FCOS head."""
    height, width = inputs.shape[-2:]
    boxes, scores = candidates(net(inputs), net.level_strides)
    return suppression.detections(boxes, scores, (height, width))


def positions(
    sizes: Sequence[tuple[int, int]], strides: Strides, device: torch.device
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, "p"]]:
    """Return the centres (x, y) of all cells of levels of these sizes (height, width), and their
    strides. Level by level, row by row, in the same order as `flat`."""
    middles, steps = [], []
    for (height, width), (down, right) in zip(sizes, strides, strict=True):
        y = (torch.arange(height, device=device) + 0.5) * down
        x = (torch.arange(width, device=device) + 0.5) * right
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2)
        middles.append(grid)
        steps.append(torch.full((len(grid),), float(max(down, right)), device=device))
    return torch.cat(middles), torch.cat(steps)


def flat(maps: Sequence[Level]) -> Float[Tensor, "n _ _"]:
    """Return the outputs of all levels, one row per position."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1).float()


def assign(
    boxes: Float[Tensor, "n m 6"], middles: Float[Tensor, "p 2"], strides: Float[Tensor, "p"]
) -> tuple[Int[Tensor, "n p"], Bool[Tensor, "n p"]]:
    """Return the box index of each position (-1: none), and whether it is evaluated.

    A position predicts a box that contains it, within RADIUS strides of the centre, if the distance
    to the farthest side is in the range of the level: 4 to 8 strides, with no lower limit at the
    finest and no upper limit at the coarsest level (section 3.2). Of several boxes it predicts the
    smallest. A position in a crowd that predicts no box is not evaluated.

    A long thin box can fall between the positions of its level. It is then predicted by the
    coarsest of the finer levels with positions in it.
    """
    left, top, right, bottom = (boxes[:, None, :, i] for i in range(4))
    x, y, stride = middles[:, :1], middles[:, 1:], strides[:, None]
    sides = torch.stack([x - left, y - top, right - x, bottom - y], -1)
    inside = sides.amin(-1) > 0
    near_x = (x - (left + right) / 2).abs() < RADIUS * stride
    near_y = (y - (top + bottom) / 2).abs() < RADIUS * stride
    farthest = sides.amax(-1)
    low = torch.where(stride == strides.min(), 0.0, stride * REACH / 2)
    high = torch.where(stride == strides.max(), torch.inf, stride * REACH)
    real, crowd = boxes[..., 4] >= 0, boxes[..., 5] > 0.5
    near = inside & near_x & near_y & (farthest >= low) & (real & ~crowd)[:, None]
    responsible = near & (farthest < high)
    between = near & ~responsible.any(1, keepdim=True)
    coarsest = torch.where(between, stride, 0.0).amax(1, keepdim=True)
    responsible |= between & (stride == coarsest)
    area = ((right - left) * (bottom - top)).expand_as(responsible)
    smallest, row = torch.where(responsible, area, torch.inf).min(-1)
    has_box = smallest.isfinite()
    ignored = (inside & (real & crowd)[:, None]).any(-1) & ~has_box
    return torch.where(has_box, row, -1), ~ignored


def loss(
    maps: Sequence[Level], strides: Strides, boxes: Float[Tensor, "n m 6"]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss, a mean over images, and its terms by name.

    The sums of each image are divided by its number of positions that predict a box, as in
    torchvision's RetinaNet, so that losses of parts of a batch add up.
    """
    outputs = flat(maps)
    sizes = [(level.shape[2], level.shape[3]) for level in maps]
    middles, steps = positions(sizes, strides, outputs.device)
    rows, evaluated = assign(boxes, middles, steps)
    image, position = (rows >= 0).nonzero(as_tuple=True)
    targets = boxes[image, rows[image, position]]
    classes = outputs.shape[-1] - 5
    logits, distances, centreness = outputs.split([classes, 4, 1], -1)
    labels = torch.zeros_like(logits)
    labels[image, position, targets[:, 4].long()] = 1.0
    count = (rows >= 0).sum(1).clamp(min=1).float()
    focal = sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0).sum(-1)
    by_class = (focal * evaluated).sum(1) / count
    image_weight = 1 / count[image]
    target_sides = _sides(middles[position], targets[:, :4])
    target_centre = _centreness(target_sides)
    predicted = decoded(distances[image, position], middles[position])
    box_loss = generalized_box_iou_loss(predicted, targets[:, :4]) * target_centre
    weight = torch.zeros_like(count).index_add_(0, image, target_centre)
    by_box = box_loss / weight.clamp(min=1e-6)[image]
    by_centre = F.binary_cross_entropy_with_logits(
        centreness[image, position, 0], target_centre, reduction="none"
    )
    n = len(outputs)
    terms = {
        "classes": by_class.sum() / n,
        "boxes": by_box.sum() / n,
        "centres": (by_centre * image_weight).sum() / n,
    }
    return torch.stack(list(terms.values())).sum(), terms


def candidates(
    maps: Sequence[Level], strides: Strides
) -> tuple[Float[Tensor, "n p 4"], Float[Tensor, "n p k"]]:
    """Return a box for every position and its score for every class: the square root of class score
    times centre-ness, as in the journal version."""
    outputs = flat(maps)
    sizes = [(level.shape[2], level.shape[3]) for level in maps]
    middles, _ = positions(sizes, strides, outputs.device)
    logits, distances, centreness = outputs.split([outputs.shape[-1] - 5, 4, 1], -1)
    return decoded(distances, middles), (logits.sigmoid() * centreness.sigmoid()).sqrt()


def decoded(
    distances: Float[Tensor, "*n 4"], middles: Float[Tensor, "p 2"]
) -> Float[Tensor, "*n 4"]:
    """Return the corners of boxes with these distances from their positions (equation 1)."""
    return torch.cat([middles - distances[..., :2], middles + distances[..., 2:]], -1)


def _sides(middles: Tensor, boxes: Tensor) -> Tensor:
    """Return the distances from each position to the left, top, right and bottom of its box."""
    return torch.cat([middles - boxes[:, :2], boxes[:, 2:] - middles], -1)


def _centreness(sides: Tensor) -> Tensor:
    """Return equation 3 of the paper: 1 at the centre, 0 on an edge."""
    across, down = sides[:, 0::2], sides[:, 1::2]
    return ((across.amin(1) / across.amax(1)) * (down.amin(1) / down.amax(1))).sqrt()
