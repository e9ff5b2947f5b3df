"""Images with boxes or masks, from a path to a Dataset."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from plusx.data.annotations import Annotations, Boxes
from plusx.data.collate import covering_size
from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import printable
from plusx.data.instance_mask import InstanceMask
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    LayoutKind,
    LayoutOptions,
    Problem,
    checked_box,
    complain,
    unknown_class,
    with_test_split,
)
from plusx.data.readers.box_table import read_box_table
from plusx.data.readers.coco import read_coco
from plusx.data.readers.components import boxes_of_components
from plusx.data.readers.listing import file_items, refuse_similar_names
from plusx.data.readers.mask_classes import classes_of_masks, component_numbers, read_all_masks
from plusx.data.readers.mask_folder import read_mask_folder
from plusx.data.readers.verdicts import Entry, OnUnreadable, examined, usable_entries
from plusx.data.readers.voc import read_voc
from plusx.data.sets.download import located
from plusx.data.splits import entries_of_split, held_out_of, own_splits
from plusx.errors import UserError


# of an image that cannot be decoded: boxes are then only compared with themselves
_ANY_SIZE = (2**31, 2**31)
_DEFAULTS = LayoutOptions()

READERS: dict[str, Callable[[str], AnnotationIndex]] = {
    "voc": read_voc,
    "coco": read_coco,
    "boxes": read_box_table,
    "masks": read_mask_folder,
}


def open_annotated(
    path: str | Path,
    kind: LayoutKind,
    *,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    size: tuple[int, int] | None = None,
    on_unreadable: OnUnreadable = "error",
    options: LayoutOptions = _DEFAULTS,
) -> Dataset:
    """Open images with boxes (voc, coco, boxes) or masks (masks).

    size        height and width that a network sees: all of an image is scaled so that it just
                fits, and padded at the right and the bottom. None: images stay as large as they
                are
    validation, on_unreadable   as in open_data, also for masks and single boxes

    Every image is decoded once, every mask is read and every box checked.
    Raises UserError for data that cannot be used.
    """
    shown, wanted = printable(path), as_split(split)
    if kind not in READERS:
        raise UserError(f"[data] kind = {kind!r}: allowed are {', '.join(READERS)}")
    place = located(path)
    if not os.path.exists(place):
        raise UserError(f"{shown} is missing: there is no such folder or file")
    if on_unreadable not in ("error", "skip"):
        raise UserError(f"on_unreadable = {on_unreadable!r}: allowed are 'error' and 'skip'")
    index = with_test_split(READERS[kind](os.fspath(place)), options.test, shown)
    if not index.images:
        reasons = "; ".join(f"{a}: {b}" for a, b in index.problems[:3])
        raise UserError(f"{shown} has no annotated images{f': {reasons}' if reasons else ''}")
    images, is_cut = entries_of_split(index.images, wanted, validation, shown)
    warnings = complain(index.problems, on_unreadable, f"the lists of {shown}")
    channels = options.channels
    mean, std = IMAGENET_MEAN[channels], IMAGENET_STD[channels]
    modality = ImageModality(
        size or (1, 1), channels, mean, std, resize="none" if size is None else "fit"
    )
    entries = {
        entry.path: entry
        for entry in examined([Entry(i.path, "") for i in index.images], index.root, modality)
    }
    used, skipped = usable_entries(
        [entries[image.path] for image in images], index.root, on_unreadable
    )
    readable = {entry.path for entry in used}
    images = [image for image in images if image.path in readable]
    read = _masks if kind == "masks" else _boxes
    found = read(index, images, entries, options, on_unreadable, wanted == "train", shown)
    if not found.images:
        raise UserError(f"{shown} has no image in {wanted} that can be used")
    used = [entries[image.path] for image in found.images]
    if size is None:
        size = covering_size([_size(entry) for entry in used])
    dataset = Dataset(
        name=printable(os.path.basename(os.path.realpath(place))),
        split=wanted,
        classes=found.classes,
        labels=found.labels,
        modality=ImageModality(size, channels, mean, std, resize=modality.resize),
        items=file_items(used),
        annotations=found.annotations,
        warnings=[*index.warnings, *warnings, *skipped, *found.warnings],
        root=index.root,
    )
    if not is_cut:
        return dataset
    chosen = held_out_of(found.labels, wanted, validation, seed)
    if not len(chosen):
        raise UserError(f"{shown} has no {wanted} split with validation = {validation}")
    return dataset.subset(chosen.tolist())


def annotated_splits(path: str | Path, kind: LayoutKind) -> tuple[str, ...]:
    """The splits that the data has by its own layout; none where a seed splits it."""
    return own_splits(READERS[kind](os.fspath(located(path))).images)


@dataclass(frozen=True)
class _Found:
    """The images whose annotations can be used, and these."""

    images: list[AnnotatedImage]
    classes: tuple[str, ...]
    annotations: Annotations
    labels: torch.Tensor
    warnings: list[str]


def _size(entry: Entry) -> tuple[int, int]:
    """Height and width of an image, from when it was decoded."""
    verdict = entry.verdict
    return _ANY_SIZE if verdict is None else (verdict.height, verdict.width)


def _masks(
    index: AnnotationIndex,
    images: list[AnnotatedImage],
    entries: dict[str, Entry],
    options: LayoutOptions,
    on_unreadable: OnUnreadable,
    learns: bool,
    shown: str,
) -> _Found:
    classes, encoding, summaries = classes_of_masks(index, images, options)
    sizes = [_size(entries[image.path]) for image in images]
    used, masks, warnings = read_all_masks(
        images, sizes, index.root, classes, encoding, summaries, on_unreadable
    )
    if not options.components:
        labels = (masks.counts > 0).to(torch.float32)
        return _Found(used, classes, masks, labels, warnings)
    numbers = component_numbers(options.components, classes)
    boxes = boxes_of_components(masks, numbers, options.min_area, options.instances)
    classes = options.components
    return _Found(used, classes, boxes, boxes.presence(len(classes)), warnings)


def _classes_of_boxes(
    index: AnnotationIndex, shown: str, options: LayoutOptions
) -> tuple[str, ...]:
    if options.classes:
        return options.classes
    if index.classes:
        return index.classes
    train = [image for image in index.images if image.split in ("", "train")]
    names = {box.label for image in train or index.images for box in image.boxes}
    classes = tuple(sorted(names - {""}))
    if not classes:
        raise UserError(f"{shown} has no boxes")
    return classes


def _boxes(
    index: AnnotationIndex,
    images: list[AnnotatedImage],
    entries: dict[str, Entry],
    options: LayoutOptions,
    on_unreadable: OnUnreadable,
    learns: bool,
    shown: str,
) -> _Found:
    classes = _classes_of_boxes(index, shown, options)
    refuse_similar_names(classes, shown)
    problems: list[Problem] = []
    used: list[AnnotatedImage] = []
    rows: list[np.ndarray] = []
    masks: list[list[InstanceMask]] = []
    for image in images:
        size = _size(entries[image.path])
        if image.size is not None and image.size != size:
            declared, actual = (f"{wide} x {tall}" for tall, wide in (image.size, size))
            name = printable(image.path, index.root)
            reason = f"it says {declared} pixels, but {name} has {actual}"
            if image.size == size[::-1]:
                reason += " as it is seen, turned by its EXIF orientation or not"
            problems.append(Problem(image.annotation, reason))
            continue
        good, instance_masks = [], []
        for box in image.boxes:
            corners = _checked(box, size, classes, options.instances)
            if isinstance(corners, str):
                problems.append(Problem(box.where, corners))
                continue
            good.append((*corners, classes.index(box.label), float(box.crowd)))
            if options.instances and box.mask is not None:
                instance_masks.append(box.mask)
        used.append(image)
        rows.append(np.array(good, np.float32).reshape(-1, 6))
        masks.append(instance_masks)
    if on_unreadable == "error":  # also of other splits, so that a test does not fail in the end
        chosen = {image.path for image in images}
        for image in index.images:
            if image.path in chosen:
                continue
            size = image.size or _size(entries[image.path])
            for box in image.boxes:
                corners = _checked(box, size, classes, instances=False)
                if isinstance(corners, str):
                    problems.append(Problem(box.where, corners))
    warnings = complain(problems, on_unreadable, "boxes")
    if learns and not any(map(len, rows)):
        named = f": {problems[0].where}: {problems[0].reason}" if problems else ""
        raise UserError(
            f"there is nothing to learn: of the images that train none has a box{named}"
        )
    boxes = Boxes(rows, masks if options.instances else None)
    return _Found(used, classes, boxes, boxes.presence(len(classes)), warnings)


def _checked(
    box: BoxAnnotation, size: tuple[int, int], classes: Sequence[str], instances: bool
) -> tuple[float, ...] | str:
    """The corners of a box, or what is wrong with it or, where they are wanted, its mask."""
    if box.label not in classes:
        return unknown_class(box.label, classes)
    corners = checked_box(box, size)
    if isinstance(corners, str) or not instances:
        return corners
    mask = box.mask
    if mask is None:
        return f"{box.label} has no mask"
    if not mask.height:
        return f"{box.label} has a mask without pixels"
    left, top, right, bottom = corners
    apart = mask.left >= right or mask.left + mask.width <= left
    apart |= mask.top >= bottom or mask.top + mask.height <= top
    return f"{box.label} has a mask that lies outside its box" if apart else corners
