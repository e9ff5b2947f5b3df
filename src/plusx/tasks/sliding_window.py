"""Sliding-window inference, for inputs that are too large to be predicted at once.

The windows of one dimension overlap, the first begins at the start and the last ends at the end.
Predictions of several windows for a position are averaged, weighted by how near it lies to the
centre of the window: at a window's edge a network has less context. nnU-Net (Isensee et al. 2021)
and MONAI's sliding_window_inference do the same.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


# Deviation of the Gaussian weights, as a share of the window's length (nnU-Net, MONAI).
SIGMA = 0.125
# Windows that are predicted at once, and how many positions all of them may have.
WINDOWS_AT_ONCE, POSITIONS_AT_ONCE = 8, 2**19
# The least weight: at the corner of a volume the Gaussian itself would be lost in rounding.
LEAST = 1e-3


def starts(length: int, window: int, overlap: int | float) -> list[int]:
    """Where windows begin along a dimension of so many positions, ascending.

    overlap: the share of a window that the next one covers too, at least; 0 <= overlap < 1.
    A window that is no shorter than the dimension begins at 0, alone.
    """
    assert length > 0
    assert window > 0
    assert 0 <= overlap < 1
    if window >= length:
        return [0]
    most = max(1, int(window * (1 - overlap)))
    count = ceil((length - window) / most) + 1
    return [place * (length - window) // (count - 1) for place in range(count)]


def windows(
    size: Sequence[int], window: Sequence[int], overlap: int | float
) -> list[tuple[slice, ...]]:
    """The windows over `size`, in order, the last dimension the quickest."""
    assert len(size) == len(window)
    along = [
        [slice(start, start + min(side, length)) for start in starts(length, side, overlap)]
        for length, side in zip(size, window)
    ]
    return list(product(*along))


def importance(window: Sequence[int]) -> Float[Tensor, "*s"]:
    """The weight of every position of a window: a Gaussian around the middle, at most 1."""
    weights = torch.ones((), dtype=torch.float32)
    for side in window:
        places = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        along = torch.exp(-0.5 * (places / (SIGMA * side)) ** 2)
        weights = weights[..., None] * along
    return weights.clamp(min=LEAST)


def sliding_window(
    predict: Callable[[Tensor], Tensor],
    inputs: Float[Tensor, "n c *s"],
    window: Sequence[int],
    overlap: int | float,
) -> Float[Tensor, "n k *s"]:
    """The predictions for every position, from (n, c, *w) to (n, k, *w), window by window.

    An input that fits into one window is predicted whole, and so is a dimension that does.
    """
    outputs: Tensor | None = None
    for rows, probabilities in slabs(predict, inputs, window, overlap):
        if probabilities.shape[2:] == inputs.shape[2:]:
            return probabilities
        if outputs is None:
            outputs = probabilities.new_empty((*probabilities.shape[:2], *inputs.shape[2:]))
        outputs[:, :, rows] = probabilities
    assert outputs is not None
    return outputs


def slabs(
    predict: Callable[[Tensor], Tensor],
    inputs: Float[Tensor, "n c *s"],
    window: Sequence[int],
    overlap: int | float,
) -> Iterator[tuple[slice, Float[Tensor, "n k *b"]]]:
    """The same in slabs along the first dimension, from its start to its end: which positions of
    it, and their predictions. No more than the windows of one slab is in memory at a time.
    """
    size = tuple(inputs.shape[2:])
    every: list[tuple[Any, ...]] = windows(size, window, overlap)
    if len(every) == 1:
        yield slice(0, size[0]), predict(inputs)
        return
    weights = importance([min(pair) for pair in zip(window, size)]).to(inputs.device)
    sums = totals = torch.zeros(0)
    done = reach = 0  # up to where slabs were given, and up to where `sums` reaches
    # small windows in one batch: torch convolves a batch of one volume far more slowly
    batch = POSITIONS_AT_ONCE // (weights.numel() * len(inputs))
    stride = max(1, min(WINDOWS_AT_ONCE, batch))
    for begin in range(0, len(every), stride):
        chosen = every[begin : begin + stride]
        outputs = predict(torch.cat([inputs[(..., *place)] for place in chosen]))
        for (rows, *rest), probabilities in zip(chosen, outputs.split(len(inputs))):
            if rows.stop > reach:
                more = (rows.stop - reach, *size[1:])
                zeros = probabilities.new_zeros((*probabilities.shape[:2], *more))
                sums = torch.cat([sums, zeros], 2) if reach > done else zeros
                no_weight = torch.zeros(more, dtype=torch.float32, device=inputs.device)
                totals = torch.cat([totals, no_weight]) if reach > done else no_weight
                reach = rows.stop
            here = (..., slice(rows.start - done, rows.stop - done), *rest)
            sums[here] += probabilities * weights.to(probabilities.dtype)
            totals[here] += weights
        ahead = every[begin + stride][0].start if begin + stride < len(every) else size[0]
        if ahead > done:
            count = ahead - done
            yield slice(done, ahead), sums[:, :, :count] / totals[:count].to(sums.dtype)
            sums, totals, done = sums[:, :, count:].clone(), totals[count:].clone(), ahead
