"""What a head can stand on: the input, and the maps of a network's stem and stages."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from plusx.grammar.arithmetic import Size, each_dimension
from plusx.grammar.backbone import stem_maps
from plusx.grammar.spec import Block, Net, Stage
from plusx.nn.network import Network


@dataclass(frozen=True)
class FeatureMap:
    """One map: where it is from, the how manieth there, its channels and its stride."""

    source: Literal["input", "stem", "stage"]
    index: int
    channels: int
    stride: Size


@dataclass(frozen=True)
class FeatureInfo:
    """All maps of a network. `net` is what words of a head go by: norm, activation, dimensions."""

    net: Net
    input: FeatureMap | None  # None where the input is numbers of tokens
    stem: tuple[FeatureMap, ...]
    stages: tuple[FeatureMap, ...]

    @property
    def all(self) -> tuple[FeatureMap, ...]:
        """Every map, in the order in which they are computed."""
        begin = () if self.input is None else (self.input,)
        return (*begin, *self.stem, *self.stages)


def feature_info(backbone: nn.Module) -> FeatureInfo:
    """The maps of a network, or of an external module with `widths` and `strides`."""
    if isinstance(backbone, Network):
        net = backbone.spec
        stem = [
            FeatureMap("stem", i, found.channels, found.stride)
            for i, found in enumerate(stem_maps(net))
        ]
        widths = [*backbone.widths[:-1], backbone.tail.shape_out.channels]
        strides = [each_dimension(stride, net.ndim) for stride in backbone.strides]
        strides[-1] = tuple(a * b for a, b in zip(strides[-1], tail_stride(backbone)))
    else:
        net = net_like(backbone)
        stem, widths = [], list(backbone.widths)  # type: ignore[arg-type]
        strides = [each_dimension(stride, 2) for stride in backbone.strides]  # type: ignore[union-attr]
    tokens = net.stem.startswith("embed")
    return FeatureInfo(
        net,
        None if tokens else FeatureMap("input", 0, net.in_channels, (1,) * net.ndim),
        tuple(stem),
        tuple(
            FeatureMap("stage", i, width, stride)
            for i, (width, stride) in enumerate(zip(widths, strides))
        ),
    )


def tail_stride(backbone: Network) -> Size:
    """Words before a tail's pooling seldom stride, but they may."""
    last = each_dimension(backbone.strides[-1], backbone.spec.ndim)
    return tuple(a // b for a, b in zip(backbone.tail.shape_out.stride, last))


def net_like(backbone: nn.Module) -> Net:
    """A spec that says of an external module what a head asks: two dimensions, batch norm, ReLU."""
    channels = int(backbone.in_channels)  # type: ignore[arg-type]
    stage = Stage(block=Block(body="conv3 norm act"), depth=1, width=1)
    return Net(stem="conv3", stem_width=1, stages=(stage,), in_channels=channels, num_classes=0)
