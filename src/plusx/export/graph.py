"""A network to an ONNX graph: what torch.export writes down, step by step, with batch norms folded.

The network is written as it evaluates, for any number of inputs of one size. torch.onnx.export does
the same by way of onnxscript in many times the time, and folds batch norms in float32.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from plusx.errors import UserError
from plusx.export.extra import require_onnx
from plusx.export.nodes import Graph, Value
from plusx.export.operators import OPERATORS, OPSET


INPUT, OUTPUT = "input", "logits"
IR_VERSION = 10  # what onnx 1.16 and later read
LARGEST = 2**31 - 2**20  # bytes: more than this no ONNX file holds in itself
_CONVOLUTIONS = {f"conv{ndim}d.default" for ndim in (1, 2, 3)}


def to_onnx(net: nn.Module, example: Tensor) -> bytes:
    """The network as the content of an ONNX file: `input` (n, ...) to `logits` (n, k).

    `example` is one input or more, (n, ...); its sizes behind n are those of the file.
    UserError: the network does something that is not known here, or is too large for a file.
    RuntimeError: the extra is not installed.
    """
    require_onnx()
    from onnx import TensorProto, helper, numpy_helper

    program = exported(net, example)
    graph, result = written(program)
    numbers = sum(each.nbytes for each in graph.constants.values())
    if numbers > LARGEST:
        raise UserError(f"the network has {numbers:,} bytes of weights; a file holds {LARGEST:,}")
    graph.nodes.append(helper.make_node("Identity", [result.name], [OUTPUT], name=OUTPUT))
    kind = TensorProto.FLOAT if example.is_floating_point() else TensorProto.INT64
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "plusx",
            [helper.make_tensor_value_info(INPUT, kind, ["n", *example.shape[1:]])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", *result.sizes])],
            [numpy_helper.from_array(each, name) for name, each in graph.constants.items()],
        ),
        producer_name="plusx",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    content: bytes = made.SerializeToString(deterministic=True)
    return content


def exported(net: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The steps of the network in evaluation, for any number of inputs like `example`."""
    two = example[:1].expand(2, *example.shape[1:]).contiguous()  # one alone would be taken as 1
    modes = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            return torch.export.export(
                net, (two,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False
            )
    finally:
        for part, mode in modes:
            part.training = mode


def written(program: torch.export.ExportedProgram) -> tuple[Graph, Value]:
    """The graph of a program, and the value that it gives."""
    graph = Graph(taken={INPUT, OUTPUT})
    values: dict[fx.Node, Any] = {}
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    kept = {**program.state_dict, **program.constants}
    names |= signature.inputs_to_lifted_tensor_constants
    result: Value | None = None
    for node in program.graph.nodes:
        match node.op:
            case "placeholder" if node.name in names:
                name = names[node.name]
                values[node] = tensor = kept[name].detach()
                graph.name(tensor, name)
            case "placeholder":
                values[node] = Value(INPUT, _sizes(node))
            case "call_function" if node not in values:
                _write(graph, node, values)
            case "output":
                result = values[node.args[0][0]]
    assert result is not None
    return graph, result


def _write(graph: Graph, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """Add what a step is; its value goes to `values`."""
    if node.target is operator.getitem:
        several, place = node.args
        assert isinstance(several, fx.Node)
        values[node] = values[several][place]
        return
    arguments = _arguments(node, values)
    if not any(isinstance(each, Value) for each in _flat(arguments.values())):
        given = fx.map_arg((node.args, node.kwargs), lambda each: values[each])
        values[node] = node.target(*given[0], **given[1])  # type: ignore[operator]
        return
    name = str(node.target).removeprefix("aten.")
    word, _, overload = name.partition(".")
    name = f"{word.removesuffix('_')}.{overload}"
    if name in ("sym_size.int", "_assert_tensor_metadata.default"):
        values[node] = None  # only the number of inputs is not known, and reshapes keep that
        return
    if name not in OPERATORS:
        raise UserError(f"the network does {word} ({name}), which `plusx export` does not know")
    graph.step = node.name
    follower = next(iter(node.users)) if len(node.users) == 1 else None
    if name in _CONVOLUTIONS and follower is not None and _is_batch_norm(follower):
        norm = _arguments(follower, values)
        weight, bias = folded(arguments, norm)
        label = graph.operand_name(arguments["weight"]).removesuffix(".weight")
        graph.name(weight, f"{label}.weight")
        graph.name(bias, f"{label}.bias")
        arguments |= {"weight": weight, "bias": bias}
        made = OPERATORS[name](graph, arguments, _sizes(node))
        values[node] = values[follower] = Value(made, _sizes(node))
        return
    if isinstance(node.meta["val"], list | tuple):
        made = OPERATORS[name](graph, arguments, ())
        values[node] = [
            Value(each, _sizes_of(val, node)) for each, val in zip(made, node.meta["val"])
        ]
        return
    values[node] = Value(OPERATORS[name](graph, arguments, _sizes(node)), _sizes(node))
    if word.endswith("_"):  # whoever reads the input from now on reads the result
        assert isinstance(node.args[0], fx.Node)
        values[node.args[0]] = values[node]


def folded(convolution: Mapping[str, Any], norm: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what the batch norm behind it does as well.

    In float64: gamma / sqrt(variance + epsilon) can be large, and is rounded once.
    """
    mean, variance = norm["running_mean"].double(), norm["running_var"].double()
    factor = (variance + norm["eps"]).rsqrt()
    if norm["weight"] is not None:
        factor = factor * norm["weight"].double()
    shift = -mean if convolution["bias"] is None else convolution["bias"].double() - mean
    shift = shift * factor
    if norm["bias"] is not None:
        shift = shift + norm["bias"].double()
    weight = convolution["weight"].double()
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return weight.float().contiguous(), shift.float()


def _is_batch_norm(node: fx.Node) -> bool:
    return str(node.target) == "aten.batch_norm.default" and not node.args[5]


def _arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> dict[str, Any]:
    """What the step is given, by name, with the defaults of what is not said."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    said = {each.name: given for each, given in zip(schema, node.args)} | node.kwargs
    filled = {each.name: said.get(each.name, each.default_value) for each in schema}
    return dict(fx.map_arg(filled, values.get))


def _flat(given: Any) -> list[Any]:
    """Lists in it are opened."""
    return [
        inner
        for each in given
        for inner in (_flat(each) if isinstance(each, list | tuple) else [each])
    ]


def _sizes(node: fx.Node) -> tuple[int, ...]:
    value = node.meta["val"]
    return () if isinstance(value, list | tuple) else _sizes_of(value, node)


def _sizes_of(value: Tensor, node: fx.Node) -> tuple[int, ...]:
    first, *rest = value.shape
    counts = not isinstance(first, int) and str(first).isidentifier()  # a symbol, not 3 * one
    if not counts or not all(isinstance(size, int) for size in rest):
        raise UserError(f"{node.name} does not keep inputs apart, or depends on their number")
    return tuple(rest)
