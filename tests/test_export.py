"""Networks as ONNX graphs: every family, in any number, and what refuses to be one."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import plusx
from plusx import zoo
from plusx.export import OnnxNetwork, checked, compare, example_inputs, to_onnx, with_digest
from plusx.grammar.heads import DeepLab, FasterRcnn, Fcn, Fcos, MaskRcnn, UNet, Yolo
from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.nn.layers import LargestInOrder
from plusx.nn.with_head import NetworkWithHead
from plusx.run.exporting import input_of
from zoo_shrunken import shrunken


pytest.importorskip("onnxruntime")


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, scales and shifts of norms as if they had been learnt."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            last = name.rpartition(".")[2]
            if last == "running_mean":
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.3)
            elif last == "running_var":
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
            elif tensor.is_floating_point() and tensor.ndim <= 1:
                tensor.add_(torch.randn(tensor.shape, generator=random) * 0.1)
    return net.eval()


def kinds(net: Net) -> set[object]:
    """What a network has that another may not have: its words, merges, dimensions and norms."""
    sentences = [net.stem, net.tail]
    for stage in net.stages:
        sentences.append(stage.enter)
        for block in stage.blocks:
            sentences += [block.body, block.shortcut, block.identity, block.gate]
    features: set[object] = {net.norm, net.act, net.affine}
    for sentence in map(parse, sentences):
        features.add((sentence.merge, net.ndim))
        for word in sentence.words:
            grouped = min(word.groups, 2)  # 0 is a group a channel
            features.add((word.kind, word.bias, grouped, word.dilation > 1, net.ndim))
    return features


def families() -> Iterator[tuple[str, Net]]:
    """Small networks that have all that any of the zoo has, and what the language has beside."""
    covered: set[object] = set()
    nets = {name: zoo.find(name) for name in zoo.names("*")}
    small_ones = {
        name: shrunken(net, width=16, depth=1) for name, net in nets.items() if isinstance(net, Net)
    }
    cheap_first = sorted(
        small_ones, key=lambda name: sum(len(s.blocks) for s in small_ones[name].stages)
    )
    for name in cheap_first:
        paper = zoo.ZOO[name].source.split(",")[0]
        if not {paper, *kinds(small_ones[name])} <= covered:
            covered |= {paper, *kinds(small_ones[name])}
            yield name, small_ones[name]
    small = shrunken(zoo.find("resnet20"), width=8, depth=1)
    norms = product(("instance", "group", "layer"), (True, False))
    acts = ("gelu", "silu", "sigmoid", "tanh", "relu", "leaky")
    for (norm, affine), act in zip(norms, acts):
        yield f"{norm} {act} {affine}", replace(small, norm=norm, act=act, affine=affine)
    yield "survival", replace(small, drop_path=0.5, num_classes=0)


FAMILIES = dict(families())
SMALL = shrunken(zoo.find("resnet20"), width=16, depth=1)


def assert_exported(net: nn.Module, sizes: tuple[int, ...], tokens: int = 0) -> bytes:
    """Export, and compare with torch: eight inputs, one, and the sizes that the file states."""
    inputs = example_inputs(sizes, tokens)
    content = to_onnx(net, inputs[:1])
    result = compare(net, content, inputs)
    assert result.inputs == len(inputs)
    assert result.error <= result.allowed <= 1e-4 * max(1.0, result.largest)
    read = checked(with_digest(content, {}), "it")
    assert (read.sizes, read.tokens) == (sizes, tokens > 0)
    return content


HEADS = {
    "fcn": Fcn(stride=16, auxiliary=True),
    "deeplabv3": DeepLab(),
    "unet": UNet(width=8),
    "fcos": Fcos(width=16),
    "yolo": Yolo(),
    "faster-rcnn": FasterRcnn(width=16),
    "mask-rcnn": MaskRcnn(width=16),
}


@pytest.mark.slow
@pytest.mark.parametrize("any_size", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_every_head_computes_what_torch_does(kind: str, any_size: bool) -> None:
    spec = shrunken(zoo.find("resnet18"), width=16, depth=1)
    net = NetworkWithHead(plusx.create_model(spec, seed=0), HEADS[kind], 3).eval()
    inputs = example_inputs((3, 64, 96), count=2)
    content = to_onnx(net, inputs[:1], any_size=any_size)
    result = compare(net, content, inputs)
    assert result.error <= result.allowed
    read = checked(with_digest(content, {}), "it")
    assert read.sizes == ((3, 0, 0) if any_size else (3, 64, 96))
    if any_size:
        inputs = example_inputs((3, 96, 64), count=2)
    with torch.device("meta"):
        described = NetworkWithHead(plusx.create_model(spec, num_classes=0), HEADS[kind], 3)
    file = OnnxNetwork(content, described)
    assert not list(file.parameters())
    with torch.inference_mode():
        outputs, expected = file(inputs), net(inputs)
    flat = [outputs, expected] if isinstance(outputs, Tensor) else [*zip(outputs, expected)]
    for one, other in [flat] if isinstance(outputs, Tensor) else flat:
        if isinstance(one, dict):  # two-stage: what was found in an image
            assert one.keys() == other.keys()
            assert len(one["boxes"]) > 0
            assert torch.equal(one["labels"], other["labels"])
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_an_image_network_exports_for_slices_of_volumes() -> None:
    spec = shrunken(zoo.find("resnet18"), width=16, depth=1)
    net = NetworkWithHead(
        plusx.create_model(replace(spec, in_channels=1), seed=0), UNet(width=8), 2
    ).eval()
    inputs = example_inputs((1, 4, 32, 32), count=2)
    assert compare(net, to_onnx(net, inputs[:1]), inputs).inputs == 2


def test_a_file_is_reproducible_and_contains_no_local_path() -> None:
    net = stirred(plusx.create_model(SMALL, seed=0))
    content = to_onnx(net, torch.zeros(1, 3, 32, 32))
    assert content == to_onnx(net, torch.ones(1, 3, 32, 32))
    for trace in (b"site-packages", b"plusx/nn", b".py"):
        assert trace not in content


def kinds_of_nodes(content: bytes) -> list[str]:
    from onnx import ModelProto

    return [node.op_type for node in ModelProto.FromString(content).graph.node]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_torch_does(name: str) -> None:
    net = FAMILIES[name]
    content = assert_exported(stirred(plusx.create_model(net, seed=0)), *input_of(net))
    if name in ("resnet20", "resnet50_d", "quartznet15x5", "r3d_18"):
        assert "BatchNormalization" not in kinds_of_nodes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 63), ("googlenet", 64), ("resnet8_keras", 32), ("revnet38", 32)]
)
def test_external_modules_compute_what_torch_does(name: str, size: int) -> None:
    assert_exported(stirred(plusx.create_model(name, num_classes=7, seed=0)), (3, size, size))


@pytest.mark.slow
def test_a_network_stays_in_the_mode_that_it_was_in() -> None:
    net = stirred(plusx.create_model(SMALL, seed=0)).train()
    net.layer1.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    content = to_onnx(net, torch.zeros(1, 3, 32, 32))
    assert net.training
    assert not net.layer1.training
    assert all(torch.equal(before[name], state) for name, state in net.state_dict().items())
    compare(net.eval(), content, torch.randn(3, 3, 32, 32))


@pytest.mark.slow
def test_another_network_is_detected() -> None:
    net = stirred(plusx.create_model(SMALL, seed=0))
    content = to_onnx(net, torch.zeros(1, 3, 32, 32))
    inputs = example_inputs((3, 32, 32))
    compare(net, content, inputs)
    with torch.no_grad():
        net.layer3[0].bn2.running_var.mul_(1.01)  # what an export without statistics would do
    with pytest.raises(RuntimeError, match="outputs of the file differ from the network"):
        compare(net, content, inputs)


class Branching(nn.Module):
    """A network whose steps depend on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.slow
