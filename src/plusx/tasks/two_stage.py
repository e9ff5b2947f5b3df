"""Faster and Mask R-CNN (Ren et al. 2015, He et al. 2017), by torchvision inside the network."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch


KINDS = ("faster-rcnn", "mask-rcnn")
SHORT = {
    "loss_objectness": "objects",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}


def loss(net: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """torchvision's losses, added up as its reference training does, and the parts."""
    made: Mapping[str, Tensor] = net.losses(batch.inputs, batch.targets, batch.masks)  # type: ignore[operator]
    parts = {SHORT[name]: part for name, part in made.items()}
    return torch.stack(list(parts.values())).sum(), parts


def rows(net: nn.Module, inputs: Tensor, masks: bool) -> list[Float[Tensor, "d _"]]:
    """What each image is told: a row of left, top, right, bottom, score, class, and the mask's
    probabilities in its box.
    """
    made = []
    for told in net(inputs):
        columns = [told["boxes"], told["scores"][:, None], told["labels"][:, None] - 1]
        if masks:
            columns.append(told["masks"].flatten(1))
        made.append(torch.cat([column.to(told["boxes"].dtype) for column in columns], 1))
    return made


def choose(net: nn.Module, score: float, overlap: float, most: int) -> None:
    """What torchvision's own suppression tells."""
    heads: Any = net.detector.roi_heads  # type: ignore[union-attr]
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = score, overlap, most
