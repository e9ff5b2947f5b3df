"""pad, crop, flip and vflip of a whole batch: each is another window on the stored images.

The words only move the window of each sample; the pixels are then read once, from where they are
stored, by any number of words. What a window sees outside the image, or outside a window that was
cut before, is black.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64, Num
from torch import Tensor

from plusx.data.rng import CounterRNG
from plusx.data.transforms.words import Word


Size = tuple[int, int]
Integers = Int64[np.ndarray, "n"]
Booleans = Bool[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Of n samples the window (height, width) at (top, left), which is then turned over.

    Pixels are seen from `ends[0]` to before `ends[1]` down and `ends[2]` to before `ends[3]` to
    the right, in the places of the stored image.
    """

    size: Size
    tops: Integers
    lefts: Integers
    flipped: Booleans  # turned upside down
    mirrored: Booleans
    ends: tuple[Integers, Integers, Integers, Integers]

    @classmethod
    def whole(cls, count: int, size: Size) -> "Windows":
        """All of each image of that size."""
        nought, never = np.zeros(count, np.int64), np.zeros(count, np.bool_)
        ends = (nought, nought + size[0], nought, nought + size[1])
        return cls(size, nought, nought, never, never, ends)


def _pad(windows: Windows, word: Word, rng: CounterRNG, size: Size) -> Windows:
    assert word.side is not None
    height, width = windows.size
    return replace(
        windows,
        size=(height + 2 * word.side, width + 2 * word.side),
        tops=windows.tops - word.side,
        lefts=windows.lefts - word.side,
    )


def _crop(windows: Windows, word: Word, rng: CounterRNG, size: Size) -> Windows:
    height, width = size if word.side is None else (word.side, word.side)
    room = windows.size[0] - height, windows.size[1] - width
    down, right = rng.below(room[0] + 1, 0), rng.below(room[1] + 1, 1)
    tops = windows.tops + np.where(windows.flipped, room[0] - down, down)
    lefts = windows.lefts + np.where(windows.mirrored, room[1] - right, right)
    first, last, begin, end = windows.ends
    ends = (
        np.maximum(first, tops),
        np.minimum(last, tops + height),
        np.maximum(begin, lefts),
        np.minimum(end, lefts + width),
    )
    return replace(windows, size=(height, width), tops=tops, lefts=lefts, ends=ends)


def _flip(windows: Windows, word: Word, rng: CounterRNG, size: Size) -> Windows:
    return replace(windows, mirrored=windows.mirrored ^ rng.coin())


def _altflip(windows: Windows, word: Word, rng: CounterRNG, size: Size) -> Windows:
    return replace(windows, mirrored=windows.mirrored ^ rng.alternating())


def _vflip(windows: Windows, word: Word, rng: CounterRNG, size: Size) -> Windows:
    return replace(windows, flipped=windows.flipped ^ rng.coin())


WINDOW_STEPS: dict[str, Callable[[Windows, Word, CounterRNG, Size], Windows]] = {
    "pad": _pad,
    "crop": _crop,
    "flip": _flip,
    "vflip": _vflip,
    "altflip": _altflip,
}


def gather(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """What the windows show of the images at `indices`, on the images' device."""
    if images.device.type == "cpu":
        return _copied(images, indices, windows)
    return gather_by_index(images, indices, windows)


def _copied(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """As gather: window by window, rows at a time, then those that are turned over."""
    height, width = windows.size
    top, bottom, left, right = windows.ends
    stored = images.numpy()
    filled = (top <= windows.tops) & (bottom >= windows.tops + height)
    filled &= (left <= windows.lefts) & (right >= windows.lefts + width)
    make = np.empty if filled.all() else np.zeros
    made = make((len(indices), images.shape[1], height, width), stored.dtype)
    down, along = top - windows.tops, left - windows.lefts
    # bounds of what is read and of where it goes, one row a sample
    bounds = np.stack(
        [indices, top, bottom, left, right, down, down + bottom - top, along, along + right - left]
    )
    for place, (index, y, y_end, x, x_end, to_y, to_y_end, to_x, to_x_end) in zip(
        made, bounds.T.tolist()
    ):
        if y < y_end and x < x_end:
            place[:, to_y:to_y_end, to_x:to_x_end] = stored[index, :, y:y_end, x:x_end]
    for which, dimension in ((windows.flipped, 2), (windows.mirrored, 3)):
        chosen = np.flatnonzero(which)
        if len(chosen):
            made[chosen] = torch.from_numpy(made[chosen]).flip(dimension).numpy()
    return torch.from_numpy(made)


def gather_by_index(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """As gather: every pixel by its place, in a few steps of the device."""
    height, width = windows.size
    rows = _along(windows.tops, height, windows.flipped)
    columns = _along(windows.lefts, width, windows.mirrored)
    top, bottom, left, right = (end[:, None] for end in windows.ends)
    lit = [(rows >= top) & (rows < bottom), (columns >= left) & (columns < right)]
    # one transfer of small numbers, not one for each of them
    coordinates = np.concatenate(
        [indices[:, None], rows.clip(0, images.shape[2] - 1), lit[0], columns, lit[1]], 1
    )
    sent = torch.from_numpy(coordinates).to(images.device, non_blocking=True)
    at, down, in_rows, along, in_columns = sent.split([1, height, height, width, width], 1)
    along = along.clamp(0, images.shape[3] - 1)
    made = images[at[:, :, None], :, down[:, :, None], along[:, None, :]].permute(0, 3, 1, 2)
    visible = in_rows.bool()[:, None, :, None] & in_columns.bool()[:, None, None, :]
    return made.contiguous().masked_fill_(~visible, 0)


def _along(begins: Integers, length: int, turned: Booleans) -> Int64[np.ndarray, "n length"]:
    """The places (n, length) that windows of that length see along one side, in their order."""
    steps = np.arange(length)
    return begins[:, None] + np.where(turned[:, None], steps[::-1], steps)
