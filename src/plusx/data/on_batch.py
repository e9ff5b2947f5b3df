"""The augmentations that act on a whole batch at once, on any device.

Each takes images (n, c, h, w), the word, the draws of the n samples and the set's size, and
gives images. Those of PIXEL_STEPS act on normalised float images, in place.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from plusx.data.augment import Word
from plusx.data.draws import Draws


Size = tuple[int, int]
Images = UInt8[Tensor, "n c h w"]
Pixels = Float32[Tensor, "n c h w"]


def _pad(images: Images, word: Word, draws: Draws, size: Size) -> Tensor:
    assert word.side is not None
    return torch.nn.functional.pad(images, [word.side] * 4)


def crop_places(draws: Draws, room: Size) -> tuple[np.ndarray, np.ndarray]:
    """Top and left edges (n,) of random windows that can move by `room` (down, right)."""
    return draws.below(room[0] + 1, 0), draws.below(room[1] + 1, 1)


def _crop(images: Images, word: Word, draws: Draws, size: Size) -> Tensor:
    height, width = size if word.side is None else (word.side, word.side)
    room = images.shape[2] - height, images.shape[3] - width
    tops, lefts = (_on(images, places) for places in crop_places(draws, room))
    windows = images.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, tops, lefts]


def half(draws: Draws) -> np.ndarray:
    """True for every second sample at random, (n,)."""
    chosen: np.ndarray = draws.bits() >> np.uint64(63) == 1
    return chosen


def _flip(images: Images, word: Word, draws: Draws, size: Size) -> Tensor:
    return _mirrored(images, half(draws), 3)


def _vflip(images: Images, word: Word, draws: Draws, size: Size) -> Tensor:
    return _mirrored(images, half(draws), 2)


def _mirrored(images: Tensor, which: np.ndarray, dimension: int) -> Tensor:
    chosen = _on(images, np.flatnonzero(which))
    mirrored = images.index_select(0, chosen).flip(dimension)
    return images.clone().index_copy_(0, chosen, mirrored)


def _cutout(pixels: Pixels, word: Word, draws: Draws) -> None:
    """Places are drawn over all pixels, so that a square may stand partly outside."""
    assert word.side is not None
    height, width = pixels.shape[2:]
    tops = draws.below(height, 0) - word.side // 2
    lefts = draws.below(width, 1) - word.side // 2
    sides = np.full(len(pixels), word.side)
    _blank(pixels, tops, lefts, sides, sides)


def _erase(pixels: Pixels, word: Word, draws: Draws) -> None:
    """A rectangle of 2 to 33 % of the area and a ratio of 0.3 to 3.3, the first that fits of 10."""
    assert word.value is not None
    height, width = pixels.shape[2:]
    heights = np.zeros(len(pixels), np.int64)
    widths = np.zeros(len(pixels), np.int64)
    for attempt in range(10):
        area = height * width * draws.uniform(0.02, 0.33, 4 + 2 * attempt)
        ratio = np.exp(draws.uniform(np.log(0.3), np.log(3.3), 5 + 2 * attempt))
        tall = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        wide = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (heights == 0) & (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        heights[fits], widths[fits] = tall[fits], wide[fits]
    heights[draws.uniform(draw=0) >= word.value] = 0
    tops = draws.below(height - heights + 1, 1)
    lefts = draws.below(width - widths + 1, 2)
    _blank(pixels, tops, lefts, heights, widths)


def _blank(
    pixels: Tensor, tops: np.ndarray, lefts: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> None:
    down = torch.arange(pixels.shape[2], device=pixels.device)
    right = torch.arange(pixels.shape[3], device=pixels.device)
    top, left = _on(pixels, tops)[:, None], _on(pixels, lefts)[:, None]
    bottom = _on(pixels, tops + heights)[:, None]
    edge = _on(pixels, lefts + widths)[:, None]
    rows, columns = (down >= top) & (down < bottom), (right >= left) & (right < edge)
    pixels.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def _on(images: Tensor, numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers).to(images.device, non_blocking=True)


BATCH_STEPS: dict[str, Callable[[Tensor, Word, Draws, Size], Tensor]] = {
    "pad": _pad,
    "crop": _crop,
    "flip": _flip,
    "vflip": _vflip,
}
PIXEL_STEPS: dict[str, Callable[[Tensor, Word, Draws], None]] = {
    "cutout": _cutout,
    "erase": _erase,
}
