"""Detection: boxes of objects and their classes, and with Mask R-CNN a mask for each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import batched_nms

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.tasks import fcos, two_stage, yolo
from plusx.tasks.average_precision import ROW, SIDE, AveragePrecision
from plusx.tasks.meters import Meter
from plusx.tasks.task import Task


SUREST = 1000  # candidates of an image among which the overlapping ones are left out
DETECTORS = ("fcos", "yolo", "faster-rcnn", "mask-rcnn")


class Detect(Task):
    """Find objects: where each is, and of which class.

    net: a `Dense` whose head is one of DETECTORS. Targets are boxes (n, m, 7) as `Batch` says, for
    Mask R-CNN with masks (n, m, h, w). `predict` gives rows (n, d, 6), the surest first: left, top,
    right, bottom in pixels of the input, score and class; rows that stand for no box have class -1.
    With Mask R-CNN 28 * 28 more numbers are the probabilities of the mask in its box.

    score: what a box has to be sure of to be told; overlap: of two boxes of a class that overlap
    more, the surer one is told; most: boxes of an image.
    classes: the names, for the tables.

    After each forward `seen` has the parts that the loss is the sum of.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        score: float = 0.05,
        overlap: float = 0.6,
        most: int = 100,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        kind = getattr(getattr(net, "head_spec", None), "kind", "a linear layer")
        if kind not in DETECTORS:
            raise UserError(
                f'[task] kind = "detect" needs a [head] that finds boxes, not {kind}: '
                f"{', '.join(DETECTORS)}"
            )
        self.net = net
        self.kind = kind
        self.score, self.overlap, self.most = score, overlap, most
        self.classes = None if classes is None else tuple(classes)
        if kind in two_stage.KINDS:
            two_stage.choose(net, score, overlap, most)

    @property
    def scores(self) -> tuple[str, ...]:  # type: ignore[override]
        boxes = ("map50", "map")
        return ("mask_map50", "mask_map", *boxes) if self.kind == "mask-rcnn" else boxes

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        boxes = batch.targets
        if boxes.ndim != 3 or boxes.shape[-1] != 7:
            raise UserError(
                f"targets are of shape {tuple(boxes.shape)}; a detector needs boxes, (n, m, 7)"
            )
        self._refuse_classes(boxes)
        if self.kind in two_stage.KINDS:
            loss, parts = two_stage.loss(self.net, batch)
        elif self.kind == "fcos":
            loss, parts = fcos.loss(self.net(batch.inputs), self._strides, boxes)
        else:
            height, width = batch.inputs.shape[-2:]
            size, maps = (int(height), int(width)), self.net(batch.inputs)
            loss, parts = yolo.loss(maps, self._strides, self._anchors, boxes, size)
        self.seen = {name: part.detach() for name, part in parts.items()}
        return loss

    def predict(self, inputs: Tensor) -> Float[Tensor, "n d _"]:
        if self.kind in two_stage.KINDS:
            told = two_stage.rows(self.net, inputs, masks=self.kind == "mask-rcnn")
            width = ROW + SIDE * SIDE * (self.kind == "mask-rcnn")
            return stacked(told, width, inputs.device)
        maps = self.net(inputs)
        if self.kind == "fcos":
            boxes, scores = fcos.candidates(maps, self._strides)
        else:
            boxes, scores = yolo.candidates(maps, self._strides, self._anchors)
        height, width = inputs.shape[-2:]
        limit = torch.tensor([width, height, width, height], device=boxes.device)
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        told = [
            best(own, sure, self.score, self.overlap, self.most) for own, sure in zip(boxes, scores)
        ]
        return stacked(told, ROW, inputs.device)

    def meters(self) -> list[Meter]:
        names = self.classes
        if names is None:
            names = tuple(map(str, range(self._known())))
        return [AveragePrecision(names)]

    @property
    def _strides(self) -> tuple[tuple[int, int], ...]:
        strides: tuple[tuple[int, int], ...] = self.net.level_strides  # type: ignore[assignment]
        return strides

    @property
    def _anchors(self) -> tuple[tuple[int, int], ...]:
        anchors: tuple[tuple[int, int], ...] = self.net.head_spec.anchors  # type: ignore[union-attr, assignment]
        return anchors

    def _known(self) -> int:
        known: int = self.net.num_classes  # type: ignore[assignment]
        return known

    def _refuse_classes(self, boxes: Tensor) -> None:
        highest, known = int(boxes[..., 4].max()), self._known()
        if highest >= known:
            raise UserError(
                f"a box is of class {highest}; a network of {known} classes allows 0 to {known - 1}"
            )


def best(
    boxes: Float[Tensor, "p 4"],
    scores: Float[Tensor, "p k"],
    score: float,
    overlap: float,
    most: int,
) -> Float[Tensor, "d 6"]:
    """The rows of an image that are told: sure enough, and of those of a class that overlap more
    than `overlap` the surest (Felzenszwalb et al. 2010, section 5: non-maximum suppression).
    """
    place, category = (scores > score).nonzero(as_tuple=True)
    sure, order = scores[place, category].sort(descending=True, stable=True)
    order, sure = order[:SUREST], sure[:SUREST]
    place, category = place[order], category[order]
    kept = batched_nms(boxes[place], sure, category, overlap)[:most]
    return torch.cat(
        [boxes[place[kept]], sure[kept, None], category[kept, None].to(boxes.dtype)], 1
    )


def stacked(
    rows: Sequence[Float[Tensor, "_ _"]], width: int, device: torch.device
) -> Float[Tensor, "n d w"]:
    """Rows of all images in one tensor; those that fill it up are 0 and of class -1."""
    most = max((len(each) for each in rows), default=0)
    made = torch.zeros(len(rows), max(most, 1), width, device=device)
    made[..., 5] = -1
    for place, each in enumerate(rows):
        made[place, : len(each)] = each
    return made
