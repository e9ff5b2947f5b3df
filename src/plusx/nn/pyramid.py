"""One-stage detectors: a feature pyramid with the towers of FCOS, and the head of YOLOv3."""

import math
from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.errors import UserError
from plusx.grammar.arithmetic import LayerContext
from plusx.grammar.heads import Fcos, Yolo
from plusx.grammar.spec import Net
from plusx.nn.block import LayerSequence
from plusx.nn.decoders import distinct, shape_of
from plusx.nn.feature_info import FeatureInfo, FeatureMap
from plusx.nn.init import initialise


# the layers of YOLOv3 at one resolution (Redmon and Farhadi 2018, section 2.3)
DETECTION_BLOCK = "conv1/2 norm act conv3 norm act conv1/2 norm act conv3 norm act conv1/2 norm act"
PRIOR = 0.01  # the initial score of every class (Lin et al. 2017, section 3.3)


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017): top-down, each map added to the upsampled coarser one.

    If `count` exceeds the number of maps, further levels are convolutions with stride 2; if it is
    smaller, the finest levels are used. `strides` are those of the levels, finest first.
    """

    def __init__(self, levels: Sequence[FeatureMap], width: int, count: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(level.channels, width, 1) for level in levels)
        self.outer = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in levels[:count])
        num_coarser = max(count - len(levels), 0)
        self.coarser = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(num_coarser))
        strides = [level.stride for level in levels[:count]]
        for _ in range(num_coarser):
            strides.append(tuple(2 * size for size in strides[-1]))
        self.strides = tuple(strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = [self.inner[-1](maps[-1])]
        for i in range(len(maps) - 2, -1, -1):
            upsampled = F.interpolate(merged[0], size=maps[i].shape[2:], mode="nearest")
            merged.insert(0, self.inner[i](maps[i]) + upsampled)
        outputs = [convolve(y) for convolve, y in zip(self.outer, merged)]
        for convolve in self.coarser:
            outputs.append(convolve(F.relu(outputs[-1])))
        return outputs


class FcosHead(nn.Module):
    """The head of FCOS (Tian et al. 2019).

    At every position of every level: the logits of the classes, the distances to the four sides of
    a box in pixels of the input, and the logit of centre-ness. All levels share the two towers of
    convolutions with group norm.
    """

    def __init__(self, spec: Fcos, levels: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        if spec.width < 1 or spec.depth < 0:
            raise UserError(
                f"[head] width = {spec.width}, depth = {spec.depth}; width must be at least 1, "
                "depth at least 0"
            )
        stages = coarse(levels, spec.finest)
        self.indices = tuple(level.index for level in stages)
        self.fpn = Pyramid(stages, spec.width, spec.levels)
        self.strides = self.fpn.strides
        net = replace(levels.net, norm="group", affine=True)
        self.classes = tower(net, spec)
        self.boxes = tower(net, spec)
        self.class_logits = nn.Conv2d(spec.width, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(spec.width, 4, 3, padding=1)
        self.centre = nn.Conv2d(spec.width, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for layer in (self.class_logits, self.distances, self.centre):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        assert self.class_logits.bias is not None
        assert self.distances.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.constant_(self.distances.bias, 1.0)

    def forward(
        self, x: Tensor, stem: Sequence[Tensor], stages: Sequence[Tensor]
    ) -> list[Float[Tensor, "n c h w"]]:
        outputs = []
        maps = self.fpn([stages[i] for i in self.indices])
        for i, (y, stride) in enumerate(zip(maps, self.strides, strict=True)):
            down, right = stride
            boxes = self.boxes(y)
            steps = F.softplus(self.scales[i] * self.distances(boxes))
            distances = steps * steps.new_tensor([right, down, right, down])[:, None, None]
            outputs.append(
                torch.cat([self.class_logits(self.classes(y)), distances, self.centre(boxes)], 1)
            )
        return outputs


class YoloHead(nn.Module):
    """YOLOv3's head (Redmon and Farhadi 2018, section 2.3) on the three coarsest resolutions.

    At each resolution alternate 1 x 1 and 3 x 3 convolutions, with half the width of the stage and
    its width; their output, halved once more and upsampled, is concatenated with the next finer
    stage.
    """

    def __init__(self, spec: Yolo, levels: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        stages = distinct(replace(levels, input=None, stem=()))[-3:]
        if len(stages) < 3:
            raise UserError(
                f'[head] kind = "yolo" needs three resolutions; the network has {len(stages)}'
            )
        self.indices = tuple(level.index for level in stages)
        self.strides = tuple(level.stride for level in stages)
        net = replace(levels.net, affine=True)
        shape = shape_of(stages[-1])
        for i in (2, 1, 0):
            width = stages[i].channels
            if i < 2:
                shape = replace(shape, channels=shape.channels + width, size=(64, 64))
            context = LayerContext.unstrided(net, width)
            half = LayerSequence(DETECTION_BLOCK, shape, context)
            last = LayerSequence("conv3 norm act", half.shape_out, context)
            self.add_module(f"set{i}", half)
            self.add_module(f"last{i}", last)
            convolution = nn.Conv2d(width, len(spec.anchors) // 3 * (5 + num_classes), 1)
            self.add_module(f"told{i}", convolution)
            if i:
                context = LayerContext.unstrided(net, half.shape_out.channels)
                up = LayerSequence("conv1/2 norm act", half.shape_out, context)
                self.add_module(f"up{i}", up)
                shape = up.shape_out
        initialise(self, "he")

    def forward(
        self, x: Tensor, stem: Sequence[Tensor], stages: Sequence[Tensor]
    ) -> list[Float[Tensor, "n c h w"]]:
        outputs: list[Tensor] = []
        y = stages[self.indices[2]]
        for i in (2, 1, 0):
            if i < 2:
                finer = stages[self.indices[i]]
                y = torch.cat([F.interpolate(y, size=finer.shape[2:], mode="nearest"), finer], 1)
            half = getattr(self, f"set{i}")(y)
            outputs.insert(0, getattr(self, f"told{i}")(getattr(self, f"last{i}")(half)))
            if i:
                y = getattr(self, f"up{i}")(half)
        return outputs


def coarse(levels: FeatureInfo, finest: int) -> list[FeatureMap]:
    """Return the stages with a stride of at least `finest`, one per resolution, but at least the
    last."""
    stages = distinct(replace(levels, input=None, stem=()))
    return [level for level in stages if min(level.stride) >= finest] or stages[-1:]


def tower(net: Net, spec: Fcos) -> nn.Module:
    """Return `depth` convolutions, each with a group norm and an activation."""
    level = FeatureMap("stage", 0, spec.width, (1, 1))
    words = " ".join(["conv3 norm act"] * spec.depth)
    if not words:
        return nn.Identity()
    layers = LayerSequence(words, shape_of(level), LayerContext.unstrided(net, spec.width))
    for name in layers.names:
        if name.startswith("norm"):
            # at least two channels per group: the coarsest map may be a single position
            groups = gcd(32, max(spec.width // 2, 1))
            layers.add_module(name, nn.GroupNorm(groups, spec.width))
    initialise(layers, "he")
    return layers
