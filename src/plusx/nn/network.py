"""Networks with stages: the base class, and networks built from a spec."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar import arithmetic, validate
from plusx.grammar.arithmetic import LayerContext, each_dimension, input_shape
from plusx.grammar.heads import Head
from plusx.grammar.spec import Net, Stride
from plusx.grammar.words import parse
from plusx.nn.block import LayerSequence, ResidualBlock, add_layers


class Backbone(nn.Module):
    """A network with stages, features and a head, which is linear by default.

    widths, strides: channels, and input positions per step, at the end of each stage
    embed_width: width of the head's input
    spec: the model that builds the same network
    style: the spec whose norm, activation and dimensions a head on the features uses
    preprocessing: how inputs are prepared, as a JSON-ready dictionary; None if unknown
    classes: names of the outputs; () if unknown

    Subclasses define the attributes and `fc`, and `layer1`, `layer2`, ... or `stage`.
    """

    widths: tuple[int, ...]
    strides: tuple[Stride, ...]
    embed_width: int
    num_classes: int
    in_channels: int
    spec: Any = None
    head_spec: Head | None = None  # a head on the features instead of the linear one
    style: Net
    preprocessing: dict[str, Any] | None = None
    classes: tuple[str, ...] = ()
    fc: nn.Module
    tail: nn.Module

    @property
    def base(self) -> "Backbone":
        """The network that computes the features: the backbone of a network with a head, else
        itself."""
        return self

    def run_stem(self, x: Tensor, positions: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return the input of the first stage, and the outputs of the stem's layers at
        `positions`."""
        return x, []

    def stage(self, index: int, x: Tensor) -> Tensor:
        """Return the output of a stage, from the output of the one before."""
        y: Tensor = getattr(self, f"layer{index + 1}")(x)
        return y

    def features(
        self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"], out: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return the outputs of the stages: (n, widths[i], *s / strides[i]) for each i in `out`, or
        for all. Later stages are not computed."""
        return self.pyramid(x, (), out)[1]

    def pyramid(
        self,
        x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"],
        stem: Sequence[int],
        out: Sequence[int] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs of the stem's layers at the positions `stem`, and `features`."""
        indices = stage_indices(out, len(self.widths))
        x, stem_maps = self.run_stem(x, tuple(stem))
        maps = []
        for index in range(max(indices, default=-1) + 1):
            x = self.stage(index, x)
            maps.append(x)
        return stem_maps, [maps[i] for i in indices]

    def embed(self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"]) -> Float[Tensor, "n width"]:
        """Return the input vectors of the linear head."""
        return self.tail(self.features(x, out=[-1])[0]).flatten(1)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.embed(x))

    def reset_head(self, num_classes: int) -> None:
        """Replace the head by a new one for `num_classes`; 0 removes it."""
        self.fc = linear_head(self.embed_width, num_classes).to(next(self.parameters()))
        self._reset_classes(num_classes)

    def _reset_classes(self, num_classes: int) -> None:
        self.num_classes = num_classes
        if self.spec is not None:
            self.spec = replace(self.spec, num_classes=num_classes)
        if num_classes != len(self.classes):
            self.classes = ()


class Network(Backbone):
    """A network built from a spec, with torchvision's module names.

    Parameters are initialised as in PyTorch; `plusx.nn.init` has the rules of the papers. Raises
    UserError if the spec is not valid.
    """

    tail: LayerSequence

    def __init__(self, spec: Net) -> None:
        super().__init__()
        validate.validate(spec)
        measure = arithmetic.measure(spec)
        self.spec = self.style = spec
        self.widths, self.strides = measure.widths, measure.strides
        self.num_classes, self.in_channels = spec.num_classes, spec.in_channels
        stem = LayerContext.unstrided(spec, spec.stem_width)
        self.stem, shape = add_layers(self, parse(spec.stem).branch, input_shape(spec), stem)
        total, count = sum(len(stage.blocks) for stage in spec.stages), 0
        for i, stage in enumerate(spec.stages, 1):
            if stage.enter:
                context = LayerContext.unstrided(spec, shape.channels)
                enter = LayerSequence(stage.enter, shape, context)
                self.add_module(f"enter{i}", enter)
                shape = enter.shape_out
            blocks = []
            for j, block in enumerate(stage.blocks):
                stride = each_dimension(stage.stride if j == 0 else 1, spec.ndim)
                context = LayerContext(spec, stage.width, stride)
                count += 1
                drop = spec.drop_path * count / total
                blocks.append(ResidualBlock(block, shape, context, drop))
                shape = blocks[-1].shape_out
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        tail = LayerContext.unstrided(spec, shape.channels)
        self.tail = LayerSequence(spec.tail, shape, tail)
        self.embed_width = measure.embed_width
        self.fc = linear_head(self.embed_width, spec.num_classes)

    def run_stem(self, x: Tensor, positions: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        maps = []
        for position, name in enumerate(self.stem):
            x = getattr(self, name)(x)
            if position in positions:
                maps.append(x)
        return x, maps

    def stage(self, index: int, x: Tensor) -> Tensor:
        if self.spec.stages[index].enter:
            x = getattr(self, f"enter{index + 1}")(x)
        return super().stage(index, x)


def linear_head(width: int, num_classes: int) -> nn.Module:
    """Return a linear layer, or the identity without classes."""
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def stage_indices(out: Sequence[int] | None, count: int) -> list[int]:
    """Return the selected stages as indices from 0. Raises UserError for an index out of range."""
    if out is None:
        return list(range(count))
    for i in out:
        if not -count <= i < count:
            raise UserError(f"there is no stage {i}: this network has 0 to {count - 1}")
    return [i % count for i in out]
