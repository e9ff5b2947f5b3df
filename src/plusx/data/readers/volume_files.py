"""Volumes and their masks, read, judged and brought to one grid; which of them train.

ROOT/images/NAME.nii.gz and ROOT/labels/NAME.nii.gz, where an image may be a folder with a DICOM
series; the same below ROOT/train, ROOT/val and ROOT/test where the data says what they are for;
or ROOT/imagesTr and ROOT/labelsTr, as the Medical Segmentation Decathlon has them.

What was brought to the grid lies in the cache folder, never beside the data, under the files'
sizes and times of change; it is read from there piece by piece.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8

from plusx import store
from plusx.data.image_file import UnreadableImage, printable
from plusx.data.modality import VolumeModality
from plusx.data.modality.space import Space, Spacing, count_at, nearest, resampled, turn_to
from plusx.data.readers.scans import Scan, files_of, is_scan, read_scan, stem_of
from plusx.data.readers.verdicts import Entry, file_stamp
from plusx.data.sample import IGNORE_INDEX
from plusx.data.volume_items import Classes, Grid, Volume
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

# raised whenever preparing changes, so that what was kept counts no more
_RULES = 1
_LOOKED_AT = 2**20  # voxels of a volume whose values are judged by their percentiles
_SAMPLED = 16384  # bytes read at each end of a file for its fingerprint
# of the stated range, and of the window, that a volume's values have to fill
_LEAST_OF_RANGE, _LEAST_OF_WINDOW = 0.1, 0.05
_IMAGES, _LABELS = ("images", "imagesTr"), ("labels", "labelsTr")
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    "test": "test",
}


@dataclass(frozen=True)
class Reading:
    """How files become volumes: the modality, the classes, and values that are ignored."""

    modality: VolumeModality
    classes: tuple[str, ...]
    ignore: tuple[int, ...] = ()

    @property
    def space(self) -> Space:
        return self.modality.space


def listed(root: str, patient: str) -> list[tuple[Entry, str | None]]:
    """Every image below a root, its patient as `label`, and its mask; None where it has none.

    An image without a mask and a mask without an image are refused where both are expected.
    UserError: there is no image, or a patient is in two splits.
    """
    found: list[tuple[Entry, str | None]] = []
    folders = {_PARTS[name]: os.path.join(root, name) for name in _folders(root) if name in _PARTS}
    for part, folder in (folders or {"": root}).items():
        found += _pairs(folder, part, patient)
    if not found:
        raise UserError(
            f"{printable(root)} has no volumes: they are expected as images/NAME.nii.gz and "
            "labels/NAME.nii.gz, or the same in train, val and test"
        )
    seen: dict[str, Entry] = {}
    for entry, _ in found:
        other = seen.setdefault(entry.label, entry)
        if other.split != entry.split:
            raise UserError(
                f"{printable(root)}: {entry.name(root)} and {other.name(root)} are of the same "
                f"patient, {entry.label!r}, in two splits"
            )
    return found


def volume_splits(root: str | Path, patient: str) -> tuple[str, ...]:
    """The splits that volumes have by their own layout; none where patients are to be held out.

    UserError: there is no such folder, or no volume in it.
    """
    top = os.path.abspath(os.path.expanduser(os.fspath(root)))
    if not os.path.isdir(top):
        raise UserError(f"{printable(root)} is {'no folder' if os.path.exists(top) else 'missing'}")
    return tuple(sorted({entry.split for entry, _ in listed(top, patient)} - {""}))


def volume_of(entry: Entry, label: str | None, reading: Reading) -> Volume:
    """Read one volume and its mask, or find them in the cache. UnreadableImage, OSError."""
    files = [*files_of(entry.path), *([] if label is None else [label])]
    terms = repr((_RULES, files, [file_stamp(path) for path in files], reading))
    place = store.cache_folder() / "volumes" / hashlib.sha256(terms.encode()).hexdigest()[:40]
    kept = _kept(place, reading, label is not None)
    if kept is None:
        scan = read_scan(entry.path)
        image = prepared(scan, reading.modality)
        mask = None if label is None else mask_of(label, scan, reading)
        kept = _keep(place, image, mask)
    return Volume(stem_of(entry.path), entry.label, *kept, _content_key(files, reading))


def prepared(scan: Scan, modality: VolumeModality) -> Grid:
    """A volume on the grid of the modality, its values between low and high.

    UnreadableImage: its values are not in the range that is stated, or hardly differ.
    """
    space = modality.space
    if len(scan.values) != modality.channels:
        raise UnreadableImage(
            f"it has {len(scan.values)} channels, and {modality.channels} are expected"
        )
    problem = range_problem(scan.values, modality)
    if problem is not None:
        raise UnreadableImage(problem)
    turn = turn_to(space.orientation, scan.affine)
    held = turn.spacing(scan.affine)
    values = turn.there(scan.values.astype(np.float32))
    voxels = np.prod(
        [count_at(n, a, b) for n, a, b in zip(values.shape[1:], held, space.spacing)], dtype=float
    )
    if voxels > 2**30:
        raise UnreadableImage(f"at a spacing of {_mm(space.spacing)} it has {voxels:,.0f} voxels")
    if space.percentiles:
        for channel in values:
            low, high = np.percentile(_some(channel), (0.5, 99.5))
            if not low < high:
                raise UnreadableImage(f"nearly all of its values are {low:g}")
            channel -= np.float32(low)
            channel /= np.float32(high - low)
    # what lies outside of the window is clipped first: its edges are the network's
    return resampled(np.clip(values, modality.low, modality.high), held, space.spacing)


def range_problem(values: Num[np.ndarray, "c x y z"], modality: VolumeModality) -> str | None:
    """Why values cannot be what the recipe states; None where they can."""
    space = modality.space
    lowest, highest = float(values.min()), float(values.max())
    stated = f"the stated range, {space.range[0]:g} to {space.range[1]:g}"
    if lowest < space.range[0] or highest > space.range[1]:
        return f"its values, {lowest:g} to {highest:g}, leave {stated}"
    for channel in values:
        low, high = (float(value) for value in np.percentile(_some(channel), (0.1, 99.9)))
        if high - low < _LEAST_OF_RANGE * (space.range[1] - space.range[0]):
            return (
                f"its values, {low:g} to {high:g}, are almost nothing of {stated}: is it scaled "
                "in another way?"
            )
        edges = modality.low, modality.high
        seen = np.clip((low, high), *edges)
        if not space.percentiles and seen[1] - seen[0] < _LEAST_OF_WINDOW * (edges[1] - edges[0]):
            return (
                f"its values, {low:g} to {high:g}, are almost nothing of the window, "
                f"{edges[0]:g} to {edges[1]:g}"
            )
    return None


def mask_of(path: str, scan: Scan, reading: Reading) -> Classes:
    """The classes of a scan's voxels on the network's grid, 255 where they are ignored."""
    turn = turn_to(reading.space.orientation, scan.affine)
    whole = turn.there(stored_mask(path, scan, reading))
    return nearest(whole, turn.spacing(scan.affine), reading.space.spacing)


def stored_mask(path: str, scan: Scan, reading: Reading) -> UInt8[np.ndarray, "x y z"]:
    """The classes of a scan's voxels as they are stored. UnreadableImage: the mask is not of it."""
    try:
        found = read_scan(path)
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask: {error}") from None
    values, size = found.values, scan.values.shape[1:]
    if values.shape != (1, *size):
        own = " x ".join(map(str, values.shape[1:]))
        raise UnreadableImage(
            f"its mask has {own} voxels and the volume {' x '.join(map(str, size))}"
        )
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners = corners * (*size, 1)
    away = np.linalg.norm((corners @ (found.affine - scan.affine).T)[:, :3], axis=1).max()
    if away > float(np.linalg.norm(scan.affine[:3, :3], axis=0).min()):
        raise UnreadableImage(
            f"its mask lies elsewhere: up to {away:.3g} mm away, by their affines"
        )
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: len(reading.classes)] = np.arange(len(reading.classes))
    stored = np.unique(values)
    allowed = {*range(len(reading.classes)), *reading.ignore}
    for value in stored.tolist():
        if value not in allowed:
            count = int((values == value).sum())
            raise UnreadableImage(
                f"its mask has the value {value:g} in {count:,} voxels; the classes are 0 to "
                f"{len(reading.classes) - 1}"
                + (f", and {list(reading.ignore)} ignored" if reading.ignore else "")
            )
    whole = np.where(np.isin(values, reading.ignore), IGNORE_INDEX, values).astype(np.uint8)
    return table[whole[0]]


