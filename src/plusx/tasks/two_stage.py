"""Faster and Mask R-CNN (Ren et al. 2015, He et al. 2017), computed by torchvision inside the
network."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch


KINDS = ("faster-rcnn", "mask-rcnn")
TERM_NAMES = {
    "loss_objectness": "objects",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}


def loss(net: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the sum of torchvision's losses, as in its reference training, and the terms."""
    losses: Mapping[str, Tensor] = net.losses(  # type: ignore[operator]
        batch.inputs, batch.known_targets, batch.extras.get("masks")
    )
    terms = {TERM_NAMES[name]: term for name, term in losses.items()}
    return torch.stack(list(terms.values())).sum(), terms


def detections(net: nn.Module, inputs: Tensor) -> list[dict[str, Tensor]]:
    """Return boxes, scores and labels of each image, and for Mask R-CNN grids of mask
    probabilities."""
    images = []
    for output in net(inputs):
        image = {
            "boxes": output["boxes"].float(),
            "scores": output["scores"].float(),
            "labels": output["labels"] - 1,  # label 0 of torchvision is the background
        }
        if "masks" in output:
            image["grids"] = output["masks"][:, 0].float()
        images.append(image)
    return images


def configure(net: nn.Module, score_threshold: float, nms_iou: float, max_detections: int) -> None:
    """Set the thresholds of torchvision's suppression."""
    heads: Any = net.detector.roi_heads  # type: ignore[union-attr]
    heads.score_thresh, heads.nms_thresh = score_threshold, nms_iou
    heads.detections_per_img = max_detections
