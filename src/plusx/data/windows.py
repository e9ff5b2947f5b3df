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

from plusx.data.augment import Word
from plusx.data.draws import Draws


Size = tuple[int, int]
Places = Int64[np.ndarray, "n"]
Choices = Bool[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Of n samples the window (height, width) at (top, left), which is then turned over.

    Pixels are seen from `ends[0]` to before `ends[1]` down and `ends[2]` to before `ends[3]` to
    the right, in the places of the stored image.
    """

    size: Size
    tops: Places
    lefts: Places
    upset: Choices  # turned upside down
    mirrored: Choices
    ends: tuple[Places, Places, Places, Places]

    @classmethod
    def whole(cls, count: int, size: Size) -> "Windows":
        """All of each image of that size."""
        nought, never = np.zeros(count, np.int64), np.zeros(count, np.bool_)
        ends = (nought, nought + size[0], nought, nought + size[1])
        return cls(size, nought, nought, never, never, ends)


def _pad(windows: Windows, word: Word, draws: Draws, size: Size) -> Windows:
    assert word.side is not None
    height, width = windows.size
    return replace(
        windows,
        size=(height + 2 * word.side, width + 2 * word.side),
        tops=windows.tops - word.side,
        lefts=windows.lefts - word.side,
    )


def crop_places(draws: Draws, room: Size) -> tuple[Places, Places]:
    """Top and left edges (n,) of random windows that can move by `room` (down, right)."""
    return draws.below(room[0] + 1, 0), draws.below(room[1] + 1, 1)


def _crop(windows: Windows, word: Word, draws: Draws, size: Size) -> Windows:
    height, width = size if word.side is None else (word.side, word.side)
    room = windows.size[0] - height, windows.size[1] - width
    down, right = crop_places(draws, room)
    tops = windows.tops + np.where(windows.upset, room[0] - down, down)
    lefts = windows.lefts + np.where(windows.mirrored, room[1] - right, right)
    first, last, begin, end = windows.ends
    ends = (
        np.maximum(first, tops),
        np.minimum(last, tops + height),
        np.maximum(begin, lefts),
        np.minimum(end, lefts + width),
    )
    return replace(windows, size=(height, width), tops=tops, lefts=lefts, ends=ends)


def half(draws: Draws) -> Choices:
    """True for every second sample at random, (n,)."""
    chosen: np.ndarray = draws.bits() >> np.uint64(63) == 1
    return chosen


def alternating(draws: Draws) -> Choices:
    """True for half of the samples, drawn once, and for the other half in the next epoch, (n,)."""
    return half(draws.lasting()) ^ (draws.epoch % 2 == 1)


def _flip(windows: Windows, word: Word, draws: Draws, size: Size) -> Windows:
    return replace(windows, mirrored=windows.mirrored ^ half(draws))


def _altflip(windows: Windows, word: Word, draws: Draws, size: Size) -> Windows:
    return replace(windows, mirrored=windows.mirrored ^ alternating(draws))


def _vflip(windows: Windows, word: Word, draws: Draws, size: Size) -> Windows:
    return replace(windows, upset=windows.upset ^ half(draws))


WINDOW_STEPS: dict[str, Callable[[Windows, Word, Draws, Size], Windows]] = {
    "pad": _pad,
    "crop": _crop,
    "flip": _flip,
    "vflip": _vflip,
    "altflip": _altflip,
}


# along which dimension of an image (c, h, w) a word turns over which of the samples
TURNS: dict[str, tuple[int, Callable[[Draws], Choices]]] = {
    "flip": (2, half),
    "vflip": (1, half),
    "altflip": (2, alternating),
}


def seen(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """What the windows show of the images at `indices`, on the images' device."""
    if images.device.type == "cpu":
        return copied(images, indices, windows)
    return looked_up(images, indices, windows)


def copied(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """As `seen`: window by window, rows at a time, then those that are turned over."""
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
    for which, dimension in ((windows.upset, 2), (windows.mirrored, 3)):
        chosen = np.flatnonzero(which)
        if len(chosen):
            made[chosen] = torch.from_numpy(made[chosen]).flip(dimension).numpy()
    return torch.from_numpy(made)


def looked_up(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """As `seen`: every pixel by its place, in a few steps of the device."""
    height, width = windows.size
    rows = _along(windows.tops, height, windows.upset)
    columns = _along(windows.lefts, width, windows.mirrored)
    top, bottom, left, right = (end[:, None] for end in windows.ends)
    lit = [(rows >= top) & (rows < bottom), (columns >= left) & (columns < right)]
    # one transfer of small numbers, not one for each of them
    said = np.concatenate(
        [indices[:, None], rows.clip(0, images.shape[2] - 1), lit[0], columns, lit[1]], 1
    )
    told = torch.from_numpy(said).to(images.device, non_blocking=True)
    at, down, in_rows, along, in_columns = told.split([1, height, height, width, width], 1)
    along = along.clamp(0, images.shape[3] - 1)
    made = images[at[:, :, None], :, down[:, :, None], along[:, None, :]].permute(0, 3, 1, 2)
    visible = in_rows.bool()[:, None, :, None] & in_columns.bool()[:, None, None, :]
    return made.contiguous().masked_fill_(~visible, 0)


def _along(begins: Places, length: int, turned: Choices) -> Int64[np.ndarray, "n length"]:
    """The places (n, length) that windows of that length see along one side, in their order."""
    steps = np.arange(length)
    return begins[:, None] + np.where(turned[:, None], steps[::-1], steps)
