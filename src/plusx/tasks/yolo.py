"""YOLOv3 (Redmon and Farhadi 2018): the anchors, the loss, and boxes from what the levels tell."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou


# Width and height in pixels of the input, of the levels of stride 8, 16 and 32 (section 2.3).
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
ALIKE = 0.5  # overlap from which a box that is not asked is left alone (section 2.1)
WIDEST = 6.0  # of the exponent of a side, so that none overflows

Level = Float[Tensor, "n _ _ _"]  # (n, channels, height, width)
Strides = Sequence[tuple[int, int]]  # of the levels: the input's positions a step, down and right


def flat(maps: Sequence[Level]) -> Float[Tensor, "n _ _"]:
    """What all levels tell, a row of x, y, width, height, objectness and classes for each anchor.

    Level by level, anchor by anchor, row by row: `slots` names them in the same order.
    """
    rows = []
    for each in maps:
        n, channels, height, width = each.shape
        apart = each.float().reshape(n, len(ANCHORS[0]), channels // len(ANCHORS[0]), height, width)
        rows.append(apart.permute(0, 1, 3, 4, 2).flatten(1, 3))
    return torch.cat(rows, 1)


def slots(
    sizes: Sequence[tuple[int, int]], strides: Strides, device: torch.device
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, "p 2"], Float[Tensor, "p 2"]]:
    """Of every anchor of every cell, all as (x, y): the cell, the anchor's sides, the stride."""
    cells, sides, steps = [], [], []
    for (height, width), (down, right), anchors in zip(sizes, strides, ANCHORS, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        cell = torch.stack([x, y], -1).reshape(-1, 2).float()
        for anchor in anchors:
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
    boxes: Float[Tensor, "n m 7"], sizes: Sequence[tuple[int, int]], strides: Strides
) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"], Int[Tensor, "b"]]:
    """Image, row and slot of every box that is to be found.

    It belongs to the one of all anchors that is most like it in shape, in the cell of its middle.
    """
    image, row = ((boxes[..., 4] >= 0) & (boxes[..., 5] <= 0.5)).nonzero(as_tuple=True)
    found = boxes[image, row]
    wide, high = (found[:, 2] - found[:, 0])[:, None], (found[:, 3] - found[:, 1])[:, None]
    anchors = torch.tensor(ANCHORS, device=boxes.device).float().reshape(-1, 2)
    shared = torch.minimum(wide, anchors[:, 0]) * torch.minimum(high, anchors[:, 1])
    alike = shared / (wide * high + anchors.prod(1) - shared)
    most = alike.argmax(1)
    level, anchor = most // len(ANCHORS[0]), most % len(ANCHORS[0])
    shape = torch.tensor(sizes, device=boxes.device)[level]
    step = torch.tensor(strides, device=boxes.device)[level]
    x = ((found[:, 0] + found[:, 2]) / 2 / step[:, 1]).long().clamp(min=0)
    y = ((found[:, 1] + found[:, 3]) / 2 / step[:, 0]).long().clamp(min=0)
    x, y = x.minimum(shape[:, 1] - 1), y.minimum(shape[:, 0] - 1)
    counts = [len(ANCHORS[0]) * height * width for height, width in sizes]
    begin = torch.tensor([0, *counts], device=boxes.device).cumsum(0)[level]
    return image, row, begin + (anchor * shape[:, 0] + y) * shape[:, 1] + x


def loss(
    maps: Sequence[Level],
    strides: Strides,
    boxes: Float[Tensor, "n m 7"],
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
    cells, sides, steps = slots(sizes, strides, told.device)
    image, row, slot = assigned(boxes, sizes, strides)
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
    maps: Sequence[Level], strides: Strides
) -> tuple[Float[Tensor, "n p 4"], Float[Tensor, "n p k"]]:
    """A box for every anchor and its score for every class: objectness times class."""
    told = flat(maps)
    sizes = [(each.shape[2], each.shape[3]) for each in maps]
    boxes = decoded(told, *slots(sizes, strides, told.device))
    return boxes, told[..., 4:5].sigmoid() * told[..., 5:].sigmoid()


def _asked(found: Float[Tensor, "n p 4"], boxes: Float[Tensor, "n m 7"]) -> Bool[Tensor, "n p"]:
    """Which boxes overlap none that is there by more than a half, nor stand in a crowd."""
    asked = []
    for told, right in zip(found, boxes):
        there = right[right[:, 4] >= 0]
        free = ~(box_iou(told, there[:, :4]) > ALIKE).any(1)
        left, top, end, bottom = there[there[:, 5] > 0.5, :4].T
        x, y = ((told[:, :2] + told[:, 2:]) / 2).T[..., None]
        asked.append(free & ~((x > left) & (x < end) & (y > top) & (y < bottom)).any(1))
    return torch.stack(asked)
