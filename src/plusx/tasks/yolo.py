"""YOLOv3 (Redmon and Farhadi 2018): the anchors, the loss, and boxes from the outputs."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from plusx.data.batch import Batch
from plusx.tasks.suppression import Suppression


PER_LEVEL = 3  # anchors per level
IGNORED_IOU = 0.5  # IoU above which an anchor without a box is ignored (section 2.1)
MAX_EXPONENT = 6.0  # largest exponent of a side, which prevents overflow

Level = Float[Tensor, "n _ _ _"]  # (n, channels, height, width)
Anchors = Sequence[tuple[int, int]]  # width and height of nine anchors, the finest level first
Strides = Sequence[tuple[int, int]]  # of the levels: input positions per step, down and right


def loss_of_batch(net: Any, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss of a network with a YOLO head, and its terms by name."""
    height, width = batch.inputs.shape[-2:]
    maps, boxes = net(batch.inputs), batch.known_targets
    return loss(maps, net.level_strides, net.head_spec.anchors, boxes, (height, width))


def detections(net: Any, inputs: Tensor, suppression: Suppression) -> list[dict[str, Tensor]]:
    """Return the detections of each image by a network with a YOLO head."""
    height, width = inputs.shape[-2:]
    boxes, scores = candidates(net(inputs), net.level_strides, net.head_spec.anchors)
    return suppression.detections(boxes, scores, (height, width))


def flat(maps: Sequence[Level]) -> Float[Tensor, "n _ _"]:
    """Return the outputs of all levels: one row of x, y, width, height, objectness, classes per
    anchor. Level by level, anchor by anchor, row by row, in the same order as `slots`."""
    rows = []
    for level in maps:
        n, channels, height, width = level.shape
        split = level.float().reshape(n, PER_LEVEL, channels // PER_LEVEL, height, width)
        rows.append(split.permute(0, 1, 3, 4, 2).flatten(1, 3))
    return torch.cat(rows, 1)


def slots(
    sizes: Sequence[tuple[int, int]], strides: Strides, anchors: Anchors, device: torch.device
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, "p 2"], Float[Tensor, "p 2"]]:
    """Return, for every anchor of every cell and as (x, y): the cell, the sides of the anchor, the
    stride."""
    cells, sides, steps = [], [], []
    anchors_by_level = [
        anchors[start : start + PER_LEVEL] for start in range(0, len(anchors), PER_LEVEL)
    ]
    for (height, width), (down, right), level_anchors in zip(
        sizes, strides, anchors_by_level, strict=True
    ):
        y, x = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        cell = torch.stack([x, y], -1).reshape(-1, 2).float()
        for anchor in level_anchors:
            cells.append(cell)
            sides.append(torch.tensor(anchor, device=device).float().expand(len(cell), 2))
            steps.append(torch.tensor([right, down], device=device).float().expand(len(cell), 2))
    return torch.cat(cells), torch.cat(sides), torch.cat(steps)


def decoded(
    outputs: Float[Tensor, "n p d"],
    cells: Float[Tensor, "p 2"],
    sides: Float[Tensor, "p 2"],
    strides: Float[Tensor, "p 2"],
) -> Float[Tensor, "n p 4"]:
    """Return the corners: the centre is cell + sigmoid(t), the sides are anchor * exp(t) (section
    2.1)."""
    centre = (outputs[..., :2].sigmoid() + cells) * strides
    half = outputs[..., 2:4].clamp(max=MAX_EXPONENT).exp() * sides / 2
    return torch.cat([centre - half, centre + half], -1)


def assign(
    boxes: Float[Tensor, "n m 6"],
    sizes: Sequence[tuple[int, int]],
    strides: Strides,
    anchors: Anchors,
) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"], Int[Tensor, "b"]]:
    """Return image, row and slot of every box that is not a crowd. A box is assigned to the anchor
    with the most similar shape, in the cell of its centre."""
    image, row = ((boxes[..., 4] >= 0) & (boxes[..., 5] <= 0.5)).nonzero(as_tuple=True)
    objects = boxes[image, row]
    box_sides = (objects[:, 2:4] - objects[:, :2])[:, None]
    sides = torch.tensor(anchors, device=boxes.device).float()
    intersection = torch.minimum(box_sides, sides).prod(2)
    iou = intersection / (box_sides.prod(2) + sides.prod(1) - intersection)
    best = iou.argmax(1)
    level, anchor = best // PER_LEVEL, best % PER_LEVEL
    shape = torch.tensor(sizes, device=boxes.device)[level]
    stride = torch.tensor(strides, device=boxes.device)[level]
    x = ((objects[:, 0] + objects[:, 2]) / 2 / stride[:, 1]).long().clamp(min=0)
    y = ((objects[:, 1] + objects[:, 3]) / 2 / stride[:, 0]).long().clamp(min=0)
    x, y = x.minimum(shape[:, 1] - 1), y.minimum(shape[:, 0] - 1)
    counts = [PER_LEVEL * height * width for height, width in sizes]
    start = torch.tensor([0, *counts], device=boxes.device).cumsum(0)[level]
    return image, row, start + (anchor * shape[:, 0] + y) * shape[:, 1] + x


