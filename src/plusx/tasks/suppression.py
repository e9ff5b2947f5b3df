"""Detections from many overlapping boxes with scores."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import batched_nms


CANDIDATES = 1000  # boxes per image, those of the highest scores, before the suppression


@dataclass(frozen=True)
class Suppression:
    """Per-class non-maximum suppression (Felzenszwalb et al. 2010, section 5).

    score_threshold: boxes of a lower score are dropped; nms_iou: IoU with a box of a higher score
    above which a box is dropped; max_detections: boxes per image.
    """

    score_threshold: float
    nms_iou: float
    max_detections: int

    def detections(
        self,
        boxes: Float[Tensor, "n p 4"],
        scores: Float[Tensor, "n p k"],
        size: tuple[int, int],
    ) -> list[dict[str, Tensor]]:
        """Return boxes, scores and labels of each image, by decreasing score.

        scores: of every box for every class
        size: height and width of the images, in which boxes are cut off
        """
        height, width = size
        limits = torch.tensor([width, height, width, height], device=boxes.device)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        return [self._of_image(*candidates) for candidates in zip(boxes, scores)]

    def _of_image(
        self, boxes: Float[Tensor, "p 4"], scores: Float[Tensor, "p k"]
    ) -> dict[str, Tensor]:
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
