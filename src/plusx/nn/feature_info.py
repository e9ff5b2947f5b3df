"""What a head on the features can read: the input, and the maps of a network's stem and stages."""

from dataclasses import dataclass
from typing import Literal

from plusx.grammar.arithmetic import Size, each_dimension
from plusx.grammar.backbone import stem_maps
from plusx.grammar.spec import Net
from plusx.nn.network import Backbone


@dataclass(frozen=True)
class FeatureMap:
    """One map: where it is from, its index there, its channels and its stride."""

    source: Literal["input", "stem", "stage"]
    index: int
    channels: int
    stride: Size


@dataclass(frozen=True)
class FeatureInfo:
    """All maps of a network. `net` has the norm, activation and dimensions of a head's words."""

    net: Net
    input: FeatureMap | None  # None where the input is numbers of tokens
    stem: tuple[FeatureMap, ...]
    stages: tuple[FeatureMap, ...]

    @property
    def all(self) -> tuple[FeatureMap, ...]:
        """Every map, in the order in which they are computed."""
        begin = () if self.input is None else (self.input,)
        return (*begin, *self.stem, *self.stages)


def feature_info(backbone: Backbone) -> FeatureInfo:
    """The maps of a network that a head can read."""
    net = backbone.style
    widths = list(backbone.widths)
    strides = [each_dimension(stride, net.ndim) for stride in backbone.strides]
    behind_tail = getattr(getattr(backbone, "tail", None), "shape_out", None)
    if behind_tail is not None:  # words before a tail's pooling may stride
        widths[-1], strides[-1] = behind_tail.channels, behind_tail.stride
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
