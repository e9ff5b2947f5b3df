"""Reversible residual networks (Gomez et al. 2017): the input can be computed from the output.

A unit splits its channels into two halves and computes

    y1 = x1 + F(x2)        x2 = y2 - G(y1)
    y2 = x2 + G(y1)        x1 = y1 - F(x2)

so that training stores the output of a stage, but no activations inside it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plusx.errors import UserError
from plusx.grammar.arithmetic import FeatureShape, LayerContext, input_shape
from plusx.grammar.reversible import BODY, FIRST, SHORTCUT, Reversible
from plusx.nn.block import LayerSequence, Shortcut
from plusx.nn.frozen import frozen_running_statistics
from plusx.nn.init import initialise
from plusx.nn.network import Backbone, linear_head


class ReversibleUnit(nn.Module):
    """Two residual branches between the halves of the channels. If the unit changes the shape, both
    halves have a shortcut without weights, and the input cannot be computed from the output."""

    def __init__(self, shape: FeatureShape, context: LayerContext, body: str) -> None:
        super().__init__()
        self.f = LayerSequence(body, shape, context)
        changes_shape = self.f.shape_out.channels != shape.channels or max(context.stride) > 1
        unstrided = LayerContext.unstrided(context.net, context.width)
        self.downsample = Shortcut(SHORTCUT, shape, unstrided) if changes_shape else None
        self.g = LayerSequence(BODY, self.f.shape_out, unstrided)
        self.shape_out = self.g.shape_out

    def forward(
        self, x1: Float[Tensor, "n c *s"], x2: Float[Tensor, "n c *s"]
    ) -> tuple[Float[Tensor, "n d *t"], Float[Tensor, "n d *t"]]:
        skip1, skip2 = (x1, x2) if self.downsample is None else map(self.downsample, (x1, x2))
        y1 = skip1 + self.f(x2)
        return y1, skip2 + self.g(y1)


class Reversal(torch.autograd.Function):
    """Units of the same shape in turn; only the output of the last is saved."""

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

        def branch_gradient(
            branch: LayerSequence, x: Tensor, gradient: Tensor
        ) -> tuple[Tensor, Tensor]:
            """Return output and input gradient of a branch, and record those of its parameters."""
            x = x.detach().requires_grad_()
            trained = [p for p in branch.parameters() if p.requires_grad]
            autocast = torch.autocast(*ctx.autocast) if ctx.autocast else nullcontext()
            with torch.enable_grad(), autocast, frozen_running_statistics(branch):
                y = branch(x)
            x_gradient, *parameter_gradients = torch.autograd.grad(
                y, [x, *trained], gradient.to(y.dtype)
            )
            gradients.update(zip(trained, parameter_gradients, strict=True))
            return y.detach(), x_gradient

        for unit in reversed(ctx.units):
            g, gradient = branch_gradient(unit.g, y1, d2)
            y2, d1 = y2 - g, d1 + gradient
            f, gradient = branch_gradient(unit.f, y2, d1)
            y1, d2 = y1 - f, d2 + gradient
        return None, d1, d2, *(gradients.get(parameter) for parameter in ctx.parameters)


class ReversibleStage(nn.Sequential):
    """Units in turn, on halves of the channels. With `reverses` False all activations are saved."""

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
                context_fn=lambda: (nullcontext(), frozen_running_statistics(unit)),
            )
        parameters = [p for unit in units for p in unit.parameters() if p.requires_grad]
        if units:
            halves = Reversal.apply(units, *halves, *parameters)
        return torch.cat(halves, dim=1)


class ReversibleNetwork(Backbone):
    """A reversible network for small images, as in the authors' code.

    The stem is convolution, norm and activation; then three stages of pre-activation units, of
    which the very first starts without norm and activation, and the first of stages 2 and 3 halves
    the image; then norm, activation and mean. Shortcuts average and pad zero channels on both
    sides.

    With `reverses` False activations are saved as in other networks, for comparison.
    """

    strides = (1, 2, 4)
    tail: LayerSequence

    def __init__(
        self, name: str, sizes: Reversible, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.name, self.widths, self.embed_width = name, sizes.widths, sizes.widths[-1]
        self.num_classes, self.in_channels = num_classes, in_channels
        self.style = net = sizes.net(in_channels)
        unstrided = (1, 1)
        stem = LayerContext.unstrided(net, sizes.stem_width)
        self.stem = LayerSequence(net.stem, input_shape(net), stem)
        half_shape = FeatureShape(sizes.stem_width // 2, input_shape(net).size, unstrided)
        for number, (count, width) in enumerate(zip(sizes.units, sizes.widths, strict=True), 1):
            units = []
            for j in range(count):
                stride = (2, 2) if j == 0 and number > 1 else unstrided
                body = FIRST if number == 1 and j == 0 else BODY
                units.append(
                    ReversibleUnit(half_shape, LayerContext(net, width // 2, stride), body)
                )
                half_shape = units[-1].shape_out
            self.add_module(f"layer{number}", ReversibleStage(*units))
        last = FeatureShape(self.widths[-1], half_shape.size, unstrided)
        tail = LayerContext.unstrided(net, self.widths[-1])
        self.tail = LayerSequence(net.tail, last, tail)
        self.fc = linear_head(self.embed_width, num_classes)
        initialise(self, "he")

    def run_stem(self, x: Tensor, positions: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        if any(side % self.strides[-1] for side in x.shape[2:]):
            raise UserError(
                f"images of {' x '.join(map(str, x.shape[2:]))}: {self.name} needs sides that are "
                f"multiples of {self.strides[-1]}"
            )
        x = self.stem(x)
        # the reconstruction needs full precision
        return x if x.dtype == torch.float64 else x.float(), []

    @property
    def reverses(self) -> bool:
        """Whether activations are recomputed from outputs instead of saved."""
        return all(stage.reverses for stage in self.children() if hasattr(stage, "reverses"))

    @reverses.setter
    def reverses(self, value: bool) -> None:
        for stage in self.children():
            if isinstance(stage, ReversibleStage):
                stage.reverses = value
