"""Attribution maps as images: a heat map over the network's input."""

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from plusx.explain.faithfulness import enlarged
from plusx.run import drawing


MIN_PANEL_SIDE = 224  # minimum pixels of the longer side of a panel
MAX_OPACITY = 0.6  # of the heat map where it is 1; the image stays visible
_MAX_SORTED = 2**22  # positions for the quantile: torch sorts at most 2**24


def heat(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Return the evidence for the class in each map, scaled to 0 to 1; evidence against it is 0.

    Values above the 99th percentile are 1, so that single pixels do not darken the rest. The scales
    of two maps are not comparable.
    """
    positive = maps.relu()
    flat = positive.flatten(1)
    top = flat[:, :: -(-flat.shape[1] // _MAX_SORTED)].quantile(0.99, dim=1)[:, None, None]
    top = torch.where(top > 0, top, positive.amax((1, 2), keepdim=True))
    return (positive / top.clamp(min=torch.finfo(maps.dtype).tiny)).clamp(max=1)


def factor(size: tuple[int, int]) -> int:
    """Return the integer factor by which a small image is enlarged for display."""
    return max(1, -(-MIN_PANEL_SIDE // max(size)))


def panels(
    image: UInt8[Tensor, "c h w"], grid: Float[Tensor, "a b"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image, the map, and the map over the image as RGB, enlarged for display.

    The image, and a map of the same size, are enlarged by whole pixels; a coarser map is
    interpolated.
    """
    scale = factor((image.shape[1], image.shape[2]))
    large = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    pixels = as_rgb(large)
    if grid.shape == image.shape[1:]:
        grid = grid.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    size = (int(large.shape[1]), int(large.shape[2]))
    heat_map = heat(enlarged(grid[None].float(), size))[0].numpy()
    return pixels, _colours(heat_map), blended(pixels, heat_map)


def blended(pixels: np.ndarray, heat_map: np.ndarray) -> np.ndarray:
    """Return pixels (h, w, 3) under the colours of a heat map (h, w) from 0 to 1."""
    opacity = (MAX_OPACITY * heat_map)[..., None]
    grey = pixels.mean(-1, keepdims=True)
    muted = 0.45 * pixels + 0.55 * grey  # its colours must not resemble those of the heat map
    mixed = muted * (1 - opacity) + _colours(0.25 + 0.7 * heat_map) * opacity
    return mixed.round().astype(np.uint8)


def as_rgb(image: UInt8[Tensor, "c h w"]) -> np.ndarray:
    """Return an RGB or greyscale image as (h, w, 3)."""
    return drawing.as_rgb(image.permute(1, 2, 0).numpy())


def _colours(heat_map: np.ndarray) -> np.ndarray:
    table = matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3]
    return (255 * table[(heat_map * 255).round().astype(int)]).round().astype(np.uint8)
