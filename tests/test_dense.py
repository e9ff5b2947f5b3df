"""Networks with a head on their features: every backbone, every head, files and recipes."""

from collections.abc import Sequence
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork

from plusx import create_model, zoo
from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.backbone import backbone_of, dilated, stem_maps
from plusx.grammar.heads import (
    DETECTORS,
    HEADS,
    SEGMENTERS,
    DeepLab,
    FasterRcnn,
    Fcn,
    Fcos,
    Head,
    MaskRcnn,
    UNet,
    Yolo,
    head_from_dict,
    head_to_dict,
)
from plusx.grammar.spec import Net
from plusx.grammar.toml import from_toml, to_toml
from plusx.nn.build import build
from plusx.nn.costs import multiply_adds
from plusx.nn.feature_info import FeatureMap
from plusx.nn.network import Network
from plusx.nn.pyramid import Pyramid
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe.reading import parse_recipe
from plusx.weights import open_network, read_weights, save_network
from plusx.weights.fetch import load_into
from zoo_shrunken import shrunken


HEAD_EXAMPLES: tuple[Head, ...] = (
    Fcn(auxiliary=True),
    DeepLab(stride=16),
    UNet(width=4),
    Fcos(width=8, depth=1),
    Yolo(),
    FasterRcnn(width=8),
    MaskRcnn(width=8, frozen_norms=True),
)
BACKBONES = (
    *("resnet18", "plain18", "preact_resnet18", "densenet121", "se_resnet18", "resnext50_32x4d"),
    *("resnet50_d", "resnet34_a", "darknet53", "vgg11_bn", "resnet20", "wrn16_4", "convnext_tiny"),
)


def spec(name: str) -> Net:
    net = zoo.find(name)
    assert isinstance(net, Net)
    return net


def small(name: str, width: int = 16) -> Net:
    return replace(shrunken(spec(name), width=width, depth=2), num_classes=0)


def flat(output: Any) -> list[Tensor]:
    """All tensors of what a network gives."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in flat(value)]
    return [tensor for value in output for tensor in flat(value)]


def scenes(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images, a box on each but the last, and masks."""
    x = torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    boxes = torch.full((count, 2, 6), -1.0)
    boxes[:-1, 0] = torch.tensor([4.0, 6.0, 40.0, 30.0, 1.0, 0.0])
    masks = torch.zeros(count, 2, 64, 96, dtype=torch.uint8)
    masks[:-1, 0, 6:30, 4:40] = 1
    return x, boxes, masks


def loss_of(net: NetworkWithHead, size: Sequence[int] = (64, 96)) -> Tensor:
    """Something of which every parameter of the network has a part."""
    if isinstance(net.head_spec, FasterRcnn | MaskRcnn):
        x, boxes, masks = scenes()
        return torch.stack(flat(net.losses(x, boxes, masks))).sum()
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    return torch.stack([tensor.square().mean() for tensor in flat(net(x))]).sum()


def test_heads_round_trip_through_toml() -> None:
    for head in HEAD_EXAMPLES:
        assert head_from_dict(head_to_dict(head)) == head
    # the others have tests of their own: tests/test_decoding.py, tests/test_sound_runs.py
    assert {head.kind for head in HEAD_EXAMPLES} == {*SEGMENTERS, *DETECTORS}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "unett"}, "did you mean unet"),
        ({"kind": "unet", "wide": 3}, "no field 'wide'"),
        ({"kind": "unet", "width": "3"}, "must be like 32"),
        ({"kind": "unet", "width": True}, "must be like 32"),
        ({"kind": "unet", "width": 0}, "from 1 to"),
        ({"kind": "fcn", "stride": 4}, "must be 8 or 16 or 32"),
        ({"kind": "yolo", "anchors": [[1, 2]]}, "9 are needed"),
        ({"kind": "faster-rcnn", "anchors": []}, "one side per level"),
    ],
)
def test_invalid_heads_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        head_from_dict(fields)


