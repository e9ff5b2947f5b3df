"""Inspection of a data set: its kind, splits, classes and sizes, and problems of its content."""

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Num, UInt8
from PIL import Image

from plusx.data.annotations import Texts
from plusx.data.checks import (
    Finding,
    Member,
    box_findings,
    class_findings,
    group_findings,
    image_findings,
    leaks,
)
from plusx.data.dataset import Dataset
from plusx.data.image_file import ImageFile, UnreadableInput, Verdict, printable, verdict_of
from plusx.data.modality import BandsModality, Modality
from plusx.data.readers.annotated import open_annotated
from plusx.data.readers.csv_file import columns_of_table
from plusx.data.readers.layouts import LAYOUTS, kinds_of, unrecognised
from plusx.data.readers.open import is_named_set, open_data
from plusx.data.readers.people import open_people
from plusx.data.readers.scans import Scan, read_scan
from plusx.data.readers.tar import TarItems
from plusx.data.readers.tiff import stored_bands
from plusx.data.readers.verdicts import Entry, LeftOut, examined
from plusx.data.readers.volume_files import Case, class_names_of, list_cases
from plusx.data.readers.volumes import cases_of_split
from plusx.data.sets import NAMED_SETS
from plusx.data.sets.download import located
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

SPLITS = ("train", "validation", "test")
READ_VOLUMES = 4  # volumes that are read for their sizes and values
MAX_CLASSES = 64  # of a volume's mask
_MANY = 20_000  # images whose comparison takes seconds
# the largest value of fractions, bytes, satellites' reflectances and 16 bits
_USUAL_LIMITS = (1.0, 255.0, 10_000.0, 65_535.0)


@dataclass(frozen=True)
class Volumes:
    """Volumes, of which the first few have been read.

    cases: of each split
    shapes, spacings: of those that have been read, in voxels and in mm
    low, high: their lowest and highest value
    mask_values: in their masks
    class_names: of dataset.json; () without one
    """

    cases: Mapping[str, Sequence[Case]]
    shapes: Sequence[tuple[int, ...]]
    spacings: Sequence[tuple[float, ...]]
    low: float
    high: float
    mask_values: tuple[int, ...]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """A data set as plusx reads it.

    kind, reason    the kind, and why it was recognised
    other_kinds     other kinds that the data can be read as, with reasons
    own_splits      the splits that the data defines; others are chosen by the seed
    datasets        by split; those that can be opened
    verdicts        of the images of each split, in order
    problems        errors that stop training
    left_out        files, rows and boxes that are not used, with reasons
    warnings        other warnings of the readers
    findings        results of the checks of the content
    volumes         instead of datasets, if the data is volumes
    """

    name: str
    kind: str
    reason: str
    other_kinds: Mapping[str, str] = field(default_factory=dict)
    own_splits: tuple[str, ...] = ()
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    left_out: Sequence[str] = ()
    warnings: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    volumes: Volumes | None = None

    @property
    def annotation(self) -> str:
        """The kind of annotation, such as classes, boxes, masks or people."""
        return LAYOUTS[self.kind].annotation if self.kind in LAYOUTS else "classes"


def inspect_data(data: str | Path, kind: str | None = None) -> Inspection:
    """Open every split of a named data set or of the data at a path, and check its content.

    kind: what to read the path as; None: the likeliest kind
    Unreadable files are left out and named. Raises UserError if there is no such data, or none of
    it can be used.
    """
    if is_named_set(data):
        return _inspected(str(data), str(data), "a named data set", {}, ("train", "test"))
    path = os.fspath(located(data))
    kinds = kinds_of(path)
    if kind is None and not kinds:
        if columns_of_table(path):
            raise unrecognised(path)
        open_data(path)  # raises an error that names what is missing
        raise unrecognised(path)
    kind = kind or next(iter(kinds))
    if kind not in LAYOUTS:
        raise UserError(f"kind {kind!r}: allowed are {', '.join(LAYOUTS)}")
    others = {name: reason for name, reason in kinds.items() if name != kind}
    reason = kinds.get(kind) or LAYOUTS[kind].recognise(path) or "as you specified"
    inspected = _inspected_volumes if kind == "volumes" else _inspected
    return inspected(path, kind, reason, others, LAYOUTS[kind].splits(path))


