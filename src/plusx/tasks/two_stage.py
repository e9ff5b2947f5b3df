"""Faster and Mask R-CNN (Ren et al. 2015, He et al. 2017), computed by torchvision inside the
network."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from plusx.data.batch import Batch
from plusx.tasks.suppression import Suppression


TERM_NAMES = {
    "loss_objectness": "objects",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}


def loss_of_batch(net: Any, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the sum of torchvision's losses, as in its reference training, and the terms."""
    losses: Mapping[str, Tensor] = net.losses(
        batch.inputs, batch.known_targets, batch.extras.get("masks")
    )
    terms = {TERM_NAMES[name]: term for name, term in losses.items()}
    return torch.stack(list(terms.values())).sum(), terms


def detections(net: Any, inputs: Tensor, suppression: Suppression) -> list[dict[str, Tensor]]:
    """Return boxes, scores and labels of each image, and for Mask R-CNN grids of mask
    probabilities. The suppression is torchvision's."""
    heads = net.detector.roi_heads
    heads.score_thresh, heads.nms_thresh = suppression.score_threshold, suppression.nms_iou
    heads.detections_per_img = suppression.max_detections
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
