"""The convolution of images, with a quicker way to the gradient of large filters.

What a filter of many weights and few positions costs in the backward pass is mostly moving its
gradient from the layout of the convolution library to that of the parameter. A matrix product
writes it where it belongs.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


# Below so many weights the gradient is moved in no time.
LARGE = 250_000
WHOLE = (torch.float32, torch.float64)


class Convolution2d(nn.Conv2d):
    """torch's convolution, from the same values to the same values but for rounding.

    On a CPU and with the channels innermost, the gradient of a filter with at least
    LARGE weights is a matrix product where there are no more positions than filters (a batch of 8
    at 7 x 7, and 512 filters). Everything else is torch's own.
    """

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n d a b"]:
        if self._by_product(x):
            y: Tensor = FilterGradientByProduct.apply(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation
            )
            return y
        return super().forward(x)

    def _by_product(self, x: Tensor) -> bool:
        """Whether the gradient of the filters is to be had, and quicker by a matrix product."""
        weight = self.weight
        if weight.numel() < LARGE or self.kernel_size == (1, 1) or not weight.requires_grad:
            return False
        if not torch.is_grad_enabled() or not weight.is_cpu or x.ndim != 4:
            return False
        if torch.compiler.is_exporting() or torch.is_autocast_enabled(weight.device.type):
            return False
        if self.groups != 1 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        if weight.dtype not in WHOLE or x.dtype != weight.dtype or weight.is_contiguous():
            return False
        positions = x.shape[0]
        for size, stride in zip(x.shape[2:], self.stride):
            positions *= -(-size // stride)
        return positions <= self.out_channels


class FilterGradientByProduct(torch.autograd.Function):
    """A convolution whose filters' gradient is the product of the output's with the windows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.how = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = outputs
        x, weight = ctx.saved_tensors
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            stride, padding, dilation = ctx.how
            of_input, _, _ = torch.ops.aten.convolution_backward(
                slope, x, weight, None, stride, padding, dilation, False, (0, 0), 1,
                (True, False, False),
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            rows = slope.permute(0, 2, 3, 1).flatten(0, 2)
            seen = windows(x, weight.shape[2:], slope.shape[2:], *ctx.how)
            product = rows.T @ seen
            kernel = (len(product), *weight.shape[2:], x.shape[1])
            of_weight = product.view(kernel).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = slope.sum((0, 2, 3))
        return of_input, of_weight, of_bias, None, None, None


def windows(
    x: Float[Tensor, "n c h w"],
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Float[Tensor, "positions inputs"]:
    """What each of the (n, *size) positions sees: a row of kernel positions times channels."""
    down, right = padding
    padded = F.pad(x, (right, right, down, down)).permute(0, 2, 3, 1).contiguous()
    image, row, column, channel = padded.stride()
    shape = (len(x), *size, *kernel, x.shape[1])
    steps = (
        image,
        row * stride[0],
        column * stride[1],
        row * dilation[0],
        column * dilation[1],
        channel,
    )
    return padded.as_strided(shape, steps).flatten(0, 2).flatten(1)
