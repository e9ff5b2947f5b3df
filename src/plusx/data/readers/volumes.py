"""A folder of volumes as a Dataset: read, judged, and split by patient."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import UnreadableImage, printable
from plusx.data.modality import VolumeModality
from plusx.data.modality.space import Space, Spacing
from plusx.data.readers.scans import is_scan
from plusx.data.readers.verdicts import Entry, OnUnreadable, usable_entries
from plusx.data.readers.volume_files import Reading, listed, same_spacing, spacing_of, volume_of
from plusx.data.rng import permutation
from plusx.data.splits import validation_count
from plusx.data.volume_items import Volume, VolumeItems, VolumeMasks
from plusx.errors import UserError


VALIDATION_SHARE = 0.2  # of the patients that train, where the data holds out none itself
_SCALE = (0.5, 0.25)  # mean and deviation where low is 0 and high is 1: no set's own, and near any
_THREADS = 2  # volumes that are read at a time: each may take a GB


def open_volumes(
    root: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    classes: tuple[str, ...],
    range: tuple[float, float],  # noqa: A002 - the recipe's word
    window: tuple[float, float] | str | None = None,
    spacing: Spacing | None = None,
    orientation: str = "SPL",
    patch: tuple[int, int, int] = (64, 64, 64),
    patches: int = 4,
    foreground: float = 0.5,
    ignore: tuple[int, ...] = (),
    patient: str = "",
    channels: int = 1,
    validation: float | int | None = None,
    on_unreadable: OnUnreadable = "error",
) -> Dataset:
    """Open a folder of volumes and masks; laid out as plusx.data.readers.volume_files says.

    split       "train", "validation", "test" or "all"
    seed        of the patients that validate, where the data has no split of its own
    classes     the names of the numbers 0, 1, ... of the masks; the first is what is left over
    range       the values that volumes may have; one that leaves it is refused, and so is one
                that fills almost nothing of it
    window      what of it the network sees (values beyond are clipped); None: all of it;
                "percentiles": from each volume's percentile 0.5 to its percentile 99.5
    spacing     mm a voxel of the network's grid; None: the volumes' own, which must agree
    orientation of the network's grid, as plusx.data.modality.space has it
    patch       voxels a dimension that the network sees at a time
    patches     that an epoch takes of each volume; `foreground` of them hold a voxel of a class
                other than the first
    ignore     numbers of the masks that are ignored
    patient     a regular expression whose first group, found in a volume's name, is the patient;
                "" takes each volume for a patient of its own
    channels    that each volume has: the fourth dimension of a NIfTI file
    validation  a share (below 1) or a number of patients that validate; None: 0.2
    on_unreadable     "error": a volume that cannot be used is an error that names it; "skip": such
                volumes are left out, and named in the warnings

    Raises UserError for data that cannot be used.
    """
    wanted = as_split(split)
    top = os.path.abspath(os.path.expanduser(os.fspath(root)))
    shown = printable(root)
    if not os.path.isdir(top):
        raise UserError(f"{shown} is {'no folder' if os.path.exists(top) else 'missing'}")
    if len(classes) < 2:
        raise UserError("classes: two names or more, the first of what is left over")
    pairs = listed(top, patient)
    if spacing is None:
        spacing = _first_spacing([entry for entry, _ in pairs], orientation)
        own = spacing
    else:
        own = None
    space = Space(patch, spacing, orientation, range, window == "percentiles")
    low, high = _edges(range, window)
    mean, std = ((number,) * channels for number in _SCALE)
    modality = VolumeModality(
        patch[1:], channels, mean, std, low, high, space=space, foreground=foreground
    )
    chosen = _of_split(pairs, wanted, validation, seed, shown)
    reading = Reading(modality, classes, ignore)
    entries, read = _read(chosen, reading, own)
    used, warnings = usable_entries(entries, top, on_unreadable)
    if not used:
        why = f" ({'; '.join(warnings[1:4])})" if warnings else ""
        raise UserError(f"{shown} has no volume in {wanted} that can be used{why}")
    volumes = [read[entry.path] for entry in used]
    masks = VolumeMasks(volumes, len(classes))
    if wanted != "test" and any(volume.mask is None for volume in volumes):
        missing = next(e for e, v in zip(used, volumes) if v.mask is None)
        raise UserError(f"{missing.name(top)}: there is no mask of it in labels")
    return Dataset(
        name=printable(os.path.basename(os.path.realpath(top))),
        split=wanted,
        classes=classes,
        labels=(masks.counts > 0).to(torch.float32),
        modality=modality,
        items=VolumeItems(volumes, patches, [entry.path for entry in used]),
        annotations=masks,
        root=top,
        warnings=warnings,
    )


def scans_in(paths: Sequence[str | Path]) -> list[str]:
    """The volumes named, and those in the folders named, in the order of their names.

    UserError: there is no such path, or no volume in it.
    """
    found: list[str] = []
    for given in paths:
        path = os.fspath(given)
        if not os.path.lexists(path):
            raise UserError(f"{printable(path)}: no such file or folder")
        inside = [path]
        if os.path.isdir(path) and not is_scan(path):
            with os.scandir(path) as entries:
                inside = sorted(entry.path for entry in entries if is_scan(entry.path))
        if not inside or not is_scan(inside[0]):
            raise UserError(
                f"{printable(path)}: no volume: a .nii or .nii.gz file, or a folder with a DICOM "
                "series"
            )
        found += inside
    return found


def _edges(
    stated: tuple[float, float], window: tuple[float, float] | str | None
) -> tuple[float, float]:
    """The values that become 0 and 1."""
    if window == "percentiles":
        return 0.0, 1.0
    low, high = stated if window is None or isinstance(window, str) else window
    if not stated[0] <= low < high <= stated[1]:
        raise UserError(
            f"window {[low, high]}: from a lower number to a higher one within the range "
            f"{list(stated)}"
        )
    return low, high


def _of_split(
    pairs: list[tuple[Entry, str | None]],
    split: str,
    validation: float | int | None,
    seed: int,
    shown: str,
) -> list[tuple[Entry, str | None]]:
    """The volumes of a split; where the data does not say which validate, whole patients do."""
    parts = {entry.split for entry, _ in pairs}
    if split == "all":
        return pairs
    if "validation" in parts and validation:
        raise UserError(
            f"{shown} has a validation split of its own; leave out validation = {validation}"
        )
    if split in parts and (split != "train" or "validation" in parts):
        return [pair for pair in pairs if pair[0].split == split]
    if split == "test" or (parts != {""} and "train" not in parts):
        has = (
            ", ".join(sorted(parts - {""})) or "none: patients are held out to validate by the seed"
        )
        raise UserError(f"{shown} has no {split} split (its splits: {has})")
    known = [pair for pair in pairs if pair[0].split in ("", "train")]
    patients = np.array(sorted({entry.label for entry, _ in known}))
    count = validation_count(len(patients), VALIDATION_SHARE if validation is None else validation)
    if count == 0 and validation != 0 and len(patients) > 1:
        count = 1
    held = set(patients[permutation(len(patients), seed, 0)[:count]].tolist())
    return [pair for pair in known if (pair[0].label in held) == (split == "validation")]


def _first_spacing(entries: list[Entry], orientation: str) -> Spacing:
    for entry in entries:
        if entry.state == "used":
            try:
                return spacing_of(entry.path, orientation)
            except (UnreadableImage, OSError):  # it is named where all of them are read
                continue
    raise UserError(
        "none of the volumes can be read; the first says: " + _why(entries, orientation)
    )


def _why(entries: list[Entry], orientation: str) -> str:
    first = entries[0]
    if first.state != "used":
        return first.reason
    try:
        spacing_of(first.path, orientation)
    except (UnreadableImage, OSError) as error:
        return f"{printable(first.path)}: {error}"
    return ""


def _read(
    pairs: list[tuple[Entry, str | None]], reading: Reading, own: Spacing | None
) -> tuple[list[Entry], dict[str, Volume]]:
    """The entries, those refused that cannot be used, and the volumes of the others.

    own: the spacing that all of them have to have.
    """
    read: dict[str, Volume] = {}

    def one(pair: tuple[Entry, str | None]) -> Entry:
        entry, label = pair
        if entry.state != "used":
            return entry
        try:
            if own is not None:
                held = spacing_of(entry.path, reading.space.orientation)
                if not same_spacing(held, own):
                    sides = [" x ".join(f"{side:g}" for side in each) for each in (held, own)]
                    return entry._replace(
                        state="refused",
                        reason=f"its voxels are {sides[0]} mm and others' {sides[1]} mm: say which "
                        "spacing all are brought to",
                    )
            read[entry.path] = volume_of(entry, label, reading)
        except UnreadableImage as error:
            return entry._replace(state="refused", reason=str(error))
        except OSError as error:
            return entry._replace(state="refused", reason=error.strerror or str(error))
        return entry

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="plusx-volumes") as pool:
        entries = list(pool.map(one, pairs))
    return entries, read
