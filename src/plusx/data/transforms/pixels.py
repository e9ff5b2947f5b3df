"""The augmentations of batches of normalised inputs, in place, on any device.

Each takes pixels (n, c, h, w), or log-mel spectrograms (n, mels, t) or (n, 1, t, mels), the word
and the random numbers of the n samples.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from plusx.data.rng import CounterRNG
from plusx.data.transforms.words import Word


Pixels = Float32[Tensor, "n c h w"]


def _cutout(pixels: Pixels, word: Word, rng: CounterRNG) -> None:
    """The centre is uniform over all pixels, so a square may lie partly outside the image."""
    assert word.side is not None
    height, width = pixels.shape[2:]
    tops = rng.below(height, 0) - word.side // 2
    lefts = rng.below(width, 1) - word.side // 2
    sides = np.full(len(pixels), word.side)
    _blank(pixels, tops, lefts, sides, sides)


def _erase(pixels: Pixels, word: Word, rng: CounterRNG) -> None:
    """A rectangle of 2 to 33 % of the area and a ratio of 0.3 to 3.3, the first that fits of 10."""
    assert word.value is not None
    height, width = pixels.shape[2:]
    heights = np.zeros(len(pixels), np.int64)
    widths = np.zeros(len(pixels), np.int64)
    for attempt in range(10):
        area = height * width * rng.uniform(0.02, 0.33, 4 + 2 * attempt)
        ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3), 5 + 2 * attempt))
        tall = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        wide = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (heights == 0) & (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        heights[fits], widths[fits] = tall[fits], wide[fits]
    heights[rng.uniform(draw=0) >= word.value] = 0
    tops = rng.below(height - heights + 1, 1)
    lefts = rng.below(width - widths + 1, 2)
    _blank(pixels, tops, lefts, heights, widths)


def _blank(
    pixels: Tensor, tops: np.ndarray, lefts: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> None:
    down = torch.arange(pixels.shape[2], device=pixels.device)
    right = torch.arange(pixels.shape[3], device=pixels.device)
    top, left = _to_device(pixels, tops)[:, None], _to_device(pixels, lefts)[:, None]
    bottom = _to_device(pixels, tops + heights)[:, None]
    edge = _to_device(pixels, lefts + widths)[:, None]
    rows, columns = (down >= top) & (down < bottom), (right >= left) & (right < edge)
    pixels.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def _freqmask(spectrograms: Tensor, word: Word, rng: CounterRNG) -> None:
    """A band of 0 to `side` mels, at most all of them (SpecAugment, Park et al. 2019)."""
    _blank_range(spectrograms, 1 if spectrograms.ndim == 3 else 3, word, rng)


def _timemask(spectrograms: Tensor, word: Word, rng: CounterRNG) -> None:
    """0 to `side` frames, at most all of them, anywhere, in padded spectrograms also there."""
    _blank_range(spectrograms, 2, word, rng)


def _blank_range(values: Tensor, dimension: int, word: Word, rng: CounterRNG) -> None:
    """Set a random range along a dimension to 0, the mean."""
    assert word.side is not None
    count = values.shape[dimension]
    widths = np.minimum(rng.below(word.side + 1, 0), count)
    starts = rng.below(count - widths + 1, 1)
    positions = torch.arange(count, device=values.device)
    start = _to_device(values, starts)[:, None]
    inside = (positions >= start) & (positions < start + _to_device(values, widths)[:, None])
    shape = [1] * values.ndim
    shape[0], shape[dimension] = len(values), count
    values.masked_fill_(inside.view(shape), 0.0)


def _to_device(images: Tensor, numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers).to(images.device, non_blocking=True)


PIXEL_STEPS: dict[str, Callable[[Tensor, Word, CounterRNG], None]] = {
    "cutout": _cutout,
    "erase": _erase,
    "freqmask": _freqmask,
    "timemask": _timemask,
}
