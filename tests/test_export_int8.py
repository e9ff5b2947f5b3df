"""Eight bits: weights a channel, what stays in float32, and the choices made on images."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import plusx
from plusx import zoo
from plusx.export import quantise, to_onnx
from plusx.export.quantise import (
    CALIBRATIONS,
    MIN_IMAGES,
    distance,
    in_eight_bits,
    outputs_for,
    weighted_nodes,
)
from plusx.grammar.heads import Ctc
from plusx.grammar.model import WithHead
from plusx.grammar.spec import Net
from plusx.nn.build import build
from test_export import stirred
from zoo_shrunken import shrunken


onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def network(name: str) -> Net:
    return replace(shrunken(zoo.find(name), width=32, depth=1), num_classes=10)


def made(name: str, **changes: object) -> tuple[bytes, torch.Tensor]:
    """A small network in float32, and images for it."""
    net = stirred(plusx.create_model(replace(network(name), **changes), seed=0))
    torch.manual_seed(0)
    images = torch.rand(96, 3, 32, 32) * torch.rand(96, 3, 1, 1) * 4 - 1
    return to_onnx(net, images[:1]), images


def nodes(content: bytes) -> list[object]:
    return list(onnx.ModelProto.FromString(content).graph.node)


def int8_weights(content: bytes) -> list[np.ndarray]:
    """The weights of layers that are quantised, one scale for each output channel."""
    initializers = onnx.ModelProto.FromString(content).graph.initializer
    arrays = [onnx.numpy_helper.to_array(array) for array in initializers]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]


@pytest.mark.slow
@pytest.mark.parametrize("full_range", [True, False])
def test_int8_outputs_are_close_to_float32(
    full_range: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    content, images = made("resnet20")
    quantised = quantise(content, images[:48], images[48:], full_range, lambda line: None)
    assert capsys.readouterr().out == ""  # where --json prints
    assert quantised.chosen in quantised.trials
    if not quantised.chosen.float_layers:
        choices = [each for each in quantised.trials if not each.float_layers]
        assert quantised.chosen.error == min(each.error for each in choices)
    assert {each.calibration for each in quantised.trials} == set(CALIBRATIONS)
    assert quantised.chosen.error < (0.01 if full_range else 0.02)
    outputs, expected = (outputs_for(each, images[48:]) for each in (quantised.content, content))
    assert distance(outputs, expected) == (quantised.chosen.error, quantised.chosen.agreement)
    weights = int8_weights(quantised.content)
    left = len(quantised.chosen.float_layers)
    assert len(weights) == len(weighted_nodes(content)) - left
    limit = 127 if full_range else 64
    for each in weights:
        highest = abs(each.astype(int)).reshape(len(each), -1).max(1)
        assert highest.max() <= limit
        # a scale for each channel: every one of them uses its range
        assert (highest >= limit - 1).mean() > 0.9 or each.shape[0] != each.shape[-1]
    assert len(quantised.content) < 0.5 * len(content)
    assert {
        "full_range": full_range,
        "images": 48,
        "held": 48,
    }.items() <= quantised.to_dict().items()


@pytest.mark.slow
def test_sums_are_quantised_only_where_convolutions_read_them() -> None:
    def in_bytes(name: str) -> set[str]:
        content, images = made(name)
        graph = nodes(in_eight_bits(content, images[:MIN_IMAGES], "minmax", True))
        maker = {node.output[0]: node.op_type for node in graph}
        rounded = {node.input[0] for node in graph if node.op_type == "QuantizeLinear"}
        return {
            node.op_type
            for node in graph
            if node.output[0] in rounded
            and all(maker.get(source) == "DequantizeLinear" for source in node.input)
        }

    assert {"Add", "Conv"} <= in_bytes("resnet20")
    assert "Add" not in in_bytes("preact_resnet20")  # its sums go to batch norms
    assert "Concat" not in in_bytes("densenet40_12")


@pytest.mark.slow
def test_float_layers_keep_their_weights() -> None:
    content, images = made("resnet20")
    first, *_, last = weighted_nodes(content)
    all_bytes = in_eight_bits(content, images[:MIN_IMAGES], "minmax", True)
    ends = in_eight_bits(content, images[:MIN_IMAGES], "minmax", True, (first, last))
    expected = outputs_for(content, images)
    assert (
        distance(outputs_for(ends, images), expected)[0]
        < distance(outputs_for(all_bytes, images), expected)[0]
    )
    assert len(int8_weights(ends)) == len(int8_weights(all_bytes)) - 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet20", "resnet20_b", "preact_resnet20", "densenet40_12", "se_resnet20", "highway19",
     "cbam_resnet20", "resnext29_8x64d"],
)  # fmt: skip
def test_int8_arithmetic_equals_rounded_floats(name: str) -> None:
    """ONNX Runtime's integer kernels, against the same file with nothing fused: floats rounded."""
    import onnxruntime

    content, images = made(name)
    quantised = quantise(content, images[:48], images[48:], True, lambda line: None)
    assert quantised.chosen.agreement > 0.7
    assert quantised.chosen.error < 0.1
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    unfused = onnxruntime.InferenceSession(quantised.content, options, ["CPUExecutionProvider"])
    (expected,) = unfused.run(None, {"input": images[48:].numpy()})
    outputs = outputs_for(quantised.content, images[48:])
    assert distance(outputs, torch.from_numpy(expected))[0] < 0.02