def loss(
    maps: Sequence[Level],
    strides: Strides,
    anchors: Anchors,
    boxes: Float[Tensor, "n m 6"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss, a mean over images of sums over boxes, and its terms by name.

    As in the authors' program: cross-entropy of the centres and squared error of the logarithms of
    the sides, both weighted by 2 minus the box's fraction of the image (size: height, width);
    cross-entropy of objectness, except for anchors without a box that overlap one by more than
    half; and binary cross-entropy of every class.
    """
    outputs = flat(maps)
    sizes = [(level.shape[2], level.shape[3]) for level in maps]
    cells, sides, steps = slots(sizes, strides, anchors, outputs.device)
    image, row, slot = assign(boxes, sizes, strides, anchors)
    targets, predicted = boxes[image, row], outputs[image, slot]
    centre = (targets[:, :2] + targets[:, 2:4]) / 2 / steps[slot]
    target_centre = (centre - cells[slot]).clamp(0, 1)
    box_sides = (targets[:, 2:4] - targets[:, :2]).clamp(min=1e-3)
    weight = 2 - box_sides.prod(1) / (size[0] * size[1])
    centre_loss = F.binary_cross_entropy_with_logits(
        predicted[:, :2], target_centre, reduction="none"
    ).sum(1)
    side_loss = ((predicted[:, 2:4] - (box_sides / sides[slot]).log()) ** 2).sum(1) / 2
    objectness = torch.zeros(outputs.shape[:2], device=outputs.device)
    objectness[image, slot] = 1.0
    with torch.no_grad():
        evaluated = _evaluated(decoded(outputs, cells, sides, steps), boxes) | (objectness > 0)
    objects = F.binary_cross_entropy_with_logits(outputs[..., 4], objectness, reduction="none")
    classes = F.one_hot(targets[:, 4].long(), outputs.shape[-1] - 5).float()
    by_class = F.binary_cross_entropy_with_logits(predicted[:, 5:], classes, reduction="none")
    n = len(outputs)
    terms = {
        "boxes": (weight * (centre_loss + side_loss)).sum() / n,
        "objects": (objects * evaluated).sum() / n,
        "classes": by_class.sum() / n,
    }
    return torch.stack(list(terms.values())).sum(), terms


def candidates(
    maps: Sequence[Level], strides: Strides, anchors: Anchors
) -> tuple[Float[Tensor, "n p 4"], Float[Tensor, "n p k"]]:
    """Return a box for every anchor and its score for every class: objectness times class score."""
    outputs = flat(maps)
    sizes = [(level.shape[2], level.shape[3]) for level in maps]
    boxes = decoded(outputs, *slots(sizes, strides, anchors, outputs.device))
    return boxes, outputs[..., 4:5].sigmoid() * outputs[..., 5:].sigmoid()


def _evaluated(
    predictions: Float[Tensor, "n p 4"], boxes: Float[Tensor, "n m 6"]
) -> Bool[Tensor, "n p"]:
    """Whether predicted boxes overlap no object by more than half, and are not in a crowd."""
    evaluated = []
    for predicted, annotations in zip(predictions, boxes):
        objects = annotations[annotations[:, 4] >= 0]
        no_overlap = ~(box_iou(predicted, objects[:, :4]) > IGNORED_IOU).any(1)
        left, top, end, bottom = objects[objects[:, 5] > 0.5, :4].T
        x, y = ((predicted[:, :2] + predicted[:, 2:]) / 2).T[..., None]
        evaluated.append(no_overlap & ~((x > left) & (x < end) & (y > top) & (y < bottom)).any(1))
    return torch.stack(evaluated)
