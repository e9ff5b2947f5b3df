"""Answers for positions that are asked window by window, where an input is too large for one look.

The windows of one dimension overlap, the first begins at the start and the last ends at the end.
What several windows say of a position is averaged, each by how near it lies to the middle of the
window: at a window's edge a network sees less of what is around. So do nnU-Net (Isensee et al.
2021) and MONAI's sliding_window_inference.
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
# Windows that are asked at once, and how many positions all of them may have.
MOST_TOGETHER, POSITIONS_TOGETHER = 8, 2**19
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


def over_windows(
    answer: Callable[[Tensor], Tensor],
    inputs: Float[Tensor, "n c *s"],
    window: Sequence[int],
    overlap: int | float,
) -> Float[Tensor, "n k *s"]:
    """What `answer` says of every position, from (n, c, *w) to (n, k, *w), window by window.

    An input that fits in one window is asked whole, and so is a dimension that does.
    """
    told: Tensor | None = None
    for rows, said in in_bands(answer, inputs, window, overlap):
        if said.shape[2:] == inputs.shape[2:]:
            return said
        if told is None:
            told = said.new_empty((*said.shape[:2], *inputs.shape[2:]))
        told[:, :, rows] = said
    assert told is not None
    return told


def in_bands(
    answer: Callable[[Tensor], Tensor],
    inputs: Float[Tensor, "n c *s"],
    window: Sequence[int],
    overlap: int | float,
) -> Iterator[tuple[slice, Float[Tensor, "n k *b"]]]:
    """The same in bands along the first dimension, from its start to its end: which positions of
    it, and what is said there. No more than the windows of one band is held at a time.
    """
    size = tuple(inputs.shape[2:])
    every: list[tuple[Any, ...]] = windows(size, window, overlap)
    if len(every) == 1:
        yield slice(0, size[0]), answer(inputs)
        return
    weights = importance([min(pair) for pair in zip(window, size)]).to(inputs.device)
    told = total = torch.zeros(0)
    done = reach = 0  # what was given, and what `told` reaches to
    # small windows are asked together: torch convolves a batch of one volume far more slowly
    most = POSITIONS_TOGETHER // (weights.numel() * len(inputs))
    side = max(1, min(MOST_TOGETHER, most))
    for begin in range(0, len(every), side):
        some = every[begin : begin + side]
        parts = [inputs[(..., *place)] for place in some]
        answers = answer(torch.cat(parts)).split(len(inputs))
        for (rows, *rest), said in zip(some, answers):
            if rows.stop > reach:
                more = (rows.stop - reach, *size[1:])
                room = said.new_zeros((*said.shape[:2], *more))
                told = torch.cat([told, room], 2) if reach > done else room
                free = torch.zeros(more, dtype=torch.float32, device=inputs.device)
                total = torch.cat([total, free]) if reach > done else free
                reach = rows.stop
            here = (..., slice(rows.start - done, rows.stop - done), *rest)
            told[here] += said * weights.to(said.dtype)
            total[here] += weights
        ahead = every[begin + side][0].start if begin + side < len(every) else size[0]
        if ahead > done:
            count = ahead - done
            yield slice(done, ahead), told[:, :, :count] / total[:count].to(told.dtype)
            told, total, done = told[:, :, count:].clone(), total[count:].clone(), ahead
