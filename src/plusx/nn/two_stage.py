"""Faster and Mask R-CNN: torchvision's proposals and heads for regions on our features."""

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


FINEST = 4  # the stride of the finest stage that the pyramid stands on
SHAPES = (0.5, 1.0, 2.0)  # an anchor's height over its width


class TwoStage(nn.Module):
    """Proposals on every level of a pyramid, and for each a class and a box, and with Mask R-CNN a
    mask of 28 x 28 positions.

    Modules, defaults and names are torchvision's, under `fpn`, `rpn` and `roi_heads`; with a slim
    pyramid the heads are slim alike. Images are taken as they come: they are scaled, normalised and
    padded before they are a batch.
    """

    def __init__(self, spec: FasterRcnn, levels: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        chosen, width = coarse(levels, FINEST), spec.width
        self.indices = tuple(level.index for level in chosen)
        names = [str(i) for i in range(len(chosen))]
        count = len(chosen) + 1
        if len(spec.anchors) < count:
            raise UserError(
                f"[head] anchors has {len(spec.anchors)} sides; the pyramid on this network has "
                f"{count} levels"
            )
        strides = [level.stride for level in chosen]
        self.strides = (*strides, tuple(2 * step for step in strides[-1]))
        channels = [level.channels for level in chosen]
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
        """Of each image `boxes` (d, 4), `labels` (d,) from 1, `scores` (d,), the surest first, and
        with Mask R-CNN `masks` (d, 1, 28, 28), probabilities within the box."""
        detections, _ = self.run(x, stages, None)
        return detections

    def losses(
        self,
        x: Float[Tensor, "n c h w"],
        stages: Sequence[Tensor],
        boxes: Float[Tensor, "n m 6"],
        masks: UInt8[Tensor, "n m h w"] | None,
    ) -> dict[str, Tensor]:
        """torchvision's losses by its names. Boxes of crowds are left out, as its reference does,
        and those that a scale has left without area, whose logarithms would be infinite.

        Raises UserError where a Mask R-CNN is given no masks.
        """
        if self.roi_heads.has_mask() and masks is None:
            raise UserError("a Mask R-CNN learns from the masks of boxes; the batch has none")
        targets = []
        for i, rows in enumerate(boxes):
            sides = rows[:, 2:4] - rows[:, :2]
            used = (rows[:, 4] >= 0) & (rows[:, 5] < 0.5) & (sides > 0).all(1)
            target = {"boxes": rows[used, :4], "labels": rows[used, 4].long() + 1}
            if masks is not None:
                target["masks"] = masks[i][used]
            targets.append(target)
        _, losses = self.run(x, stages, targets)
        return losses

    def run(
        self, x: Tensor, stages: Sequence[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """What is found, and the losses where there are targets: torchvision's GeneralizedRCNN
        without its preparation of images."""
        size = (int(x.shape[2]), int(x.shape[3]))
        images = ImageList(x, [size] * len(x))
        named_maps = OrderedDict((str(i), stages[place]) for i, place in enumerate(self.indices))
        maps = self.fpn(named_maps)
        proposals, losses = self.rpn(images, maps, targets)
        detections, head_losses = self.roi_heads(maps, proposals, images.image_sizes, targets)
        return detections, {**head_losses, **losses}


def frozen(module: nn.Module) -> nn.Module:
    """The same network with its batch norms as constants: torchvision's FrozenBatchNorm2d."""
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
            frozen(child)
    return module
