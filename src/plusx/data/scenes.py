"""Images with boxes or masks, from a path to a Source whose truth the loader carries along."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from plusx.data.boxes import read_boxes
from plusx.data.check import Entry, OnUnreadable, keep
from plusx.data.coco import read_coco
from plusx.data.download import located
from plusx.data.image import UnreadableImage, printable
from plusx.data.mask_boxes import boxes_of
from plusx.data.mask_folder import read_masks
from plusx.data.sample import Preprocessing, Source, Split, as_split
from plusx.data.scene_list import (
    Mark,
    Problem,
    SceneEntry,
    SceneKind,
    SceneList,
    SceneWish,
    checked_box,
    complain,
    divided,
    sizes_of,
    unknown_class,
)
from plusx.data.scene_masks import classes_of_masks, masks_of, places_of
from plusx.data.splits import held_out
from plusx.data.truth import Boxes, Truth
from plusx.data.voc import read_voc
from plusx.errors import UserError


# of pictures, where no network says otherwise: ImageNet's, and the like of one channel
_MEAN = {1: (0.449,), 3: (0.485, 0.456, 0.406)}
_STD = {1: (0.226,), 3: (0.229, 0.224, 0.225)}
# of the training scenes, where the data holds out none itself
VALIDATION_SHARE = 0.2
# of an image whose header cannot be read: boxes are then only compared with themselves
_ANY_SIZE = (2**31, 2**31)
_MULTIPLE = 32
_NOTHING = SceneWish()

READERS: dict[str, Callable[[str], SceneList]] = {
    "voc": read_voc,
    "coco": read_coco,
    "boxes": read_boxes,
    "masks": read_masks,
}


def open_scenes(
    path: str | Path,
    kind: SceneKind,
    *,
    split: str = "train",
    seed: int = 0,
    validation: float | int | None = None,
    size: tuple[int, int] | None = None,
    on_unreadable: OnUnreadable = "error",
    wish: SceneWish = _NOTHING,
) -> Source:
    """Open images with boxes (voc, coco, boxes) or masks (masks).

    size        height and width that a network sees: all of an image is scaled so that it just
                fits, and padded at the right and the bottom. None: images stay as large as they
                are
    validation  as in open_data; also on_unreadable: what cannot be used is an error that names
                it, or
                left out and named in the notices. That holds for images, masks and single boxes

    Every image is decoded once, every mask is read and every box looked at.
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
    listing = divided(READERS[kind](os.fspath(place)), wish.test, shown)
    entries, cut = _chosen(listing, shown, wanted, validation)
    listed = complain(listing.problems, on_unreadable, f"the lists of {shown}")
    used, notices = _decoded(entries, listing.root, on_unreadable)
    truth: Truth
    if kind == "masks":
        classes, meaning = classes_of_masks(listing, used, wish)
        used, truth, told = masks_of(used, listing.root, classes, meaning, on_unreadable)
        if wish.parts:
            places = places_of(wish.parts, classes)
            classes = wish.parts
            truth = boxes_of(truth, places, wish.smallest, wish.instances)
            labels = truth.presence(len(classes))
        else:
            labels = (truth.counts > 0).to(torch.float32)
    else:
        classes = _classes_of_boxes(listing, shown, wish)
        learns = wanted == "train"
        used, truth, told = _boxes(used, listing, classes, on_unreadable, wish.instances, learns)
        labels = truth.presence(len(classes))
    if not used:
        raise UserError(f"{shown} has no image in {wanted} that can be used")
    source = Source(
        name=printable(os.path.basename(os.path.realpath(place))),
        split=wanted,
        classes=classes,
        labels=labels,
        preprocessing=Preprocessing(
            size or _largest(used), wish.channels, _MEAN[wish.channels], _STD[wish.channels]
        ),
        paths=[entry.path for entry in used],
        root=listing.root,
        notices=[*listing.notices, *listed, *notices, *told],
        truth=truth,
        sized=size is not None,
    )
    if not cut:
        return source
    share = VALIDATION_SHARE if validation is None else validation
    held = held_out(labels, share, seed)
    chosen = held if wanted == "validation" else np.delete(np.arange(len(source)), held)
    if not len(chosen):
        raise UserError(f"{shown} has no {wanted} split with validation = {validation}")
    return source.subset(chosen.tolist())


def scene_parts(path: str | Path, kind: SceneKind) -> tuple[str, ...]:
    """The splits that scenes have by their own layout; none where they are to be cut."""
    return READERS[kind](os.fspath(located(path))).parts


