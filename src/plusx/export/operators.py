"""What a step of torch is in ONNX: a short function for each, in one table.

torch.export writes a network down as a row of such steps. A function is given the graph that is
being written, the arguments of the step by their names, and the sizes of what it makes, and gives
the name of the result (or the names, where there are several).
"""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plusx.errors import UserError
from plusx.export.nodes import Graph, Sizes


OPSET = 20
Arguments = Mapping[str, Any]
Operator = Callable[[Graph, Arguments, Sizes], Any]


def spread(value: int | Sequence[int], count: int) -> list[int]:
    """One number for each dimension."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * count if len(numbers) == 1 else numbers


def shaped(graph: Graph, name: str, sizes: Sizes) -> str:
    """The same numbers in other sizes, as many inputs as before."""
    return graph.add("Reshape", [name, graph.operand(np.array([0, *sizes], np.int64))])


def reshape(graph: Graph, a: Arguments, out: Sizes) -> str:
    return shaped(graph, a["self"].name, out)


def same(graph: Graph, a: Arguments, out: Sizes) -> str:
    name: str = a.get("self", a.get("input")).name
    return name


def simple(kind: str) -> Operator:
    """A step of one input that ONNX has under another name."""
    return lambda graph, a, out: graph.add(kind, [graph.operand(a["self"])])


def convolution(graph: Graph, a: Arguments, out: Sizes) -> str:
    ndim = len(out) - 1
    pads = spread(a["padding"], ndim)
    inputs = [a["input"].name, graph.operand(a["weight"])]
    if a["bias"] is not None:
        inputs.append(graph.operand(a["bias"]))
    return graph.add(
        "Conv",
        inputs,
        {
            "kernel_shape": list(a["weight"].shape[2:]),
            "strides": spread(a["stride"], ndim),
            "pads": pads + pads,
            "dilations": spread(a["dilation"], ndim),
            "group": a["groups"],
        },
    )


def linear(graph: Graph, a: Arguments, out: Sizes) -> str:
    x = a["input"]
    if len(x.sizes) == 1:
        inputs = [x.name, graph.operand(a["weight"])]
        if a["bias"] is not None:
            inputs.append(graph.operand(a["bias"]))
        return graph.add("Gemm", inputs, {"transB": 1})
    product = graph.add("MatMul", [x.name, graph.operand(a["weight"].t())])
    return product if a["bias"] is None else graph.add("Add", [product, graph.operand(a["bias"])])


def batch_norm(graph: Graph, a: Arguments, out: Sizes) -> str:
    if a["training"]:
        raise UserError("a batch norm normalises by the batch: call eval() first")
    mean, variance = a["running_mean"], a["running_var"]
    scale = torch.ones_like(mean) if a["weight"] is None else a["weight"]
    shift = torch.zeros_like(mean) if a["bias"] is None else a["bias"]
    inputs = [a["input"].name, *map(graph.operand, (scale, shift, mean, variance))]
    return graph.add("BatchNormalization", inputs, {"epsilon": a["eps"]})


def instance_norm(graph: Graph, a: Arguments, out: Sizes) -> str:
    if not a["use_input_stats"]:
        raise UserError("an instance norm with running statistics cannot be exported")
    return _by_instance(graph, a["input"].name, a["weight"], a["bias"], out[0], a["eps"])


def _by_instance(
    graph: Graph, x: str, weight: Any, bias: Any, channels: int, epsilon: float
) -> str:
    scale = torch.ones(channels) if weight is None else weight
    shift = torch.zeros(channels) if bias is None else bias
    inputs = [x, graph.operand(scale), graph.operand(shift)]
    return graph.add("InstanceNormalization", inputs, {"epsilon": epsilon})


def group_norm(graph: Graph, a: Arguments, out: Sizes) -> str:
    """Every group as one channel, so that its mean and variance are those of an instance."""
    groups, x = a["num_groups"], a["input"]
    y = _by_instance(graph, shaped(graph, x.name, (groups, -1)), None, None, groups, a["eps"])
    y = shaped(graph, y, out)
    for kind, given in (("Mul", a["weight"]), ("Add", a["bias"])):
        if given is not None:
            y = graph.add(kind, [y, graph.operand(given.reshape(-1, *[1] * (len(out) - 1)))])
    return y


def layer_norm(graph: Graph, a: Arguments, out: Sizes) -> str:
    shape = list(a["normalized_shape"])
    scale = torch.ones(shape) if a["weight"] is None else a["weight"]
    inputs = [a["input"].name, graph.operand(scale)]
    if a["bias"] is not None:
        inputs.append(graph.operand(a["bias"]))
    return graph.add("LayerNormalization", inputs, {"axis": -len(shape), "epsilon": a["eps"]})


def pooling(kind: str) -> Operator:
    def pool(graph: Graph, a: Arguments, out: Sizes) -> str:
        ndim = len(out) - 1
        kernel, pads = spread(a["kernel_size"], ndim), spread(a["padding"], ndim)
        strides = spread(a["stride"] or a["kernel_size"], ndim)
        given: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads + pads}
        if kind == "MaxPool":
            given["dilations"] = spread(a["dilation"], ndim)
        elif a.get("divisor_override") is not None:
            raise UserError("an average pooling with a divisor of its own cannot be exported")
        else:
            given["count_include_pad"] = int(a["count_include_pad"])
        sizes = zip(a["self"].sizes[1:], kernel, strides, pads, out[1:])
        rounds_up = any((n + 2 * p - k) // s + 1 < o for n, k, s, p, o in sizes)
        return graph.add(kind, [a["self"].name], given | {"ceil_mode": int(rounds_up)})

    return pool


def adaptive_average(graph: Graph, a: Arguments, out: Sizes) -> str:
    """The mean over windows that torch lays so that `output_size` of them cover the input."""
    x, sizes = a["self"].name, a["self"].sizes[1:]
    wanted = out[1:]
    if max(wanted) == 1:
        return graph.add("GlobalAveragePool", [x])
    if all(n % o == 0 for n, o in zip(sizes, wanted)):
        steps = [n // o for n, o in zip(sizes, wanted)]
        return graph.add("AveragePool", [x], {"kernel_shape": steps, "strides": steps})
    if len(wanted) > 2:
        raise UserError(f"an adaptive pooling of {sizes} to {wanted} cannot be exported")
    x = graph.add("MatMul", [x, graph.operand(_windows(sizes[-1], wanted[-1]).t())])
    if len(wanted) == 2:
        x = graph.add("MatMul", [graph.operand(_windows(sizes[0], wanted[0])), x])
    return x


def _windows(size: int, count: int) -> Tensor:
    """(count, size): row i averages the positions from i size / count to (i + 1) size / count."""
    rows = torch.zeros(count, size)
    for i in range(count):
        begin, end = i * size // count, -(-(i + 1) * size // count)
        rows[i, begin:end] = 1 / (end - begin)
    return rows


def arithmetic(kind: str) -> Operator:
    def combine(graph: Graph, a: Arguments, out: Sizes) -> str:
        if a.get("alpha", 1) != 1:
            raise UserError("a scaled sum cannot be exported")
        return graph.add(kind, [_number(graph, a["self"]), _number(graph, a["other"])])

    return combine


def _number(graph: Graph, given: Any) -> str:
    return graph.operand(float(given) if isinstance(given, int | float) else given)


def subtracted(graph: Graph, a: Arguments, out: Sizes) -> str:
    """other - self."""
    return arithmetic("Sub")(graph, {**a, "self": a["other"], "other": a["self"]}, out)


def silu(graph: Graph, a: Arguments, out: Sizes) -> str:
    return graph.add("Mul", [a["self"].name, graph.add("Sigmoid", [a["self"].name])])


def leaky_relu(graph: Graph, a: Arguments, out: Sizes) -> str:
    return graph.add("LeakyRelu", [a["self"].name], {"alpha": float(a["negative_slope"])})


def gelu(graph: Graph, a: Arguments, out: Sizes) -> str:
    return graph.add("Gelu", [a["self"].name], {"approximate": a["approximate"]})


def reduction(kind: str, whole: str) -> Operator:
    """Over some dimensions; over all of space there is a pooling for it."""

    def reduce(graph: Graph, a: Arguments, out: Sizes) -> str:
        x, ndim = a["self"], len(a["self"].sizes) + 1
        axes = sorted(axis % ndim for axis in a["dim"])
        if a["keepdim"] and ndim > 2 and axes == list(range(2, ndim)):
            return graph.add(whole, [x.name])
        inputs = [x.name, graph.operand(np.array(axes, np.int64))]
        return graph.add(kind, inputs, {"keepdims": int(a["keepdim"])})

    return reduce


def transposed(graph: Graph, a: Arguments, out: Sizes) -> str:
    ndim = len(out) + 1
    order = list(range(ndim))
    if "dims" in a:
        order = [axis % ndim for axis in a["dims"]]
    elif "dim0" in a:
        one, other = a["dim0"] % ndim, a["dim1"] % ndim
        order[one], order[other] = order[other], order[one]
    else:
        order.insert(a["destination"] % ndim, order.pop(a["source"] % ndim))
    return graph.add("Transpose", [a["self"].name], {"perm": order})


def unbound(graph: Graph, a: Arguments, out: Sizes) -> list[str]:
    x = a["self"]
    axis = a["dim"] % (len(x.sizes) + 1)
    parts = [np.array(i, np.int64) for i in range(x.sizes[axis - 1])]
    return [graph.add("Gather", [x.name, graph.operand(i)], {"axis": axis}) for i in parts]


def chunked(graph: Graph, a: Arguments, out: Any) -> list[str]:
    """Parts of equal length along a dimension, the last one perhaps shorter."""
    x = a["self"]
    axis = a["dim"] % (len(x.sizes) + 1)
    size = x.sizes[axis - 1]
    length = -(-size // a["chunks"])
    parts = [min(length, size - begin) for begin in range(0, size, length)]
    inputs = [x.name, graph.operand(np.array(parts, np.int64))]
    return graph.split("Split", inputs, len(parts), {"axis": axis})


def same_kind(graph: Graph, a: Arguments, out: Sizes) -> str:
    if a["dtype"] is not torch.float32:
        raise UserError(f"numbers of type {a['dtype']} cannot be exported")
    return same(graph, a, out)


def joined(graph: Graph, a: Arguments, out: Sizes) -> str:
    axis = a["dim"] % (len(out) + 1)
    return graph.add("Concat", [graph.operand(each) for each in a["tensors"]], {"axis": axis})


def sliced(graph: Graph, a: Arguments, out: Sizes) -> str:
    axis = a["dim"] % (len(out) + 1)
    end = np.iinfo(np.int64).max if a["end"] is None else a["end"]
    numbers = (a["start"] or 0, end, axis, a["step"])
    inputs = [graph.operand(np.array([number], np.int64)) for number in numbers]
    return graph.add("Slice", [a["self"].name, *inputs])


def padded(graph: Graph, a: Arguments, out: Sizes) -> str:
    """torch names the last dimension first, each with what goes before it and behind it."""
    ndim, pads = len(out) + 1, list(a["pad"])
    before, behind = [0] * ndim, [0] * ndim
    for place in range(len(pads) // 2):
        before[ndim - 1 - place], behind[ndim - 1 - place] = pads[2 * place : 2 * place + 2]
    inputs = [a["self"].name, graph.operand(np.array(before + behind, np.int64))]
    if a["mode"] == "constant":
        inputs.append(_number(graph, a["value"] or 0.0))
    return graph.add("Pad", inputs, {"mode": a["mode"]})


def attention(graph: Graph, a: Arguments, out: Sizes) -> str:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1)."""
    if a["attn_mask"] is not None or a["is_causal"] or a.get("enable_gqa"):
        raise UserError("attention with a mask cannot be exported")
    q, k, v = a["query"], a["key"], a["value"]
    scale = a["scale"] or 1 / sqrt(q.sizes[-1])
    order = [*range(len(k.sizes) - 1), len(k.sizes), len(k.sizes) - 1]
    turned = graph.add("Transpose", [k.name], {"perm": order})
    scaled = graph.add("Mul", [q.name, graph.operand(scale)])
    weights = graph.add("Softmax", [graph.add("MatMul", [scaled, turned])], {"axis": -1})
    return graph.add("MatMul", [weights, v.name])


