"""A window of an image at another size: what `resizedcrop` sees."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn import functional

from plusx.data.draws import Draws


Places = Int64[np.ndarray, "n"]


class Rectangles(NamedTuple):
    """Of n images a window of (heights, widths) at (tops, lefts)."""

    tops: Places
    lefts: Places
    heights: Places
    widths: Places


def random_windows(draws: Draws, heights: Places, widths: Places) -> Rectangles:
    """As torchvision's RandomResizedCrop: the first window that fits of 10, else the middle."""
    tops, lefts, tall, wide = (np.zeros(len(heights), np.int64) for _ in range(4))
    for attempt in range(0, 40, 4):
        area = heights * widths * draws.uniform(0.08, 1.0, attempt)
        ratio = np.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3), attempt + 1))
        across = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        down = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tall == 0) & (across > 0) & (across <= widths) & (down > 0) & (down <= heights)
        top = draws.below(np.maximum(heights - down, 0) + 1, attempt + 2)
        left = draws.below(np.maximum(widths - across, 0) + 1, attempt + 3)
        for kept, found in ((tops, top), (lefts, left), (tall, down), (wide, across)):
            kept[fits] = found[fits]
        if tall.all():
            break
    else:
        none = tall == 0
        wide[none] = np.minimum(widths, np.maximum(1, np.rint(heights * 4 / 3)))[none]
        tall[none] = np.minimum(heights, np.maximum(1, np.rint(widths * 4 / 3)))[none]
        tops[none], lefts[none] = ((heights - tall) // 2)[none], ((widths - wide) // 2)[none]
    return Rectangles(tops, lefts, tall, wide)


def scaled(
    pixels: UInt8[np.ndarray, "y x c"], size: tuple[int, int], channels_last: bool = False
) -> UInt8[Tensor, "c h w"]:
    """All of an image at (height, width), bilinear with antialiasing; pixels have to be writable.

    By torch's kernel for bytes, which is the quicker the more a processor does at once. It differs
    from Pillow's, whose weights have more digits, by one level in a few of a thousand pixels.
    """
    image = torch.from_numpy(pixels)
    if channels_last:
        image = image[None].permute(0, 3, 1, 2)
    else:
        # of these strides torch makes planes, which is cheaper than to turn its result
        image = image.permute(2, 0, 1)[None]
    if image.shape[2:] != size:
        image = functional.interpolate(image, size, mode="bilinear", antialias=True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return image.contiguous(memory_format=layout)[0]
