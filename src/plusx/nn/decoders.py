"""Heads that predict a class for every position: FCN, DeepLabV3 and the decoder of a U-Net.

Each takes the network's input and the maps of stem and stages, finest first, and returns logits of
the input's size, in one, two or three dimensions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.errors import UserError
from plusx.grammar.arithmetic import FeatureShape, LayerContext
from plusx.grammar.heads import DeepLab, Fcn, UNet
from plusx.nn.block import LayerSequence
from plusx.nn.dims import layer_type
from plusx.nn.feature_info import FeatureInfo, FeatureMap
from plusx.nn.init import initialise


LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
RATES = {8: (12, 24, 36), 16: (6, 12, 18)}  # Chen et al. 2017, section 3.3
MAX_WIDTH_FACTOR = 8  # width of a decoder's widest level over that of its narrowest


class FcnHead(nn.Sequential):
    """A 3 x 3 convolution to a quarter of the channels and a 1 x 1 to the classes, with
    torchvision's names."""

    def __init__(self, channels: int, num_classes: int, ndim: int) -> None:
        convolution, norm = layer_type("Conv", ndim), layer_type("BatchNorm", ndim)
        inner = channels // 4
        super().__init__(
            convolution(channels, inner, 3, padding=1, bias=False),
            norm(inner),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            convolution(inner, num_classes, 1),
        )


class PooledBranch(nn.Sequential):
    """Global context: the pooled map, at every position."""

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *s"]:
        return resized(super().forward(x), list(x.shape[2:]))


class SpatialPyramid(nn.Module):
    """Parallel convolutions of several dilation rates (Chen et al. 2017, figure 5)."""

    def __init__(self, channels: int, rates: Sequence[int], out: int, ndim: int) -> None:
        super().__init__()
        convolution, norm = layer_type("Conv", ndim), layer_type("BatchNorm", ndim)

        def conv_norm_act(kernel: int, rate: int) -> list[nn.Module]:
            edge = rate * (kernel // 2)
            conv = convolution(channels, out, kernel, padding=edge, dilation=rate, bias=False)
            return [conv, norm(out), nn.ReLU(inplace=True)]

        pool = layer_type("AdaptiveAvgPool", ndim)(1)
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*conv_norm_act(1, 1)),
                *(nn.Sequential(*conv_norm_act(3, rate)) for rate in rates),
                PooledBranch(pool, *conv_norm_act(1, 1)),
            ]
        )
        self.project = nn.Sequential(
            convolution(len(self.convs) * out, out, 1, bias=False),
            norm(out),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
        )

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *s"]:
        y: Tensor = self.project(torch.cat([convolve(x) for convolve in self.convs], dim=1))
        return y


class DeepLabHead(nn.Sequential):
    """The head of DeepLabV3, with torchvision's names."""

    def __init__(self, channels: int, num_classes: int, rates: Sequence[int], ndim: int) -> None:
        convolution, norm = layer_type("Conv", ndim), layer_type("BatchNorm", ndim)
        super().__init__(
            SpatialPyramid(channels, rates, 256, ndim),
            convolution(256, 256, 3, padding=1, bias=False),
            norm(256),
            nn.ReLU(inplace=True),
            convolution(256, num_classes, 1),
        )


class Upsampled(nn.Module):
    """A head on the last stage with logits resized to the input, and optionally an auxiliary head
    on the stage before, in training only."""

    def __init__(self, spec: Fcn | DeepLab, levels: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        ndim, last = levels.net.ndim, levels.stages[-1].channels
        self.classifier = (
            FcnHead(last, num_classes, ndim)
            if isinstance(spec, Fcn)
            else DeepLabHead(last, num_classes, RATES[spec.stride], ndim)
        )
        self.aux_classifier: nn.Module | None = None
        if spec.auxiliary:
            if len(levels.stages) < 2:
                raise UserError("[head] auxiliary: the network has only one stage")
            self.aux_classifier = FcnHead(levels.stages[-2].channels, num_classes, ndim)

    def forward(
        self, x: Tensor, stem: Sequence[Tensor], stages: Sequence[Tensor]
    ) -> Float[Tensor, "n k *s"] | tuple[Float[Tensor, "n k *s"], Float[Tensor, "n k *s"]]:
        size = list(x.shape[2:])
        y = resized(self.classifier(stages[-1]), size)
        if self.aux_classifier is None or not self.training:
            return y
        return y, resized(self.aux_classifier(stages[-2]), size)


def resized(x: Float[Tensor, "n c *s"], size: Sequence[Any]) -> Float[Tensor, "n c *t"]:
    """Return linear interpolation with align_corners=False."""
    return F.interpolate(x, size=list(size), mode=LINEAR[x.ndim - 2], align_corners=False)


class UNetDecoder(nn.Module):
    """The decoder of a U-Net (Ronneberger et al. 2015, figure 1).

    From the coarsest map to the input's size: upsample, concatenate the finer map, convolve twice.
    The finest level is the input after one convolution. Sizes need not be multiples of the stride:
    each map is resized to the one it is concatenated with.
    """

    def __init__(self, spec: UNet, levels: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        if spec.width < 1:
            raise UserError(f"[head] width = {spec.width}; it must be at least 1")
        net, ndim = replace(levels.net, affine=True), levels.net.ndim
        self.levels = distinct(levels)
        finest = self.levels[0]
        self.reads_input = finest.source == "input"
        widths = [spec.width * min(2**i, MAX_WIDTH_FACTOR) for i in range(len(self.levels))]
        shape = shape_of(self.levels[-1])
        if self.reads_input:
            context = LayerContext.unstrided(net, spec.width)
            self.enter = LayerSequence("conv3 norm act", shape_of(finest), context)
        for i in range(len(self.levels) - 2, -1, -1):
            skip = self.enter.shape_out if i == 0 and self.reads_input else shape_of(self.levels[i])
            concatenated = replace(shape, channels=shape.channels + skip.channels)
            context = LayerContext.unstrided(net, widths[i])
            up = LayerSequence("conv3 norm act conv3 norm act", concatenated, context)
            self.add_module(f"up{i}", up)
            shape = up.shape_out
        self.classifier = layer_type("Conv", ndim)(shape.channels, num_classes, 1)
        initialise(self, "he")

    def forward(
        self, x: Tensor, stem: Sequence[Tensor], stages: Sequence[Tensor]
    ) -> Float[Tensor, "n k *s"]:
        kinds = {"input": [x], "stem": stem, "stage": stages}
        maps = [kinds[level.source][level.index] for level in self.levels]
        if self.reads_input:
            maps[0] = self.enter(x)
        y = maps[-1]
        for i in range(len(maps) - 2, -1, -1):
            y = F.interpolate(y, size=maps[i].shape[2:], mode="nearest")
            y = getattr(self, f"up{i}")(torch.cat([y, maps[i]], dim=1))
        logits: Tensor = self.classifier(y)
        return logits


def distinct(levels: FeatureInfo) -> list[FeatureMap]:
    """Return the deepest level of each resolution, finest first."""
    last = {level.stride: level for level in levels.all}
    return sorted(last.values(), key=lambda level: level.stride)


def shape_of(level: FeatureMap) -> FeatureShape:
    """Return the shape of a level; the size is a placeholder, since layers do not depend on it."""
    return FeatureShape(level.channels, (64,) * len(level.stride), level.stride)
