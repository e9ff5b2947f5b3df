"""A spec to a network: stem, stages, tail and head, with torchvision's module names."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar import arithmetic, validate
from plusx.grammar.arithmetic import FeatureShape, LayerContext, each_dimension
from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.nn.block import LayerSequence, ResidualBlock, add_layers


class Network(nn.Module):
    """Any network that the language can say. Raises UserError where the spec is not legal.

    `widths` are the channels and `strides` the input positions a step at the end of each stage.
    Parameters are as PyTorch initialises them; `plusx.nn.init` has the rules of the papers.
    """

    preprocessing: dict[str, Any] | None = None  # how inputs are prepared, where it is known
    classes: tuple[str, ...] = ()  # names of the outputs, where they are known

    def __init__(self, spec: Net) -> None:
        super().__init__()
        validate.validate(spec)
        measure = arithmetic.measure(spec)
        self.spec, self.widths, self.strides = spec, measure.widths, measure.strides
        one = (1,) * spec.ndim
        shape = FeatureShape(spec.in_channels, each_dimension(spec.size, spec.ndim), one)
        stem = LayerContext(spec, spec.stem_width, one)
        self.stem, shape = add_layers(self, parse(spec.stem).branch, shape, stem)
        total, built = sum(len(stage.blocks) for stage in spec.stages), 0
        for i, stage in enumerate(spec.stages, 1):
            if stage.enter:
                enter = LayerSequence(stage.enter, shape, LayerContext(spec, shape.channels, one))
                self.add_module(f"enter{i}", enter)
                shape = enter.shape_out
            blocks = []
            for j, block in enumerate(stage.blocks):
                stride = each_dimension(stage.stride, spec.ndim) if j == 0 else one
                built += 1
                drop = spec.drop_path * built / total
                context = LayerContext(spec, stage.width, stride)
                blocks.append(ResidualBlock(block, shape, context, drop))
                shape = blocks[-1].shape_out
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.tail = LayerSequence(spec.tail, shape, LayerContext(spec, shape.channels, one))
        self.embed_width = measure.embed_width
        self.fc = head(self.embed_width, spec.num_classes)

    def features(
        self,
        x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"],
        out: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """What the stages give: (n, widths[i], *s / strides[i]) each, for i in `out` or for all.

        Nothing is computed behind the last stage that is asked for.
        """
        return self.pyramid(x, (), out)[1]

    def pyramid(
        self,
        x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"],
        stem: Sequence[int],
        out: Sequence[int] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the stem's words at the positions `stem` give, and `features`."""
        wanted = stage_positions(out, len(self.widths))
        x, stem_maps = self.run_stem(x, tuple(stem))
        maps = []
        for i in range(max(wanted, default=-1) + 1):
            if self.spec.stages[i].enter:
                x = getattr(self, f"enter{i + 1}")(x)
            x = getattr(self, f"layer{i + 1}")(x)
            maps.append(x)
        return stem_maps, [maps[i] for i in wanted]

    def run_stem(self, x: Tensor, positions: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """The stem's output, and what its words at these positions give."""
        maps = []
        for position, name in enumerate(self.stem):
            x = getattr(self, name)(x)
            if position in positions:
                maps.append(x)
        return x, maps

    def embed(self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"]) -> Float[Tensor, "n width"]:
        """What the head sees."""
        return self.tail(self.features(x, out=[-1])[0]).flatten(1)

    def forward(self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"]) -> Float[Tensor, "n k"]:
        y: Tensor = self.fc(self.embed(x))
        return y

    def reset_head(self, num_classes: int) -> None:
        """A new head for `num_classes`; 0 leaves none."""
        self.fc = head(self.embed_width, num_classes).to(next(self.parameters()))
        self.spec = replace(self.spec, num_classes=num_classes)
        if num_classes != len(self.classes):
            self.classes = ()


def head(width: int, num_classes: int) -> nn.Module:
    """A linear layer, or nothing where there are no classes."""
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def stage_positions(out: Sequence[int] | None, count: int) -> list[int]:
    """Which stages are asked for, as positions from 0. Raises UserError beyond the last."""
    if out is None:
        return list(range(count))
    for i in out:
        if not -count <= i < count:
            raise UserError(f"there is no stage {i}: this network has 0 to {count - 1}")
    return [i % count for i in out]
