"""torchvision's published weights: addresses, hashes, preprocessing and classes."""

import difflib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from plusx.errors import UserError
from plusx.zoo.with_head import HEADED


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# torchvision's GoogLeNet rescales its input from ImageNet's mean and deviation to these
INPUT_STATISTICS = {"googlenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}


@dataclass(frozen=True)
class Published:
    """A published file. `digest` is the beginning of its sha256, which is in its name."""

    model: str
    name: str
    url: str
    digest: str
    size: int  # approximate, in bytes
    preprocessing: dict[str, Any] | None
    classes: tuple[str, ...]

    @property
    def file(self) -> str:
        """The name of the file."""
        return PurePosixPath(urlsplit(self.url).path).name


def published_names(model: str) -> tuple[str, ...]:
    """Return the names of torchvision's weights for a zoo network; () if it has none.

    VGG-16's weights for detection are left out: they have no head and no classes.
    """
    import torchvision.models  # slow to import

    try:
        entries = torchvision.models.get_model_weights(model)
    except ValueError:
        return ()
    return tuple(entry.name for entry in entries if entry.meta["categories"])


def published(model: str, name: str) -> Published:
    """Return torchvision's weights `name` ("IMAGENET1K_V2", "DEFAULT") for `model`.

    Raises UserError, which lists the names, if there are none of this name.
    """
    names = published_names(model)
    if not names:
        raise UserError(f"{name!r}: torchvision has no weights for {model}; give a file")
    short = name.rpartition(".")[2]
    if short not in (*names, "DEFAULT"):
        near = difflib.get_close_matches(short, names, 1)
        hint = f", did you mean {near[0]}?" if near else "."
        raise UserError(f"{model} has no weights {name!r}{hint} It has {', '.join(names)}")
    import torchvision.models

    entry = torchvision.models.get_model_weights(model)[short]
    if "." in name and name != f"{type(entry).__name__}.{short}":
        raise UserError(f"{name!r} are not weights for {model}; it has {', '.join(names)}")
    match = re.search(r"-([0-9a-f]{8,})\.\w+$", entry.url)
    assert match, entry.url
    return Published(
        model=model,
        name=entry.name,
        url=entry.url,
        digest=match[1],
        size=int(entry.meta["_file_size"] * (1 << 20)),
        preprocessing=_preprocessing(model, entry.transforms()),
        classes=tuple(entry.meta["categories"])[model in HEADED and HEADED[model].background :],
    )


def published_as(model: str, file: str) -> Published | None:
    """Return the published weights for `model` whose file has this name, or None."""
    for name in published_names(model):
        item = published(model, name)
        if item.file == file:
            return item
    return None


def _preprocessing(model: str, transform: Any) -> dict[str, Any] | None:
    headed = HEADED.get(model)
    if headed is not None:  # torchvision's detectors normalise inside, with the same values
        size, statistics = [headed.size] * 2, (IMAGENET_MEAN, IMAGENET_STD)
    else:
        size = list(transform.crop_size)
        if len(size) == 1:
            size = size * 2
        statistics = (tuple(transform.mean), tuple(transform.std))
    mean, std = INPUT_STATISTICS.get(model, statistics)
    preprocessing = {"size": size, "channels": len(mean), "mean": list(mean), "std": list(std)}
    resized = getattr(transform, "resize_size", [])
    # the shorter side is resized, then the centre is cropped
    if headed is None and len(resized) == 1:
        preprocessing |= {
            "kind": "image",
            "resize": "center_crop",
            "crop_fraction": size[0] / resized[0],
            "interpolation": transform.interpolation.value,
        }
    return preprocessing
