"""pad, crop, flip and vflip of a whole batch: each word moves a window on the stored images.

Pixels are read once, after all words. Windows are black outside of the image, and outside of an
earlier crop.
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
    """A window of `size` (height, width) for each of n samples, and whether it is flipped.

    Rows `ends[0]` to `ends[1]` and columns `ends[2]` to `ends[3]` (exclusive) of the stored image
    are visible; the rest of the window is black.
    """

    size: Size
    tops: Integers
    lefts: Integers
    flipped: Booleans  # vertically
    mirrored: Booleans  # horizontally
    ends: tuple[Integers, Integers, Integers, Integers]

    @classmethod
    def whole(cls, count: int, size: Size) -> "Windows":
        """Return the whole of each of `count` images of this size."""
        zeros, no = np.zeros(count, np.int64), np.zeros(count, np.bool_)
        ends = (zeros, zeros + size[0], zeros, zeros + size[1])
        return cls(size, zeros, zeros, no, no, ends)


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
    """Return the windows of the images at `indices`, on the images' device."""
    if images.device.type == "cpu":
        return _gather_by_copy(images, indices, windows)
    return gather_by_index(images, indices, windows)


def _gather_by_copy(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """Like gather: copies each window's rows, then flips."""
    height, width = windows.size
    top, bottom, left, right = windows.ends
    stored = images.numpy()
    filled = (top <= windows.tops) & (bottom >= windows.tops + height)
    filled &= (left <= windows.lefts) & (right >= windows.lefts + width)
    allocate = np.empty if filled.all() else np.zeros
    output = allocate((len(indices), images.shape[1], height, width), stored.dtype)
    down, along = top - windows.tops, left - windows.lefts
    # source and target bounds, one column per sample
    bounds = np.stack(
        [indices, top, bottom, left, right, down, down + bottom - top, along, along + right - left]
    )
    for window, (index, y, y_end, x, x_end, to_y, to_y_end, to_x, to_x_end) in zip(
        output, bounds.T.tolist()
    ):
        if y < y_end and x < x_end:
            window[:, to_y:to_y_end, to_x:to_x_end] = stored[index, :, y:y_end, x:x_end]
    for is_flipped, dimension in ((windows.flipped, 2), (windows.mirrored, 3)):
        rows = np.flatnonzero(is_flipped)
        if len(rows):
            output[rows] = torch.from_numpy(output[rows]).flip(dimension).numpy()
    return torch.from_numpy(output)


def gather_by_index(
    images: Num[Tensor, "m c y x"], indices: Int64[np.ndarray, "n"], windows: Windows
) -> Num[Tensor, "n c h w"]:
    """Like gather: by advanced indexing, which needs few kernels on a GPU."""
    height, width = windows.size
    rows = _along(windows.tops, height, windows.flipped)
    columns = _along(windows.lefts, width, windows.mirrored)
    top, bottom, left, right = (end[:, None] for end in windows.ends)
    visible = [(rows >= top) & (rows < bottom), (columns >= left) & (columns < right)]
    # a single transfer to the device
    coordinates = np.concatenate(
        [indices[:, None], rows.clip(0, images.shape[2] - 1), visible[0], columns, visible[1]], 1
    )
    transferred = torch.from_numpy(coordinates).to(images.device, non_blocking=True)
    at, down, in_rows, along, in_columns = transferred.split([1, height, height, width, width], 1)
    along = along.clamp(0, images.shape[3] - 1)
    output = images[at[:, :, None], :, down[:, :, None], along[:, None, :]].permute(0, 3, 1, 2)
    mask = in_rows.bool()[:, None, :, None] & in_columns.bool()[:, None, None, :]
    return output.contiguous().masked_fill_(~mask, 0)


def _along(begins: Integers, length: int, reversed_: Booleans) -> Int64[np.ndarray, "n length"]:
    """Return the coordinates (n, length) of the windows' pixels along one side, in output order."""
    steps = np.arange(length)
    return begins[:, None] + np.where(reversed_[:, None], steps[::-1], steps)
