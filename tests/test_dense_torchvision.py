"""torchvision's networks with a head: its names, its counts, its outputs to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import resnet50
from torchvision.ops import FrozenBatchNorm2d

import plusx
from plusx import store
from plusx.grammar.backbone import dilated
from plusx.grammar.spec import Net
from plusx.nn.build import build
from plusx.nn.costs import multiply_adds
from plusx.nn.network import Network
from plusx.nn.with_head import NetworkWithHead
from plusx.weights import convert, load_weights, open_network
from plusx.weights.convert import EPSILON, with_epsilon
from plusx.weights.rules import rename
from plusx.zoo import find
from plusx.zoo.with_head import HEADED


SEGMENTING = ("fcn_resnet50", "deeplabv3_resnet50")
DETECTING = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")


def filled(net: nn.Module) -> nn.Module:
    """The network with statistics of norms that are not those it begins with."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1, generator=generator)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def theirs(name: str, **more: Any) -> nn.Module:
    make = getattr(
        torchvision.models.segmentation if name in SEGMENTING else torchvision.models.detection,
        name,
    )
    torch.manual_seed(0)
    return filled(make(weights=None, weights_backbone=None, **more))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name in HEADED if "torchvision" in HEADED[name].source and "101" not in name],
)
def test_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        net = build(HEADED[name].net)
    published = next(iter(get_model_weights(name))).meta
    assert sum(parameter.numel() for parameter in net.parameters()) == published["num_params"]
    if name == "fasterrcnn_resnet50_fpn":
        assert published["num_params"] == 41_755_286
    headed = HEADED[name]
    ours = multiply_adds(net, (headed.size, headed.size))
    if name not in DETECTING:  # torchvision counts the auxiliary head, which only training uses
        side = headed.size // 8
        ours += side**2 * (1024 * 256 * 9 + 256 * 21)
    if name == "maskrcnn_resnet50_fpn":  # and no masks, since nothing is found in noise
        ours -= 100 * 14**2 * (4 * 256 * 256 * 9 + 256 * 256 * 4 + 4 * 256 * 91)
    assert round(ours / 1e9, 3) == pytest.approx(published["_ops"], abs=0.0011)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTING)
def test_segmentation_is_torchvisions_to_the_bit(name: str, tmp_path: Path) -> None:
    reference = theirs(name, num_classes=5, aux_loss=name == "fcn_resnet50")
    store.save_tensors(tmp_path / "theirs.safetensors", reference.state_dict(), {})
    to = tmp_path / "ours.safetensors"
    done = convert(tmp_path / "theirs.safetensors", name, "torchvision", to)
    assert done.num_classes == 5
    net, info = open_network(to)
    assert info.model == name
    assert info.task == {"kind": "segment"}
    x = torch.randn(1, 3, 33, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(x), reference(x)["out"])


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTING)
def test_detection_is_torchvisions_to_the_bit(name: str, tmp_path: Path) -> None:
    # no scaling or normalising of its own, so that both see the same numbers
    same = {"min_size": 64, "max_size": 128, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    few = {"rpn_post_nms_top_n_test": 40, "box_detections_per_img": 3, "box_score_thresh": 0.0}
    reference = theirs(name, num_classes=4, **same, **few)
    store.save_tensors(tmp_path / "theirs.safetensors", reference.state_dict(), {})
    to = tmp_path / "ours.safetensors"
    done = convert(tmp_path / "theirs.safetensors", name, "torchvision", to)
    assert done.num_classes == 3
    net, info = open_network(to)
    assert isinstance(net, NetworkWithHead)
    assert info.task == {"kind": "detect"}
    rpn, heads = net.detector.rpn, net.detector.roi_heads
    rpn._post_nms_top_n = {"training": 40, "testing": 40}
    heads.score_thresh, heads.detections_per_img = 0.0, 3
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = net(x)[0], reference(list(x))[0]
    assert len(expected["boxes"]) > 0
    for key in ("boxes", "labels", "scores"):
        assert torch.equal(ours[key], expected[key]), key
    if name == "maskrcnn_resnet50_fpn":
        paste = reference.transform.postprocess
        pasted = paste([ours], [(64, 96)], [(64, 96)])[0]["masks"]  # type: ignore[operator]
        assert torch.equal(pasted, expected["masks"])


def test_names_of_older_files_are_converted() -> None:
    one = torch.zeros(1)
    old = {
        "backbone.body.conv1.weight": one,
        "backbone.fpn.inner_blocks.0.weight": one,
        "backbone.fpn.layer_blocks.3.bias": one,
        "rpn.head.conv.weight": one,
        "rpn.head.cls_logits.bias": one,
        "roi_heads.mask_head.mask_fcn2.bias": one,
        "roi_heads.mask_predictor.conv5_mask.weight": one,
    }
    assert list(rename(old, "torchvision")) == [
        "backbone.conv1.weight",
        "head.fpn.inner_blocks.0.0.weight",
        "head.fpn.layer_blocks.3.0.bias",
        "head.rpn.head.conv.0.0.weight",
        "head.rpn.head.cls_logits.bias",
        "head.roi_heads.mask_head.1.0.bias",
        "head.roi_heads.mask_predictor.conv5_mask.weight",
    ]


def test_norms_without_an_epsilon_are_folded() -> None:
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(4, eps=0.0)
    state: dict[str, Tensor] = {
        "bn.weight": torch.rand(4),
        "bn.bias": torch.rand(4),
        "bn.running_mean": torch.rand(4),
        "bn.running_var": torch.tensor([1e-7, 1e-5, 0.1, 2.0]),
    }
    norm.load_state_dict({key[3:]: tensor for key, tensor in state.items()})
    other = FrozenBatchNorm2d(4, eps=EPSILON)
    other.load_state_dict({key[3:]: tensor for key, tensor in with_epsilon(state).items()})
    x = torch.randn(2, 4, 3, 3)
    # float32 rounds the factors, which go up to 3,000 here
    assert torch.allclose(other(x), norm(x), rtol=1e-5, atol=1e-2)
    assert not torch.allclose(FrozenBatchNorm2d(4)(x), norm(x), rtol=0.5)


@pytest.mark.slow
def test_dilation_is_torchvisions() -> None:
    torch.manual_seed(0)
    reference = filled(resnet50(weights=None, replace_stride_with_dilation=[False, True, True]))
    spec = find("resnet50")
    assert isinstance(spec, Net)
    net = Network(dilated(spec, 8))
    assert net.strides == (4, 8, 8, 8)
    load_weights(net, reference.state_dict(), source="torchvision")
    x = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), reference(x))


@pytest.mark.slow
def test_networks_with_heads_are_made_by_name() -> None:
    net = plusx.create_model("deeplabv3_resnet50", num_classes=2, seed=0)
    repeated = plusx.create_model("deeplabv3_resnet50", num_classes=2, seed=0)
    assert isinstance(net, NetworkWithHead)
    assert net.num_classes == 2
    assert all(map(torch.equal, net.state_dict().values(), repeated.state_dict().values()))
