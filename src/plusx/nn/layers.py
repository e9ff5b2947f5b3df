"""The layers of words, including those that PyTorch does not have."""

from collections.abc import Callable
from math import gcd, prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.grammar.arithmetic import (
    FeatureShape,
    LayerContext,
    Size,
    each_dimension,
    out_channels,
    padding,
    pooling,
    rounds_size_up,
)
from plusx.grammar.words import Word
from plusx.nn.dims import layer_type
from plusx.nn.gates import (
    ConvolutionalBlockAttention,
    EfficientChannelAttention,
    ShortcutGate,
    SqueezeExcite,
)
from plusx.nn.valid import valid


class LeakyReLU(nn.LeakyReLU):
    """Leaky ReLU with the slope 0.1 of Darknet."""

    def __init__(self) -> None:
        super().__init__(0.1)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky": LeakyReLU,
}
# activations that can work in place
OVERWRITING = ("relu", "silu")
# words whose output nothing else needs: no other path, no backward pass of their own, no memory
# plan. Excluded are `drop` and the poolings, which may return their input, and layers with weights,
# whose output may be stored.
FRESH = {"norm", "glu", "se", "eca", "cbam", "scale", "shift", "top", "embed", "pos"}


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels at each position (Liu et al. 2022)."""

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ZeroPad(nn.Module):
    """Option A of He et al. 2015: every `stride`-th position, padded with zero channels. With
    `half`, half of the zero channels come first."""

    def __init__(self, channels: int, stride: Size, half: bool) -> None:
        super().__init__()
        before = channels // 2 if half else 0
        self.channels, self.stride = (before, channels - before), stride

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        strided: Any = (..., *(slice(None, None, s) for s in self.stride))
        x = x[strided]
        return F.pad(x, [0, 0] * len(self.stride) + list(self.channels))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, stride={self.stride}"


class Blur(nn.Module):
    """A binomial filter with stride (Zhang 2019) and reflected borders."""

    kernel: Tensor

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.stride = stride
        self.padding = [p for k in reversed(kernel) for p in (k // 2, k // 2)]
        weights = torch.ones(())
        for size in kernel:
            row = torch.ones(1)
            for _ in range(size - 1):
                row = F.pad(row, (0, 1)) + F.pad(row, (1, 0))
            weights = weights.unsqueeze(-1) * row / row.sum()
        self.register_buffer("kernel", weights, persistent=False)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *t"]:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        weight = self.kernel.expand(x.shape[1], 1, *self.kernel.shape)
        padded = F.pad(x, self.padding, mode="reflect")
        return convolve(padded, weight, stride=self.stride, groups=x.shape[1])


class Attention(nn.Module):
    """Multi-head self-attention over positions (Vaswani et al. 2017), without output projection.
    `qkv` computes queries, keys and values of `out` channels each, one head after another."""

    def __init__(self, channels: int, out: int, heads: int, ndim: int, bias: bool) -> None:
        super().__init__()
        self.qkv = layer_type("Conv", ndim)(channels, 3 * out, 1, bias=bias)
        self.heads = heads

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *s"]:
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # n heads positions channels
        mask = valid(x.flatten(2))  # keys of padding are ignored
        y = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None])
        return y.transpose(-1, -2).flatten(1, 2).unflatten(2, x.shape[2:])


class Scale(nn.Module):
    """A learned factor per channel (LayerScale, Touvron et al. 2021), or one for all channels."""

    def __init__(self, channels: int, value: float, ndim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, *[1] * ndim), value))

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        return self.gamma * x


class Shift(nn.Module):
    """One learned number that is added, initially 0 (Zhang et al. 2019, Fixup, section 3.2)."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1, *[1] * ndim))

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        return x + self.beta


class ConstantScale(nn.Module):
    """A constant factor (He et al. 2016, section 3.1)."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        return self.value * x


class Embedding(nn.Embedding):
    """Embeddings of token numbers, as channels, initialised with a standard deviation of 0.1 as in
    fairseq; with PyTorch's 1, the initial values would outweigh what is learned."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, 0.0, 0.1)

    def forward(self, x: Int[Tensor, "n *s"]) -> Float[Tensor, "n c *s"]:
        return super().forward(x).movedim(-1, 1)


class Position(nn.Module):
    """A learned position embedding that is added to the input."""

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.zeros(channels, *size))

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        # a shorter sequence has the first positions
        first: Any = (..., *(slice(side) for side in x.shape[2:]))
        return x + self.pos[first]


class FullyConnected(nn.Linear):
    """A linear layer over all channels and positions."""

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        y = super().forward(x.flatten(1))
        return y.reshape(*y.shape, *[1] * (x.ndim - 2))


