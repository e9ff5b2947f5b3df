"""Every network of the zoo as PyTorch builds it, on the meta device: nothing is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision import models

from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.nn.layers import Attention
from plusx.nn.network import Network
from plusx.zoo import External, find, names
from zoo_digest import build, inputs


def deep(name: str) -> bool:
    """Whether a network has so many blocks that it is left to `make test-all`."""
    spec = find(name)
    return isinstance(spec, Net) and sum(len(stage.blocks) for stage in spec.stages) > 15


TORCHVISION = {
    **{name: name for name in names("resnet18") + names("resnet34")},
    **{name: name for name in ("resnet50", "resnet101", "resnet152")},
    **{name: name for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{name: name for name in ("wide_resnet50_2", "wide_resnet101_2")},
    **{name: name for name in names("densenet1?1") + names("densenet169") + names("densenet201")},
    **{name: name for name in names("vgg1?") + names("vgg1?_bn")},
    "alexnet": "alexnet",
    "googlenet": "googlenet",
    "convnext_tiny": "convnext_tiny",
    "r3d_18": "r3d_18",
}
SAME_NAMES = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
]


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    """The multiply-adds of each layer that runs, for one image."""
    counts: list[int] = []
    handles: list[RemovableHandle] = []

    def convolution(module: nn.Module, _: object, out: Tensor) -> None:
        counts.append(module.weight.numel() * prod(out.shape[2:]))

    def linear(module: nn.Module, _: object, out: Tensor) -> None:
        counts.append(module.weight.numel())

    def attention(_: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        counts.append(2 * out.shape[1] * prod(out.shape[2:]) ** 2)

    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            handles.append(module.register_forward_hook(convolution))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(linear))
        elif isinstance(module, Attention):
            handles.append(module.register_forward_hook(attention))
    yield counts
    for handle in handles:
        handle.remove()


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name).eval()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if deep(name) else ()) for name in names()],
)
def test_a_built_network_equals_the_arithmetic(name: str) -> None:
    spec, net = find(name), built(name)
    measured = spec if isinstance(spec, External) else measure(spec)
    assert sum(parameter.numel() for parameter in net.parameters()) == measured.parameters
    x = inputs(spec, batch=1).to("meta")
    x = x if x.dtype == torch.long else x.float()
    with counted(net) as counts:
        assert net(x).shape == (1, spec.num_classes)
    assert sum(counts) == measured.multiply_adds
    if isinstance(spec, Net):
        assert net.widths == measured.widths
        assert net.strides == measured.strides
        shapes = [(1, stage.channels, *stage.size) for stage in measure(spec).stages]
        assert [tuple(y.shape) for y in net.features(x)] == shapes


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if deep(name) else ()) for name in SAME_NAMES],
)
def test_the_tensors_have_torchvisions_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(models, name)().state_dict()
    ours = built(name).state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].shape == theirs[key].shape for key in theirs)


@pytest.mark.parametrize("name", TORCHVISION)
def test_multiply_adds_are_those_that_torchvision_states(name: str) -> None:
    where = models.video if name == "r3d_18" else models
    stated = models.get_model_weights(getattr(where, name)).DEFAULT.meta
    spec = find(name)
    measured = spec if isinstance(spec, External) else measure(spec)
    assert round(measured.multiply_adds / 1e9, 3) == stated["_ops"]
    if name != "googlenet":  # stated for the file, which holds no auxiliary heads
        assert measured.parameters == stated["num_params"]


def test_googlenet_with_its_auxiliary_heads_has_13_004_888_parameters() -> None:
    with torch.device("meta"):
        whole = models.googlenet(aux_logits=True, init_weights=False)
    heads = sum(p.numel() for head in (whole.aux1, whole.aux2) for p in head.parameters())
    measured = find("googlenet")
    assert isinstance(measured, External)
    assert measured.parameters + heads == 13_004_888


@pytest.mark.parametrize("name", ["resnet20", "densenet40_12", "resnet18_1d", "r3d_18"])
@pytest.mark.parametrize("norm", ["group", "instance", "layer"])
def test_another_norm_reaches_every_layer(name: str, norm: str) -> None:
    spec = find(name)
    assert isinstance(spec, Net)
    with torch.device("meta"):
        net = Network(replace(spec, norm=norm))
    batch = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    assert not any(isinstance(module, batch) for module in net.modules())
