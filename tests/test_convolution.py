"""Large filters get their gradient from a matrix product: the same values, in the same layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import plusx
from plusx.nn.convolution import LARGE, Convolution2d, FilterGradientByProduct


CHANNELS_LAST = torch.channels_last


def slopes(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a sum in which every position counts otherwise."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad((y * weights).sum(), inputs)


@settings(max_examples=20)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    innermost=st.booleans(),
)
def test_the_product_gives_the_gradients_of_a_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    innermost: bool,
) -> None:
    layout = CHANNELS_LAST if innermost else torch.contiguous_format
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 8, generator=random, dtype=torch.float64).to(memory_format=layout)
    weight = torch.randn(4, 3, *kernel, generator=random, dtype=torch.float64)
    weight = weight.to(memory_format=layout)
    inputs = [x.requires_grad_(), weight.requires_grad_(), torch.randn(4).double().requires_grad_()]
    ours = FilterGradientByProduct.apply(*inputs, stride, padding, dilation)
    torchs = torch.nn.functional.conv2d(*inputs, stride, padding, dilation)
    assert torch.equal(ours, torchs)
    for a, b in zip(slopes(ours, *inputs), slopes(torchs, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_its_gradient_has_a_gradient() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = FilterGradientByProduct.apply(x, weight, None, (2, 1), (1, 1), (1, 1))
        return y

    assert torch.autograd.gradcheck(convolved, (x, weight))
    assert torch.autograd.gradgradcheck(convolved, (x, weight))


def by_product(net: Convolution2d, x: Tensor) -> bool:
    return "Product" in type(net(x).grad_fn).__name__


def large() -> Convolution2d:
    net = Convolution2d(96, 320, 3, padding=1, bias=False)
    assert net.weight.numel() >= LARGE
    net.weight.data = net.weight.data.contiguous(memory_format=CHANNELS_LAST)
    return net


@pytest.mark.parametrize(("size", "expected"), [(6, True), (16, False)])
def test_a_large_filter_takes_the_product_where_positions_are_few(
    size: int, expected: bool
) -> None:
    torch.manual_seed(0)
    net = large()
    x = torch.randn(2, 96, size, size).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    y = net(x)
    assert by_product(net, x) is expected
    (found,) = slopes(y, net.weight)
    (torchs,) = slopes(torch.nn.functional.conv2d(x, net.weight, None, 1, 1), net.weight)
    assert found.stride() == net.weight.stride()  # else it would be moved once more
    torch.testing.assert_close(found, torchs, rtol=1e-4, atol=1e-4)


def test_everything_else_is_torchs_own() -> None:
    net, x = large(), torch.randn(1, 96, 6, 6).contiguous(memory_format=CHANNELS_LAST)
    assert by_product(net, x)
    with torch.no_grad():
        assert not by_product(net, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_product(net, x)
    assert not by_product(Convolution2d(96, 320, 3, padding=1), x)  # in the usual layout
    assert not by_product(net.requires_grad_(False), x.clone().requires_grad_())
    assert not by_product(net.requires_grad_(True).bfloat16(), x.bfloat16())
    grouped = Convolution2d(640, 640, 3, groups=8).to(memory_format=CHANNELS_LAST)
    pointwise = Convolution2d(640, 640, 1).to(memory_format=CHANNELS_LAST)
    for other in (grouped, pointwise):
        assert other.weight.numel() >= LARGE
        assert not by_product(other, torch.randn(1, 640, 5, 5))


def test_the_networks_of_the_zoo_are_made_of_it() -> None:
    net = plusx.create_model("resnet20", seed=0)
    found = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    assert found
    assert all(type(part) is Convolution2d for part in found)
