"""Reading images with many channels: TIFF, as bands of one page or as pages, and PNG."""

import io
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Num
from PIL import Image

from plusx.data.image_file import DEFAULT_LIMIT, UnreadableInput, quiet, read_regular
from plusx.errors import MissingLibrary


_SILENT = logging.NullHandler()
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_GDAL_NODATA = 42113  # the tag
_MAX_CHANNELS = 4096  # channels
_MAX_VALUES = 2**30  # of all channels


def read_bands(
    source: str | bytes,
    channels: int,
    bands: Sequence[int] | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Float32[np.ndarray, "c h w"]:
    """Return a file's channels as stored: all, or these bands, counted from 1.

    Raises UnreadableInput with the reason; OSError if the file cannot be read; RuntimeError if
    tifffile is not installed.
    """
    stored = stored_bands(source, limit)
    count = len(stored)
    if bands is None and count != channels:
        raise UnreadableInput(f"{_channels(count)}, not {channels}")
    if bands is not None:
        if count < max(bands):
            raise UnreadableInput(f"{_channels(count)}, and no band {max(bands)}")
        stored = stored[[band - 1 for band in bands]]
    return np.ascontiguousarray(stored, np.float32)


def stored_bands(source: str | bytes, limit: int = DEFAULT_LIMIT) -> Num[np.ndarray, "c h w"]:
    """Return all channels of a file as stored. Raises as read_bands does."""
    data = source if isinstance(source, bytes) else read_regular(source)
    if data.startswith(_TIFF):
        return _from_tiff(data, limit)
    if data.startswith(_PNG):
        return _from_png(data, limit)
    raise UnreadableInput("neither a TIFF nor a PNG: other formats cannot have many bands")


def declared_nodata(data: bytes) -> float | None:
    """Return the value of GDAL's nodata tag in a TIFF, or None."""
    if not data.startswith(_TIFF):
        return None
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            tag = file.pages.first.tags.get(_GDAL_NODATA)
            return None if tag is None else float(tag.value)
    except Exception:  # an invalid tag does not affect the pixels
        return None


def _from_tiff(data: bytes, limit: int) -> Num[np.ndarray, "c h w"]:
    try:
        import tifffile
    except ImportError:
        raise MissingLibrary("TIFFs of bands need tifffile", "satellite") from None
    # without a handler, tifffile's warnings would be printed on standard error
    logging.getLogger("tifffile").addHandler(_SILENT)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            axes, shape = series.axes, tuple(int(side) for side in series.shape)
            order = _order(axes, shape, limit)
            stored: Any = series.asarray()
    except UnreadableInput:
        raise
    except Exception as error:
        if "imagecodecs" in str(error):  # which decodes this compression
            raise MissingLibrary("this TIFF needs imagecodecs", "satellite") from None
        # decoders raise errors of any kind for corrupt files, such as struct.error and KeyError
        raise UnreadableInput(f"cannot be decoded: {error or type(error).__name__}") from error
    if stored.dtype.kind not in "uif" or stored.shape != shape:
        raise UnreadableInput(f"its pixels are {stored.dtype}, not numbers")
    return np.moveaxis(stored, order, range(len(order))).reshape(-1, *_sides(axes, shape))


def _order(axes: str, shape: Sequence[int], limit: int) -> list[int]:
    """Return the axes in the order channels, height, width. Raises UnreadableInput."""
    if axes.count("Y") != 1 or axes.count("X") != 1 or len(axes) > 3:
        raise UnreadableInput(f"its axes are {axes} of {shape}, not channels, height and width")
    height, width = _sides(axes, shape)
    channels = math.prod(shape) // max(height * width, 1)
    if height * width > limit or channels > _MAX_CHANNELS or math.prod(shape) > _MAX_VALUES:
        raise UnreadableInput(f"{width} x {height} pixels of {channels} channels: too many")
    others = [number for number, axis in enumerate(axes) if axis not in "YX"]
    return [*others, axes.index("Y"), axes.index("X")]


def _sides(axes: str, shape: Sequence[int]) -> tuple[int, int]:
    return shape[axes.index("Y")], shape[axes.index("X")]


def _from_png(data: bytes, limit: int) -> Num[np.ndarray, "c h w"]:
    try:
        with quiet, Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > limit:
                raise UnreadableInput(f"{image.width} x {image.height} pixels: too many")
            if image.mode == "P":
                raise UnreadableInput("its pixels are indices of a palette, not values")
            stored = np.asarray(image)
    except UnreadableInput:
        raise
    except Exception as error:
        raise UnreadableInput(f"cannot be decoded: {error or type(error).__name__}") from error
    return np.moveaxis(stored if stored.ndim == 3 else stored[:, :, None], 2, 0)


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"