def _inspected_volumes(
    path: str, kind: str, reason: str, others: Mapping[str, str], own_splits: tuple[str, ...]
) -> Inspection:
    cases = list_cases(path, "")
    by_split: dict[str, list[Case]] = {}
    problems: list[str] = []
    for split in _splits_to_open(own_splits):
        try:
            by_split[split] = cases_of_split(cases, split, None, 0, printable(path))
        except UserError as error:
            problems.append(str(error))
    left_out = [
        f"{case.volume.name(path)}: {case.volume.reason}"
        for case in cases
        if case.volume.state != "used"
    ]
    scans: list[Scan] = []
    values: set[int] = set()
    for case in [case for case in cases if case.volume.state == "used"][:READ_VOLUMES]:
        try:
            scans.append(read_scan(case.volume.path))
            if case.mask is not None:
                mask = np.unique(read_scan(case.mask).values)
                values |= {round(float(value)) for value in mask[:MAX_CLASSES].tolist()}
        except (UnreadableInput, OSError) as error:
            left_out.append(f"{case.volume.name(path)}: {error}")
    volumes = Volumes(
        by_split,
        [scan.values.shape[1:] for scan in scans],
        [tuple(round(float(mm), 3) for mm in column_lengths(scan)) for scan in scans],
        min((float(scan.values.min()) for scan in scans), default=0.0),
        max((float(scan.values.max()) for scan in scans), default=0.0),
        tuple(sorted(values)),
        class_names_of(path),
    )
    return Inspection(
        name=printable(path),
        kind=kind,
        reason=reason,
        other_kinds=others,
        own_splits=own_splits,
        problems=problems,
        left_out=left_out,
        volumes=volumes,
    )


def column_lengths(scan: Scan) -> list[float]:
    """Return the size of a voxel in mm along each stored axis."""
    lengths: list[float] = np.linalg.norm(scan.affine[:3, :3], axis=0).tolist()
    return lengths


def _splits_to_open(own_splits: tuple[str, ...]) -> list[str]:
    """Return the splits of the data, with a validation split chosen by the seed if it has none."""
    if not own_splits:
        return ["train", "validation"]
    chosen = {"validation"} if "train" in own_splits else set()
    return [split for split in SPLITS if split in {*own_splits, *chosen}]