def mask_beside(path: str) -> str | None:
    """The mask of a volume that lies in such a folder; None where there is none."""
    folder, images = os.path.split(os.path.dirname(os.path.abspath(path)))
    if images not in _IMAGES:
        return None
    labels = os.path.join(folder, _LABELS[_IMAGES.index(images)])
    return _scans(labels).get(stem_of(path)) if os.path.isdir(labels) else None


def spacing_of(path: str, orientation: str) -> Spacing:
    """The spacing of a volume as it is stored, rounded to 0.1 micrometres. UnreadableImage."""
    affine = read_scan(path).affine
    slices, rows, columns = turn_to(orientation, affine).spacing(affine)
    return round(slices, 4), round(rows, 4), round(columns, 4)


def same_spacing(one: Spacing, other: Spacing) -> bool:
    """Whether two spacings differ by less than a hundredth."""
    return all(abs(a - b) < 0.01 * a for a, b in zip(one, other))


def _pairs(folder: str, part: str, patient: str) -> Iterator[tuple[Entry, str | None]]:
    inside = _folders(folder)
    images = next((name for name in _IMAGES if name in inside), None)
    if images is None:
        return
    labels = next((name for name in _LABELS if name in inside), None)
    masks = {} if labels is None else _scans(os.path.join(folder, labels))
    volumes = _scans(os.path.join(folder, images))
    for name, path in volumes.items():
        entry = Entry(path, _patient(name, patient), split=part)
        if name not in masks and masks:
            entry = entry._replace(state="refused", reason=f"no mask of it is in {labels}")
        yield entry, masks.get(name)
    for name in sorted(set(masks) - set(volumes)):
        yield (
            Entry(masks[name], name, "refused", f"a mask of no volume in {images}", None, part),
            None,
        )


