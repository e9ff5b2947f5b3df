"""Reading and validating the ONNX files that plusx writes.

`metadata_props` has the classes, the preprocessing and the spec, and `digest`, the sha256 of the
rest of the file. Files are untrusted: `read_onnx` checks the digest, and refuses external data and
operators that torch.onnx does not write for networks of plusx.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plusx import store
from plusx.errors import UserError
from plusx.export.graph import INPUT, MASK_REGIONS, MAX_BYTES, REGIONS
from plusx.export.runtime import require_onnx


FORMAT = "plusx onnx 1"
OPERATORS = {
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose",
    "DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater",
    "GroupNormalization", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu",
    "Less", "MatMul", "MaxPool", "Mod", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Range",
    "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Shape",
    "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile",
    "TopK", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_MAX_METADATA = 1_000_000


@dataclass(frozen=True)
class OnnxFile:
    """A validated file: bytes, metadata, and the sizes of inputs and outputs without the batch."""

    content: bytes
    metadata: dict[str, str]
    sizes: tuple[int, ...]  # of an input; 0: any size
    outputs: dict[str, tuple[int, ...]]
    tokens: bool  # whether the inputs are token ids

    @property
    def num_outputs(self) -> int:
        """Number of classes, or size of the embedding; 0 if the file has several outputs."""
        return next(iter(self.outputs.values()))[0] if len(self.outputs) == 1 else 0


def with_digest(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the model with this metadata, its format and its digest."""
    from onnx import ModelProto, helper

    model = ModelProto.FromString(content)
    del model.metadata_props[:]
    helper.set_model_props(model, {**metadata, "format": FORMAT})
    digest = _digest(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "digest", digest
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def read_onnx(path: str | Path) -> OnnxFile:
    """Read a file that `plusx export` wrote.

    Raises UserError if the file is corrupt, was not written by plusx, was changed, or has external
    data; RuntimeError if the extra `onnx` is not installed.
    """
    require_onnx()
    return checked(store.read_bytes(path, MAX_BYTES), str(path))


def checked(content: bytes, where: str) -> OnnxFile:
    """Validate the bytes of a file; `where` names it in errors. See `read_onnx`."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        model = ModelProto.FromString(content)
    except (DecodeError, RecursionError):
        raise UserError(f"{where} is corrupt, or not an ONNX file") from None
    if not model.graph.node:
        raise UserError(f"{where} is corrupt, or not an ONNX file: it has no graph")
    if any(_is_external(tensor) for tensor in _tensors(model)):
        raise UserError(f"{where} has external data in another file, which plusx does not open")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{where} is an ONNX file that plusx did not write: its metadata states neither the "
            "network nor the preprocessing; `plusx export` writes such a file"
        )
    if sum(map(len, metadata.values())) > _MAX_METADATA:
        raise UserError(f"{where} has more than {_MAX_METADATA:,} characters of metadata")
    if metadata.pop("digest", None) != _digest(model):
        raise UserError(f"{where} is corrupt, or was changed after plusx wrote it")
    _refuse_foreign(model, where)
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name: _sizes(value) for value in model.graph.output}
    if INPUT not in inputs or not set(inputs) <= {INPUT, REGIONS, MASK_REGIONS}:
        raise UserError(f"{where} has no input `{INPUT}` (n, ...)")
    if len(outputs) != len(model.graph.output) or not all(outputs.values()):
        raise UserError(f"{where} has an output that is not (n, ...)")
    tokens = inputs[INPUT].type.tensor_type.elem_type == 7  # TensorProto.INT64
    return OnnxFile(content, metadata, _sizes(inputs[INPUT]), outputs, tokens)


def _digest(model: Any) -> str:
    """Return the sha256 of a model without its entry `digest`."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    entries = [entry for entry in copy.metadata_props if entry.key != "digest"]
    del copy.metadata_props[:]
    copy.metadata_props.extend(entries)
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def _refuse_foreign(model: Any, where: str) -> None:
    """Raise UserError for other operators, domains, functions or nested graphs."""
    graph = model.graph
    # protobuf gives text that is not UTF-8 as bytes
    foreign = {
        str(node.op_type) for node in graph.node if node.domain or node.op_type not in OPERATORS
    }
    nested = [
        attribute for node in graph.node for attribute in node.attribute if attribute.HasField("g")
    ]
    if foreign or nested or model.functions:
        names = f" ({', '.join(sorted(foreign)[:5])})" if foreign else ""
        raise UserError(f"{where} has operators or graphs that plusx does not write{names}")


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every constant of a model, also of nodes, nested graphs and functions."""

    def inside(nodes: Any) -> Iterator[Any]:
        for node in nodes:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for graph in (attribute.g, *attribute.graphs):
                    yield from of(graph)

    def of(graph: Any) -> Iterator[Any]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from inside(graph.node)

    yield from of(model.graph)
    for function in model.functions:
        yield from inside(function.node)


def _is_external(tensor: Any) -> bool:
    return tensor.data_location == 1 or bool(tensor.external_data)  # TensorProto.EXTERNAL


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(size.dim_value for size in value.type.tensor_type.shape.dim[1:])
