"""Eight bits: the arithmetic of bytes, what stays in float32, and the choices made on images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import plusx
from plusx import zoo
from plusx.export import quantise, to_onnx
from plusx.export.calibrate import BINS, METHODS, Histogram, histograms, least_squares
from plusx.export.eight_bits import in_eight_bits, scale_of, weighted_nodes
from plusx.export.quantise import LEAST, answers, distance
from plusx.grammar.spec import Net
from test_export import stirred
from zoo_shrunken import shrunken


onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

finite = st.floats(-1e6, 1e6, width=32)


def seen(values: np.ndarray) -> Histogram:
    """A histogram of these values."""
    between = float(values.min()), float(values.max())
    return Histogram(np.histogram(values, BINS, between)[0], np.linspace(*between, BINS + 1))


@given(finite, finite)
def test_zero_is_a_byte_and_the_ends_are_near_one(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    scale, zero = (float(each) for each in scale_of((low, high)))
    assert 0 <= zero <= 255
    assert scale > 0
    for value in (0.0, low, high):
        byte = np.clip(np.rint(value / scale) + zero, 0, 255)
        assert abs(scale * (byte - zero) - value) <= scale * 1.01


@given(st.lists(finite, min_size=2, max_size=200), st.sampled_from(sorted(METHODS)))
def test_a_range_lies_within_what_was_seen(values: list[float], method: str) -> None:
    low, high = METHODS[method](seen(np.array(values)))
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert (
        min(*values, 0.0) - slack
        <= low
        <= high
        <= max(*values, 0.0)
        + slack
        + 0.5
        * (
            min(values) == max(values)  # the histogram of one value is one wide
        )
    )


def rounding_error(values: np.ndarray, between: tuple[float, float]) -> float:
    """The mean squared error of these values as bytes."""
    scale, zero = (float(each) for each in scale_of(between))
    rounded = scale * (np.clip(np.rint(values / scale) + zero, 0, 255) - zero)
    return float(np.square(rounded - values).mean())


@pytest.mark.parametrize("outlier", [5.0, 20.0, 50.0])
def test_least_squares_lose_least(outlier: float) -> None:
    values = np.abs(np.random.default_rng(0).normal(size=10_000)).astype(np.float32)
    values[:20] = outlier
    found = least_squares(seen(values))
    best = min(rounding_error(values, (0.0, outlier * share)) for share in np.linspace(0.3, 1, 29))
    assert rounding_error(values, found) < 1.1 * best


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


@pytest.mark.slow
@pytest.mark.parametrize("full_range", [True, False])
def test_eight_bits_answer_nearly_alike(full_range: bool) -> None:
    content, images = made("resnet20")
    found = quantise(content, images[:48], images[48:], full_range, lambda line: None)
    assert found.chosen in found.trials
    if not found.chosen.float_layers:
        assert found.chosen.error == min(each.error for each in found.trials)
    assert found.chosen.error < (0.01 if full_range else 0.02)
    assert distance(answers(found.content, images[48:]), answers(content, images[48:])) == (
        found.chosen.error,
        found.chosen.agreement,
    )
    graph = onnx.ModelProto.FromString(found.content).graph
    whole = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    weights = [each for name, each in whole.items() if name.endswith("weight.whole")]
    left = len(found.chosen.float_layers)
    assert len(weights) == len(weighted_nodes(content)) - left
    most = 127 if full_range else 63
    assert all(each.dtype == np.int8 and abs(each.astype(int)).max() <= most for each in weights)
    # a scale for each channel: every one of them uses its range
    for each in weights:
        assert (abs(each.astype(int)).reshape(len(each), -1).max(1) == most).mean() > 0.9
    assert len(found.content) < 0.5 * len(content)
    assert {"full_range": full_range, "images": 48, "held": 48}.items() <= found.to_dict().items()


@pytest.mark.slow
def test_sums_are_bytes_where_convolutions_read_them_and_only_there() -> None:
    def in_bytes(name: str) -> set[str]:
        content, images = made(name)
        ranges = {
            each: METHODS["least and largest"](values)
            for each, values in histograms(content, images[:LEAST], lambda done: None).items()
        }
        graph = nodes(in_eight_bits(content, ranges, full=True))
        made_by = {node.output[0]: node.op_type for node in graph}
        read = {node.input[0] for node in graph if node.op_type == "QuantizeLinear"}
        return {
            node.op_type
            for node in graph
            if node.output[0] in read
            and all(made_by.get(each, "").startswith("Dequantize") for each in node.input)
        }

    assert {"Add", "Conv", "GlobalAveragePool"} <= in_bytes("resnet20")
    assert "Add" not in in_bytes("preact_resnet20")  # its sums go to batch norms
    assert "Concat" not in in_bytes("densenet40_12")


@pytest.mark.slow
def test_nodes_that_are_left_keep_their_weights() -> None:
    content, images = made("resnet20")
    ranges = {
        each: METHODS["least and largest"](values)
        for each, values in histograms(content, images[:LEAST], lambda done: None).items()
    }
    first, *_, last = weighted_nodes(content)
    all_bytes = in_eight_bits(content, ranges, full=True)
    ends = in_eight_bits(content, ranges, full=True, left=(first, last))
    wanted = answers(content, images)
    assert (
        distance(answers(ends, images), wanted)[0] < distance(answers(all_bytes, images), wanted)[0]
    )
    kept = {node.name: node for node in nodes(ends)}
    assert not any("rounded" in each for each in (*kept[first].input, kept[last].input[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet20", "resnet20_b", "preact_resnet20", "densenet40_12", "se_resnet20", "highway19",
     "cbam_resnet20", "resnext29_8x64d"],
)  # fmt: skip
def test_integers_compute_what_rounded_numbers_say(name: str) -> None:
    """ONNX Runtime's integer kernels, against the same file with nothing fused: floats rounded."""
    import onnxruntime

    content, images = made(name)
    found = quantise(content, images[:48], images[48:], True, lambda line: None)
    assert found.chosen.agreement > 0.7
    assert found.chosen.error < 0.1
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(found.content, options, ["CPUExecutionProvider"])
    (wanted,) = plain.run(None, {"input": images[48:].numpy()})
    got = answers(found.content, images[48:])
    assert distance(got, torch.from_numpy(wanted))[0] < 0.02


def test_too_few_images_are_said() -> None:
    few = torch.zeros(LEAST - 1, 3, 8, 8)
    with pytest.raises(ValueError, match=f"{LEAST - 1} images to calibrate with: at least {LEAST}"):
        quantise(b"", few, few, True, lambda line: None)
