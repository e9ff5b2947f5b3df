"""Faster and Mask R-CNN: torchvision's region proposals and heads on our features."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from plusx.errors import UserError
from plusx.grammar.heads import FasterRcnn
from plusx.nn.feature_info import FeatureInfo
from plusx.nn.pyramid import coarse


FINEST = 4  # smallest stride of a stage that the pyramid uses
SHAPES = (0.5, 1.0, 2.0)  # an anchor's height over its width


class TwoStage(nn.Module):
    """Region proposals with a class and a box for each, and with Mask R-CNN a 28 x 28 mask.

    Modules, defaults and names are torchvision's, under `fpn`, `rpn` and `roi_heads`; the heads are
    as narrow as the pyramid. Images are scaled, normalised and padded before, as a batch.
    """

    def __init__(self, spec: FasterRcnn, levels: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        stages, width = coarse(levels, FINEST), spec.width
        self.indices = tuple(level.index for level in stages)
        names = [str(i) for i in range(len(stages))]
        count = len(stages) + 1
        if len(spec.anchors) < count:
            raise UserError(
                f"[head] anchors has {len(spec.anchors)} sides; the pyramid on this network has "
                f"{count} levels"
            )
        strides = [level.stride for level in stages]
        self.strides = (*strides, tuple(2 * step for step in strides[-1]))
        channels = [level.channels for level in stages]
        self.fpn = FeaturePyramidNetwork(channels, width, LastLevelMaxPool())
        anchors = AnchorGenerator(
            tuple((side,) for side in spec.anchors[:count]), (SHAPES,) * count
        )
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(width, len(SHAPES)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        masks: dict[str, Any] = {}
        if spec.has_masks:
            masks = {
                "mask_roi_pool": MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
                "mask_head": MaskRCNNHeads(width, (width,) * 4, 1),
                "mask_predictor": MaskRCNNPredictor(width, width, num_classes + 1),
            }
        hidden = 4 * width
        self.roi_heads = RoIHeads(
            MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
            TwoMLPHead(width * 7 * 7, hidden),
            FastRCNNPredictor(hidden, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=spec.regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **masks,
        )

    def forward(
        self, x: Float[Tensor, "n c h w"], stem: Sequence[Tensor], stages: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """Return for each image `boxes` (d, 4), `labels` (d,) from 1, `scores` (d,), the highest
        first, and with Mask R-CNN `masks` (d, 1, 28, 28), probabilities within the box."""
        detections, _ = self.run(x, stages, None)
        return detections

    def losses(
        self,
        x: Float[Tensor, "n c h w"],
        stages: Sequence[Tensor],
        boxes: Float[Tensor, "n m 6"],
        masks: UInt8[Tensor, "n m h w"] | None,
    ) -> dict[str, Tensor]:
        """Return torchvision's losses by its names, in training and in evaluation mode.

        Crowds are excluded, as in its reference training, and boxes without area, whose logarithms
        would be infinite. Raises UserError if a Mask R-CNN has no masks.
        """
        if self.roi_heads.has_mask() and masks is None:
            raise UserError("a Mask R-CNN needs instance masks; the batch has none")
        targets = []
        for i, rows in enumerate(boxes):
            sides = rows[:, 2:4] - rows[:, :2]
            used = (rows[:, 4] >= 0) & (rows[:, 5] < 0.5) & (sides > 0).all(1)
            target = {"boxes": rows[used, :4], "labels": rows[used, 4].long() + 1}
            if masks is not None:
                target["masks"] = masks[i][used]
            targets.append(target)
        modules = (self.rpn, self.roi_heads)
        modes = [module.training for module in modules]
        try:
            for module in modules:
                module.training = True  # of torchvision's losses, not of layers inside
            _, losses = self.run(x, stages, targets)
        finally:
            for module, mode in zip(modules, modes):
                module.training = mode
        return losses

    def run(
        self, x: Tensor, stages: Sequence[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the detections, and with targets the losses: torchvision's GeneralizedRCNN without
        its image preparation."""
        size = (int(x.shape[2]), int(x.shape[3]))
        images = ImageList(x, [size] * len(x))
        named_maps = OrderedDict((str(i), stages[index]) for i, index in enumerate(self.indices))
        maps = self.fpn(named_maps)
        proposals, losses = self.rpn(images, maps, targets)
        detections, head_losses = self.roi_heads(maps, proposals, images.image_sizes, targets)
        return detections, {**head_losses, **losses}


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """Replace batch norms by torchvision's FrozenBatchNorm2d; return the module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            constant = FrozenBatchNorm2d(child.num_features, child.eps)
            state = child.state_dict()
            with torch.no_grad():
                for key, buffer in constant.named_buffers():
                    if key in state:
                        buffer.copy_(state[key])
            module.add_module(name, constant)
        else:
            freeze_batch_norms(child)
    return module
