"""The valid positions of padded sequences, for layers that depend on them."""

from contextvars import ContextVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Positions:
    """The lengths of n padded sequences, at every number of positions that layers produce."""

    def __init__(self, count: int, lengths: Int64[Tensor, "n"]) -> None:
        self._lengths = {count: lengths}
        self._masks: dict[int, Bool[Tensor, "n 1 t"] | None] = {}

    def add(self, count: int, lengths: Int64[Tensor, "n"]) -> None:
        """Add the lengths of outputs with `count` positions."""
        self._lengths.setdefault(count, lengths)

    def lengths(self, count: int) -> Int64[Tensor, "n"]:
        """Return the lengths of outputs with `count` positions."""
        return self._lengths[count]

    def mask(self, count: int) -> Bool[Tensor, "n 1 t"] | None:
        """Return which positions are valid; None if all are."""
        if count not in self._masks:
            lengths = self._lengths[count]
            positions = torch.arange(count, device=lengths.device)
            mask = (positions < lengths[:, None])[:, None]
            self._masks[count] = None if bool(mask.all()) else mask
        return self._masks[count]


CURRENT: ContextVar[Positions | None] = ContextVar("positions", default=None)


def valid(x: Tensor) -> Bool[Tensor, "n 1 t"] | None:
    """Return which positions of an activation (n, c, t) are valid; None if all are."""
    positions = CURRENT.get()
    return None if positions is None else positions.mask(x.shape[-1])


def channel_means(x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *_"]:
    """Return the mean of each channel over the valid positions; dimensions are kept."""
    mask, space = valid(x), tuple(range(2, x.ndim))
    if mask is None:
        return x.mean(space, keepdim=True)
    return (x * mask).sum(space, keepdim=True) / mask.sum(space, keepdim=True)
