"""The feature maps that a head can use: the input, and the maps of a network's stem and stages."""

from dataclasses import dataclass
from typing import Literal

from plusx.grammar.arithmetic import Size, each_dimension
from plusx.grammar.backbone import stem_maps
from plusx.grammar.spec import Net
from plusx.nn.network import Backbone


@dataclass(frozen=True)
class FeatureMap:
    """One map: its source, its index there, its channels and its stride."""

    source: Literal["input", "stem", "stage"]
    index: int
    channels: int
    stride: Size


@dataclass(frozen=True)
class FeatureInfo:
    """All maps of a network. `net` has the norm, activation and dimensions for a head."""

    net: Net
    input: FeatureMap | None  # None if the input consists of token numbers
    stem: tuple[FeatureMap, ...]
    stages: tuple[FeatureMap, ...]

    @property
    def all(self) -> tuple[FeatureMap, ...]:
        """All maps, in the order of computation."""
        inputs = () if self.input is None else (self.input,)
        return (*inputs, *self.stem, *self.stages)


def feature_info(backbone: Backbone) -> FeatureInfo:
    """Return the maps of a network that a head can use."""
    net = backbone.style
    widths = list(backbone.widths)
    strides = [each_dimension(stride, net.ndim) for stride in backbone.strides]
    tail_shape = getattr(getattr(backbone, "tail", None), "shape_out", None)
    if tail_shape is not None:  # layers before a tail's pooling may stride
        widths[-1], strides[-1] = tail_shape.channels, tail_shape.stride
    return FeatureInfo(
        net,
        None if net.takes_tokens else FeatureMap("input", 0, net.in_channels, (1,) * net.ndim),
        tuple(
            FeatureMap("stem", i, stem.channels, stem.stride)
            for i, stem in enumerate(stem_maps(net))
        ),
        tuple(
            FeatureMap("stage", i, width, stride)
            for i, (width, stride) in enumerate(zip(widths, strides))
        ),
    )
