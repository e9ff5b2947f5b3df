"""Other libraries' names become ours. That torchvision's networks then compute the same is tested
in test_parity_torchvision.py."""

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

import plusx
from plusx import zoo
from plusx.grammar.spec import Net
from plusx.nn.external import EXTERNAL
from plusx.nn.network import Network
from plusx.weights.load import load_weights
from plusx.weights.rules import SOURCES, rename


def perturbed(net: nn.Module) -> nn.Module:
    """Statistics, scales and biases that a fresh network does not have: each must arrive."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(std=0.1, generator=generator)
    return net.eval()


def built(name: str) -> nn.Module:
    """Ours, without the time that initialising takes: every number is loaded."""
    spec = zoo.find(name)
    with torch.device("meta"):
        if isinstance(spec, Net):
            net: nn.Module = Network(spec)
        else:
            net = EXTERNAL[name](spec.num_classes, spec.in_channels)
    return net.to_empty(device="cpu").eval()


@pytest.mark.slow
def test_densenet_files_older_than_the_library_are_understood() -> None:
    """The published files say norm.1 where the module is called norm1 today."""
    with torch.device("meta"):
        theirs = torchvision.models.densenet121().state_dict()
    old = {}
    for name, tensor in theirs.items():
        if name.endswith("num_batches_tracked"):
            continue
        keys = name.split(".")
        if "denselayer" in name:
            keys[3:4] = [keys[3][:-1], keys[3][-1]]
        old[".".join(keys)] = tensor
    ours = built("densenet121").state_dict()
    expected = {name for name in ours if not name.endswith("num_batches_tracked")}
    assert set(rename(old, "torchvision", ours)) == expected


TIMM = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet50_d": "resnet50d",
    "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2",
    "se_resnet50": "seresnet50",
    "densenet121": "densenet121",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timms_networks_load_and_compute_the_same(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs, ours = perturbed(timm.create_model(TIMM[name])), built(name)
    load_weights(ours, theirs.state_dict(), source="timm")
    x = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


# the deep stem of ResNet-D: ours, timm's
STEM = {
    "conv1.": "conv1.0.",
    "bn1.": "conv1.1.",
    "conv2.": "conv1.3.",
    "bn2.": "conv1.4.",
    "conv3.": "conv1.6.",
    "bn3.": "bn1.",
}


@pytest.mark.parametrize("name", ["se_resnet50", "eca_resnet50", "resnet50_d"])
def test_timms_names_become_ours(name: str) -> None:
    ours = built(name).state_dict()
    theirs = {}
    for key, tensor in ours.items():
        old = key.replace(".se1.", ".se.").replace(".eca1.", ".se.")
        if name == "resnet50_d":
            stem = next((part for part in STEM if key.startswith(part)), "")
            old = STEM.get(stem, "") + key.removeprefix(stem)
        theirs[old] = tensor
    assert len(theirs) == len(ours)
    assert theirs.keys() != ours.keys()
    renamed = rename(theirs, "timm", ours)
    assert renamed.keys() == ours.keys()
    assert all(renamed[key] is ours[key] for key in ours)


@pytest.mark.parametrize(
    "wrapper",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.backbone."],
)
def test_t9_prefixes_of_wrappers_are_removed(wrapper: str) -> None:
    ours = plusx.create_model("resnet20").state_dict()
    theirs = {f"{wrapper}{key}".replace("fc.", "linear."): tensor for key, tensor in ours.items()}
    assert rename(theirs, "akamaster", ours).keys() == ours.keys()


def test_a_keras_kernel_is_turned() -> None:
    kernel, matrix = torch.rand(3, 5, 2, 4), torch.rand(6, 7)  # height, width, in, out
    turned = rename({"conv2d.kernel": kernel, "dense.kernel": matrix}, "keras")
    conv, fc = turned["conv1.weight"], turned["fc.weight"]
    assert conv.shape == (4, 2, 3, 5)
    assert conv[3, 1, 2, 4] == kernel[2, 4, 1, 3]
    assert torch.equal(fc, matrix.T)


def test_two_names_that_become_one_are_refused() -> None:
    tensors: dict[str, Tensor] = {"fc.weight": torch.ones(1), "linear.weight": torch.ones(1)}
    with pytest.raises(
        ValueError, match=r"two tensors are renamed to 'fc\.weight'.*linear\.weight"
    ):
        rename(tensors, "akamaster")


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown source 'torchvison'.*torchvision"):
        rename({}, "torchvison")
    assert set(SOURCES) == {"plusx", "torchvision", "timm", "akamaster", "keras"}


def test_vgg_of_another_depth_is_recognised_by_its_tensors() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg13().state_dict()
    ours = built("vgg11")
    with pytest.raises(ValueError, match="unused: features"):
        load_weights(ours, theirs, source="torchvision")
