"""Words added to a module as layers, and the residual block."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.grammar import arithmetic
from plusx.grammar.arithmetic import FeatureShape, LayerContext
from plusx.grammar.spec import Block
from plusx.grammar.words import Word, parse
from plusx.nn.layers import FRESH, build


def add_layers(
    owner: nn.Module,
    words: Iterable[Word],
    shape: FeatureShape,
    context: LayerContext,
    fresh: bool = False,
) -> tuple[tuple[str, ...], FeatureShape]:
    """Add the words to `owner` as conv1, bn1, act1, conv2 ...; return names and output shape.

    Counting words per kind gives torchvision's names, so that its ResNets load without a mapping.
    fresh: nothing else uses the input, so that a first activation may work in place
    """
    names = []
    for word in words:
        kind = "bn" if word.kind == "norm" and context.net.norm == "batch" else word.kind
        number = sum(name.rstrip("0123456789") == kind for name, _ in owner.named_children())
        names.append(f"{kind}{number + 1}")
        owner.add_module(names[-1], build(word, shape, context, fresh))
        shape = arithmetic.step(shape, word, context)
        fresh = word.kind in FRESH
    return tuple(names), shape


def run_layers(owner: nn.Module, names: Sequence[str], x: Tensor) -> Tensor:
    """Run the layers with these names in turn."""
    for name in names:
        x = getattr(owner, name)(x)
    return x


class LayerSequence(nn.Module):
    """Layers in turn: a tail, or the layers on entry to a stage."""

    def __init__(self, text: str, shape: FeatureShape, context: LayerContext) -> None:
        super().__init__()
        self.names, self.shape_out = add_layers(self, parse(text).branch, shape, context)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        return run_layers(self, self.names, x)


class Shortcut(nn.Sequential):
    """A shortcut or a gate: numbered layers, as in torchvision's `downsample`."""

    def __init__(self, text: str, shape: FeatureShape, context: LayerContext) -> None:
        modules = []
        for word in parse(text).branch:
            modules.append(build(word, shape, context, fresh=False))
            shape = arithmetic.step(shape, word, context)
        super().__init__(*modules)


class ResidualBlock(nn.Module):
    """y = F(x) + x and its variants: one block for every sentence.

    shape: of the input; `shape_out` is that of the output
    context: the reference width, and the stride that `s` takes
    drop: probability of dropping the branch in training: for the whole batch, where it is then not
        computed (Huang et al. 2016), or for each row
    """

    def __init__(
        self, spec: Block, shape: FeatureShape, context: LayerContext, drop: float
    ) -> None:
        super().__init__()
        sentence, net = parse(spec.body), context.net
        self.merge = sentence.merge
        self.drop = drop if self.merge == "add" else 0.0
        self.drops_rows = net.drop_mode == "row"
        self.lead, lead_shape = add_layers(self, sentence.lead, shape, context)
        self.branch, y_shape = add_layers(self, sentence.branch, lead_shape, context)
        # the sum may be in place if nothing else needs the branch's output
        self.overwrites = sentence.branch[-1].kind == "norm"

        has_shortcut = self.merge in ("add", "gate")
        self.projects = has_shortcut and arithmetic.projects(shape, y_shape, context)
        text, start = (spec.shortcut, lead_shape) if self.projects else (spec.identity, shape)
        has_layers = has_shortcut and parse(text).words
        self.downsample = Shortcut(text, start, context) if has_layers else None
        self.gate = Shortcut(spec.gate, shape, context) if self.merge == "gate" else None
        if self.merge == "concat":
            y_shape = replace(y_shape, channels=shape.channels + y_shape.channels)

        # a dropped block returns x itself, which must not be overwritten
        fresh = self.merge != "none" and not (self.drop and not self.drops_rows)
        unstrided = LayerContext.unstrided(net, context.width)
        self.after, self.shape_out = add_layers(self, sentence.after, y_shape, unstrided, fresh)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        y = run_layers(self, self.lead, x)
        skip = x if self.downsample is None else self.downsample(y if self.projects else x)
        if self.dropped():
            return run_layers(self, self.after, skip)
        y = run_layers(self, self.branch, y)
        match self.merge:
            case "add":
                y = self.stochastic_depth(y)
                overwrites = self.overwrites and y.dtype == torch.result_type(y, skip)
                y = y.add_(skip) if overwrites else y + skip
            case "concat":
                y = torch.cat([skip, y], dim=1)
            case "gate":
                assert self.gate is not None
                t = self.gate(x).sigmoid()
                y = t * y + (1 - t) * skip
        return run_layers(self, self.after, y)

    def dropped(self) -> bool:
        """Whether the block is dropped for this batch and not computed."""
        if not self.drop or not self.training or self.drops_rows:
            return False
        return bool(torch.rand(()) < self.drop)

    def stochastic_depth(self, y: Float[Tensor, "n d *t"]) -> Float[Tensor, "n d *t"]:
        """Return the branch's output: with rows dropped in training, or its expectation in
        evaluation."""
        if self.drop and self.drops_rows and self.training:
            survives = torch.rand(len(y), *[1] * (y.ndim - 1), device=y.device) >= self.drop
            return y * survives.to(y.dtype) / (1 - self.drop)
        if self.drop and not self.drops_rows and not self.training:
            return y * (1 - self.drop)  # Huang et al. 2016, eq. 5
        return y
