"""Kinds of input: what each knows of reading, transforming and normalising, in one object."""

from typing import Any

from plusx.data.modality.bands import BandsModality
from plusx.data.modality.image import IMAGENET_MEAN, IMAGENET_STD, ImageModality
from plusx.data.modality.modality import Modality
from plusx.data.modality.volume import VolumeModality
from plusx.errors import UserError


__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MODALITIES",
    "BandsModality",
    "ImageModality",
    "Modality",
    "VolumeModality",
    "modality_from_dict",
]

MODALITIES: dict[str, type[Modality]] = {
    "image": ImageModality,
    "bands": BandsModality,
    "volume": VolumeModality,
}


def modality_from_dict(values: dict[str, Any]) -> Modality:
    """What `to_dict` has written. Raises UserError where a key is missing, unknown or unfit.

    Weight files of before 0.9 do not name the kind; it follows from their keys.
    """
    values = dict(values)
    kind = values.pop("kind", None)
    if kind is None:
        ranged = "low" in values or "bands" in values or values.get("channels") not in (1, 3)
        kind = "volume" if values.get("space") is not None else "bands" if ranged else "image"
    if kind not in MODALITIES:
        raise UserError(f"preprocessing of the kind {kind!r}: known are {', '.join(MODALITIES)}")
    return MODALITIES[kind].from_dict(values)