def _inspected(
    path: str, kind: str, reason: str, others: Mapping[str, str], own_splits: tuple[str, ...]
) -> Inspection:
    datasets: dict[str, Dataset] = {}
    problems: dict[str, None] = {}
    modality = _bands_modality(path, kind)
    for split in _splits_to_open(own_splits):
        try:
            datasets[split] = _open(path, kind, split, modality)
        except UserError as error:
            problems[str(error)] = None
    if not datasets and kind == "recordings":  # durations and rates can be shown without classes
        with suppress(UserError):
            datasets["all"] = _open(path, kind, "all", modality)
    if not datasets:
        raise UserError(next(iter(problems)))
    messages = dict.fromkeys(text for dataset in datasets.values() for text in dataset.warnings)
    left_out = [text for text in messages if isinstance(text, LeftOut)]
    verdicts = {split: _verdicts(dataset) for split, dataset in datasets.items()}
    compared = {split: _compared(dataset) for split, dataset in datasets.items()}
    if (count := sum(map(len, compared.values()))) > _MANY:
        _log.info("comparing %s images", f"{count:,}")
    members = [
        _member(split, dataset, index, verdicts[split][index])
        for split, dataset in datasets.items()
        for index in compared[split]
    ]
    by_class = kind not in LAYOUTS or LAYOUTS[kind].annotation in ("classes", "people")
    train = datasets.get("train")
    if train is not None and not train.modality.is_image:
        rest = {split: dataset for split, dataset in datasets.items() if split != "train"}
        messages.update(dict.fromkeys(leaks(train, rest)))
    images = [(dataset, i) for split, dataset in datasets.items() for i in compared[split]]

    def grey(number: int, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        try:
            image = displayed_image(*images[number])
        except (UnreadableInput, OSError):  # it has changed since it was decoded
            return np.zeros(size[::-1], np.uint8)
        return np.asarray(image.convert("L").resize(size, Image.Resampling.BOX))

    findings = image_findings(members, by_class=by_class, grey=grey) if members else []
    findings += box_findings(datasets) + group_findings(datasets)
    if kind not in LAYOUTS or LAYOUTS[kind].annotation != "people":
        findings += class_findings({s: d for s, d in datasets.items() if not d.has_texts})
    return Inspection(
        name=printable(path),
        kind=kind,
        reason=reason,
        other_kinds=others,
        own_splits=own_splits,
        datasets=datasets,
        verdicts=verdicts,
        problems=list(problems),
        left_out=left_out,
        warnings=[text for text in messages if not isinstance(text, LeftOut)],
        findings=findings,
    )


def _bands_modality(path: str, kind: str) -> BandsModality | None:
    """Return the modality of TIFFs if the first one is not an image in grey or RGB, else None."""
    layout = LAYOUTS.get(kind)
    if layout is None or layout.listing is None or kind in ("packed", "shards"):
        return None
    try:
        entries = layout.listing(path, None, False).entries
    except UserError:  # reported when the data is opened
        return None
    paths = [entry.path for entry in entries if entry.state == "used"]
    if not paths or not all(name.lower().endswith((".tif", ".tiff")) for name in paths):
        return None
    file = paths[0]
    try:
        ImageFile(file)
        return None
    except OSError:
        return None
    except UnreadableInput:
        try:
            bands = stored_bands(file)
        except (UnreadableInput, OSError, RuntimeError):
            return None
    low, high = min(0.0, float(bands.min())), float(bands.max())
    high = next((limit for limit in _USUAL_LIMITS if high <= limit), high)
    size, channels = bands.shape[1:], len(bands)
    return BandsModality(size, channels, (0.5,) * channels, (0.25,) * channels, low, high)


def _open(path: str, kind: str, split: str, modality: Modality | None) -> Dataset:
    if kind in NAMED_SETS:
        return open_data(kind, split=split)
    layout = LAYOUTS[kind]
    if layout.listing is not None:
        return open_data(path, kind=kind, split=split, on_unreadable="skip", modality=modality)
    if layout.index is not None:
        return open_annotated(path, kind, split=split, on_unreadable="skip")
    if layout.open is not None:
        return layout.open(path, split)
    assert kind == "people"
    return open_people(path, split=split, on_unreadable="skip")


def _verdicts(dataset: Dataset) -> list[Verdict]:
    """Return the verdicts on the inputs, those of files from the cache; [] for texts in memory."""
    items, modality = dataset.items, dataset.modality
    if isinstance(items, TarItems):
        return list(items.verdicts)
    if items.paths is None:
        indices = range(len(dataset) if modality.is_image else 0)
        return [verdict_of(displayed_image(dataset, index)) for index in indices]
    paths = items.paths if modality.is_image else dict.fromkeys(items.paths)
    root = dataset.root or os.path.dirname(items.paths[0])
    entries = examined([Entry(path, "") for path in paths], root, modality)
    verdicts = [entry.verdict or Verdict(None) for entry in entries]
    if modality.kind == "bands":
        return [verdict._replace(mode=f"{modality.channels} bands") for verdict in verdicts]
    return verdicts


def displayed_image(dataset: Dataset, index: int) -> Image.Image:
    """Return an image of a data set for display, in RGB or grey."""
    sample = dataset.read(index)
    if not isinstance(sample.input, torch.Tensor):
        image = sample.input
        return image.decoded() if isinstance(image, ImageFile) else image
    pixels = sample.input.numpy()
    if pixels.dtype != np.uint8 or len(pixels) not in (1, 3):
        pixels = pixels[: 3 if len(pixels) > 2 else 1].astype(np.float32)
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (255 * (pixels - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _compared(dataset: Dataset) -> list[int]:
    """Return the indices of images to compare, each image once; it can have several texts."""
    if not dataset.modality.is_image:
        return []
    if dataset.paths is None or not dataset.has_texts:
        return list(range(len(dataset)))
    first = {path: index for index, path in reversed([*enumerate(dataset.paths)])}
    return sorted(first.values())


def _member(split: str, dataset: Dataset, index: int, verdict: Verdict) -> Member:
    paths = dataset.paths
    path = "" if paths is None or isinstance(dataset.items, TarItems) else paths[index]
    return Member(split, dataset.describe(index), path, class_of(dataset, index), verdict)


def class_of(dataset: Dataset, index: int) -> str:
    """Return the class of a sample, or its classes joined by |."""
    labels = dataset.labels[index]
    if labels.ndim == 0:
        return dataset.classes[int(labels)] if int(labels) >= 0 else ""
    return "|".join(name for name, is_there in zip(dataset.classes, labels.tolist()) if is_there)


def summary(inspection: Inspection) -> dict[str, Any]:
    """Return the inspection as JSON-ready values."""
    datasets, volumes = inspection.datasets, inspection.volumes
    splits = {split: len(dataset) for split, dataset in datasets.items()}
    classes = _classes(inspection)
    if volumes is not None:
        splits = {split: len(cases) for split, cases in volumes.cases.items()}
        classes = [{"name": str(value)} for value in volumes.mask_values]
    verdicts = [verdict for values in inspection.verdicts.values() for verdict in values]
    are_images = all(dataset.modality.is_image for dataset in datasets.values())
    return {
        "path": inspection.name,
        "kind": inspection.kind,
        "reason": inspection.reason,
        "other_kinds": dict(inspection.other_kinds),
        "annotation": inspection.annotation,
        "inputs": next((d.inputs for d in datasets.values()), "volumes"),
        "lengths": _lengths(datasets),
        "length_counts": _length_counts(datasets),
        "target_lengths": _target_lengths(datasets),
        "files": _num_files(datasets) if inspection.annotation == "captions" else None,
        "length_unit": next((d.modality.length_unit for d in datasets.values()), ""),
        "is_named": inspection.kind not in LAYOUTS,
        "own_splits": list(inspection.own_splits),
        "splits": splits,
        "count": sum(splits.values()),
        "classes": classes,
        "multilabel": any(d.multilabel for d in datasets.values() if d.annotations is None),
        "sizes": _sizes(verdicts) if are_images else None,
        "formats": dict(Counter(v.format for v in verdicts if v.format).most_common()),
        "modes": dict(Counter(v.mode for v in verdicts if v.mode).most_common()),
        "problems": list(inspection.problems),
        "left_out": list(inspection.left_out),
        "warnings": list(inspection.warnings),
        "findings": [finding.to_dict() for finding in inspection.findings],
        **({} if volumes is None else {"volumes": _volume_facts(volumes)}),
    }


def _lengths(datasets: Mapping[str, Dataset]) -> dict[str, int | float] | None:
    """Return the minimum, median, maximum and sum of the lengths of sequences."""
    lengths = [
        d.items.lengths / d.modality.per_length_unit
        for d in datasets.values()
        if d.items.lengths is not None
    ]
    if not lengths:
        return None
    digits = 2 if any(d.modality.per_length_unit > 1 for d in datasets.values()) else None
    return _distribution(np.concatenate(lengths), digits)


def _length_counts(datasets: Mapping[str, Dataset]) -> dict[str, Any] | None:
    """Return a histogram of the lengths of sequences for each split, with about ten intervals."""
    lengths = {
        split: d.items.lengths / d.modality.per_length_unit
        for split, d in datasets.items()
        if d.items.lengths is not None and len(d)
    }
    longest = max((float(values.max()) for values in lengths.values()), default=0.0)
    if not longest:
        return None
    power = 10.0 ** math.floor(math.log10(longest / 10))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= longest / 10)
    edges = [round(number * width, 6) for number in range(math.floor(longest / width) + 2)]
    counts = {split: np.histogram(values, edges)[0].tolist() for split, values in lengths.items()}
    return {"edges": edges, "splits": counts}


def _target_lengths(datasets: Mapping[str, Dataset]) -> dict[str, int | float] | None:
    """Return statistics of the lengths of target texts, such as captions, in characters."""
    lengths = [
        len(text)
        for dataset in datasets.values()
        if isinstance(dataset.annotations, Texts)
        for text in dataset.annotations.texts
    ]
    return _distribution(np.array(lengths), None) if lengths else None


def _distribution(lengths: Num[np.ndarray, "n"], digits: int | None) -> dict[str, int | float]:
    low, middle, high = np.percentile(lengths, (0, 50, 100))
    values = {"min": low, "median": middle, "max": high, "total": lengths.sum()}
    return {name: round(float(value), digits) for name, value in values.items()}


def _num_files(datasets: Mapping[str, Dataset]) -> int:
    """Return the number of different files; a file can have several samples."""
    return len({path for dataset in datasets.values() for path in dataset.paths or ()})


def _volume_facts(volumes: Volumes) -> dict[str, Any]:
    return {
        "read": len(volumes.shapes),
        "shapes": [list(shape) for shape in volumes.shapes],
        "spacings": [list(spacing) for spacing in volumes.spacings],
        "range": [volumes.low, volumes.high],
        "mask_values": list(volumes.mask_values),
        "without_mask": sum(
            case.mask is None for cases in volumes.cases.values() for case in cases
        ),
    }


def _classes(inspection: Inspection) -> list[dict[str, Any]]:
    """Return each class with its number of images, boxes or pixels in each split."""
    datasets = [dataset for dataset in inspection.datasets.values() if not dataset.has_texts]
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.classes))
    counts = {split: counts_of(dataset) for split, dataset in inspection.datasets.items()}
    return [
        {
            "name": name,
            **{split: by_class.get(name, 0) for split, by_class in counts.items()},
        }
        for name in names
    ]


