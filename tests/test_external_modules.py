"""The external modules have what a Network has, and compute what their sources compute."""

import pytest
import torch
from torch.nn import functional as F

import plusx
from plusx import zoo
from plusx.nn.external import EXTERNAL, SameConv2d
from plusx.zoo import External


# the deepest of them takes as long as all others
NAMES = [pytest.param(n, marks=[pytest.mark.slow] * (n == "revnet110")) for n in EXTERNAL]
SIDE = {"alexnet": 64, "googlenet": 64, "resnet8_keras": 32, "revnet38": 32, "revnet110": 32}


def test_the_zoo_has_the_same_names() -> None:
    assert set(EXTERNAL) == {name for name in zoo.names() if isinstance(zoo.find(name), External)}


@pytest.mark.parametrize("name", NAMES)
def test_the_counts_of_the_zoo_are_those_of_the_module(name: str) -> None:
    figures = zoo.find(name)
    with torch.device("meta"):
        net = EXTERNAL[name](figures.num_classes, figures.in_channels).eval()
        counted = [0]
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.register_forward_hook(multiply_adds(counted))
        net(torch.zeros(1, figures.in_channels, figures.size, figures.size))
    assert sum(parameter.numel() for parameter in net.parameters()) == figures.parameters
    assert counted[0] == figures.multiply_adds


def multiply_adds(total: list[int]) -> object:
    def count(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        total[0] += module.weight.numel() * (output.shape[2:].numel() if output.ndim > 2 else 1)

    return count


@pytest.mark.parametrize("name", NAMES)
def test_features_embed_and_head(name: str) -> None:
    net = plusx.create_model(name, num_classes=3, in_channels=2, seed=0).eval()
    side = SIDE[name]
    x = torch.randn(2, 2, side, side, generator=torch.Generator().manual_seed(0))
    maps = net.features(x)
    assert tuple(y.shape[1] for y in maps) == net.widths
    if name != "alexnet":  # whose poolings are not padded
        assert tuple(side // y.shape[2] for y in maps) == net.strides
    assert torch.equal(net.features(x, out=(1,))[0], maps[1])
    assert torch.equal(net.features(x, out=(-1, 0))[1], maps[0])
    assert net.features(x, out=()) == []
    with pytest.raises(ValueError, match="there is no stage 9"):
        net.features(x, out=(9,))
    y = net.embed(x)
    assert torch.equal(net.fc(y), net(x))
    net.reset_head(5)
    assert net(x).shape == (2, 5)
    net.reset_head(0)
    assert torch.equal(net(x), y)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_the_input_and_every_parameter(name: str) -> None:
    net = plusx.create_model(name, num_classes=3, seed=0)
    x = torch.randn(2, 3, SIDE[name], SIDE[name], requires_grad=True)
    net(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_later_stages_are_not_computed() -> None:
    net = plusx.create_model("resnet8_keras").eval()
    net.layer3.register_forward_hook(lambda *_: pytest.fail("layer3 was run"))
    maps = net.features(torch.rand(1, 3, 32, 32), out=(0, 1))
    assert [feature.shape[1] for feature in maps] == list(net.widths[:2])


@pytest.mark.parametrize("size", [7, 8, 9, 32, 33])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """ceil(size / stride) positions; of an odd number of zeros the larger half comes last."""
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size)
    steps = -(-size // stride)
    needed = max((steps - 1) * stride + kernel - size, 0)
    before, after = needed // 2, needed - needed // 2
    expected = F.conv2d(F.pad(x, (before, after, before, after)), conv.weight, stride=stride)
    assert conv(x).shape[2] == steps
    assert torch.equal(conv(x), expected)
