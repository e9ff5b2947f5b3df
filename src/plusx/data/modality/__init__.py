"""Modalities: how each kind of input is read, transformed and normalised."""

from typing import Any

from plusx.data.modality.audio.modality import AudioModality
from plusx.data.modality.bands import BandsModality
from plusx.data.modality.grid import GridModality
from plusx.data.modality.image import IMAGENET_MEAN, IMAGENET_STD, ImageModality
from plusx.data.modality.modality import Modality
from plusx.data.modality.text import TextModality
from plusx.data.modality.volume import VolumeModality
from plusx.errors import UserError


__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MODALITIES",
    "AudioModality",
    "BandsModality",
    "GridModality",
    "ImageModality",
    "Modality",
    "TextModality",
    "VolumeModality",
    "modality_from_dict",
]

MODALITIES: dict[str, type[Modality]] = {
    "image": ImageModality,
    "bands": BandsModality,
    "volume": VolumeModality,
    "text": TextModality,
    "audio": AudioModality,
}


def modality_from_dict(values: dict[str, Any]) -> Modality:
    """Return the modality that `to_dict` wrote. Raises UserError for invalid keys or values."""
    values = dict(values)
    kind = values.pop("kind", ImageModality.kind)
    if kind not in MODALITIES:
        raise UserError(f"preprocessing of the kind {kind!r}: allowed are {', '.join(MODALITIES)}")
    return MODALITIES[kind].from_dict(values)
