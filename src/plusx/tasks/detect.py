"""Detection: boxes of objects with their classes, and with Mask R-CNN a mask for each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.prediction import MASK_SIDE, Detections
from plusx.errors import UserError
from plusx.metrics.detection import DetectionMeter
from plusx.metrics.meter import Meter
from plusx.tasks import fcos, two_stage, yolo
from plusx.tasks.suppression import Suppression
from plusx.tasks.task import Task


# head -> loss and detections of a network with it
DETECTORS = {"fcos": fcos, "yolo": yolo, "faster-rcnn": two_stage, "mask-rcnn": two_stage}


class Detect(Task):
    """Detection: the boxes and classes of objects.

    net: a network with a head of one of DETECTORS. Targets are boxes (n, m, 6) as in `Batch`, for
    Mask R-CNN with instance masks (`extras["masks"]`). `predict` returns `Detections` in pixels of
    the input, by decreasing score.

    score_threshold, nms_iou, max_detections: of the `Suppression` of overlapping boxes
    class_names: for the tables

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
        self.suppression = Suppression(score_threshold, nms_iou, max_detections)
        self.class_names = None if class_names is None else tuple(class_names)

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
        loss, terms = DETECTORS[self.kind].loss_of_batch(self.net, batch)
        self.scalars = {name: term.detach() for name, term in terms.items()}
        return loss

    def predict(self, batch: Batch) -> Detections:
        images = DETECTORS[self.kind].detections(self.net, batch.inputs, self.suppression)
        return padded(images, batch.inputs.device)

    def meters(self) -> list[Meter]:
        names = self.class_names or tuple(map(str, range(self._num_classes)))
        return [DetectionMeter(names)]

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