class LargestInOrder(nn.Module):
    """The `count` largest values of each channel, in their order (Conneau et al. 2017). Of equal
    values the first count, which `topk` does not guarantee: after a ReLU many are 0."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n c count"]:
        chosen = x.sort(dim=2, descending=True, stable=True).indices[..., : self.count]
        return x.gather(2, chosen.sort(dim=2).values)


def build(word: Word, shape: FeatureShape, context: LayerContext, fresh: bool) -> nn.Module:
    """Return the module of one word for an input of this shape. `fresh`: nothing else uses the
    input, so that an activation may work in place."""
    if word.kind == "act" and context.net.act in OVERWRITING:
        return ACTIVATIONS[context.net.act](inplace=fresh)
    return LAYERS[word.kind](word, shape, context)


def _conv(word: Word, shape: FeatureShape, context: LayerContext) -> nn.Module:
    ndim = context.net.ndim
    kernel = each_dimension(word.kernel, ndim)
    return layer_type("Conv", ndim)(
        shape.channels,
        out_channels(shape.channels, word, context),
        kernel,
        context.stride if word.stride is None else each_dimension(word.stride, ndim),
        padding(kernel, word.dilation),
        word.dilation,
        word.groups or shape.channels,
        word.bias,
    )


def _norm(word: Word, shape: FeatureShape, context: LayerContext) -> nn.Module:
    net, channels = context.net, shape.channels
    match net.norm:
        case "batch":
            return layer_type("BatchNorm", net.ndim)(channels, affine=net.affine)
        case "instance":
            return layer_type("InstanceNorm", net.ndim)(channels, affine=net.affine)
        case "group":
            return nn.GroupNorm(gcd(32, channels), channels, affine=net.affine)
        case "layer":
            return ChannelLayerNorm(channels, eps=1e-6, elementwise_affine=net.affine)


def _pool(word: Word, shape: FeatureShape, context: LayerContext) -> nn.Module:
    kernel, stride = pooling(word, context)
    ndim, rounds_up = context.net.ndim, rounds_size_up(word, kernel)
    if word.stride is None and max(stride) == 1:
        return nn.Identity()
    if word.kind == "maxpool":
        pool = layer_type("MaxPool", ndim)
        return pool(kernel, stride, padding(kernel), ceil_mode=rounds_up)
    if word.kind == "avgpool":
        pool = layer_type("AvgPool", ndim)
        # with ceil_mode a window may extend beyond the border, and averages only what it covers
        return pool(kernel, stride, ceil_mode=rounds_up, count_include_pad=False)
    return Blur(kernel, stride)


def _scale(word: Word, shape: FeatureShape, context: LayerContext) -> nn.Module:
    if not word.learned:
        return ConstantScale(word.value or 0.0)
    if word.value in (0, 1):
        return Scale(1, float(word.value or 0), context.net.ndim)
    return Scale(shape.channels, 1e-6 if word.value is None else word.value, context.net.ndim)


def _attention(word: Word, shape: FeatureShape, context: LayerContext) -> nn.Module:
    out = out_channels(shape.channels, word, context)
    return Attention(shape.channels, out, _count(word), context.net.ndim, word.bias)


def _count(word: Word) -> int:
    return int(word.value or 1)


# kind of a word: its module for the input shape
LAYERS: dict[str, Callable[[Word, FeatureShape, LayerContext], nn.Module]] = {
    "conv": _conv,
    "norm": _norm,
    "act": lambda word, shape, context: ACTIVATIONS[context.net.act](),
    "glu": lambda word, shape, context: nn.GLU(dim=1),
    "maxpool": _pool,
    "avgpool": _pool,
    "blur": _pool,
    "pool": lambda word, shape, context: layer_type("AdaptiveAvgPool", context.net.ndim)(
        _count(word)
    ),
    "fc": lambda word, shape, context: FullyConnected(
        shape.channels * prod(shape.size), _count(word)
    ),
    "top": lambda word, shape, context: LargestInOrder(_count(word)),
    "drop": lambda word, shape, context: nn.Dropout(word.value or 0.0),
    "se": lambda word, shape, context: SqueezeExcite(
        shape.channels, shape.channels // _count(word), context.net.ndim
    ),
    "eca": lambda word, shape, context: EfficientChannelAttention(shape.channels),
    "cbam": lambda word, shape, context: ConvolutionalBlockAttention(
        shape.channels, shape.channels // _count(word), context.net.ndim
    ),
    "attn": _attention,
    "scale": _scale,
    "shift": lambda word, shape, context: Shift(context.net.ndim),
    "gate": lambda word, shape, context: ShortcutGate(shape.channels, context.net.ndim),
    "pad": lambda word, shape, context: ZeroPad(
        context.width - shape.channels, context.stride, half=word.ratio == (1, 2)
    ),
    "embed": lambda word, shape, context: Embedding(shape.channels, _count(word)),
    "pos": lambda word, shape, context: Position(shape.channels, shape.size),
}