def test_networks_that_cannot_be_exported_are_named() -> None:
    with pytest.raises(ValueError, match=r"torch.onnx cannot export the network: "):
        to_onnx(Branching(), torch.zeros(1, 3, 8))


class Steps(nn.Module):
    """The steps of torch that a network may take and our small ones do not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.register_buffer("factors", torch.rand(6, 1, 1))
        self.linear = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (1, 2, 0, 3), mode="reflect")
        x = nn.functional.pad(x, (2, 1), value=0.5)
        x = self.norm(x) * (self.factors.exp() + 1) / 3  # what depends on no input is computed
        x = nn.functional.silu(x, inplace=True) - x.amax(1, keepdim=True)
        x = 2 - x.permute(0, 2, 3, 1).transpose(1, 2).movedim(-1, 1)
        x = nn.functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        x = nn.functional.adaptive_avg_pool2d(x, (7, 5))
        frames = x.unflatten(1, (2, 3)).unbind(1)
        x = torch.cat([self.linear(part[:, :, 1::2].contiguous()) for part in frames], 1)
        return torch.tanh(x).mean((2, 3))


@pytest.mark.slow
def test_steps_beside_those_of_our_networks() -> None:
    torch.manual_seed(0)
    assert_exported(stirred(Steps()), (6, 9, 8))


def test_ties_are_resolved_by_the_first_index() -> None:
    # as ONNX has it; torch's topk takes any of them, and most values behind a ReLU are 0
    x = torch.tensor([[[0.0, 5.0, 0.0, 1.0, 0.0, 0.0]]])
    assert LargestInOrder(3)(x).tolist() == [[[0.0, 5.0, 1.0]]]
    x[0, 0, 0] = -1.0
    assert LargestInOrder(3)(x).tolist() == [[[5.0, 0.0, 1.0]]]
