"""Images with boxes or masks, from a path to a Dataset."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plusx.data.annotations import Boxes
from plusx.data.batch import covering_size
from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import printable
from plusx.data.instance_mask import InstanceMask
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    LayoutOptions,
    Problem,
    Size,
    UsableImages,
    checked_box,
    complain,
    unknown_class,
    with_test_split,
)
from plusx.data.readers.layouts import LAYOUTS
from plusx.data.readers.listing import file_items, file_problem, refuse_similar_names
from plusx.data.readers.masks import read_masks
from plusx.data.readers.verdicts import Entry, OnUnreadable, examined, usable_entries
from plusx.data.sets.download import located
from plusx.data.splits import empty_split, entries_of_split, held_out_of, own_splits
from plusx.errors import UserError


# of an image that cannot be decoded: its boxes are then not compared with its size
_ANY_SIZE = (2**31, 2**31)
_DEFAULTS = LayoutOptions()


def open_annotated(
    path: str | Path,
    kind: str,
    *,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    size: Size | None = None,
    on_unreadable: OnUnreadable = "error",
    options: LayoutOptions = _DEFAULTS,
) -> Dataset:
    """Open images with boxes (voc, coco, yolo, boxes) or masks (masks).

    size        height and width of the network's input: the whole image is resized to fit, and
                padded on the right and at the bottom. None: images keep their size
    validation, on_unreadable   as in open_data, also for masks and single boxes

    Every image is decoded once, every mask is read and every box is checked.
    Raises UserError for data that cannot be used.
    """
    shown, split = printable(path), as_split(split)
    read = LAYOUTS[kind].index
    assert read is not None
    location = located(path)
    if not os.path.exists(location):
        raise UserError(f"{shown} is missing: there is no such folder or file")
    if on_unreadable not in ("error", "skip"):
        raise UserError(f"on_unreadable = {on_unreadable!r}: allowed are 'error' and 'skip'")
    index = with_test_split(read(os.fspath(location)), options.test, shown)
    index.images = _within(index)
    if not index.images:
        reasons = "; ".join(f"{where}: {reason}" for where, reason in index.problems[:3])
        raise UserError(f"{shown} has no annotated images{f': {reasons}' if reasons else ''}")
    images, is_cut = entries_of_split(index.images, split, validation, shown)
    lists = f"the lists of {shown}"
    warnings = complain(index.problems, on_unreadable, lists, len(index.images))
    channels = options.channels
    modality = ImageModality(
        size or (1, 1),
        channels,
        IMAGENET_MEAN[channels],
        IMAGENET_STD[channels],
        resize="none" if size is None else "fit",
        max_pixels=options.max_pixels,
    )
    all_entries = examined([Entry(i.path, "") for i in index.images], index.root, modality)
    entries = {entry.path: entry for entry in all_entries}
    sizes = {
        entry.path: _ANY_SIZE if (v := entry.verdict) is None else (v.height, v.width)
        for entry in all_entries
    }
    readable, skipped = usable_entries(
        [entries[image.path] for image in images], index.root, on_unreadable
    )
    paths = {entry.path for entry in readable}
    images = [image for image in images if image.path in paths]
    if kind == "masks":
        usable = read_masks(index, images, sizes, options, on_unreadable, split)
    else:
        usable = read_boxes(index, images, sizes, options, on_unreadable, split, shown)
    if not usable.images:
        raise UserError(f"{shown} has no image in {split} that can be used")
    paths_used = [image.path for image in usable.images]
    if size is None:
        modality = replace(modality, size=covering_size([sizes[path] for path in paths_used]))
    dataset = Dataset(
        name=printable(os.path.basename(os.path.realpath(location))),
        split=split,
        classes=usable.classes,
        labels=usable.labels,
        modality=modality,
        items=file_items([entries[path] for path in paths_used]),
        annotations=usable.annotations,
        warnings=[*index.warnings, *warnings, *skipped, *usable.warnings],
        root=index.root,
    )
    if not is_cut:
        return dataset
    indices = held_out_of(usable.labels, split, validation, seed).tolist()
    if not indices:
        raise empty_split(shown, split, validation, own_splits(index.images))
    if split == "train" and (reason := usable.annotations.subset(indices).nothing_to_learn()):
        raise UserError(
            f"{shown}: there is nothing to learn: {reason}; all others are for validation: "
            "reduce data.validation, or change seed"
        )
    return dataset.subset(indices)


def _within(index: AnnotationIndex) -> list[AnnotatedImage]:
    """Return the images below the root with masks below it; record problems for the others."""
    images = []
    for image in index.images:
        for path in filter(None, (image.path, image.mask)):
            if (reason := file_problem(path, index.root)) is not None:
                index.problems.append(Problem(printable(path, index.root), reason))
                break
        else:
            images.append(image)
    return images


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


def read_boxes(
    index: AnnotationIndex,
    images: Sequence[AnnotatedImage],
    sizes: dict[str, Size],
    options: LayoutOptions,
    on_unreadable: OnUnreadable,
    split: str,
    shown: str,
) -> UsableImages:
    """Read and check the boxes of all images, and compare the sizes of images and annotations."""
    _refuse_fractions(index, shown)
    classes = _classes_of_boxes(index, shown, options)
    refuse_similar_names(classes, shown)
    problems: list[Problem] = []
    usable: list[AnnotatedImage] = []
    rows: list[np.ndarray] = []
    masks: list[list[InstanceMask]] = []
    for image in images:
        size = sizes[image.path]
        if image.size is not None and image.size != size:
            declared, actual = (f"{wide} x {tall}" for tall, wide in (image.size, size))
            name = printable(image.path, index.root)
            reason = f"it states {declared} pixels, but {name} has {actual}"
            if image.size == size[::-1]:
                reason += "; height and width are swapped, maybe by the EXIF orientation"
            problems.append(Problem(image.annotation, reason))
            continue
        checked = _checked_boxes(image, size, classes, options.instances)
        usable.append(image)
        rows.append(np.array(checked.rows, np.float32).reshape(-1, 6))
        masks.append(checked.masks)
        problems += checked.problems
    if on_unreadable == "error":  # of the other splits too, so that a later test does not fail
        paths = {image.path for image in images}
        for image in index.images:
            if image.path not in paths:
                size = image.size or sizes[image.path]
                problems += _checked_boxes(image, size, classes, instances=False).problems
    warnings = complain(problems, on_unreadable, "boxes", sum(map(len, rows)))
    ids = [image.id for image in usable]
    boxes = Boxes(
        rows,
        masks if options.instances else None,
        image_ids=ids if any(identity is not None for identity in ids) else None,
        category_ids=index.category_ids if classes == index.classes else (),
    )
    if split == "train" and (reason := boxes.nothing_to_learn()):
        problem = f": {problems[0].where}: {problems[0].reason}" if problems else ""
        raise UserError(f"{shown}: there is nothing to learn: {reason}{problem}")
    return UsableImages(usable, classes, boxes, boxes.presence(len(classes)), warnings)


class _CheckedBoxes(NamedTuple):
    """The usable boxes of an image, as rows of `Boxes`, and the problems of the others."""

    rows: list[tuple[float, ...]]
    masks: list[InstanceMask]
    problems: list[Problem]


def _checked_boxes(
    image: AnnotatedImage, size: Size, classes: Sequence[str], instances: bool
) -> _CheckedBoxes:
    checked = _CheckedBoxes([], [], [])
    first: dict[tuple[object, ...], str] = {}
    for box in image.boxes:
        twin = first.setdefault((box.label, box.corners, box.crowd), box.where)
        try:
            if twin != box.where:
                raise UserError(f"repeats {twin.rpartition(', ')[2]}")
            corners, mask = _checked(box, size, classes, image.normalised, instances)
        except UserError as error:
            checked.problems.append(Problem(box.where, str(error)))
            continue
        checked.rows.append((*corners, classes.index(box.label), float(box.crowd)))
        if mask is not None:
            checked.masks.append(mask)
    return checked


def _checked(
    box: BoxAnnotation, size: Size, classes: Sequence[str], normalised: bool, instances: bool
) -> tuple[tuple[float, float, float, float], InstanceMask | None]:
    """Return the corners of a box and, with `instances`, its mask. Raises UserError."""
    if box.label not in classes:
        raise UserError(unknown_class(box.label, classes))
    corners = left, top, right, bottom = checked_box(box, size, normalised)
    if not instances:
        return corners, None
    if box.mask is None:
        raise UserError(f"{box.label} has no mask")
    mask = box.mask(size)
    if not mask.height:
        raise UserError(f"{box.label} has a mask without pixels")
    beside = mask.left >= right or mask.left + mask.width <= left
    if beside or mask.top >= bottom or mask.top + mask.height <= top:
        raise UserError(f"{box.label} has a mask that lies outside its box")
    return corners, mask


def _refuse_fractions(index: AnnotationIndex, shown: str) -> None:
    """Raise UserError if all boxes lie within one pixel, as fractions of an image do."""
    corners = [box.corners for i in index.images if not i.normalised for box in i.boxes]
    if corners and all(max(box) <= 1 for box in corners):
        boxes = "its only box lies" if len(corners) == 1 else f"all {len(corners):,} boxes lie"
        raise UserError(
            f"{shown}: {boxes} within one pixel of the upper left corner: they look like fractions "
            "of the image; multiply them by its width and height to get pixels (kind = "
            '"yolo" reads fractions)'
        )
