"""Images at another size, and the random windows of `resizedcrop`."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Num, UInt8
from torch import Tensor
from torch.nn import functional

from plusx.data.rng import CounterRNG, SampleRNG


Integers = Int64[np.ndarray, "n"]


def resample(images: Num[Tensor, "*n c h w"], size: tuple[int, int]) -> Num[Tensor, "*n c y x"]:
    """Images at (height, width), bilinear with antialiasing; whole numbers are rounded.

    Bytes go through torch's own kernel for them, which differs from Pillow's by one level in a few
    of a thousand pixels.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    batch = images if images.ndim == 4 else images[None]
    if images.dtype != torch.uint8:
        batch = batch.to(torch.float32)
    if len(batch) > 1000:  # whole sets in memory, whose intermediate results need not all fit
        return torch.cat([resample(part, size) for part in batch.split(1000)])
    resized = functional.interpolate(batch, tuple(size), mode="bilinear", antialias=True)
    if resized.dtype != images.dtype:
        if not images.dtype.is_floating_point:
            kind = torch.iinfo(images.dtype)
            resized = resized.round().clamp(kind.min, kind.max)
        resized = resized.to(images.dtype)
    return resized if images.ndim == 4 else resized[0]


def resample_pixels(
    pixels: UInt8[np.ndarray, "y x c"], size: tuple[int, int], channels_last: bool = False
) -> UInt8[Tensor, "c h w"]:
    """As resample, of decoded pixels, which have to be writable, into the memory layout wanted."""
    image = torch.from_numpy(pixels)
    if channels_last:
        image = image[None].permute(0, 3, 1, 2)
    else:
        # of these strides torch makes planes, which is cheaper than to transpose its result
        image = image.permute(2, 0, 1)[None]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return resample(image, size).contiguous(memory_format=layout)[0]


class Rectangles(NamedTuple):
    """Of n images a window of (heights, widths) at (tops, lefts)."""

    tops: Integers
    lefts: Integers
    heights: Integers
    widths: Integers


def random_windows(rng: CounterRNG, heights: Integers, widths: Integers) -> Rectangles:
    """As torchvision's RandomResizedCrop: the first window that fits of 10, else the middle."""
    tops, lefts, tall, wide = (np.zeros(len(heights), np.int64) for _ in range(4))
    for attempt in range(0, 40, 4):
        area = heights * widths * rng.uniform(0.08, 1.0, attempt)
        ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), attempt + 1))
        across = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        down = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tall == 0) & (across > 0) & (across <= widths) & (down > 0) & (down <= heights)
        top = rng.below(np.maximum(heights - down, 0) + 1, attempt + 2)
        left = rng.below(np.maximum(widths - across, 0) + 1, attempt + 3)
        for values, candidates in ((tops, top), (lefts, left), (tall, down), (wide, across)):
            values[fits] = candidates[fits]
        if tall.all():
            break
    else:
        none = tall == 0
        wide[none] = np.minimum(widths, np.maximum(1, np.rint(heights * 4 / 3)))[none]
        tall[none] = np.minimum(heights, np.maximum(1, np.rint(widths * 4 / 3)))[none]
        tops[none], lefts[none] = ((heights - tall) // 2)[none], ((widths - wide) // 2)[none]
    return Rectangles(tops, lefts, tall, wide)


def random_window(rng: SampleRNG, height: int, width: int) -> tuple[int, int, int, int]:
    """The window of one image as random_windows has it: top, left, height and width."""
    for attempt in range(0, 40, 4):
        area = height * width * rng.uniform(0.08, 1.0, attempt)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), attempt + 1))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top = rng.below(height - down + 1, attempt + 2)
            return top, rng.below(width - across + 1, attempt + 3), down, across
    across = min(width, max(1, round(height * 4 / 3)))
    down = min(height, max(1, round(width * 4 / 3)))
    return (height - down) // 2, (width - across) // 2, down, across
