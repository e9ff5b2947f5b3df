"""Detection: boxes of objects with their classes, and with Mask R-CNN a mask for each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import batched_nms

from plusx.data.batch import Batch
from plusx.data.prediction import MASK_SIDE, Detections
from plusx.errors import UserError
from plusx.metrics.detection import DetectionMeter
from plusx.metrics.meter import Meter
from plusx.tasks import fcos, two_stage, yolo
from plusx.tasks.task import Task


CANDIDATES = 1000  # boxes per image, those of the highest scores, before non-maximum suppression
DETECTORS = ("fcos", "yolo", "faster-rcnn", "mask-rcnn")


class Detect(Task):
    """Detection: the boxes and classes of objects.

    net: a network with a head of one of DETECTORS. Targets are boxes (n, m, 6) as in `Batch`, for
    Mask R-CNN with instance masks (`extras["masks"]`). `predict` returns `Detections` in pixels of
    the input, by decreasing score.

    score_threshold: boxes of a lower score are dropped; nms_iou: IoU threshold of the per-class
    non-maximum suppression; max_detections: boxes per image. class_names: for the tables.

    After each forward `scalars` has the terms of the loss.
    """

    dense = True

    def __init__(
        self,
        net: nn.Module,
        *,
        score_threshold: float = 0.05,
        nms_iou: float = 0.6,
        max_detections: int = 100,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        kind = getattr(getattr(net, "head_spec", None), "kind", "a linear layer")
        if kind not in DETECTORS:
            raise UserError(
                f'[task] kind = "detect" needs a [head] of a detector, not {kind}: '
                f"{', '.join(DETECTORS)}"
            )
        self.net = net
        self.kind = kind
        self.score_threshold, self.nms_iou = score_threshold, nms_iou
        self.max_detections = max_detections
        self.class_names = None if class_names is None else tuple(class_names)
        if kind in two_stage.KINDS:
            two_stage.configure(net, score_threshold, nms_iou, max_detections)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        boxes = ("map50", "map")
        return ("mask_map50", "mask_map", *boxes) if self.kind == "mask-rcnn" else boxes

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        boxes = batch.known_targets
        if boxes.ndim != 3 or boxes.shape[-1] != 6:
            raise UserError(
                f"targets are of shape {tuple(boxes.shape)}; a detector needs boxes, (n, m, 6)"
            )
        self._refuse_classes(boxes)
        if self.kind in two_stage.KINDS:
            loss, terms = two_stage.loss(self.net, batch)
        elif self.kind == "fcos":
            loss, terms = fcos.loss(self.net(batch.inputs), self._strides, boxes)
        else:
            height, width = batch.inputs.shape[-2:]
            size, maps = (int(height), int(width)), self.net(batch.inputs)
            loss, terms = yolo.loss(maps, self._strides, self._anchors, boxes, size)
        self.scalars = {name: term.detach() for name, term in terms.items()}
        return loss

    def predict(self, batch: Batch) -> Detections:
        inputs = batch.inputs
        if self.kind in two_stage.KINDS:
            return padded(two_stage.detections(self.net, inputs), inputs.device)
        outputs = self.net(inputs)
        if self.kind == "fcos":
            boxes, scores = fcos.candidates(outputs, self._strides)
        else:
            boxes, scores = yolo.candidates(outputs, self._strides, self._anchors)
        height, width = inputs.shape[-2:]
        limits = torch.tensor([width, height, width, height], device=boxes.device)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        images = [self._suppressed(*candidates) for candidates in zip(boxes, scores)]
        return padded(images, inputs.device)

    def _suppressed(
        self, boxes: Float[Tensor, "p 4"], scores: Float[Tensor, "p k"]
    ) -> dict[str, Tensor]:
        """Per-class non-maximum suppression (Felzenszwalb et al. 2010, section 5)."""
        index, label = (scores > self.score_threshold).nonzero(as_tuple=True)
        best, order = scores[index, label].sort(descending=True, stable=True)
        order, best = order[:CANDIDATES], best[:CANDIDATES]
        index, label = index[order], label[order]
        selected = batched_nms(boxes[index], best, label, self.nms_iou)[: self.max_detections]
        return {
            "boxes": boxes[index[selected]],
            "scores": best[selected],
            "labels": label[selected],
        }

    def meters(self) -> list[Meter]:
        names = self.class_names or tuple(map(str, range(self._num_classes)))
        return [DetectionMeter(names)]

    @property
    def _strides(self) -> tuple[tuple[int, int], ...]:
        strides: tuple[tuple[int, int], ...] = self.net.level_strides  # type: ignore[assignment]
        return strides

    @property
    def _anchors(self) -> tuple[tuple[int, int], ...]:
        anchors: tuple[tuple[int, int], ...] = self.net.head_spec.anchors  # type: ignore[union-attr, assignment]
        return anchors

    @property
    def _num_classes(self) -> int:
        num_classes: int = self.net.num_classes  # type: ignore[assignment]
        return num_classes

    def _refuse_classes(self, boxes: Tensor) -> None:
        highest, num_classes = int(boxes[..., 4].max()), self._num_classes
        if highest >= num_classes:
            raise UserError(
                f"a box is of class {highest}; a network of {num_classes} classes allows 0 to "
                f"{num_classes - 1}"
            )


def padded(images: Sequence[dict[str, Tensor]], device: torch.device) -> Detections:
    """Return the detections of all images, padded with zeros and label -1."""
    length = max(1, *(len(image["labels"]) for image in images)) if images else 1
    n = len(images)
    boxes, scores = torch.zeros(n, length, 4, device=device), torch.zeros(n, length, device=device)
    labels = torch.full((n, length), -1, device=device)
    has_masks = bool(images) and "grids" in images[0]
    side = (MASK_SIDE, MASK_SIDE)
    grids = torch.zeros(n, length, *side, device=device) if has_masks else None
    for index, image in enumerate(images):
        count = len(image["labels"])
        boxes[index, :count], scores[index, :count] = image["boxes"], image["scores"]
        labels[index, :count] = image["labels"]
        if grids is not None:
            grids[index, :count] = image["grids"]
    return Detections(boxes, scores, labels, grids)
