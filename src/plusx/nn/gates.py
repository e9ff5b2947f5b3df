"""Attention gates: x times a factor between 0 and 1, by channel, by position or both."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.grammar.arithmetic import eca_kernel
from plusx.nn.dims import layer_type
from plusx.nn.valid import channel_means, valid


class SqueezeExcite(nn.Module):
    """Channels gated by their means (Hu et al. 2018, section 3)."""

    def __init__(self, channels: int, hidden: int, ndim: int) -> None:
        super().__init__()
        convolution = layer_type("Conv", ndim)
        self.fc1, self.fc2 = convolution(channels, hidden, 1), convolution(hidden, channels, 1)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        mean = channel_means(x)
        return x * self.fc2(self.fc1(mean).relu()).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Channels gated by a one-dimensional convolution over their means (Wang et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = eca_kernel(channels)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        mean = channel_means(x).flatten(1)
        gate = self.conv(mean.unsqueeze(1)).squeeze(1).sigmoid()
        return x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2))


class ConvolutionalBlockAttention(nn.Module):
    """Channels gated by mean and maximum, then positions likewise (Woo et al. 2018, section 3)."""

    def __init__(self, channels: int, hidden: int, ndim: int) -> None:
        super().__init__()
        convolution = layer_type("Conv", ndim)
        self.fc1, self.fc2 = convolution(channels, hidden, 1), convolution(hidden, channels, 1)
        self.conv = convolution(2, 1, 7, padding=3, bias=False)
        self.bn = layer_type("BatchNorm", ndim)(1)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        mask = valid(x)
        inside = x if mask is None else x.masked_fill(~mask, float("-inf"))
        mean, peak = channel_means(x), inside.amax(tuple(range(2, x.ndim)), keepdim=True)
        x = x * (self.fc2(self.fc1(mean).relu()) + self.fc2(self.fc1(peak).relu())).sigmoid()
        summary = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * self.bn(self.conv(summary)).sigmoid()


class ShortcutGate(nn.Module):
    """x (1 - g(x)), g a sigmoid of a 1 x 1 convolution (He et al. 2016, section 3.1)."""

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        self.conv = layer_type("Conv", ndim)(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        return x * (1 - self.conv(x).sigmoid())
