"""FCOS (Tian et al. 2019, with the improvements of its journal version, 2020): which position of
which level is asked for which box, the loss, and boxes from what the levels tell."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss


RADIUS = 1.5  # strides around a box's middle whose positions are asked for it
REACH = 8  # strides up to which a level is asked for a box's farthest side

Level = Float[Tensor, "n _ _ _"]  # (n, channels, height, width)
Strides = Sequence[tuple[int, int]]  # of the levels: the input's positions a step, down and right


def positions(
    sizes: Sequence[tuple[int, int]], strides: Strides, device: torch.device
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, "p"]]:
    """The middles (x, y) of all cells of levels of these sizes (height, width), and their strides.

    Level by level, row by row, as `flat` lays maps out.
    """
    middles, steps = [], []
    for (height, width), (down, right) in zip(sizes, strides, strict=True):
        y = (torch.arange(height, device=device) + 0.5) * down
        x = (torch.arange(width, device=device) + 0.5) * right
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2)
        middles.append(grid)
        steps.append(torch.full((len(grid),), float(max(down, right)), device=device))
    return torch.cat(middles), torch.cat(steps)


def flat(maps: Sequence[Level]) -> Float[Tensor, "n _ _"]:
    """What all levels tell, a row for each position."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1).float()


def assigned(
    boxes: Float[Tensor, "n m 6"], middles: Float[Tensor, "p 2"], strides: Float[Tensor, "p"]
) -> tuple[Int[Tensor, "n p"], Bool[Tensor, "n p"]]:
    """The row of the box that each position is asked for, -1 for none, and who is asked at all.

    A position is asked for a box that it lies in, within RADIUS strides of its middle, if the
    farthest side is in the level's reach: up to 8 strides away and beyond 4, but the finest level
    has what is nearer and the coarsest what is farther (section 3.2). Of several boxes it is asked
    for the smallest. A position in a crowd that is asked for no box is not asked at all.

    A long thin box can lie between the positions of its level. It is asked for at the coarsest of
    the finer levels that have positions in it.
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
    wanted = near & (farthest < high)
    missed = near & ~wanted.any(1, keepdim=True)
    coarsest = torch.where(missed, stride, 0.0).amax(1, keepdim=True)
    wanted |= missed & (stride == coarsest)
    area = ((right - left) * (bottom - top)).expand_as(wanted)
    smallest, row = torch.where(wanted, area, torch.inf).min(-1)
    found = smallest.isfinite()
    unasked = (inside & (real & crowd)[:, None]).any(-1) & ~found
    return torch.where(found, row, -1), ~unasked


def loss(
    maps: Sequence[Level],
    strides: Strides,
    boxes: Float[Tensor, "n m 6"],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The loss, a mean over images, and its parts by their short names.

    Each image's sums are divided by its own number of positions that are asked for a box, as
    torchvision's RetinaNet does it, so that the losses of parts of a batch add up.
    """
    told = flat(maps)
    sizes = [(each.shape[2], each.shape[3]) for each in maps]
    middles, steps = positions(sizes, strides, told.device)
    rows, asked = assigned(boxes, middles, steps)
    image, place = (rows >= 0).nonzero(as_tuple=True)
    right = boxes[image, rows[image, place]]
    classes = told.shape[-1] - 5
    logits, distances, centre = told.split([classes, 4, 1], -1)
    goal = torch.zeros_like(logits)
    goal[image, place, right[:, 4].long()] = 1.0
    count = (rows >= 0).sum(1).clamp(min=1).float()
    focal = sigmoid_focal_loss(logits, goal, alpha=0.25, gamma=2.0).sum(-1)
    by_class = (focal * asked).sum(1) / count
    share = 1 / count[image]
    goal_sides = _sides(middles[place], right[:, :4])
    goal_centre = _centreness(goal_sides)
    answer = decoded(distances[image, place], middles[place])
    apart = generalized_box_iou_loss(answer, right[:, :4]) * goal_centre
    weight = torch.zeros_like(count).index_add_(0, image, goal_centre)
    by_box = apart / weight.clamp(min=1e-6)[image]
    by_centre = F.binary_cross_entropy_with_logits(
        centre[image, place, 0], goal_centre, reduction="none"
    )
    n = len(told)
    parts = {
        "classes": by_class.sum() / n,
        "boxes": by_box.sum() / n,
        "centres": (by_centre * share).sum() / n,
    }
    return torch.stack(list(parts.values())).sum(), parts


def candidates(
    maps: Sequence[Level], strides: Strides
) -> tuple[Float[Tensor, "n p 4"], Float[Tensor, "n p k"]]:
    """A box for every position and its score for every class: the root of class times
    centre-ness, as in the journal version.
    """
    told = flat(maps)
    sizes = [(each.shape[2], each.shape[3]) for each in maps]
    middles, _ = positions(sizes, strides, told.device)
    logits, distances, centre = told.split([told.shape[-1] - 5, 4, 1], -1)
    return decoded(distances, middles), (logits.sigmoid() * centre.sigmoid()).sqrt()


def decoded(
    distances: Float[Tensor, "*n 4"], middles: Float[Tensor, "p 2"]
) -> Float[Tensor, "*n 4"]:
    """Corners of the boxes whose sides are so far from their positions (equation 1)."""
    return torch.cat([middles - distances[..., :2], middles + distances[..., 2:]], -1)


def _sides(middles: Tensor, boxes: Tensor) -> Tensor:
    """How far left, top, right and bottom of each box lie from its position."""
    return torch.cat([middles - boxes[:, :2], boxes[:, 2:] - middles], -1)


def _centreness(sides: Tensor) -> Tensor:
    """Equation 3 of the paper: 1 in the middle, 0 on an edge."""
    across, down = sides[:, 0::2], sides[:, 1::2]
    return ((across.amin(1) / across.amax(1)) * (down.amin(1) / down.amax(1))).sqrt()
