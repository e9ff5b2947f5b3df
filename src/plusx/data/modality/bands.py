"""Images with any number of channels and any range, as of satellites and microscopes.

Files are TIFF (bands of one page, or pages) or PNG, with the same channels and values within a
stated range. The whole image is resized to the network's size. Words of augmentation are those that
move windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32

from plusx.data.image_file import (
    Decoder,
    UnreadableInput,
    Verdict,
    content_digest,
    read_regular,
)
from plusx.data.modality.grid import GridModality
from plusx.data.readers.tiff import declared_nodata, read_bands
from plusx.data.sample import Input
from plusx.data.statistics import measured
from plusx.data.transforms.steps import Setting
from plusx.data.transforms.transform import Transform, image_transform
from plusx.data.transforms.words import BATCHED, parse_augment
from plusx.errors import UserError


if TYPE_CHECKING:
    from plusx.data.dataset import Dataset

_MIN_RANGE_FRACTION = 0.01  # of the stated range that the values of all images together span


@dataclass(frozen=True)
class BandsModality(GridModality):
    """Images with any channels and range.

    bands: the stored channels that are used, counted from 1; None: all
    """

    bands: tuple[int, ...] | None = None

    kind: ClassVar[str] = "bands"
    noun: ClassVar[str] = "multi-band image"
    words: ClassVar[frozenset[str]] = BATCHED | {"rot90"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands is not None and (len(self.bands) != self.channels or min(self.bands) < 1):
            raise UserError(f"bands {self.bands}: one for each of {self.channels} channels, from 1")

    def read_file(self, path: str, decoder: Decoder = "pillow") -> Input:
        return torch.from_numpy(read_bands(path, self.channels, self.bands))

    def read_checked(self, source: str | bytes) -> Float32[np.ndarray, "c h w"]:
        """Read as stored. Raises UnreadableInput, also for invalid values; OSError."""
        image = read_bands(source, self.channels, self.bands)
        if not image.size:
            raise UnreadableInput("it has no pixels")
        bad = int((~np.isfinite(image)).sum())
        if bad:
            raise UnreadableInput(f"{bad:,} of its values are not finite")
        low, high = float(image.min()), float(image.max())
        if low < self.low or high > self.high:
            data = source if isinstance(source, bytes) else read_regular(source)
            nodata = declared_nodata(data)
            hint = f" ({nodata:g} marks missing data)" if nodata in (low, high) else ""
            raise UnreadableInput(
                f"its values run from {low:g} to {high:g}{hint}, outside {self.low:g} to "
                f"{self.high:g}"
            )
        return image

    def decode(self, source: str | bytes) -> Input:
        return torch.from_numpy(self.read_checked(source))

    def verdict_of(self, value: Input) -> Verdict:
        assert isinstance(value, torch.Tensor)
        return Verdict(None, low=float(value.min()), high=float(value.max()))

    def verdict_terms(self) -> list[Any]:
        bands = None if self.bands is None else list(self.bands)
        return [*super().verdict_terms(), self.channels, bands, self.low, self.high]

    def examine(self, source: str | bytes) -> Verdict:
        try:
            data = source if isinstance(source, bytes) else read_regular(source)
            image = self.read_checked(data)
        except UnreadableInput as error:
            return Verdict(str(error))
        except OSError as error:
            return Verdict(f"cannot be read: {error.strerror or error}")
        limits = float(image.min()), float(image.max())
        height, width = image.shape[1:]
        nodata = declared_nodata(data)
        warning = None
        if nodata is not None and (image == nodata).any():
            warning = f"its tag declares {nodata:g} as missing data, but it is used as a value"
        return Verdict(None, warning, height, width, *limits, content_digest(data))

    def common_problem(self, verdicts: Sequence[Verdict]) -> str | None:
        """Return a message if all images use less than a hundredth of the range, or None."""
        if not verdicts:
            return None
        low = min(verdict.low for verdict in verdicts)
        high = max(verdict.high for verdict in verdicts)
        if high - low >= _MIN_RANGE_FRACTION * (self.high - self.low):
            return None
        return (
            f"the values of all {len(verdicts):,} images are from {low:g} to {high:g}, almost "
            f"nothing of the range {self.low:g} to {self.high:g}: set [data] range to that of the "
            "images"
        )

    def data_fields(self) -> dict[str, str]:
        return {
            "channels": str(self.channels),
            "range": f"[{self.low},{self.high}]",
            "size": str(max(self.size)),
        }

    def fitted(self, dataset: "Dataset") -> "BandsModality":
        return measured(self, dataset)

    def transform(
        self,
        augment: str,
        *,
        train: bool,
        annotated: bool = False,
        stored: bool = False,
        channels_last: bool = False,
    ) -> Transform:
        text = augment if train else ""
        words = parse_augment(text, self.words, self.inputs)
        setting = Setting(self.size, self.low, self.high, channels_last)
        transform = image_transform(words, text, setting, "stretch", stored=True)
        return replace(transform, batched=transform.batched and stored, stretched=not stored)


def select_bands(modality: GridModality, bands: tuple[int, ...]) -> BandsModality:
    """Return the modality with only these bands, counted from 1."""
    channels = [band - 1 for band in bands]
    return BandsModality(
        size=modality.size,
        channels=len(channels),
        mean=tuple(modality.mean[channel] for channel in channels),
        std=tuple(modality.std[channel] for channel in channels),
        low=modality.low,
        high=modality.high,
        bands=tuple(bands),
    )
