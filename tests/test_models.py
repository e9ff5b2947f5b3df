"""One model type: names, heads, preprocessing and classes on every network."""

import json
from pathlib import Path

import pytest
import torch

import plusx
from plusx.grammar.heads import Fcos, UNet
from plusx.grammar.model import External, WithHead
from plusx.grammar.spec import Net
from plusx.nn.build import build
from plusx.nn.costs import multiply_adds
from plusx.nn.network import Network
from plusx.store import save_tensors
from plusx.weights import open_network, save_network
from plusx.zoo import HEADED


@pytest.mark.parametrize("name", HEADED)
def test_networks_with_heads_are_listed_found_and_counted(name: str) -> None:
    assert name in plusx.list_models(f"{name[:5]}*")
    model = plusx.find(name)
    assert isinstance(model, WithHead)
    with torch.device("meta"):
        net = build(model)
    entry = HEADED[name]
    assert sum(p.numel() for p in net.parameters()) == entry.parameters
    assert multiply_adds(net, (entry.size,) * net.style.ndim) == entry.multiply_adds
    assert (net.spec.head, net.spec.num_classes) == (model.head, model.num_classes)


def test_every_kind_of_model_is_found_by_its_name() -> None:
    assert isinstance(plusx.find("resnet20"), Net)
    assert isinstance(plusx.find("alexnet"), External)
    with pytest.raises(ValueError, match="did you mean fcn_resnet50"):
        plusx.find("fcn_resnet5")


def test_without_classes_a_network_with_a_head_is_its_backbone() -> None:
    net = plusx.create_model("fcn_resnet50", num_classes=0, seed=0).eval()
    assert isinstance(net, Network)
    assert net.strides[-1] == 8  # dilated, as its head wants it
    with torch.inference_mode():
        assert net.features(torch.zeros(1, 3, 64, 64), out=[-1])[0].shape == (1, 2048, 8, 8)


@pytest.mark.parametrize("head", [None, UNet(width=4), Fcos(width=8)])
def test_a_new_head_has_the_dtype_and_device_of_the_network(head: object) -> None:
    model = plusx.find("resnet20")
    if head is not None:
        model = WithHead(backbone=model, head=head, num_classes=3)
    net = build(model).to(torch.float64)
    net.classes = ("a", "b", "c") if head is not None else net.classes
    net.reset_head(5)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net.classes == ()
    assert len(net.widths) == len(net.strides) == 3
    assert net.embed(torch.zeros(2, 3, 32, 32, dtype=torch.float64)).shape == (2, 64)


def test_a_model_has_its_preprocessing_and_class_names(
    tmp_path: Path,
) -> None:
    net = plusx.create_model("resnet20", num_classes=2, seed=0)
    assert (net.preprocessing, net.classes) == (None, ())
    preprocessing = {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    file = tmp_path / "net.safetensors"
    save_network(net, file, model="resnet20", preprocessing=preprocessing, classes=["a", "b"])
    for loaded in (open_network(file)[0], plusx.create_model("resnet20", weights=file)):
        assert loaded.preprocessing == preprocessing
        assert loaded.classes == ("a", "b")
    other = plusx.create_model("resnet20", weights=file, num_classes=7)
    assert (other.preprocessing, other.classes) == (preprocessing, ())


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "resnet8_keras", "revnet38"])
def test_x4_a_small_file_allocates_no_large_network(name: str, tmp_path: Path) -> None:
    file = tmp_path / "bomb.safetensors"
    external = {"name": name, "num_classes": 1_000_000, "in_channels": 3}
    metadata = {"format": "plusx weights 1", "external": json.dumps(external)}
    save_tensors(file, {"fc.bias": torch.zeros(1)}, metadata)
    assert file.stat().st_size < 500
    with pytest.raises(ValueError, match="larger network than it has weights for"):
        open_network(file)


def test_the_second_weight_of_squeeze_and_excitation_decays() -> None:
    from plusx.train.optim import make_optimizer

    net = plusx.create_model("se_resnet20", num_classes=2, seed=0)
    task = plusx.Classify(net)
    optimizer = make_optimizer(task, decay_norms=False)
    spared = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    names = [name for name, p in task.named_parameters() if id(p) in spared]
    assert names
    assert not any(name.endswith(("fc1.weight", "fc2.weight")) for name in names)


@pytest.mark.parametrize(
    ("model", "name", "resized", "interpolation"),
    [
        ("resnet50", "IMAGENET1K_V1", 256, "bilinear"),
        ("resnet50", "IMAGENET1K_V2", 232, "bilinear"),
        ("convnext_tiny", "IMAGENET1K_V1", 236, "bilinear"),
    ],
)
def test_published_weights_have_their_published_preprocessing(
    model: str, name: str, resized: int, interpolation: str
) -> None:
    from plusx.data.modality import ImageModality, modality_from_dict
    from plusx.weights.published import published

    preprocessing = published(model, name).preprocessing
    assert preprocessing is not None
    modality = modality_from_dict(preprocessing)
    assert isinstance(modality, ImageModality)
    assert (modality.resize, modality.interpolation) == ("center_crop", interpolation)
    assert round(modality.size[0] / modality.crop_fraction) == resized


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    net = plusx.create_model("resnet20", seed=0)
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    with pytest.raises(plusx.UserError, match=r"'fc\.weight' has 1 numbers that are not finite"):
        plusx.save(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
