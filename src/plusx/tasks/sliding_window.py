"""Sliding-window inference, for inputs that are too large to be predicted at once.

Windows overlap; the first begins at the start and the last ends at the end of a dimension.
Predictions of several windows for a position are averaged with weights that decrease towards the
edge of a window, where a network has less context, as in nnU-Net (Isensee et al. 2021) and MONAI's
sliding_window_inference.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


# standard deviation of the Gaussian weights as a fraction of the window (nnU-Net, MONAI)
SIGMA = 0.125
# limits of a batch of windows: their number, and their positions in total
MAX_WINDOWS, MAX_BATCH_POSITIONS = 8, 2**19
# smallest weight: the Gaussian alone would underflow at the corner of a volume
MIN_WEIGHT = 1e-3


def starts(length: int, window: int, overlap: int | float) -> list[int]:
    """Return the starts of the windows along a dimension of `length` positions, ascending.

    overlap: the smallest fraction of a window that the next one covers too; 0 <= overlap < 1. A
    window that is not shorter than the dimension is the only one, at 0.
    """
    assert length > 0
    assert window > 0
    assert 0 <= overlap < 1
    if window >= length:
        return [0]
    max_step = max(1, int(window * (1 - overlap)))
    count = ceil((length - window) / max_step) + 1
    return [index * (length - window) // (count - 1) for index in range(count)]


def windows(
    size: Sequence[int], window: Sequence[int], overlap: int | float
) -> list[tuple[slice, ...]]:
    """Return the windows over `size`, in order, the last dimension varying fastest."""
    assert len(size) == len(window)
    slices_by_dim = [
        [slice(start, start + min(side, length)) for start in starts(length, side, overlap)]
        for length, side in zip(size, window)
    ]
    return list(product(*slices_by_dim))


def importance(window: Sequence[int]) -> Float[Tensor, "*s"]:
    """Return the weight of every position of a window: a Gaussian around the centre, at most 1."""
    weights = torch.ones((), dtype=torch.float32)
    for side in window:
        offsets = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        gaussian = torch.exp(-0.5 * (offsets / (SIGMA * side)) ** 2)
        weights = weights[..., None] * gaussian
    return weights.clamp(min=MIN_WEIGHT)


def sliding_window(
    predict: Callable[[Tensor], Tensor],
    inputs: Float[Tensor, "n c *s"],
    window: Sequence[int],
    overlap: int | float,
) -> Float[Tensor, "n k *s"]:
    """Return predictions (n, k, *s) for every position, where `predict` maps (n, c, *w) to (n, k,
    *w). An input that fits into one window is predicted as a whole."""
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
    """Yield the predictions in slabs along the first dimension: a slice of it and its predictions.
    Only the windows of one slab are in memory at a time."""
    size = tuple(inputs.shape[2:])
    all_windows: list[tuple[Any, ...]] = windows(size, window, overlap)
    if len(all_windows) == 1:
        yield slice(0, size[0]), predict(inputs)
        return
    weights = importance([min(pair) for pair in zip(window, size)]).to(inputs.device)
    sums = totals = torch.zeros(0)
    done = reach = 0  # end of the yielded slabs, and end of `sums`
    # several small windows per batch: torch is much slower on batches of one volume
    batch = MAX_BATCH_POSITIONS // (weights.numel() * len(inputs))
    stride = max(1, min(MAX_WINDOWS, batch))
    for index in range(0, len(all_windows), stride):
        batch_windows = all_windows[index : index + stride]
        outputs = predict(torch.cat([inputs[(..., *region)] for region in batch_windows]))
        for (rows, *rest), probabilities in zip(batch_windows, outputs.split(len(inputs))):
            if rows.stop > reach:
                extension = (rows.stop - reach, *size[1:])
                zeros = probabilities.new_zeros((*probabilities.shape[:2], *extension))
                sums = torch.cat([sums, zeros], 2) if reach > done else zeros
                no_weight = torch.zeros(extension, dtype=torch.float32, device=inputs.device)
                totals = torch.cat([totals, no_weight]) if reach > done else no_weight
                reach = rows.stop
            target = (..., slice(rows.start - done, rows.stop - done), *rest)
            sums[target] += probabilities * weights.to(probabilities.dtype)
            totals[target] += weights
        next_start = (
            all_windows[index + stride][0].start if index + stride < len(all_windows) else size[0]
        )
        if next_start > done:
            count = next_start - done
            yield slice(done, next_start), sums[:, :, :count] / totals[:count].to(sums.dtype)
            sums, totals, done = sums[:, :, count:].clone(), totals[count:].clone(), next_start
