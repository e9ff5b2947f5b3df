"""torchvision's weights load strictly and give torchvision's outputs, bit for bit.

Its networks are built with their own random initialisation; their batch-norm statistics are
perturbed, because fresh ones hide a wrong order of norm and activation.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from plusx.nn.external import EXTERNAL
from plusx.nn.network import Network
from plusx.weights import load_weights
from plusx.zoo import External, find


BIT_EQUAL = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("alexnet", "googlenet"),
]
QUICK = ("resnet18", "googlenet")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def theirs(name: str) -> nn.Module:
    """torchvision's network, in evaluation, with perturbed statistics."""
    torch.manual_seed(0)
    build: Callable[..., nn.Module] = getattr(models.video if name == "r3d_18" else models, name)
    net = build(init_weights=True, aux_logits=False) if name == "googlenet" else build()
    for module in net.modules():
        if isinstance(module, BATCH_NORMS):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def ours(name: str, tensors: dict[str, Tensor]) -> nn.Module:
    """Our network with their weights, every one of them."""
    spec = find(name)
    if isinstance(spec, External):
        net = EXTERNAL[name](spec.num_classes, spec.in_channels)
    else:
        net = Network(spec)
    report = load_weights(net, tensors, source="torchvision")
    assert report.share == 1
    return net.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BIT_EQUAL]
)
def test_outputs_are_equal_bit_for_bit(name: str) -> None:
    their_net = theirs(name)
    own_net = ours(name, their_net.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        own_net, their_net = (net.to(memory_format=memory_format) for net in (own_net, their_net))
        x = x.to(memory_format=memory_format)
        with torch.no_grad():
            assert torch.equal(own_net(x), their_net(x))


@pytest.mark.slow
def test_convnext_is_equal_to_1e_5() -> None:
    # its linear layers are 1x1 convolutions here, which add in another order
    their_net = theirs("convnext_tiny")
    with torch.no_grad():
        for name, parameter in their_net.named_parameters():
            if name.endswith("layer_scale"):
                nn.init.uniform_(parameter, 0.1, 0.5)
    own_net = ours("convnext_tiny", their_net.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (own_net(x) - their_net(x)).abs().max() < 1e-5 * their_net(x).abs().max()


@pytest.mark.slow
def test_video_outputs_are_equal_bit_for_bit() -> None:
    their_net = theirs("r3d_18")
    own_net = ours("r3d_18", their_net.state_dict())
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(own_net(x), their_net(x))


def test_a_training_step_is_equal_bit_for_bit() -> None:
    their_net = theirs("resnet18").train()
    own_net = ours("resnet18", their_net.state_dict()).train()
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    for net in (their_net, own_net):
        nn.functional.cross_entropy(net(x), y).backward()
    mine = dict(own_net.named_parameters())
    for name, parameter in their_net.named_parameters():
        assert torch.equal(mine[name].grad, parameter.grad)
    buffers = dict(own_net.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in their_net.named_buffers())