def _chosen(
    listing: SceneList, shown: str, split: Split, validation: float | int | None
) -> tuple[list[SceneEntry], bool]:
    """The scenes that a split is made from, and whether it is cut from them by the seed."""
    parts = listing.parts
    if not listing.entries:
        why = f": {'; '.join(f'{a}: {b}' for a, b in listing.problems[:3])}"
        raise UserError(f"{shown} has no scenes{why if listing.problems else ''}")
    if split == "all":
        return listing.entries, False
    if "validation" in parts and validation:
        raise UserError(
            f"{shown} has a validation split of its own; leave out validation = {validation}"
        )
    if split in parts:
        chosen = [entry for entry in listing.entries if entry.split == split]
        return chosen, split == "train" and "validation" not in parts
    if split == "test" or (parts and "train" not in parts):
        has = ", ".join(parts) if parts else "none: it is split by the seed to train and validate"
        raise UserError(f"{shown} has no {split} split (its splits: {has})")
    return [entry for entry in listing.entries if entry.split in ("", "train")], True


def _decoded(
    entries: list[SceneEntry], root: str, on_unreadable: OnUnreadable
) -> tuple[list[SceneEntry], list[str]]:
    kept, notices = keep([Entry(entry.path, "") for entry in entries], root, on_unreadable)
    good = {entry.path for entry in kept}
    return [entry for entry in entries if entry.path in good], notices


def _largest(entries: Sequence[SceneEntry]) -> tuple[int, int]:
    sizes = sizes_of(entries)
    tall, wide = (max(size[side] for size in sizes) for side in (0, 1))
    return -(-tall // _MULTIPLE) * _MULTIPLE, -(-wide // _MULTIPLE) * _MULTIPLE


def _classes_of_boxes(listing: SceneList, shown: str, wish: SceneWish) -> tuple[str, ...]:
    if wish.classes:
        return wish.classes
    if listing.classes:
        return listing.classes
    learning = [entry for entry in listing.entries if entry.split in ("", "train")]
    names = {mark.label for entry in learning or listing.entries for mark in entry.marks}
    found = tuple(sorted(names - {""}))
    if not found:
        raise UserError(f"{shown} has no boxes")
    return found


def _boxes(
    entries: list[SceneEntry],
    listing: SceneList,
    classes: tuple[str, ...],
    on_unreadable: OnUnreadable,
    instances: bool,
    learns: bool,
) -> tuple[list[SceneEntry], Boxes, list[str]]:
    numbers = {name: number for number, name in enumerate(classes)}
    problems: list[Problem] = []
    used, rows, outlines = [], [], []
    for entry, size in zip(entries, sizes_of(entries)):
        if entry.size is not None and entry.size != size:
            said, is_ = (f"{wide} x {tall}" for tall, wide in (entry.size, size))
            reason = f"it says {said} pixels, but {printable(entry.path, listing.root)} has {is_}"
            if entry.size == size[::-1]:
                reason += " as it is seen, turned by its EXIF orientation or not"
            problems.append(Problem(entry.told_by, reason))
            continue
        kept, masks = [], []
        for mark in entry.marks:
            corners = checked_box(mark, size)
            if mark.label not in numbers:
                problems.append(Problem(mark.where, unknown_class(mark.label, classes)))
            elif isinstance(corners, str):
                problems.append(Problem(mark.where, corners))
            elif instances and (reason := _mask_problem(mark, corners)):
                problems.append(Problem(mark.where, f"{mark.label} {reason}"))
            else:
                kept.append((*corners, numbers[mark.label], float(mark.crowd)))
                masks.append(mark.outline)
        used.append(entry)
        rows.append(np.array(kept, np.float32).reshape(-1, 6))
        outlines.append([mask for mask in masks if mask is not None])
    if on_unreadable == "error":
        problems += _problems_elsewhere(listing, entries, classes)
    notices = complain(problems, on_unreadable, "boxes")
    if learns and not any(map(len, rows)):
        named = f": {problems[0].where}: {problems[0].reason}" if problems else ""
        raise UserError(
            f"there is nothing to learn: of the images that train none has a box{named}"
        )
    return used, Boxes(rows, outlines if instances else None), notices


def _mask_problem(mark: Mark, corners: Sequence[float]) -> str:
    """What is wrong with the mask of a box; nothing where it is good."""
    found = mark.outline
    if found is None:
        return "has no mask"
    if not found.height:
        return "has a mask without pixels"
    left, top, right, bottom = corners
    apart = found.left >= right or found.left + found.width <= left
    apart |= found.top >= bottom or found.top + found.height <= top
    return "has a mask that lies outside its box" if apart else ""


def _size_if_told(entry: SceneEntry) -> tuple[int, int]:
    try:
        return sizes_of([entry])[0]
    except (UnreadableImage, OSError):  # which its own split tells of
        return _ANY_SIZE


def _problems_elsewhere(
    listing: SceneList, entries: list[SceneEntry], classes: tuple[str, ...]
) -> list[Problem]:
    """What is wrong with boxes of the other splits, so that a test does not fail for it at last."""
    own = {entry.path for entry in entries}
    problems = []
    for entry in listing.entries:
        if entry.path in own:
            continue
        size = entry.size or _size_if_told(entry)
        for mark in entry.marks:
            if mark.label not in classes:
                problems.append(Problem(mark.where, unknown_class(mark.label, classes)))
            elif isinstance(said := checked_box(mark, size), str):
                problems.append(Problem(mark.where, said))
    return problems