def _scans(folder: str) -> dict[str, str]:
    """The volumes directly in a folder, by their names."""
    with os.scandir(folder) as entries:
        paths = sorted(entry.path for entry in entries if not entry.name.startswith("."))
    found: dict[str, str] = {}
    for path in filter(is_scan, paths):
        other = found.setdefault(stem_of(path), path)
        if other != path:
            raise UserError(f"{printable(path)} and {os.path.basename(other)} have the same name")
    return found


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _patient(name: str, pattern: str) -> str:
    """Whose volume this is: what the first group of a regular expression finds in its name."""
    if not pattern:
        return name
    found = re.search(pattern, name)
    if found is None or not found.groups() or not found[1]:
        raise UserError(f"patient = {pattern!r} finds no patient in the name {name!r}")
    return found[1]


def _kept(place: Path, reading: Reading, masked: bool) -> tuple[Grid, Classes | None] | None:
    try:
        image = np.load(f"{place}.npy", mmap_mode="c", allow_pickle=False)
        mask = np.load(f"{place}-mask.npy", mmap_mode="c", allow_pickle=False) if masked else None
    except (OSError, ValueError, EOFError):
        return None
    right = image.dtype == np.float32 and image.shape[:1] == (reading.modality.channels,)
    if not right or image.ndim != 4:
        return None
    if mask is not None and (mask.dtype != np.uint8 or mask.shape != image.shape[1:]):
        return None
    return image, mask


def _keep(place: Path, image: Grid, mask: Classes | None) -> tuple[Grid, Classes | None]:
    try:
        store.make_folder(place.parent)
        for name, values in ((f"{place}.npy", image), (f"{place}-mask.npy", mask)):
            if values is not None:
                with store.whole_file(name) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
    except OSError as error:
        # it stays in memory, and is made again next time
        _log.info("a volume is not kept: %s", error)
    return image, mask


def _content_key(files: Sequence[str], reading: Reading) -> str:
    made = hashlib.sha256(repr(reading).encode())
    for path in files:
        size = os.path.getsize(path)
        made.update(f"{os.path.basename(path)} {size} ".encode(errors="surrogateescape"))
        with open(path, "rb") as file:
            made.update(file.read(_SAMPLED))
            file.seek(max(0, size - _SAMPLED))
            made.update(file.read(_SAMPLED))
    return made.hexdigest()


def _some(values: np.ndarray) -> np.ndarray:
    """Evenly many of the values, of which the percentiles are those of all."""
    flat = values.reshape(-1)
    return flat[:: max(1, flat.size // _LOOKED_AT)]


def _mm(spacing: Spacing) -> str:
    return " x ".join(f"{side:g}" for side in spacing) + " mm"
