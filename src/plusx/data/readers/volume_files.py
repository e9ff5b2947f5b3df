"""Volumes and their masks: found in folders, read, checked and resampled to one grid.

ROOT/images/NAME.nii.gz and ROOT/labels/NAME.nii.gz, where an image may be a folder with a DICOM
series; the same below ROOT/train, ROOT/val and ROOT/test; or, as in the Medical Segmentation
Decathlon, ROOT/imagesTr and ROOT/labelsTr, with imagesTs and labelsTs for testing. As in nnU-Net,
NAME_0000.nii.gz, NAME_0001.nii.gz, ... are the channels of the volume with the mask NAME.nii.gz.
ROOT/dataset.json may name the classes.

Volumes on the grid are cached in the cache folder, never beside the data, by the sizes and times of
change of their files, and memory-mapped from there.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

from plusx import store
from plusx.data.image_file import UnreadableInput, printable, read_regular
from plusx.data.modality import VolumeModality
from plusx.data.modality.space import (
    Space,
    Spacing,
    count_at,
    nearest,
    reoriented,
    reoriented_spacing,
    resampled,
    with_axes_of,
)
from plusx.data.readers.listing import file_problem
from plusx.data.readers.scans import MAX_VOXELS, Scan, files_of, is_scan, read_scan, stem_of
from plusx.data.readers.text_file import decoded
from plusx.data.readers.verdicts import Entry, file_stamp
from plusx.data.sample import IGNORE_INDEX
from plusx.data.splits import split_of
from plusx.data.volume_items import Classes, Grid, Volume
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

_CACHE_VERSION = 2  # increased whenever the preprocessing changes
_SAMPLE = 2**20  # voxels of a volume from which percentiles are taken
_HEAD_BYTES = 16384  # read at each end of a file for its fingerprint
# fractions of the stated range and of the window that a volume's values must span
_MIN_RANGE_FRACTION, _MIN_WINDOW_FRACTION = 0.1, 0.05
_DESCRIPTION_LIMIT = 64 * 2**20  # bytes of dataset.json
_ROUNDING = 1e-3  # by which values of a mask may differ from integers
_MASK_FOLDERS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}


@dataclass(frozen=True)
class Reading:
    """How files become volumes.

    classes     names of the mask values 0, 1, ...
    ignore      mask values that are ignored
    resample    whether volumes may have another spacing than the grid
    """

    modality: VolumeModality
    classes: tuple[str, ...]
    ignore: tuple[int, ...] = ()
    resample: bool = True

    @property
    def space(self) -> Space:
        return self.modality.space


class Case(NamedTuple):
    """A volume, with its patient as `label`, and its mask, or None.

    channels: the files of its further channels
    """

    volume: Entry
    mask: str | None
    channels: tuple[str, ...] = ()

    @property
    def split(self) -> str:
        return self.volume.split


def recognise_volumes(path: str) -> str:
    """Return why list_cases can read a path, or ""."""
    for folder in _case_folders(path) if os.path.isdir(path) else ():
        for name in _folders(folder) & _MASK_FOLDERS.keys():
            images = os.path.join(folder, name)
            with os.scandir(images) as entries:
                scan = next((entry.name for entry in entries if is_scan(entry.path)), None)
            if scan is not None:
                return f"volumes in {printable(images, path)}, such as {printable(scan)}"
    return ""


def _case_folders(top: str) -> dict[str, str]:
    """Return the folders that may have volumes and masks, with their splits."""
    names = {name: split for name in sorted(_folders(top)) if (split := split_of(name))}
    return {os.path.join(top, name): split for name, split in names.items()} or {top: ""}


def list_cases(root: str | Path, patient: str) -> list[Case]:
    """Return every volume below a root with its mask.

    If there are masks, volumes without one and masks without a volume are refused entries. Raises
    UserError if there is no such folder or no volume, or a patient is in two splits.
    """
    top, shown = os.path.abspath(os.path.expanduser(os.fspath(root))), printable(root)
    try:
        re.compile(patient)
    except re.error as error:
        raise UserError(f"patient = {patient!r} is not a regular expression: {error}") from None
    if not os.path.isdir(top):
        raise UserError(f"{shown} is {'not a folder' if os.path.exists(top) else 'missing'}")
    cases = [
        _within(case, os.path.realpath(top))
        for folder, split in _case_folders(top).items()
        for case in _cases(folder, split, patient)
    ]
    if not cases:
        raise UserError(
            f"{shown} has no volumes: they are expected as images/NAME.nii.gz and "
            "labels/NAME.nii.gz, or the same in train, val and test"
        )
    first: dict[str, Entry] = {}
    for entry in (case.volume for case in cases):
        other = first.setdefault(entry.label, entry)
        if other.split != entry.split:
            raise UserError(
                f"{shown}: {entry.name(top)} and {other.name(top)} are of the same patient, "
                f"{entry.label!r}, in two splits"
            )
    return cases


def _within(case: Case, root: str) -> Case:
    """Return the case, refused if one of its files is a link out of the root."""
    entry = case.volume
    paths = [entry.path, *case.channels] if entry.state == "used" else []
    files = [file for path in paths for file in files_of(path)]
    for file in [*files, *([case.mask] if case.mask else [])]:
        if (problem := file_problem(file, root)) is not None:
            reason = problem if file == entry.path else f"{os.path.basename(file)}: {problem}"
            return case._replace(volume=entry._replace(state="refused", reason=reason))
    return case


def read_volume(case: Case, reading: Reading) -> Volume:
    """Read a volume and its mask, or load them from the cache. Raises UnreadableInput, OSError."""
    entry, mask_path, channels = case
    files = [file for path in (entry.path, *channels) for file in files_of(path)]
    files += [] if mask_path is None else [mask_path]
    terms = repr((_CACHE_VERSION, files, [file_stamp(path) for path in files], reading))
    name = hashlib.sha256(terms.encode()).hexdigest()[:40]
    cache_path = store.cache_folder() / "volumes" / name
    arrays = _read_cache(cache_path, reading, mask_path is not None)
    if arrays is None:
        scan = read_channels([entry.path, *channels])
        image = prepared(scan, reading)
        mask = None
        if mask_path is not None:
            classes = stored_mask(mask_path, scan, reading)
            classes = reoriented(classes, scan.affine, reading.space.orientation)
            spacing = reoriented_spacing(scan.affine, reading.space.orientation)
            mask = nearest(classes, spacing, reading.space.spacing)
        _write_cache(cache_path, image, mask)
        arrays = image, mask
    return Volume(stem_of(entry.path), entry.label, *arrays, _content_digest(files, reading))


def read_channels(paths: Sequence[str]) -> Scan:
    """Read a volume from one file or one per channel. Raises UnreadableInput, OSError."""
    scan, *others = map(read_scan, paths)
    for path, other in zip(paths[1:], others):
        if other.values.shape != scan.values.shape or not np.allclose(other.affine, scan.affine):
            raise UnreadableInput(
                f"its channel {os.path.basename(path)} has another size or another affine"
            )
    values = np.concatenate([scan.values, *(other.values for other in others)])
    return replace(scan, values=values)


def further_channels(path: str, channels: int) -> list[str]:
    """Return the files of the other channels of a volume NAME_0000.nii.gz."""
    folder, (name, number) = os.path.dirname(path), _channel_of(stem_of(path))
    if number != 0 or channels == 1:
        return []
    scans = _scans(folder or ".")
    paths = [scans.get(f"{name}_{other:04}") for other in range(1, channels)]
    return [other for other in paths if other is not None]


def class_names_of(root: str | Path) -> tuple[str, ...]:
    """Return the class names in ROOT/dataset.json, in the format of the Medical Segmentation
    Decathlon or of nnU-Net; () without such a file. Raises UserError if they are not numbered from
    0.
    """
    path = os.path.join(os.path.expanduser(os.fspath(root)), "dataset.json")
    if not os.path.isfile(path):
        return ()
    try:
        labels = json.loads(decoded(read_regular(path, _DESCRIPTION_LIMIT)))["labels"]
        pairs = labels.items()
        numbers = {int(k): v for k, v in pairs} if "0" in labels else {v: k for k, v in pairs}
        names = [numbers[number] for number in range(len(numbers))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{printable(path)} has no labels numbered from 0: set [data] classes"
        ) from None
    return tuple(printable(str(name)) for name in names)


def _channel_of(stem: str) -> tuple[str, int | None]:
    """Return NAME and 2 for NAME_0002; the number is None if there is none."""
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    return (match[1], int(match[2])) if match else (stem, None)


def prepared(scan: Scan, reading: Reading) -> Grid:
    """Return a volume on the grid of the modality, with values clipped to the window.

    Raises UnreadableInput if its values are outside the stated range or span almost none of it, or
    its spacing is not that of the grid and volumes are not resampled.
    """
    modality, space = reading.modality, reading.space
    if len(scan.values) != modality.channels:
        raise UnreadableInput(f"it has {len(scan.values)} channels, not {modality.channels}")
    spacing = reoriented_spacing(scan.affine, space.orientation)
    if not reading.resample and not np.allclose(spacing, space.spacing, rtol=0.01, atol=0):
        raise UnreadableInput(
            f"its voxels have {_mm(spacing)}, those of others {_mm(space.spacing)}: set [data] "
            "spacing to resample all of them"
        )
    if (problem := range_problem(scan.values, modality)) is not None:
        raise UnreadableInput(problem)
    values = reoriented(scan.values.astype(np.float32), scan.affine, space.orientation)
    counts = map(count_at, values.shape[1:], spacing, space.spacing)
    voxels = math.prod(counts)
    if voxels > MAX_VOXELS:
        raise UnreadableInput(f"at a spacing of {_mm(space.spacing)} it has {voxels:,.0f} voxels")
    if space.percentiles:
        for channel in values:
            low, high = np.percentile(_sample(channel), (0.5, 99.5))
            if not low < high:
                raise UnreadableInput(f"nearly all of its values are {low:g}")
            channel -= np.float32(low)
            channel /= np.float32(high - low)
    # clipped before resampling, so that interpolated values stay within the window
    return resampled(np.clip(values, modality.low, modality.high), spacing, space.spacing)


def range_problem(values: Num[np.ndarray, "c x y z"], modality: VolumeModality) -> str | None:
    """Return why values do not fit the range of the recipe, or None."""
    space, window = modality.space, (modality.low, modality.high)
    lowest, highest = float(values.min()), float(values.max())
    stated = f"the stated range, {space.range[0]:g} to {space.range[1]:g}"
    if lowest < space.range[0] or highest > space.range[1]:
        return f"its values, {lowest:g} to {highest:g}, leave {stated}"
    for channel in values:
        low, high = (float(value) for value in np.percentile(_sample(channel), (0.1, 99.9)))
        shown = f"its values, {low:g} to {high:g}, span almost none of"
        if high - low < _MIN_RANGE_FRACTION * (space.range[1] - space.range[0]):
            return f"{shown} {stated}; it may have another scale"
        in_window = np.ptp(np.clip((low, high), *window))
        if not space.percentiles and in_window < _MIN_WINDOW_FRACTION * (window[1] - window[0]):
            return f"{shown} the window, {window[0]:g} to {window[1]:g}"
    return None


def stored_mask(path: str, scan: Scan, reading: Reading) -> UInt8[np.ndarray, "x y z"]:
    """Return the classes of a scan's voxels as stored, 255 if ignored.

    Raises UnreadableInput if the mask has another shape or space, or other values.
    """
    try:
        mask = read_scan(path)
    except UnreadableInput as error:
        raise UnreadableInput(f"its mask: {error}") from None
    # its axes may have another order or direction
    values, affine = with_axes_of(mask.values, mask.affine, scan.affine)
    size = scan.values.shape[1:]
    if values.shape != (1, *size):
        sides, expected = (" x ".join(map(str, shape)) for shape in (values.shape[1:], size))
        raise UnreadableInput(f"its mask has {sides} voxels and the volume {expected}")
    corners = np.array([[*corner, 1] for corner in product(*((0, side) for side in size))])
    apart = np.linalg.norm((corners @ (affine - scan.affine).T)[:, :3], axis=1).max()
    if apart > float(np.linalg.norm(scan.affine[:3, :3], axis=0).min()):
        raise UnreadableInput(
            f"its mask has another position: up to {apart:.3g} mm away, by the affines"
        )
    num_classes = len(reading.classes)
    if values.dtype.kind == "f":
        whole = np.rint(values)  # scaling in the header, or resampling, can give 0.9999999
        values = np.where(np.abs(values - whole) <= _ROUNDING, whole, values)
    for value in np.unique(values).tolist():
        if value not in (*range(num_classes), *reading.ignore):
            count = int((values == value).sum())
            raise UnreadableInput(
                f"its mask has the value {value:.6g} in {count:,} voxels; the classes are 0 to "
                f"{num_classes - 1}"
                + (f", and {list(reading.ignore)} ignored" if reading.ignore else "")
            )
    ignored = np.isin(values[0], reading.ignore)
    return np.where(ignored, IGNORE_INDEX, values[0]).astype(np.uint8)


def mask_beside(path: str) -> str | None:
    """Return the mask file of a volume in the usual folders, or None."""
    folder, name = os.path.split(os.path.dirname(os.path.abspath(path)))
    masks = os.path.join(folder, _MASK_FOLDERS.get(name, name))
    if name not in _MASK_FOLDERS or not os.path.isdir(masks):
        return None
    scans, stem = _scans(masks), stem_of(path)
    return scans.get(stem) or scans.get(_channel_of(stem)[0])


def spacing_of(path: str, orientation: str) -> Spacing:
    """Return the stored spacing of a volume, rounded to 0.1 micrometres.

    Raises UnreadableInput, OSError.
    """
    slices, rows, columns = reoriented_spacing(read_scan(path).affine, orientation)
    return round(slices, 4), round(rows, 4), round(columns, 4)


def _cases(folder: str, split: str, patient: str) -> Iterator[Case]:
    names = _folders(folder)
    pairs = [pair for pair in _MASK_FOLDERS.items() if pair[0] in names]
    # a Decathlon without labelsTs has test volumes for prediction only
    divided = {"imagesTr", "imagesTs", "labelsTs"} <= names
    for image_folder, mask_folder in pairs if divided else pairs[:1]:
        if divided:
            split = "test" if image_folder == "imagesTs" else "train"
        masks = _scans(os.path.join(folder, mask_folder)) if mask_folder in names else {}
        volumes = _scans(os.path.join(folder, image_folder))
        for name, (path, *channels) in _by_case(volumes, masks).items():
            entry = Entry(path, _patient(name, patient), split=split)
            if name not in masks and masks:
                entry = entry._replace(state="refused", reason=f"no mask in {mask_folder}")
            yield Case(entry, masks.pop(name, None), tuple(channels))
        for name in sorted(masks):
            reason = f"a mask without a volume in {image_folder}"
            yield Case(Entry(masks[name], name, "refused", reason, split=split), None)


def _by_case(volumes: dict[str, str], masks: dict[str, str]) -> dict[str, list[str]]:
    """Return the files of each volume: NAME_0000, NAME_0001, ... are channels if NAME is a mask."""
    cases: dict[str, list[str]] = {}
    for stem, path in volumes.items():
        name, number = _channel_of(stem)
        is_channel = number is not None and name in masks and stem not in masks
        cases.setdefault(name if is_channel else stem, []).append(path)
    return cases


def _scans(folder: str) -> dict[str, str]:
    """Return the volumes directly in a folder, by name."""
    with os.scandir(folder) as entries:
        paths = sorted(entry.path for entry in entries if not entry.name.startswith("."))
    scans: dict[str, str] = {}
    for path in filter(is_scan, paths):
        other = scans.setdefault(stem_of(path), path)
        if other != path:
            raise UserError(f"{printable(path)} and {os.path.basename(other)} have the same name")
    return scans


def _folders(folder: str) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir()}


def _patient(name: str, pattern: str) -> str:
    """Return the patient of a volume: the first group of a regular expression in its name."""
    if not pattern:
        return name
    match = re.search(pattern, name)
    if match is None or not match.groups() or not match[1]:
        raise UserError(f"patient = {pattern!r} finds no patient in the name {name!r}")
    return match[1]


def _read_cache(path: Path, reading: Reading, masked: bool) -> tuple[Grid, Classes | None] | None:
    try:
        image = np.load(f"{path}.npy", mmap_mode="c", allow_pickle=False)
        mask = np.load(f"{path}-mask.npy", mmap_mode="c", allow_pickle=False) if masked else None
    except (OSError, ValueError, EOFError):
        return None
    channels = reading.modality.channels
    if image.dtype != np.float32 or image.ndim != 4 or len(image) != channels:
        return None
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != image.shape[1:]):
        return None
    return image, mask


def _write_cache(path: Path, image: Grid, mask: Classes | None) -> None:
    try:
        store.make_folder(path.parent)
        for name, values in ((f"{path}.npy", image), (f"{path}-mask.npy", mask)):
            if values is not None:
                with store.atomic_file(name) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
    except OSError as error:
        # the volume stays in memory and is prepared again next time
        _log.info("a volume is not cached: %s", error)


def _content_digest(files: Sequence[str], reading: Reading) -> str:
    content = reading.modality, reading.classes, reading.ignore
    digest = hashlib.sha256(repr(content).encode())
    for path in files:
        size = os.path.getsize(path)
        digest.update(f"{os.path.basename(path)} {size} ".encode(errors="surrogateescape"))
        with open(path, "rb") as file:
            digest.update(file.read(_HEAD_BYTES))
            file.seek(max(0, size - _HEAD_BYTES))
            digest.update(file.read(_HEAD_BYTES))
    return digest.hexdigest()


def _sample(values: np.ndarray) -> np.ndarray:
    """Return evenly spread values, for percentiles."""
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLE)]


def _mm(spacing: Spacing) -> str:
    return " x ".join(f"{side:g}" for side in spacing) + " mm"
