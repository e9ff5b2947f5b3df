"""A folder of volumes as a Dataset: read, checked, and split by patient."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import UnreadableInput, printable
from plusx.data.modality import VolumeModality
from plusx.data.modality.space import Space, Spacing, check_orientation
from plusx.data.readers.scans import is_scan
from plusx.data.readers.verdicts import Entry, OnUnreadable, usable_entries
from plusx.data.readers.volume_files import (
    Case,
    Reading,
    class_names_of,
    further_channels,
    list_cases,
    read_volume,
    spacing_of,
)
from plusx.data.rng import permutation
from plusx.data.splits import VALIDATION_FRACTION, entries_of_split, validation_count
from plusx.data.volume_items import Volume, VolumeItems, VolumeMasks
from plusx.errors import UserError


_SCALE = (0.5, 0.25)  # mean and deviation of values from 0 to 1, a fair guess for any data set
_THREADS = 2  # volumes that are read at a time; each may take a GB


def open_volumes(
    root: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    classes: tuple[str, ...],
    range: tuple[float, float],  # noqa: A002 - as in recipes
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
    """Open a folder of volumes and masks, in a layout of plusx.data.readers.volume_files.

    split: "train", "validation", "test" or "all"
    seed: chooses the validation patients if the data defines no splits
    classes: the names of the mask values 0, 1, ..., the background first; (): those of dataset.json
    range: the values that volumes may have. Volumes with other values are refused, and so are
        volumes that span almost none of it
    window: the values that become 0 and 1; values beyond are clipped. None: `range`;
        "percentiles": each volume's percentiles 0.5 and 99.5
    spacing: of the grid, in mm per voxel; None: that of the volumes, which must agree
    orientation: of the grid; see plusx.data.modality.space
    patch: voxels per dimension of the network's input
    patches: per volume in an epoch; the fraction `foreground` of them contains a voxel of a class
        other than the first
    ignore: mask values that are ignored
    patient: regular expression whose first group, searched in a volume's name, is the patient; "":
        every volume is a patient
    channels: of each volume, the fourth dimension of a NIfTI file
    validation: a fraction (below 1) or a number of patients; None: 0.2
    on_unreadable: "error": an unusable volume is an error that names it; "skip": unusable volumes
        are left out and named in the warnings
    Raises UserError for data that cannot be used.
    """
    split, shown = as_split(split), printable(root)
    check_orientation(orientation)
    cases = list_cases(root, patient)
    top = os.path.abspath(os.path.expanduser(os.fspath(root)))
    classes = classes or class_names_of(top)
    if len(classes) < 2:
        raise UserError(
            "[data] classes: two names or more, the background first (no dataset.json names them)"
        )
    grid = spacing or _first_spacing([case.volume for case in cases], orientation)
    space = Space(patch, grid, orientation, range, window == "percentiles")
    low, high = _edges(range, window)
    mean, std = ((number,) * channels for number in _SCALE)
    modality = VolumeModality(
        patch[1:], channels, mean, std, low, high, space=space, foreground=foreground
    )
    cases = cases_of_split(cases, split, validation, seed, shown)
    reading = Reading(modality, classes, ignore, resample=spacing is not None)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="plusx-volumes") as pool:
        results = list(pool.map(lambda case: _read(case, reading), cases))
    used, warnings = usable_entries([entry for entry, _ in results], top, on_unreadable)
    if not used:
        why = f" ({'; '.join(warnings[1:4])})" if warnings else ""
        raise UserError(f"{shown} has no volume in {split} that can be used{why}")
    volumes = [volume for _, volume in results if volume is not None]
    masks = VolumeMasks(volumes, len(classes))
    if split != "test" and any(volume.mask is None for volume in volumes):
        missing = next(e for e, v in zip(used, volumes) if v.mask is None)
        raise UserError(f"{missing.name(top)}: it has no mask in labels")
    return Dataset(
        name=printable(os.path.basename(os.path.realpath(top))),
        split=split,
        classes=classes,
        labels=(masks.counts > 0).to(torch.float32),
        modality=modality,
        items=VolumeItems(volumes, patches, [entry.path for entry in used]),
        annotations=masks,
        root=top,
        warnings=warnings,
    )


def scans_in(paths: Sequence[str | Path], channels: int = 1) -> list[str]:
    """Return the given volumes, and those in the given folders, ordered by name.

    Of a volume with one file per channel only the first is returned. Raises UserError if a path
    does not exist or has no volume.
    """
    scans: list[str] = []
    for name in paths:
        path = os.fspath(name)
        if not os.path.lexists(path):
            raise UserError(f"{printable(path)}: no such file or folder")
        inside = [path]
        if os.path.isdir(path) and not is_scan(path):
            with os.scandir(path) as entries:
                shown = (entry.path for entry in entries if not entry.name.startswith("."))
                inside = sorted(path for path in shown if is_scan(path))
        if not inside or not is_scan(inside[0]):
            raise UserError(
                f"{printable(path)}: no volume: a .nii or .nii.gz file, or a folder with a DICOM "
                "series"
            )
        scans += inside
    further = {other for path in scans for other in further_channels(path, channels)}
    return [path for path in scans if path not in further]


def _edges(
    stated: tuple[float, float], window: tuple[float, float] | str | None
) -> tuple[float, float]:
    """Return the values that become 0 and 1."""
    if window == "percentiles":
        return 0.0, 1.0
    low, high = stated if window is None or isinstance(window, str) else window
    if not stated[0] <= low < high <= stated[1]:
        raise UserError(
            f"window {[low, high]}: from a lower number to a higher one within the range "
            f"{list(stated)}"
        )
    return low, high


def cases_of_split(
    cases: list[Case], split: str, validation: float | int | None, seed: int, shown: str
) -> list[Case]:
    """Return the volumes of a split; the seed chooses patients if the data defines no splits."""
    chosen, is_cut = entries_of_split(cases, split, validation, shown)
    if not is_cut:
        return chosen
    patients = np.array(sorted({case.volume.label for case in chosen}))
    fraction = VALIDATION_FRACTION if validation is None else validation
    count = validation_count(len(patients), fraction)
    if count == 0 and validation != 0 and len(patients) > 1:
        count = 1
    held_out = set(patients[permutation(len(patients), seed, 0)[:count]].tolist())
    return [case for case in chosen if (case.volume.label in held_out) == (split == "validation")]


def _first_spacing(entries: list[Entry], orientation: str) -> Spacing:
    """Return the spacing of the first readable volume."""
    reasons = []
    for entry in entries:
        if entry.state != "used":
            reasons.append(entry.reason)
            continue
        try:
            return spacing_of(entry.path, orientation)
        except (UnreadableInput, OSError) as error:
            reasons.append(f"{printable(entry.path)}: {error}")
    raise UserError(f"none of the volumes can be read; the first: {reasons[0]}")


def _read(case: Case, reading: Reading) -> tuple[Entry, Volume | None]:
    """Return the volume, or its entry as refused."""
    entry = case.volume
    if entry.state != "used":
        return entry, None
    try:
        return entry, read_volume(case, reading)
    except (UnreadableInput, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return entry._replace(state="refused", reason=reason), None
