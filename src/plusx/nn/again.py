"""Which operations are cheap to run again, and how."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


aten = torch.ops.aten

# One pass over memory each: the first result is made again by the same call.
CALLS = {
    aten.relu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.leaky_relu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.constant_pad_nd.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten.clone.default,
    aten._to_copy.default,
}
# The same of both results, but slow enough for them to be held from one use to the next.
SLOW_CALLS = {
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
}
# The same on top of the value that they overwrite.
OVERWRITING = {
    aten.relu_.default,
    aten.silu_.default,
    aten.add_.Tensor,
    aten.mul_.Tensor,
    aten.mul_.Scalar,
    aten.div_.Scalar,
}
BATCH_NORMS = {aten.native_batch_norm.default, aten.cudnn_batch_norm.default}


def call_again(
    function: Any,
    tensors: list[int],
    rest: list[Any],
    kwargs: dict[str, Any],
    place: int,
    values: Sequence[Tensor],
) -> Tensor:
    """The call with these tensors in their places; the result at `place` of several."""
    given = list(rest)
    for i, value in zip(tensors, values, strict=True):
        given[i] = value
    made = function(*given, **kwargs)
    found: Tensor = made if isinstance(made, Tensor) else made[place]
    return found


def overwrite_again(
    function: Any,
    make: Callable[[Sequence[Tensor]], Tensor],
    count: int,
    places: list[int],
    rest: list[Any],
    values: Sequence[Tensor],
) -> Tensor:
    """What `make` makes of the first `count` values, overwritten with the others."""
    given = list(rest)
    for i, value in zip(places, values[count:], strict=True):
        given[i] = value
    made: Tensor = function(make(values[:count]), *given)
    return made


def norm_again(
    affine: list[Tensor | None], mean: Tensor, inverse: Tensor, values: Sequence[Tensor]
) -> Tensor:
    variance = inverse.reciprocal().square_()
    again: Any = aten.native_batch_norm.default
    made: Tensor = again(values[0], *affine, mean, variance, False, 0.0, 0.0)[0]
    return made


def join_again(dim: int, values: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(values), dim)
