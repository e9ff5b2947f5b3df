"""Reversible residual networks (Gomez et al. 2017): what was put in follows from what came out.

A unit splits its channels in two halves and adds in turn,

    y1 = x1 + F(x2)        x2 = y2 - G(y1)
    y2 = x2 + G(y1)        x1 = y1 - F(x2)

so that training keeps what a stage gives and not what happens inside.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plusx.errors import UserError
from plusx.grammar.arithmetic import FeatureShape, LayerContext
from plusx.grammar.reversible import BODY, FIRST, SHORTCUT, Reversible
from plusx.nn.block import LayerSequence, Shortcut
from plusx.nn.frozen import running_statistics_kept
from plusx.nn.init import initialise
from plusx.nn.network import Backbone, head


class ReversibleUnit(nn.Module):
    """Two residual branches between the halves of the channels, each before the other's turn.

    Where the unit changes the shape, both halves take a shortcut without weights, and the input
    cannot be computed from the output.
    """

    def __init__(self, shape: FeatureShape, context: LayerContext, body: str) -> None:
        super().__init__()
        self.f = LayerSequence(body, shape, context)
        changed = self.f.shape_out.channels != shape.channels or max(context.stride) > 1
        later = LayerContext(context.net, context.width, (1,) * context.net.ndim)
        self.downsample = Shortcut(SHORTCUT, shape, later) if changed else None
        self.g = LayerSequence(BODY, self.f.shape_out, later)
        self.shape_out = self.g.shape_out

    def forward(
        self, x1: Float[Tensor, "n c *s"], x2: Float[Tensor, "n c *s"]
    ) -> tuple[Float[Tensor, "n d *t"], Float[Tensor, "n d *t"]]:
        skip1, skip2 = (x1, x2) if self.downsample is None else map(self.downsample, (x1, x2))
        y1 = skip1 + self.f(x2)
        return y1, skip2 + self.g(y1)


class Reversal(torch.autograd.Function):
    """Units of one shape in turn, of which only the last one's output is kept."""

    @staticmethod
    def forward(
        ctx: Any, units: Sequence[ReversibleUnit], x1: Tensor, x2: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        device = x1.device.type
        ctx.units, ctx.parameters = units, parameters
        autocasts = device != "meta" and torch.is_autocast_enabled(device)
        ctx.autocast = (device, torch.get_autocast_dtype(device)) if autocasts else None
        for unit in units:
            x1, x2 = unit(x1, x2)
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> tuple[Any, ...]:
        y1, y2 = ctx.saved_tensors
        gradients: dict[Tensor, Tensor] = {}

        def through(branch: LayerSequence, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            """A branch's result, and the gradient of its input; those of parameters are noted."""
            x = x.detach().requires_grad_()
            trained = [p for p in branch.parameters() if p.requires_grad]
            autocast = torch.autocast(*ctx.autocast) if ctx.autocast else nullcontext()
            with torch.enable_grad(), autocast, running_statistics_kept(branch):
                y = branch(x)
            of_x, *of_parameters = torch.autograd.grad(y, [x, *trained], slope.to(y.dtype))
            gradients.update(zip(trained, of_parameters, strict=True))
            return y.detach(), of_x

        for unit in reversed(ctx.units):
            g, slope = through(unit.g, y1, d2)
            y2, d1 = y2 - g, d1 + slope
            f, slope = through(unit.f, y2, d1)
            y1, d2 = y1 - f, d2 + slope
        return None, d1, d2, *(gradients.get(parameter) for parameter in ctx.parameters)


class ReversibleStage(nn.Sequential):
    """Units in turn, on halves of the channels. `reverses` False keeps all activations."""

    reverses = True

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        first, second = x.chunk(2, dim=1)
        halves = first.contiguous(), second.contiguous()
        units = list(self)
        if not self.reverses or not torch.is_grad_enabled():
            for unit in units:
                halves = unit(*halves)
            return torch.cat(halves, dim=1)
        if units[0].downsample is not None:
            unit = units.pop(0)
            halves = checkpoint(
                unit,
                *halves,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), running_statistics_kept(unit)),
            )
        parameters = [p for unit in units for p in unit.parameters() if p.requires_grad]
        if units:
            halves = Reversal.apply(units, *halves, *parameters)
        return torch.cat(halves, dim=1)


class ReversibleNetwork(Backbone):
    """A reversible network for small images, as the authors' own code has it.

    A stem in convolution, norm and activation; three stages of pre-activated units, of which the
    first of all is activated by the stem already, and those that begin stages 2 and 3 halve the
    image; norm, activation, mean. Shortcuts average and append zero channels on both sides.

    `reverses` False keeps activations as other networks do, for comparison.
    """

    strides = (1, 2, 4)
    tail: LayerSequence

    def __init__(
        self,
        name: str,
        sizes: Reversible,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.name, self.widths, self.embed_width = name, sizes.widths, sizes.widths[-1]
        self.num_classes, self.in_channels = num_classes, in_channels
        self.style = net = sizes.net(in_channels)
        one = (1, 1)
        begin = FeatureShape(in_channels, (32, 32), one)
        self.stem = LayerSequence(net.stem, begin, LayerContext(net, sizes.stem_width, one))
        half = FeatureShape(sizes.stem_width // 2, begin.size, one)
        for number, (count, width) in enumerate(zip(sizes.units, sizes.widths, strict=True), 1):
            built = []
            for j in range(count):
                stride = (2, 2) if j == 0 and number > 1 else one
                body = FIRST if number == 1 and j == 0 else BODY
                built.append(ReversibleUnit(half, LayerContext(net, width // 2, stride), body))
                half = built[-1].shape_out
            self.add_module(f"layer{number}", ReversibleStage(*built))
        last = FeatureShape(self.widths[-1], half.size, one)
        self.tail = LayerSequence(net.tail, last, LayerContext(net, self.widths[-1], one))
        self.fc = head(self.embed_width, num_classes)
        initialise(self, "he")

    def run_stem(self, x: Tensor, positions: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        if any(side % self.strides[-1] for side in x.shape[2:]):
            raise UserError(
                f"images of {' x '.join(map(str, x.shape[2:]))}: {self.name} needs sides that are "
                f"multiples of {self.strides[-1]}"
            )
        x = self.stem(x)
        # halves that are added and subtracted again need the full precision
        return x if x.dtype == torch.float64 else x.float(), []

    @property
    def reverses(self) -> bool:
        """Whether activations are computed again from outputs, and not kept."""
        return all(stage.reverses for stage in self.children() if hasattr(stage, "reverses"))

    @reverses.setter
    def reverses(self, value: bool) -> None:
        for stage in self.children():
            if isinstance(stage, ReversibleStage):
                stage.reverses = value
