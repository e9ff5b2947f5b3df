"""Maps as pictures: a heat map over the image that a network saw, as PNG."""

import io

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from plusx.explain.faithfulness import enlarged


SHOWN = 224  # pixels along the longer side of a panel, at least
STRONGEST = 0.78  # the share of the colour where a map is highest
_GAP = 8
_SORTED = 2**22


def heat(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Evidence for the class from 0 to 1 in each map; evidence against it is 0.

    Values above the 99th percentile are 1, so that single pixels do not darken the rest. Heights of
    two maps are not comparable afterwards.
    """
    positive = maps.relu()
    flat = positive.flatten(1)
    # torch sorts no more than 2**24 positions
    top = flat[:, :: -(-flat.shape[1] // _SORTED)].quantile(0.99, dim=1)[:, None, None]
    top = torch.where(top > 0, top, positive.amax((1, 2), keepdim=True))
    return (positive / top.clamp(min=torch.finfo(maps.dtype).tiny)).clamp(max=1)


def factor(size: tuple[int, int]) -> int:
    """How many times a small image is enlarged for display."""
    return max(1, -(-SHOWN // max(size)))


def panels(
    image: UInt8[Tensor, "c h w"], grid: Float[Tensor, "a b"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image, the map and the map over the image, all enlarged for display, RGB.

    The image is enlarged by whole pixels, and so is a map of pixels; a coarser one is smooth.
    """
    times = factor((image.shape[1], image.shape[2]))
    large = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    pixels = as_rgb(large)
    if grid.shape == image.shape[1:]:
        grid = grid.repeat_interleave(times, 0).repeat_interleave(times, 1)
    size = (int(large.shape[1]), int(large.shape[2]))
    high = heat(enlarged(grid[None].float(), size))[0].numpy()
    return pixels, _colours(high), blended(pixels, high)


def blended(pixels: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) under the colours of heights (h, w) from 0 to 1."""
    share = (STRONGEST * high**0.7)[..., None]
    grey = pixels.mean(-1, keepdims=True)
    calm = 0.45 * pixels + 0.55 * grey  # so that colours of the image are not taken for heat
    mixed = calm * (1 - share) + _colours(0.25 + 0.7 * high) * share
    return mixed.round().astype(np.uint8)


def as_rgb(image: UInt8[Tensor, "c h w"]) -> np.ndarray:
    """(h, w, 3) of an RGB or grey image."""
    return np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())


def abreast(pictures: tuple[np.ndarray, ...]) -> np.ndarray:
    """Pictures of one size side by side, white between them."""
    gap = np.full((len(pictures[0]), _GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _colours(high: np.ndarray) -> np.ndarray:
    table = matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3]
    return (255 * table[(high * 255).round().astype(int)]).round().astype(np.uint8)