RECIPE = """epochs = 1
task = { kind = "segment" }
optim = { kind = "sgd", lr = 0.1 }
data = { kind = "digits" }
net = { base = "resnet18" }
[head]
"""


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ('kind = "unet"\nwdth = 3', r"a\.toml:8: \[head\] wdth is not a key; did you mean head\.w"),
        ('kind = "unett"', r"a\.toml:7: \[head\] kind = \"unett\": must be fcn.*did you mean unet"),
        ("width = 3", r"a\.toml:6: \[head\] needs kind"),
        ('kind = "unet"\nwidth = 0', r"a\.toml:6: \[head\] width = 0: must be from 1"),
        ('kind = "unet"\nwidth = "3"', r"a\.toml:6: \[head\] width = '3': must be like 32"),
        ('kind = "fcn"\nstride = 7', r"a\.toml:8: \[head\] stride = 7: must be 8, 16 or 32"),
        ('kind = "fcn"\nlevels = 1', r"a\.toml:8: \[head\] levels is not a key here; it belongs"),
    ],
)
def test_errors_of_a_head_name_its_field(head: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_recipe(RECIPE + head, where="a.toml")


def test_a_recipe_has_a_head() -> None:
    assert parse_recipe(RECIPE + 'kind = "unet"\nwidth = 16').head == UNet(width=16)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_keeps_every_count(stride: int) -> None:
    checked = 0
    for name in zoo.names():
        whole = zoo.find(name)
        if not isinstance(whole, Net):
            continue
        try:
            other = dilated(whole, stride)
        except ValueError:
            continue
        before, after = measure(whole), measure(other)
        assert [s.parameters for s in after.stages] == [s.parameters for s in before.stages], name
        assert [s.blocks for s in after.stages] == [s.blocks for s in before.stages], name
        assert after.widths == before.widths, name
        assert all(max(each_dimension(s, whole.ndim)) <= stride for s in after.strides), name
        assert dilated(other, stride) == other, name
        assert from_toml(to_toml(other)) == other, name
        checked += 1
    assert checked > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "resnet50_v1", "plain18", "preact_resnet18", "preact_resnet50"),
        *("resnet34_a", "resnet50_d", "darknet53", "wrn16_4"),
        *("resnet18_1d", "r3d_18"),
    ],
)
def test_a_dilated_network_computes_the_strided_one_and_what_is_between(name: str) -> None:
    whole = small(name)
    if name == "resnet50_d":  # an average of neighbours is left out with its stride
        shortcut = replace(whole.stages[0].block, shortcut="conv1s norm")  # type: ignore[type-var]
        stages = tuple(replace(stage, block=shortcut) for stage in whole.stages)
        whole = replace(whole, stages=stages)
    torch.manual_seed(0)
    ndim = whole.ndim
    coarse = max(each_dimension(measure(whole).strides[-1], ndim))
    stride = max(coarse // 4, 8 if name != "wrn16_4" else 1)
    net = build(whole).eval()
    other = Network(dilated(whole, stride)).eval()
    assert other.strides != net.strides
    other.load_state_dict(net.state_dict())
    size = (64,) if ndim == 1 else (96, 64) if ndim == 2 else (16, 32, 32)
    x = torch.randn(1, whole.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        strided, fine = net.features(x, out=[-1])[0], other.features(x, out=[-1])[0]
    steps = [a // b for a, b in zip(fine.shape[2:], strided.shape[2:])]
    assert max(steps) > 1
    window: Any = (..., *(slice(None, None, step) for step in steps))
    # sums of the same numbers in another order
    assert torch.allclose(fine[window], strided, rtol=1e-4, atol=1e-5)


def test_networks_that_cannot_be_dilated_are_refused() -> None:
    with pytest.raises(ValueError, match="stride of 16, more than 8"):
        dilated(spec("vit_base_patch16_gap"), 8)
    with pytest.raises(ValueError, match="its stride cannot be removed"):
        dilated(spec("convnext_tiny"), 8)


def test_a_backbone_has_neither_head_nor_pooling() -> None:
    bare = backbone_of(spec("preact_resnet18"), UNet())
    assert (bare.tail, bare.num_classes) == ("norm act", 0)
    assert backbone_of(spec("vgg16"), UNet()).tail == ""
    assert [feature.stride for feature in stem_maps(spec("resnet18"))] == [(2, 2)]
    assert [feature.channels for feature in stem_maps(spec("darknet53"))] == [32]
    assert stem_maps(spec("resnet20")) == []


# every head on two backbones, and every backbone under a decoder, a pyramid and a dilated head
PAIRS = [
    (name, head)
    for i, name in enumerate(BACKBONES)
    for j, head in enumerate(HEAD_EXAMPLES)
    if i in (0, 2) or (i + j) % 4 == 0
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), PAIRS, ids=lambda value: getattr(value, "kind", value))
def test_every_head_fits_every_backbone(name: str, head: Head) -> None:
    whole = small(name)
    torch.manual_seed(0)
    backbone = build(whole)
    if name == "convnext_tiny" and isinstance(head, Fcn | DeepLab):
        with pytest.raises(ValueError, match="its stride cannot be removed"):
            NetworkWithHead(backbone, head, 3)
        return
    net = NetworkWithHead(backbone, head, 3).train()
    loss_of(net).backward()
    without = [name for name, value in net.named_parameters() if value.grad is None]
    assert without == []
    weights = backbone.state_dict()
    for key, tensor in net.backbone.state_dict().items():
        assert key.rpartition(".")[2] not in ("weight", "bias") or torch.equal(tensor, weights[key])
    net.eval()
    with torch.no_grad():
        outputs = net(torch.randn(2, 3, 61, 85))
    if head.kind in ("fcn", "deeplabv3", "unet"):
        assert outputs.shape == (2, 3, 61, 85)
    elif head.kind in ("fcos", "yolo"):
        count = 8 if head.kind == "fcos" else 24
        for value, (down, right) in zip(outputs, net.level_strides, strict=True):
            assert value.shape[1] == count
            # poolings without padding round down, convolutions up
            assert 61 // down <= value.shape[2] <= -(-61 // down)
            assert 85 // right <= value.shape[3] <= -(-85 // right)
    else:
        assert len(outputs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "alexnet", "revnet38", "resnet8_keras"])
@pytest.mark.parametrize("head", [UNet(width=4), Fcos(width=8, depth=1)], ids=["unet", "fcos"])
def test_external_modules_take_heads(name: str, head: Head, tmp_path: Path) -> None:
    net = NetworkWithHead(create_model(name, num_classes=2, seed=0), head, 3)
    loss_of(net, (96, 128)).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    save_network(net, tmp_path / "a.safetensors", model=name)
    reopened, _ = open_network(tmp_path / "a.safetensors")
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert all(map(torch.equal, flat(net.eval()(x)), flat(reopened(x))))
    if name in ("googlenet", "alexnet"):
        with pytest.raises(ValueError, match="cannot be dilated"):
            NetworkWithHead(create_model(name, num_classes=2), Fcn(stride=8), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18_1d", (77,)), ("r3d_18", (5, 19, 22)), ("resnet18", (33, 47)), ("vdcnn9", (70,))],
)
def test_a_unet_has_logits_of_any_size_in_any_dimension(name: str, size: tuple[int, ...]) -> None:
    whole = small(name)
    torch.manual_seed(0)
    net = NetworkWithHead(build(whole), UNet(width=8), 2).eval()
    x = torch.randn(2, whole.in_channels, *size)
    if whole.stem.startswith("embed"):
        x = torch.randint(0, whole.in_channels, (2, *size))
    with torch.no_grad():
        assert net(x).shape == (2, 2, *size)
    # the input is seen as it is: a few positions change the logits there
    if not whole.stem.startswith("embed"):
        other = x.clone()
        other[(0, slice(None), *(slice(n // 2, n // 2 + 3) for n in size))] += 10.0
        with torch.no_grad():
            change = (net(other) - net(x)).abs().sum(1)[0]
        assert change[tuple(slice(n // 2, n // 2 + 3) for n in size)].max() > 0


@pytest.mark.slow
def test_boxes_are_for_images() -> None:
    net = build(small("resnet18_1d", 8))
    with pytest.raises(ValueError, match="finds boxes in images; the network has 1 dimensions"):
        NetworkWithHead(net, Fcos(), 2)


def test_a_pyramid_is_torchvisions() -> None:
    torch.manual_seed(0)
    channels = (4, 6, 8)
    features = [FeatureMap("stage", i, c, (2**i, 2**i)) for i, c in enumerate(channels)]
    ours, theirs = Pyramid(features, 5, 3), FeaturePyramidNetwork(list(channels), 5)
    for i in range(3):
        theirs.inner_blocks[i][0].load_state_dict(ours.inner[i].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(ours.outer[i].state_dict())
    maps = [torch.randn(1, c, 12 >> i, 8 >> i) for i, c in enumerate(channels)]
    expected = theirs({str(i): feature for i, feature in enumerate(maps)})
    assert all(map(torch.equal, ours(maps), expected.values()))


def test_a_pyramid_of_fewer_levels_has_the_finest() -> None:
    features = [FeatureMap("stage", i, c, (2**i, 2**i)) for i, c in enumerate((4, 6, 8))]
    whole, fewer = Pyramid(features, 5, 3), Pyramid(features, 5, 2)
    fewer.load_state_dict({key: whole.state_dict()[key] for key in fewer.state_dict()})
    maps = [torch.randn(1, feature.channels, 12 >> i, 8 >> i) for i, feature in enumerate(features)]
    assert fewer.strides == whole.strides[:2]
    assert all(map(torch.equal, fewer(maps), whole(maps)[:2]))
    assert len(fewer(maps)) == 2


@pytest.mark.slow
def test_an_untrained_detector_has_low_scores_and_boxes_of_some_size() -> None:
    torch.manual_seed(0)
    net = NetworkWithHead(build(small("resnet18")), Fcos(width=8), 3).eval()
    with torch.no_grad():
        maps = net(torch.randn(1, 3, 64, 96))
    assert net.level_strides == ((8, 8), (16, 16), (32, 32), (64, 64))
    for level, (down, _) in zip(maps, net.level_strides, strict=True):
        assert level[:, :3].sigmoid().max() < 0.1
        assert (level[:, 3:7] > 0).all()
        assert level[:, 3:7].mean() == pytest.approx(1.31 * down, rel=0.5)


@pytest.mark.slow
def test_yolov3_has_its_published_count() -> None:
    with torch.device("meta"):
        net = NetworkWithHead(Network(replace(spec("darknet53"), num_classes=0)), Yolo(), 80)
    # the sum over yolov3.weights of the authors, norms' statistics aside
    assert sum(parameter.numel() for parameter in net.parameters()) == 61_949_149
    assert net.level_strides == ((8, 8), (16, 16), (32, 32))


@pytest.mark.slow
def test_frozen_norms_are_constants_and_others_are_not() -> None:
    for frozen in (True, False):
        torch.manual_seed(0)
        net = NetworkWithHead(build(small("resnet18")), FasterRcnn(width=8, frozen_norms=frozen), 2)
        before = {key: tensor.clone() for key, tensor in net.backbone.named_buffers()}
        loss_of(net.train()).backward()
        after = dict(net.backbone.named_buffers())
        moved = [key for key in before if not torch.equal(before[key], after[key])]
        assert bool(moved) != frozen
        trained = [key for key, tensor in net.backbone.named_parameters() if "bn" in key]
        assert bool(trained) != frozen


@pytest.mark.slow
def test_crowds_and_rows_without_a_box_are_no_targets() -> None:
    x, boxes, masks = scenes()
    net = NetworkWithHead(build(small("resnet18")), MaskRcnn(width=8), 2).train()

    def losses(rows: Tensor, shapes: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        return flat(net.losses(x, rows, shapes))

    crowd = boxes.clone()
    crowd[0, 1] = torch.tensor([0.0, 0.0, 90.0, 60.0, 0.0, 1.0])
    flattened = boxes.clone()
    flattened[0, 1] = torch.tensor([90.0, 10.0, 90.0, 20.0, 0.0, 0.0])
    for other in (crowd, flattened, boxes[:, :1]):
        for one, two in zip(losses(boxes, masks), losses(other, masks[:, : other.shape[1]])):
            # the statistics of norms move between, and the losses not with them in training
            assert torch.allclose(one, two, rtol=1e-5)
    with pytest.raises(ValueError, match="the batch has none"):
        net.losses(x, boxes)


@pytest.mark.slow
def test_too_few_anchors_are_refused() -> None:
    with pytest.raises(ValueError, match="2 sides; the pyramid on this network has 5 levels"):
        NetworkWithHead(build(small("resnet18")), FasterRcnn(width=8, anchors=(8, 16)), 2)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEAD_EXAMPLES, ids=lambda head: head.kind)
def test_a_weight_file_builds_the_same_network(head: Head, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    net = NetworkWithHead(build(small("resnet18")), head, 3).eval()
    task = {"kind": "detect", "score": 0.1}
    save_network(net, path, classes=["a", "b", "c"], task=task)
    reopened, info = open_network(path)
    assert (info.head, info.head_classes, info.task) == (head, 3, task)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(map(torch.equal, flat(net(x)), flat(reopened(x))))
    with pytest.raises(ValueError, match="2 names of classes for 3 outputs"):
        save_network(net, path, classes=["a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"kind": "unet", "num_classes": 0}', "num_classes of the head is 0"),
        ('{"kind": "unet", "width": 60000, "num_classes": 2}', "a larger head than it has weights"),
        ('{"kind": "nothing", "num_classes": 2}', "no head 'nothing'"),
        ("[1]", "head is a table"),
    ],
)
def test_a_weight_file_with_a_wrong_head_is_refused(text: str, why: str, tmp_path: Path) -> None:
    from plusx import store
    from plusx.weights.files import describe

    path = tmp_path / "a.safetensors"
    net = NetworkWithHead(build(small("resnet18")), UNet(width=4), 2)
    metadata = describe(net, None, None, None, "") | {"head": text}
    store.save_tensors(path, net.state_dict(), metadata)
    with pytest.raises(ValueError, match=why):
        open_network(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg11_bn"])
def test_backbone_weights_load_under_another_head(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch.manual_seed(0)
    spec = shrunken(zoo.find(name), width=16)  # type: ignore[arg-type]
    classifier = build(spec)
    save_network(classifier, path)
    segmenter = NetworkWithHead(build(spec), UNet(width=4), 3)
    before = segmenter.head.state_dict()["classifier.weight"].clone()
    report = load_into(segmenter, None, read_weights(path), new_head=True)
    weights, loaded = segmenter.backbone.state_dict(), classifier.state_dict()
    assert all(torch.equal(weights[key], loaded[key]) for key in weights)
    assert torch.equal(before, segmenter.head.state_dict()["classifier.weight"])
    assert 0 < report.share < 1

    save_network(segmenter, path)
    for head, classes in ((UNet(width=4), 5), (Fcos(width=8), 3)):
        other = NetworkWithHead(build(spec), head, classes)
        load_into(other, None, read_weights(path), new_head=True)
        assert all(
            torch.equal(weights[key], tensor) for key, tensor in other.backbone.state_dict().items()
        )
    fresh = build(spec)
    load_into(fresh, None, read_weights(path), new_head=True)
    assert all(torch.equal(weights[key], fresh.state_dict()[key]) for key in weights)
    with pytest.raises(ValueError, match="a head 'unet', not for this one's"):
        load_into(build(spec), None, read_weights(path))
    other = NetworkWithHead(build(replace(spec, act="silu")), UNet(width=4), 3)
    with pytest.raises(ValueError, match="another network"):
        load_into(other, None, read_weights(path))


@pytest.mark.slow
def test_multiply_adds_are_those_of_the_parts() -> None:
    for name in ("resnet18", "preact_resnet18", "botnet50", "r3d_18"):
        whole = replace(shrunken(spec(name), width=64, depth=1), size=spec(name).size)
        size = each_dimension(whole.size, whole.ndim)
        net = NetworkWithHead(build(whole), UNet(width=4), 2)
        bare = measure(backbone_of(whole, UNet())).multiply_adds
        decoder = 0
        maps = [level.stride for level in net.head.levels]  # type: ignore[union-attr]
        for i, stride in enumerate(maps[:-1]):
            cells = prod(-(-n // s) for n, s in zip(size, stride))
            up: Any = getattr(net.head, f"up{i}")
            decoder += cells * sum(conv.weight.numel() for conv in (up.conv1, up.conv2))
        first: Any = net.head.enter  # type: ignore[union-attr]
        last: Any = net.head.classifier  # type: ignore[union-attr]
        decoder += prod(size) * (first.conv1.weight.numel() + last.weight.numel())
        assert multiply_adds(net, size) == bare + decoder, name


@pytest.mark.slow
def test_a_head_is_the_same_for_the_same_seed() -> None:
    from plusx.run.build import make_net

    recipe = parse_recipe(RECIPE + 'kind = "unet"\nwidth = 4', where="a.toml")
    recipe = replace(recipe, net=replace(recipe.net, num_classes=3))
    one, _ = make_net(recipe)
    torch.rand(7)
    two, _ = make_net(recipe)
    other, _ = make_net(replace(recipe, seed=1))
    assert isinstance(one, NetworkWithHead)
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    weight = "head.classifier.weight"
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"head": None}, r"\[task\] kind = \"segment\" needs a \[head\]: kind = fcn or"),
        ({"head": Fcos()}, r"\[head\] kind = \"fcos\" is not for \[task\] kind = \"segment\""),
    ],
)
def test_a_task_has_a_head_that_fits(change: dict[str, Any], why: str) -> None:
    from plusx.run.build import make_net

    recipe = parse_recipe(RECIPE + 'kind = "unet"', where="a.toml")
    net = replace(recipe.net, base="resnet20", num_classes=3)
    with pytest.raises(ValueError, match=why):
        make_net(replace(recipe, net=net, **change))


def test_every_field_of_a_head_is_documented_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "seeing.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    for kind in (*SEGMENTERS, *DETECTORS):  # docs/translate.md and sound.md have the others
        head = HEADS[kind]
        (documented,) = [row[1] for row in rows if f"`{kind}`" in row[0] and len(row) == 4]
        for field in fields(head):
            value = field.default
            entry = field.name if isinstance(value, tuple) else f"{field.name} = {value}".lower()
            assert field.name == "kind" or f"`{entry}`" in documented, (kind, entry)