def test_sequences_of_different_lengths() -> None:
    stage = plusx.Stage(block=plusx.find("plain14_speech").stages[0].block, depth=1, width=8)
    backbone = plusx.Net(
        stem="conv5s2 norm act", stem_width=8, stages=(stage,), ndim=1, in_channels=8, size=40
    )
    torch.manual_seed(0)
    net = stirred(build(WithHead(backbone=backbone, head=Ctc(), num_classes=6)))
    lengths = [33 + 5 * (number % 7) for number in range(MIN_IMAGES + 8)]
    sequences = [torch.randn(8, length) for length in lengths]
    content = to_onnx(net, torch.randn(1, 8, 64), any_size=True)
    quantised = quantise(content, sequences[:-8], sequences[-8:], True, lambda line: None)
    outputs, expected = (outputs_for(each, sequences[-8:]) for each in (quantised.content, content))
    assert outputs.shape == (sum(net(each[None]).shape[2] for each in sequences[-8:]), 6)
    assert distance(outputs, expected) == (quantised.chosen.error, quantised.chosen.agreement)
    assert quantised.chosen.error < 0.02
    assert int8_weights(quantised.content)


def test_too_few_images_are_refused() -> None:
    few = torch.zeros(MIN_IMAGES - 1, 3, 8, 8)
    message = f"{MIN_IMAGES - 1} inputs for calibration: at least {MIN_IMAGES}"
    with pytest.raises(ValueError, match=message):
        quantise(b"", few, few, True, lambda line: None)


@pytest.mark.data
@pytest.mark.slow
def test_int8_loses_at_most_0_3_points_on_cifar10(tmp_path: Path) -> None:
    from plusx.data.dataset import images_of
    from plusx.data.modality import modality_from_dict
    from plusx.data.readers.open import open_data
    from plusx.data.splits import stratified_order
    from plusx.weights import convert, open_network

    folder = Path(os.environ.get("PLUSX_DATA", "nowhere")) / "weights" / "akamaster_cifar10"
    weights = folder / "resnet20-12fca82f.th"
    if not weights.is_file():
        pytest.skip(f"no {weights.name}")
    convert(weights, "resnet20", "akamaster", tmp_path / "net.safetensors")
    net, info = open_network(tmp_path / "net.safetensors")
    preprocessing = modality_from_dict(info.preprocessing)
    train, test = (open_data("cifar10", split=split) for split in ("train", "test"))
    order = stratified_order(train.labels, 0)
    halves = torch.as_tensor(order[:512]).split(256)
    calibration, held = (preprocessing.normalise(images_of(train)[half]) for half in halves)
    images = preprocessing.normalise(images_of(test))
    content = to_onnx(net, images[:1])
    before = (outputs_for(content, images).argmax(1) == test.labels).float().mean()
    for full_range in (True, False):
        quantised = quantise(content, calibration, held, full_range, lambda line: None)
        after = (outputs_for(quantised.content, images).argmax(1) == test.labels).float().mean()
        assert before - after <= 0.003
