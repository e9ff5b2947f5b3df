"""Sequences of different lengths in one batch: padding changes no output of a valid position.

A network in one dimension is run on padded inputs as if each sequence were alone. Before every
layer that mixes positions, padding is set to what lies beyond the end of a sequence: 0, or minus
infinity for maxima; means are over valid positions. Layers see the lengths only during the call.

    logits = masked(net, inputs, lengths)

Statistics of batch norm in training include the padding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int64, Num
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plusx.errors import UserError
from plusx.nn.gates import EfficientChannelAttention
from plusx.nn.layers import Blur, LargestInOrder, ZeroPad
from plusx.nn.network import Backbone
from plusx.nn.valid import CURRENT, Positions


Fill = Callable[[Tensor, Bool[Tensor, "n 1 t"]], Tensor]  # (input, mask) -> input
Finish = Callable[[Any, Bool[Tensor, "n 1 t"], Tensor], Tensor]  # (layer, mask, output) -> output


def masked(net: nn.Module, inputs: Num[Tensor, "n *c t"], lengths: Int64[Tensor, "n"]) -> Any:
    """Return the output of a network for padded sequences.

    Any other module than a Backbone, such as a session of ONNX Runtime, gets the sequences of one
    length at a time; it must have one output per sequence.
    """
    if not isinstance(net, Backbone):
        return _by_length(net, inputs, lengths)
    with padded(net, inputs.shape[-1], lengths):
        return net(inputs)


@contextmanager
def padded(net: nn.Module, count: int, lengths: Int64[Tensor, "n"]) -> Iterator[Positions]:
    """Run `net` on padded sequences inside the block.

    count: positions of the padded inputs
    Yields the positions, whose `lengths(m)` are those of outputs with m positions.
    """
    positions = Positions(count, lengths)
    handles: list[RemovableHandle] = []
    for module in _mixing(net):
        before, after = HOOKS[type(module)]
        if before is not None:
            handles.append(module.register_forward_pre_hook(_before(positions, before)))
        handles.append(module.register_forward_hook(_after(positions, after)))
    token = CURRENT.set(positions)
    try:
        yield positions
    finally:
        CURRENT.reset(token)
        for handle in handles:
            handle.remove()


def _mixing(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that change positions or mix them."""
    inner = {
        id(child)
        for module in net.modules()
        if isinstance(module, EfficientChannelAttention)  # convolves channels
        for child in module.modules()
    }
    for module in net.modules():
        if id(module) in inner:
            continue
        if isinstance(module, REFUSED):
            raise UserError(
                f"sequences of different lengths: {type(module).__name__} mixes a sequence with "
                'its padding; use norm = "batch" or "layer", and no blur'
            )
        if type(module) in HOOKS and not _is_pointwise(module):
            yield module


def _is_pointwise(module: Any) -> bool:
    return isinstance(module, nn.Conv1d) and module.kernel_size == module.stride == (1,)


def _before(positions: Positions, fill: Fill) -> Callable[[nn.Module, tuple[Tensor]], Any]:
    def hook(module: nn.Module, inputs: tuple[Tensor]) -> Any:
        mask = positions.mask(inputs[0].shape[-1])
        return None if mask is None else (fill(inputs[0], mask), *inputs[1:])

    return hook


def _after(
    positions: Positions, finish: Finish | None
) -> Callable[[nn.Module, tuple[Tensor], Tensor], Any]:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Any:
        before, after = inputs[0].shape[-1], output.shape[-1]
        mask = positions.mask(before)
        positions.add(after, length_after(module, positions.lengths(before)))
        return None if mask is None or finish is None else finish(module, mask, output)

    return hook


def _zeros(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0)


def _lowest(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, float("-inf"))


def _finite(module: nn.Module, mask: Tensor, output: Tensor) -> Tensor:
    # windows of padding alone, which would make NaN of a product with 0
    return output.masked_fill(output.isneginf(), 0)


def _mean_of_window(module: nn.AvgPool1d, mask: Tensor, output: Tensor) -> Tensor:
    fractions = nn.AvgPool1d.forward(module, mask.to(output.dtype))
    return output / fractions.clamp(min=torch.finfo(output.dtype).eps)


def _mean_of_all(module: nn.AdaptiveAvgPool1d, mask: Tensor, output: Tensor) -> Tensor:
    if output.shape[-1] != 1:
        raise UserError("sequences of different lengths: only `pool` to one position is possible")
    return output / mask.to(output.dtype).mean(-1, keepdim=True)


# a layer: the function that sets the padding of its input, and the one that corrects its output
HOOKS: dict[type[nn.Module], tuple[Fill | None, Finish | None]] = {
    nn.Conv1d: (_zeros, None),
    nn.MaxPool1d: (_lowest, _finite),
    nn.AvgPool1d: (_zeros, _mean_of_window),
    nn.AdaptiveAvgPool1d: (_zeros, _mean_of_all),
    LargestInOrder: (_lowest, None),
    ZeroPad: (None, None),
}
REFUSED = (nn.GroupNorm, nn.InstanceNorm1d, Blur)


def length_after(module: Any, lengths: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """Return the lengths of a layer's outputs. Raises UserError for a sequence that is too
    short."""
    if isinstance(module, ZeroPad):
        return (lengths + module.stride[0] - 1) // module.stride[0]
    if isinstance(module, nn.AdaptiveAvgPool1d):
        return torch.full_like(lengths, _first(module.output_size))
    if isinstance(module, LargestInOrder):
        shortest = int(lengths.min())
        if shortest < module.count:
            raise UserError(
                f"a sequence has {shortest} positions left, and `top{module.count}` needs "
                f"{module.count}: set a larger [data] min_length"
            )
        return torch.full_like(lengths, module.count)
    kernel, stride, padding = map(_first, (module.kernel_size, module.stride, module.padding))
    dilation = _first(getattr(module, "dilation", 1))
    room = lengths + 2 * padding - dilation * (kernel - 1) - 1
    if getattr(module, "ceil_mode", False):
        counts = (room + stride - 1) // stride + 1
        # a last window begins inside the sequence or its padding on the left
        return counts - ((counts - 1) * stride >= lengths + padding).long()
    return room // stride + 1


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def _by_length(net: nn.Module, inputs: Tensor, lengths: Tensor) -> Tensor:
    outputs: list[Tensor] = [torch.empty(0)] * len(inputs)
    for length in lengths.unique().tolist():
        indices = (lengths == length).nonzero()[:, 0]
        for index, output in zip(indices.tolist(), net(inputs[indices][..., :length])):
            outputs[index] = output
    return torch.stack(outputs)