def in_order(graph: Graph, a: Arguments, out: Any) -> list[str]:
    """Sorting is taking all, the largest or smallest first; of equal ones the first comes first."""
    x = a["self"]
    size = x.sizes[a["dim"] % (len(x.sizes) + 1) - 1]
    given = {"axis": a["dim"], "largest": int(a["descending"]), "sorted": 1}
    return graph.split("TopK", [x.name, graph.operand(np.array([size], np.int64))], 2, given)


def gathered(graph: Graph, a: Arguments, out: Sizes) -> str:
    return graph.add("GatherElements", [a["self"].name, a["index"].name], {"axis": a["dim"]})


def embedding(graph: Graph, a: Arguments, out: Sizes) -> str:
    return graph.add("Gather", [graph.operand(a["weight"]), a["indices"].name])


_BY_DIMENSION: dict[str, Operator] = {
    f"{name}{ndim}d.default": operator
    for name, operator in (
        ("conv", convolution),
        ("max_pool", pooling("MaxPool")),
        ("avg_pool", pooling("AveragePool")),
        ("adaptive_avg_pool", adaptive_average),
    )
    for ndim in (1, 2, 3)
}

# what torch.export calls a step: how it is written. A final "_" of the name is left out: what
# overwrites its input is the same step to all who read it afterwards.
OPERATORS: dict[str, Operator] = {
    **_BY_DIMENSION,
    "alias.default": same,
    "add.Tensor": arithmetic("Add"),
    "amax.default": reduction("ReduceMax", "GlobalMaxPool"),
    "batch_norm.default": batch_norm,
    "cat.default": joined,
    "chunk.default": chunked,
    "clone.default": same,
    "contiguous.default": same,
    "div.Tensor": arithmetic("Div"),
    "dropout.default": same,
    "embedding.default": embedding,
    "flatten.using_ints": reshape,
    "gather.default": gathered,
    "gelu.default": gelu,
    "group_norm.default": group_norm,
    "instance_norm.default": instance_norm,
    "layer_norm.default": layer_norm,
    "linear.default": linear,
    "mean.dim": reduction("ReduceMean", "GlobalAveragePool"),
    "movedim.int": transposed,
    "mul.Tensor": arithmetic("Mul"),
    "pad.default": padded,
    "permute.default": transposed,
    "leaky_relu.default": leaky_relu,
    "relu.default": simple("Relu"),
    "reshape.default": reshape,
    "rsub.Scalar": subtracted,
    "scaled_dot_product_attention.default": attention,
    "sigmoid.default": simple("Sigmoid"),
    "silu.default": silu,
    "slice.Tensor": sliced,
    "sort.default": in_order,
    "sort.stable": in_order,
    "squeeze.dim": reshape,
    "sub.Tensor": arithmetic("Sub"),
    "tanh.default": simple("Tanh"),
    "to.dtype": same_kind,
    "transpose.int": transposed,
    "unbind.int": unbound,
    "unflatten.int": reshape,
    "unsqueeze.default": reshape,
    "view.default": reshape,
}
