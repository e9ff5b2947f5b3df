"""How images of one's own are prepared, as the recipe's [data] says."""

from plusx.data.modality import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BandsModality,
    ImageModality,
    Modality,
)
from plusx.data.modality.bands import select_bands
from plusx.errors import UserError
from plusx.recipe import OwnData


def own_preprocessing(data: OwnData) -> Modality | None:
    """What the recipe says of images that are no pictures in colours; None of those that are.

    The mean and the deviation of bands are measured in training. UserError: a range or a band
    that cannot be.
    """
    if data.channels is None and data.range is None and data.bands is None:
        return None
    size = (data.size, data.size)
    low, high = data.range or (0.0, 255.0)
    if low >= high:
        raise UserError(f"[data] range = [{low}, {high}]: from a lower number to a higher one")
    stored = data.channels or (3 if data.bands is None else max(data.bands))
    if data.range is None and data.bands is None and stored in (1, 3):
        return ImageModality(size, stored, IMAGENET_MEAN[stored], IMAGENET_STD[stored])
    known = BandsModality(size, stored, (0.5,) * stored, (0.25,) * stored, low, high)
    if data.bands is None:
        return known
    for band in data.bands:
        if band > stored or data.bands.count(band) > 1:
            why = "stands there twice" if band <= stored else f"of {stored} channels"
            raise UserError(f"[data] bands = {list(data.bands)}: {band} {why}")
    return select_bands(known, data.bands)
