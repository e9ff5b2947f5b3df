"""A graph in eight bits: its nodes between pairs of QuantizeLinear and DequantizeLinear.

A value x stands as scale (q - zero), with q a byte. ONNX Runtime computes a node whose inputs and
output stand so in integers; what it has no such form for is computed as before, on rounded values.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np


Range = tuple[float, float]

WEIGHTED = {"Conv", "Gemm"}
JOINING = {"Add", "AveragePool", "Concat", "GlobalAveragePool"}
PASSING = {"MaxPool", "Pad", "Reshape", "Slice"}  # these keep the scale of their input
_LEVELS = 255
_BIAS = 2.0**30  # of 32 bits, with room for the sum that it is added to


def values_in_question(model: Any) -> list[str]:
    """The names of all values that may be asked for as bytes, but for the input."""
    made = {name for node in model.graph.node for name in node.output}
    kinds = WEIGHTED | JOINING | PASSING | {"Relu"}
    nodes = [node for node in model.graph.node if node.op_type in kinds]
    return sorted({name for node in nodes for name in (*node.input, *node.output)} & made)


def weighted_nodes(content: bytes) -> list[str]:
    """The names of convolutions and linear layers, first to last."""
    from onnx import ModelProto

    nodes = ModelProto.FromString(content).graph.node
    return [node.name for node in nodes if node.op_type in WEIGHTED]


def in_eight_bits(
    content: bytes, ranges: Mapping[str, Range], *, full: bool, left: Collection[str] = ()
) -> bytes:
    """The model with its convolutions and linear layers in eight bits, and what lies between them.

    ranges: of `values_in_question` and of the input. full: weights from -127 to 127, else from -63
    to 63, so that the sum of two products with bytes fits 16 bits. left: the names of nodes that
    stay in float32.
    """
    from onnx import ModelProto, numpy_helper

    model = ModelProto.FromString(content)
    graph = model.graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    writing = _Writing(ranges, constants, 127 if full else 63)
    chosen = _chosen(graph.node, constants, left)
    for node in _without_relu(graph.node, chosen):
        if node.name in chosen:
            writing.compute(node)
        elif node.op_type in PASSING and writing.now(node.input[0]) != node.input[0]:
            writing.pass_on(node)
        else:
            writing.leave(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(writing.nodes)
    asked = {name for node in graph.node for name in node.input}
    for name, numbers in {**constants, **writing.written}.items():
        if name in asked:
            graph.initializer.append(numpy_helper.from_array(np.asarray(numbers), name))
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def _chosen(nodes: Any, constants: Mapping[str, np.ndarray], left: Collection[str]) -> set[str]:
    """Nodes to compute in eight bits: those with weights, and what lies on the way to one.

    A sum that is read by a batch norm in float32 (a network of pre-activations, or one that
    concatenates) stays in float32 itself: bytes would save nothing there, and round every block.
    """
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    leading: set[str] = set()  # to a node with weights
    chosen = set()
    for node in reversed(nodes):
        if node.op_type in WEIGHTED and node.name not in left:
            chosen.add(node.name)
            continue
        onward = any(
            reader.name in chosen or reader.name in leading
            for reader in readers.get(node.output[0], [])
        )
        given = [name for name in node.input if name not in constants]
        if onward and node.op_type in JOINING and len(given) == len(node.input):
            chosen.add(node.name)
        elif onward and node.op_type in PASSING | {"Relu"}:
            leading.add(node.name)
    return chosen


def _without_relu(nodes: Any, chosen: Collection[str]) -> list[Any]:
    """The nodes without each ReLU that follows one in eight bits and is alone to read it.

    A byte has no number below the least of its range, and behind a ReLU that is 0.
    """
    readers: dict[str, int] = {}
    for name in (name for node in nodes for name in node.input):
        readers[name] = readers.get(name, 0) + 1
    kept: list[Any] = []
    makers = {node.output[0]: node for node in nodes if node.name in chosen}
    for node in nodes:
        maker = makers.get(node.input[0]) if node.op_type == "Relu" else None
        if maker is not None and readers[node.input[0]] == 1:
            maker.output[0] = node.output[0]
        else:
            kept.append(node)
    return kept


class _Writing:
    """The graph as far as it is written."""

    def __init__(
        self, ranges: Mapping[str, Range], constants: Mapping[str, np.ndarray], most: int
    ) -> None:
        self.ranges, self.constants, self.most = ranges, constants, most
        self.nodes: list[Any] = []
        self.written: dict[str, np.ndarray] = {}
        self.scales: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.bytes: set[str] = set()  # values that stand as bytes for all who read them

    def now(self, name: str) -> str:
        """What a reader of this value reads."""
        return f"{name}.rounded" if name in self.bytes else name

    def leave(self, node: Any) -> None:
        """Add a node in float32."""
        node.input[:] = [self.now(name) for name in node.input]
        self.nodes.append(node)

    def pass_on(self, node: Any) -> None:
        """Add a node that leaves bytes what they are."""
        given = node.input[0]
        self.leave(node)
        self.scales[node.output[0]] = self.scales[given]
        self.rounded(node.output[0])
        self.bytes.add(node.output[0])

    def compute(self, node: Any) -> None:
        """Add a node in eight bits."""
        if node.op_type in WEIGHTED:
            self.weigh(node)
        else:
            node.input[:] = [self.rounded(name) for name in node.input]
        self.nodes.append(node)
        if node.output[0] in self.ranges and not self.is_last(node):
            self.rounded(node.output[0])
            self.bytes.add(node.output[0])

    def is_last(self, node: Any) -> bool:
        """The logits stay as they are: a byte would tie what is close."""
        return bool(node.op_type == "Gemm")

    def weigh(self, node: Any) -> None:
        """Weights as whole numbers, with a scale for each channel; the bias on the scale of both"""
        given, weight, *bias = node.input
        node.input[0] = self.rounded(given)
        scale_in = np.float64(self.scales[given][0])
        numbers = self.constants[weight].astype(np.float64)
        rows = np.abs(numbers.reshape(len(numbers), -1)).max(1)
        scales = np.maximum(rows / self.most, 1e-12)
        if bias:
            shift = self.constants[bias[0]].astype(np.float64)
            scales = np.maximum(scales, np.abs(shift) / (scale_in * _BIAS))
        scales = scales.astype(np.float32)
        wide = scales.astype(np.float64).reshape(-1, *[1] * (numbers.ndim - 1))
        whole = np.clip(np.rint(numbers / wide), -self.most, self.most).astype(np.int8)
        node.input[1] = self.constant_pair(f"{node.name}.weight", whole, scales)
        if bias:
            fine = (np.float32(scale_in) * scales).astype(np.float32)
            sums = np.rint(shift / fine.astype(np.float64)).astype(np.int32)
            node.input[2] = self.constant_pair(f"{node.name}.bias", sums, fine)

    def constant_pair(self, name: str, whole: np.ndarray, scales: np.ndarray) -> str:
        """A constant as whole numbers with a scale for each of its first dimension."""
        from onnx import helper

        parts = [f"{name}.whole", f"{name}.scale", f"{name}.zero"]
        self.written |= dict(zip(parts, (whole, scales, np.zeros(len(scales), whole.dtype))))
        done = f"{name}.rounded"
        self.nodes.append(helper.make_node("DequantizeLinear", parts, [done], name=done, axis=0))
        return done

    def rounded(self, name: str) -> str:
        """The value as its byte has it; its pair is written where it is first asked for."""
        from onnx import helper

        done = f"{name}.rounded"
        if f"{name}.scale" not in self.written:
            scale, zero = self.scales.setdefault(name, scale_of(self.ranges[name]))
            self.written |= {f"{name}.scale": scale, f"{name}.zero": zero}
            pair, byte = [f"{name}.scale", f"{name}.zero"], f"{name}.byte"
            self.nodes += [
                helper.make_node("QuantizeLinear", [name, *pair], [byte], name=byte),
                helper.make_node("DequantizeLinear", [byte, *pair], [done], name=done),
            ]
        return done


def scale_of(between: Range) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of bytes for a range; 0 is always one of them."""
    low, high = min(between[0], 0.0), max(between[1], 0.0)
    scale = np.float32(max((high - low) / _LEVELS, 1e-12))
    zero = np.uint8(np.clip(np.rint(-low / np.float64(scale)), 0, _LEVELS))
    return np.asarray(scale), np.asarray(zero)