def counts_of(dataset: Dataset) -> dict[str, int]:
    """Return the number of images, boxes or pixels of each class."""
    annotations = dataset.annotations
    if annotations is not None and annotations.boxes is not None:
        numbers = [int(row[4]) for rows in annotations.boxes for row in rows]
        counts = np.bincount(numbers or [0], minlength=len(dataset.classes))
        counts = counts if numbers else counts * 0
    elif annotations is not None and annotations.counts is not None:
        counts = annotations.counts.sum(0).numpy()
    elif dataset.labels.ndim == 2:
        counts = dataset.labels.sum(0).numpy()
    else:
        labels = dataset.labels[dataset.labels >= 0].numpy()
        counts = np.bincount(labels, minlength=len(dataset.classes))
    return {name: int(count) for name, count in zip(dataset.classes, counts.tolist())}


def _sizes(verdicts: Sequence[Verdict]) -> dict[str, list[int]] | None:
    """Return width and height of the smallest and the largest image, and their medians."""
    sizes = sorted((v.width, v.height) for v in verdicts if v.width and v.height)
    if not sizes:
        return None
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    middle = np.median(np.array(sizes), 0)
    return {
        "min": list(by_area[0]),
        "median": [round(float(side)) for side in middle],
        "max": list(by_area[-1]),
    }
