"""ONNX files from strangers: what plusx did not write, to the last bit, is refused by a sentence"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plusx import run
from plusx.data.modality import ImageModality
from plusx.export import checked, read_onnx, with_digest
from plusx.export.file import FORMAT
from plusx.run.folder import load_run


onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PREPROCESSING = {
    "size": [2, 2],
    "channels": 3,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "resize": "stretch",
}
METADATA = {
    "classes": json.dumps(["cat", "<b>dog</b>"]),
    "preprocessing": json.dumps(PREPROCESSING),
    "plusx": "0.1.0",
}


def model() -> Any:
    """The mean of every channel, and a linear layer: two classes of images of 2 x 2."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["means"], name="means"),
        helper.make_node("Reshape", ["means", "sizes"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], name="logits", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "plusx",
        [helper.make_tensor_value_info("input", kind, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("logits", kind, ["n", 2])],
        [
            onnx.numpy_helper.from_array(np.array([0, 3], np.int64), "sizes"),
            onnx.numpy_helper.from_array(weights, "weight"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def written(changed: Callable[[Any], object] = lambda model: None, **metadata: str) -> bytes:
    """The content of a file whose model and metadata are changed before the digest is taken."""
    exported = model()
    changed(exported)
    fields = {key: text for key, text in {**METADATA, **metadata}.items() if text}
    return with_digest(exported.SerializeToString(), fields)


def opened(content: bytes, folder: Path) -> run.Run:
    path = folder / "net.onnx"
    path.write_bytes(content)
    return load_run(path)


def test_the_metadata_of_a_file_are_complete(tmp_path: Path) -> None:
    dataset = opened(written(multilabel="true"), tmp_path)
    assert dataset.classes == ("cat", "<b>dog</b>")
    assert dataset.preprocessing == ImageModality(
        (2, 2), 3, (0.5,) * 3, (0.25,) * 3, resize="stretch"
    )
    assert all((dataset.named, dataset.multilabel, dataset.finished))
    assert not dataset.has_gradients
    x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
    torch.testing.assert_close(dataset.net(x), x.mean((2, 3))[:, :2])


def test_a_file_without_names_numbers_its_classes(tmp_path: Path) -> None:
    dataset = opened(written(classes=""), tmp_path)
    assert (dataset.classes, dataset.named) == (("0", "1"), False)


@given(st.data())
def test_a_changed_byte_is_detected(data: st.DataObject) -> None:
    content = bytearray(written())
    offset = data.draw(st.integers(0, len(content) - 1))
    content[offset] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="it here"):
        checked(bytes(content), "it here")


@given(st.integers(0, 10_000))
def test_a_truncated_file_is_refused(length: int) -> None:
    content = written()
    with pytest.raises(ValueError, match="it here"):
        checked(content[: length % len(content)], "it here")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="it here"):
        checked(content, "it here")


def outside(tensor: Any) -> None:
    """Let a constant's numbers lie in another file."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def with_constant(model: Any) -> None:
    """A constant within a node that keeps its numbers elsewhere."""
    node = model.graph.node.add(op_type="Constant", output=["other"])
    tensor = onnx.numpy_helper.from_array(np.zeros(2, np.float32))
    outside(tensor)
    node.attribute.append(onnx.helper.make_attribute("value", tensor))


def with_branch(model: Any) -> None:
    node = model.graph.node.add(op_type="If", input=["input"], output=["other"])
    inner = onnx.helper.make_graph([], "inner", [], [], [model.graph.initializer[1]])
    outside(inner.initializer[0])
    node.attribute.append(onnx.helper.make_attribute("then_branch", inner))


def with_kind(kind: str, domain: str = "") -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.node.add(op_type=kind, input=["input"], output=["other"], domain=domain)

    return change


def renamed(model: Any) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"


def resized(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 7


def widened(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3


def second_output(model: Any) -> None:
    model.graph.output.append(model.graph.output[0])


def cut_off(model: Any) -> None:
    model.graph.node[1].input[0] = "nothing"


def function(model: Any) -> None:
    model.functions.append(onnx.helper.make_function("plusx", "F", [], [], [], []))


BAD: dict[str, tuple[Callable[[Any], object], dict[str, str], str]] = {
    "a constant elsewhere": (
        lambda model: outside(model.graph.initializer[1]), {}, "has external data in another file"
    ),
    "a constant of a node elsewhere": (with_constant, {}, "has external data in another file"),
    "a constant of a branch elsewhere": (with_branch, {}, "has external data in another file"),
    "a loop": (with_kind("Loop"), {}, "operators or graphs that plusx does not write .Loop"),
    "a kind of somebody's own": (with_kind("Relu", "x.y"), {}, "graphs that plusx does not write"),
    "a function": (function, {}, "operators or graphs that plusx does not write"),
    "two outputs": (second_output, {}, "has an output that is not"),
    "another name of its input": (renamed, {}, "has no input `input`"),
    "another size": (resized, {}, "its input .* does not fit"),
    "another number of outputs": (widened, {}, "2 class names for 3 outputs"),
    "a graph that does not run": (cut_off, {}, "ONNX Runtime cannot run the file"),
    "too few classes": (lambda model: None, {"classes": '["cat"]'}, "1 class names for 2 outputs"),
    "classes that are none": (lambda model: None, {"classes": '{"cat": 1}'}, "a list of names"),
    "no preprocessing": (lambda model: None, {"preprocessing": ""}, "does not state its"),
    "a mean of nothing": (
        lambda model: None,
        {"preprocessing": json.dumps(PREPROCESSING | {"mean": [0.5]})},
        "mean has 1 numbers",
    ),
    "preprocessing of another kind": (lambda model: None, {"preprocessing": "[1]"}, "a table"),
    "metadata that is no JSON": (lambda model: None, {"classes": "["}, "cannot be used"),
    "a spec that is none": (lambda model: None, {"net": "stem = 'rm -rf'"}, "cannot be used"),
    "endless metadata": (lambda model: None, {"source": "x" * 1_000_001}, "of metadata"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_manipulated_file_is_refused(case: str, tmp_path: Path) -> None:
    change, metadata, message = BAD[case]
    with pytest.raises(ValueError, match=message) as refused:
        opened(written(change, **metadata), tmp_path)
    assert "net.onnx" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_t2_telemetry_of_onnxruntime_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from plusx.export.runtime import require_onnx

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    require_onnx()  # which comes before the library is imported
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    path.write_bytes(model().SerializeToString())
    with pytest.raises(ValueError, match=r"plusx did not write.*`plusx export` writes"):
        read_onnx(path)
    other = tmp_path / "net.safetensors"  # known by its content, whatever its name
    other.write_bytes(model().SerializeToString())
    with pytest.raises(ValueError, match="plusx did not write"):
        load_run(other)


def test_the_digest_covers_the_metadata() -> None:
    content = written()
    swapped = content.replace(b"cat", b"dog", 1)
    assert len(swapped) == len(content) != 0
    with pytest.raises(ValueError, match="corrupt, or was changed"):
        checked(swapped, "it")
    assert checked(content, "it").metadata == {**METADATA, "format": FORMAT}


def test_full_weights_on_a_processor_that_saturates_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = {True: json.dumps({"full_range": True}), False: json.dumps({"full_range": False})}
    monkeypatch.setattr("plusx.run.folder.has_exact_int8", lambda: True)
    opened(written(int8=metadata[True]), tmp_path)
    monkeypatch.setattr("plusx.run.folder.has_exact_int8", lambda: False)
    opened(written(int8=metadata[False]), tmp_path)
    with pytest.warns(UserWarning, match="processor with VNNI"):
        opened(written(int8=metadata[True]), tmp_path)


def test_without_the_extra_the_command_to_get_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.onnx").write_bytes(written())
    monkeypatch.setattr("plusx.export.runtime.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'plusx\[onnx\]'"):
        load_run(tmp_path / "net.onnx")
