"""YOLOv3 (Redmon and Farhadi 2018): the anchors, the loss, and boxes from what the levels tell."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou


EACH = 3  # anchors of a level
ALIKE = 0.5  # overlap from which a box that is not asked is left alone (section 2.1)
WIDEST = 6.0  # of the exponent of a side, so that none overflows

Level = Float[Tensor, "n _ _ _"]  # (n, channels, height, width)
Anchors = Sequence[tuple[int, int]]  # width and height of nine, those of the finest level first
Strides = Sequence[tuple[int, int]]  # of the levels: the input's positions a step, down and right


def flat(maps: Sequence[Level]) -> Float[Tensor, "n _ _"]:
    """What all levels tell, a row of x, y, width, height, objectness and classes for each anchor.

    Level by level, anchor by anchor, row by row: `slots` names them in the same order.
    """
    rows = []
    for each in maps:
        n, channels, height, width = each.shape
        apart = each.float().reshape(n, EACH, channels // EACH, height, width)
        rows.append(apart.permute(0, 1, 3, 4, 2).flatten(1, 3))
    return torch.cat(rows, 1)


def slots(
    sizes: Sequence[tuple[int, int]], strides: Strides, anchors: Anchors, device: torch.device
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, "p 2"], Float[Tensor, "p 2"]]:
    """Of every anchor of every cell, all as (x, y): the cell, the anchor's sides, the stride."""
    cells, sides, steps = [], [], []
    of_levels = [anchors[begin : begin + EACH] for begin in range(0, len(anchors), EACH)]
    for (height, width), (down, right), own in zip(sizes, strides, of_levels, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        cell = torch.stack([x, y], -1).reshape(-1, 2).float()
        for anchor in own:
            cells.append(cell)
            sides.append(torch.tensor(anchor, device=device).float().expand(len(cell), 2))
            steps.append(torch.tensor([right, down], device=device).float().expand(len(cell), 2))
    return torch.cat(cells), torch.cat(sides), torch.cat(steps)


def decoded(
    told: Float[Tensor, "n p d"],
    cells: Float[Tensor, "p 2"],
    sides: Float[Tensor, "p 2"],
    strides: Float[Tensor, "p 2"],
) -> Float[Tensor, "n p 4"]:
    """Corners: the middle is cell + sigmoid(t), the sides are anchor * exp(t) (section 2.1)."""
    middle = (told[..., :2].sigmoid() + cells) * strides
    half = told[..., 2:4].clamp(max=WIDEST).exp() * sides / 2
    return torch.cat([middle - half, middle + half], -1)


def assigned(
    boxes: Float[Tensor, "n m 6"],
    sizes: Sequence[tuple[int, int]],
    strides: Strides,
    anchors: Anchors,
) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"], Int[Tensor, "b"]]:
    """Image, row and slot of every box that is to be found.

    It belongs to the one of all anchors that is most like it in shape, in the cell of its middle.
    """
    image, row = ((boxes[..., 4] >= 0) & (boxes[..., 5] <= 0.5)).nonzero(as_tuple=True)
    found = boxes[image, row]
    wide, high = (found[:, 2] - found[:, 0])[:, None], (found[:, 3] - found[:, 1])[:, None]
    sides = torch.tensor(anchors, device=boxes.device).float()
    shared = torch.minimum(wide, sides[:, 0]) * torch.minimum(high, sides[:, 1])
    alike = shared / (wide * high + sides.prod(1) - shared)
    most = alike.argmax(1)
    level, anchor = most // EACH, most % EACH
    shape = torch.tensor(sizes, device=boxes.device)[level]
    stride = torch.tensor(strides, device=boxes.device)[level]
    x = ((found[:, 0] + found[:, 2]) / 2 / stride[:, 1]).long().clamp(min=0)
    y = ((found[:, 1] + found[:, 3]) / 2 / stride[:, 0]).long().clamp(min=0)
    x, y = x.minimum(shape[:, 1] - 1), y.minimum(shape[:, 0] - 1)
    counts = [EACH * height * width for height, width in sizes]
    begin = torch.tensor([0, *counts], device=boxes.device).cumsum(0)[level]
    return image, row, begin + (anchor * shape[:, 0] + y) * shape[:, 1] + x


def loss(
    maps: Sequence[Level],
    strides: Strides,
    anchors: Anchors,
    boxes: Float[Tensor, "n m 6"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The loss, a mean over images of sums over boxes, and its parts by their short names.

    As in the authors' program: cross-entropy of the middles, squares of the sides' logarithms,
    both weighted by 2 less the box's share of the image (size: height, width); cross-entropy of
    objectness, of which anchors are left out that are not asked but overlap a box by more than
    one half; and of every class on its own.
    """
    told = flat(maps)
    sizes = [(each.shape[2], each.shape[3]) for each in maps]
    cells, sides, steps = slots(sizes, strides, anchors, told.device)
    image, row, slot = assigned(boxes, sizes, strides, anchors)
    right, answer = boxes[image, row], told[image, slot]
    middle = (right[:, :2] + right[:, 2:4]) / 2 / steps[slot]
    goal = (middle - cells[slot]).clamp(0, 1)
    box_sides = (right[:, 2:4] - right[:, :2]).clamp(min=1e-3)
    weight = 2 - box_sides.prod(1) / (size[0] * size[1])
    apart = F.binary_cross_entropy_with_logits(answer[:, :2], goal, reduction="none").sum(1)
    stretch = ((answer[:, 2:4] - (box_sides / sides[slot]).log()) ** 2).sum(1) / 2
    wanted = torch.zeros(told.shape[:2], device=told.device)
    wanted[image, slot] = 1.0
    with torch.no_grad():
        asked = _asked(decoded(told, cells, sides, steps), boxes) | (wanted > 0)
    objects = F.binary_cross_entropy_with_logits(told[..., 4], wanted, reduction="none")
    classes = F.one_hot(right[:, 4].long(), told.shape[-1] - 5).float()
    by_class = F.binary_cross_entropy_with_logits(answer[:, 5:], classes, reduction="none")
    n = len(told)
    parts = {
        "boxes": (weight * (apart + stretch)).sum() / n,
        "objects": (objects * asked).sum() / n,
        "classes": by_class.sum() / n,
    }
    return torch.stack(list(parts.values())).sum(), parts


def candidates(
    maps: Sequence[Level], strides: Strides, anchors: Anchors
) -> tuple[Float[Tensor, "n p 4"], Float[Tensor, "n p k"]]:
    """A box for every anchor and its score for every class: objectness times class."""
    told = flat(maps)
    sizes = [(each.shape[2], each.shape[3]) for each in maps]
    boxes = decoded(told, *slots(sizes, strides, anchors, told.device))
    return boxes, told[..., 4:5].sigmoid() * told[..., 5:].sigmoid()


def _asked(found: Float[Tensor, "n p 4"], boxes: Float[Tensor, "n m 6"]) -> Bool[Tensor, "n p"]:
    """Which boxes overlap none that is there by more than a half, nor stand in a crowd."""
    asked = []
    for told, right in zip(found, boxes):
        there = right[right[:, 4] >= 0]
        free = ~(box_iou(told, there[:, :4]) > ALIKE).any(1)
        left, top, end, bottom = there[there[:, 5] > 0.5, :4].T
        x, y = ((told[:, :2] + told[:, 2:]) / 2).T[..., None]
        asked.append(free & ~((x > left) & (x < end) & (y > top) & (y < bottom)).any(1))
    return torch.stack(asked)
