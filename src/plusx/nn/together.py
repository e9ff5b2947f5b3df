"""K networks of one make as one: their channels side by side, each a group of its own.

Small networks on small images spend much of a step on calling the next layer. Side by side they
call it once. A convolution has K times the groups, a norm over channels K times the channels, and
what works on every channel or position alone stays what it is.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.errors import UserError
from plusx.nn.block import Phrase, ResidualBlock, SidePath
from plusx.nn.gates import ShortcutGate, SqueezeExcite
from plusx.nn.layers import ACTIVATIONS, Blur, ConstantScale, Scale, ZeroPad
from plusx.nn.network import Network


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# what can be made wider, and what does the same to any number of channels; none draws
KNOWN = (
    *(Network, Phrase, SidePath, nn.Sequential, SqueezeExcite, ShortcutGate),
    *(*CONVOLUTIONS, *NORMS, ZeroPad, Scale),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *ACTIVATIONS.values(),
    *(nn.Identity, Blur, ConstantScale),
)
STATISTICS = ("running_mean", "running_var")
INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}


class PadEach(nn.Module):
    """Option A for every network of K: its zero channels stand with its own."""

    def __init__(self, pad: ZeroPad, count: int) -> None:
        super().__init__()
        self.channels, self.stride, self.count = pad.channels, pad.stride, count

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        taken: Any = (..., *(slice(None, None, step) for step in self.stride))
        x = x[taken]
        parts = x.unflatten(1, (self.count, -1))
        padded = F.pad(parts, [0, 0] * len(self.stride) + list(self.channels))
        return padded.flatten(1, 2)


class LinearEach(nn.Module):
    """A linear layer for every network of K: (n, K width) to (n, K classes)."""

    def __init__(self, layer: nn.Linear, count: int) -> None:
        super().__init__()
        self.count, self.weight, self.bias = count, layer.weight, layer.bias

    def forward(self, x: Float[Tensor, "n all_widths"]) -> Float[Tensor, "n all_classes"]:
        each = x.unflatten(1, (self.count, -1)).transpose(0, 1)  # (K, n, width)
        weight = self.weight.unflatten(0, (self.count, -1)).transpose(1, 2)
        bias = self.bias.unflatten(0, (self.count, 1, -1))
        return torch.baddbmm(bias, each, weight).transpose(0, 1).flatten(1)


class Together(nn.Module):
    """K networks of one spec as one, whose answers are those of each but for rounding.

    The networks go on to be used as they are, alone and as part of this: their parameters and
    batch-norm statistics become views of the tensors here, in which they lie one behind another.
    Give the networks in the memory format in which they shall train.

    UserError: the networks differ in their spec, or have a part that looks at all channels at once
    or draws random numbers: concatenation, dropout, stochastic depth, attention, norms other than
    batch norm, fully connected layers before the head.
    """

    def __init__(self, nets: Sequence[Network]) -> None:
        super().__init__()
        if not nets:
            raise UserError("no networks to put together")
        first = nets[0]
        for net in nets:
            if net.spec != first.spec:
                raise UserError("networks of different specs cannot be put together")
        wrong = why_not(first)
        if wrong:
            raise UserError(f"these networks cannot be put together: {wrong}")
        self.count = len(nets)
        self.nets = tuple(nets)  # no submodules: their tensors are those of `net`
        self.net = _joined(nets)
        self._share()
        self._norms = [part for net in nets for part in net.modules() if isinstance(part, NORMS)]

    def forward(self, inputs: Sequence[Tensor]) -> Float[Tensor, "k n classes"]:
        """The answers of each network to its own batch (n, c, *s); all batches have one size."""
        if len(inputs) != self.count:
            raise UserError(f"{len(inputs)} batches for {self.count} networks")
        if any(each.shape != inputs[0].shape for each in inputs):
            raise UserError("the batches of networks that run together have to have one shape")
        answers = self.net(torch.cat(list(inputs), dim=1))
        counts = [part.num_batches_tracked for part in self._norms if part.training]
        told = [count for count in counts if count is not None]
        if told:
            torch._foreach_add_(told, 1)
        return answers.unflatten(1, (self.count, -1)).transpose(0, 1)

    def follow(self) -> None:
        """Be in the mode of the first network, part by part: a frozen norm is frozen here."""
        for part, leader in zip(self.net.modules(), self.nets[0].modules(), strict=True):
            part.training = leader.training

    def take_gradients(self) -> list[list[tuple[nn.Parameter, Tensor]]]:
        """The gradients that a backward pass left here: parameters of each network with their own.

        They are views, and no longer here.
        """
        taken: list[list[tuple[nn.Parameter, Tensor]]] = [[] for _ in self.nets]
        for name, parameter in self.net.named_parameters():
            if parameter.grad is not None:
                parts = parameter.grad.chunk(self.count)
                for found, own, part in zip(taken, self._own[name], parts, strict=True):
                    found.append((own, part))
                parameter.grad = None
        return taken

    def _share(self) -> None:
        """Make the tensors of the networks views of those here."""
        self._own: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.net.named_parameters():
            self._own[name] = [net.get_parameter(name) for net in self.nets]
            for own, part in zip(self._own[name], parameter.data.chunk(self.count), strict=True):
                own.data = part
        for name, buffer in self.net.named_buffers():
            if name.endswith(STATISTICS):
                for net, part in zip(self.nets, buffer.chunk(self.count), strict=True):
                    net.get_buffer(name).data = part


def why_not(net: Network) -> str:
    """What keeps networks of this make from running together, or nothing."""
    for name, part in net.named_modules():
        said = f"{name}: {type(part).__name__}"
        if isinstance(part, ResidualBlock):
            if part.merge == "concat":
                return f"{name} concatenates"
            if part.drop:
                return f"{name} is dropped at random"
        elif isinstance(part, nn.Dropout):
            if part.p:
                return f"{said} draws random numbers"
        elif isinstance(part, nn.Linear):
            if part is not net.fc:
                return f"{said} stands before the head"
        elif not isinstance(part, KNOWN):
            return f"{said} looks at all channels, or is not known to do otherwise"
        if isinstance(part, Scale) and len(part.gamma) == 1:
            return f"{said} has one factor for all channels"
        if isinstance(part, CONVOLUTIONS) and part.padding_mode != "zeros":
            return f"{said} pads with other than zeros"
    return ""


def _joined(nets: Sequence[Network]) -> Network:
    """A copy of the first network that is as wide as all, with the tensors of all."""
    count, joined = len(nets), deepcopy(nets[0])
    for name, part in list(joined.named_modules()):
        if isinstance(part, CONVOLUTIONS):
            part.in_channels, part.out_channels = (
                count * part.in_channels,
                count * part.out_channels,
            )
            part.groups = count * part.groups
        elif isinstance(part, NORMS):
            part.num_features = count * part.num_features
        elif isinstance(part, ZeroPad):
            _put(joined, name, PadEach(part, count))
        elif isinstance(part, nn.Linear):
            _put(joined, name, LinearEach(part, count))
    for name, parameter in joined.named_parameters():
        parameter.data = _cat([net.get_parameter(name).data for net in nets])
        parameter.grad = None
    for name, buffer in joined.named_buffers():
        if name.endswith(STATISTICS):
            buffer.data = _cat([net.get_buffer(name) for net in nets])
    return joined


def _put(net: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, own = name.rpartition(".")
    setattr(net.get_submodule(owner), own, part)


def _cat(tensors: list[Tensor]) -> Tensor:
    """One behind another, in the memory format of the first."""
    together = torch.cat(tensors)
    first = tensors[0]
    if first.ndim in INNERMOST and not first.is_contiguous():
        return together.contiguous(memory_format=INNERMOST[first.ndim])
    return together.contiguous()
