"""The door of this room: open_data, from a set's name or a path to a Source."""

import difflib
import os
from pathlib import Path
from typing import Literal

from plusx.data.published import PUBLISHED
from plusx.data.sample import Preprocessing, Sample, Source, Split, as_split


__all__ = ["Preprocessing", "Sample", "Source", "Split", "open_data"]

Damaged = Literal["error", "skip"]


def open_data(
    data: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    size: int | None = None,
    damaged: Damaged = "error",
    classes: tuple[str, ...] | None = None,
) -> Source:
    """Open a set by its name (digits, fashion-mnist, cifar10, cifar100), a folder or a CSV.

    split       "train", "validation", "test" or "all"
    seed        of the split where the data has none of its own
    validation  a share (below 1) or a number of training samples that validate; None is the
                set's own rule, 0 lets all of the training part train
    size        of the images a network sees; None is the set's own, 224 for files
    damaged     "error": any file that cannot be used is an error that names it; "skip": such
                files are left out before anything else, and counted in the notices
    classes     the classes that are expected, in their order (those of a trained network)

    Raises ValueError for an unknown name, a missing path or data that cannot be used.
    """
    name = os.fspath(data)
    wanted = as_split(split)
    if name in PUBLISHED:
        source = PUBLISHED[name](wanted, validation, seed)
        if classes is not None and classes != source.classes:
            raise ValueError(
                f"{name} has the classes {_listed(source.classes)}, expected were "
                f"{_listed(classes)}"
            )
    else:
        raise _unknown(name)
    if not len(source):
        raise ValueError(f"{name} has no {wanted} split with validation = {validation}")
    if size is not None and source.preprocessing.size != (size, size):
        preprocessing = Preprocessing(
            (size, size),
            source.preprocessing.channels,
            source.preprocessing.mean,
            source.preprocessing.std,
        )
        source = source.with_preprocessing(preprocessing)
    return source


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _unknown(name: str) -> ValueError:
    near = difflib.get_close_matches(name, PUBLISHED, 1, 0.5)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return ValueError(f"no data {name!r}: neither a path nor one of {', '.join(PUBLISHED)}{hint}")
