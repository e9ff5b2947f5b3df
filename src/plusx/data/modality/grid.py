"""`GridModality`: inputs of values on a grid of one size, such as images and volumes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Num
from PIL import Image
from pydantic import ConfigDict
from torch import Tensor

from plusx.data.batch import covering_size
from plusx.data.buffer_pool import BufferPool
from plusx.data.modality.modality import Modality
from plusx.data.sample import Input, Sample
from plusx.data.transforms.transform import Transform
from plusx.errors import UserError


MAX_SIDE = 16_384  # pixels of an input
# values that are normalised at a time, 1 MiB in float32
_PIECE = 2**18
_ROUNDING = 2e-6  # of pixels from 0 to 1 in float32


@dataclass(frozen=True)
class GridModality(Modality):
    """Values on a grid.

    size: height and width of the network's input, of volumes those of a patch's slice
    mean, std: one number per channel, on a scale where the stored value `low` is 0 and `high` is 1;
        8-bit images have 0 and 255
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: int | float = 0
    high: int | float = 255

    is_image: ClassVar[bool] = True
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not 1 <= min(self.size) <= max(self.size) <= MAX_SIDE:
            raise UserError(f"size {self.size}: sides are from 1 to {MAX_SIDE:,} pixels")
        if self.channels < 1:
            raise UserError(f"channels {self.channels}: inputs have 1 channel or more")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(f"{name} has {len(values)} numbers for {self.channels} channels")
        if not all(value > 0 for value in self.std):
            raise UserError(f"std {self.std}: every number must be above 0")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"range {self.low} to {self.high}: from a lower number to a higher one")

    def from_values(self, values: Image.Image | np.ndarray | Tensor) -> Input:
        if isinstance(values, Image.Image):
            values = np.asarray(values.convert("L" if self.channels == 1 else "RGB"))
        shape = tuple(values.shape)
        layout = "(c, h, w)"
        if isinstance(values, np.ndarray):
            layout = "(h, w) or (h, w, c)"
            planes = values[:, :, None] if values.ndim == 2 else values
            if planes.ndim == 3 and planes.dtype.kind in "biuf":
                values = torch.from_numpy(np.moveaxis(planes, 2, 0).copy())
            else:
                values = torch.empty(0)
        if values.ndim != 3 or len(values) != self.channels or not values.numel():
            raise UserError(
                f"an input of shape {shape}: the network takes one image {layout} with "
                f"{self.channels} {'channel' if self.channels == 1 else 'channels'}"
            )
        eight_bits = (self.low, self.high) == (0, 255)
        if eight_bits and values.dtype != torch.uint8:
            raise UserError(f"an input of {values.dtype}: the network takes uint8, from 0 to 255")
        return values if eight_bits else values.float()

    def like(self, other: Modality) -> Modality:
        """Return the modality with the mean and deviation of another one, if channels agree."""
        if not isinstance(other, GridModality) or other.channels != self.channels:
            return self
        return replace(self, mean=other.mean, std=other.std)

    def resized(self, size: int) -> Modality:
        return replace(self, size=(size, size))

    def padded_size(self, sample: Sample, transform: Transform) -> tuple[int, ...]:
        return transform.final or covering_size([sample.size])

    @property
    def ndim(self) -> int:
        return 2

    def input_steps(self, dense: bool) -> list[dict[str, Any]]:
        return [
            *self.resize_steps(dense),
            {"step": "scale", "low": self.low, "high": self.high},
            {"step": "normalise", "mean": list(self.mean), "std": list(self.std)},
        ]

    def resize_steps(self, dense: bool) -> list[dict[str, Any]]:
        """Return the steps that resize a stored input to the network's size."""
        return [resize_step("stretch", self.size)]

    def normalise(
        self, values: Num[Tensor, "..."], pool: BufferPool | None = None
    ) -> Float32[Tensor, "..."]:
        """Return ((value - low) / (high - low) - mean) / std in float32.

        For 8-bit images this is (image / 255 - mean) / std, bit for bit as in torchvision's v2
        transforms.

        pool: memory for large batches; None: it is allocated
        """
        mean = torch.tensor(self.mean, dtype=torch.float32, device=values.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=values.device)
        many = values.ndim == 4 and self.ndim == 2 and values.numel() > 2 * _PIECE
        if many and values.device.type == "cpu":
            return _normalise_in_pieces(values, mean, std, self.low, self.high, pool)
        scaled = _to_unit_range(values.to(torch.float32, copy=True), self.low, self.high)
        sides = (1,) * self.ndim
        return scaled.sub_(mean.view(-1, *sides)).div_(std.view(-1, *sides))

    def to_pixels(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The inverse of `from_pixels`, up to rounding.

        Pixels within the rounding error of a stored value, `low`, `low` + 1, ... `high`, get
        exactly that value, so that `from_pixels` returns the inputs of stored values bit for bit.
        """
        mean, std = self._statistics(inputs)
        pixels = inputs * std + mean
        levels = self.high - self.low
        if levels * _ROUNDING > 0.25:  # too fine to distinguish
            return pixels
        stored = _to_unit_range((pixels * levels).round_().add_(self.low), self.low, self.high)
        return torch.where((pixels - stored).abs() <= _ROUNDING, stored, pixels)

    def from_pixels(self, pixels: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        mean, std = self._statistics(pixels)
        return (pixels - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (c, 1, ...) in the type and on the device of `like`."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=like.device).to(like.dtype)
            for values in (self.mean, self.std)
        )
        sides = (1,) * (like.ndim - 2)
        return mean.view(-1, *sides), std.view(-1, *sides)


def resize_step(mode: str, size: Sequence[int], interpolation: str = "bilinear") -> dict[str, Any]:
    """Return a resize for the metadata of an exported file."""
    return {
        "step": "resize",
        "mode": mode,
        "size": list(size),
        "interpolation": interpolation,
        "antialias": True,
    }


def _to_unit_range(values: Tensor, low: int | float, high: int | float) -> Tensor:
    """Scale values in place so that low becomes 0 and high becomes 1."""
    if low:
        values = values.sub_(low)
    return values.mul_(1.0 / (high - low))


def _normalise_in_pieces(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    low: int | float,
    high: int | float,
    pool: BufferPool | None,
) -> Tensor:
    """Normalise a few images at a time, so that they stay in the processor's cache.

    The memory format of the images is kept.
    """
    pool = pool or BufferPool()
    count, channels, height, width = images.shape
    channels_last = channels > 1 and images.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        # one long row of channels is faster than many rows of three
        output = torch.from_numpy(pool.take((count, height, width, channels)))
        rows, stored = output.view(-1, width * channels), images.permute(0, 2, 3, 1)
        stored = stored.reshape(-1, width * channels)
        mean, std = mean.repeat(width), std.repeat(width)
        step = max(1, _PIECE // rows.shape[1])
    else:
        output = torch.from_numpy(pool.take((count, channels, height, width)))
        rows, stored = output, images
        mean, std = mean[:, None, None], std[:, None, None]
        step = max(1, _PIECE // (channels * height * width))
    for target, source in zip(rows.split(step), stored.split(step)):
        _to_unit_range(target.copy_(source), low, high).sub_(mean).div_(std)
    return output.permute(0, 3, 1, 2) if channels_last else output
