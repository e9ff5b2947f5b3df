"""The classes of masks, and every mask read once, before anything is learned from them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from plusx.data.annotations import MaskEncoding, Masks, stored_mask
from plusx.data.image_file import UnreadableImage, content_digest, printable, read_regular
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    LayoutOptions,
    Problem,
    complain,
    unknown_class,
)
from plusx.data.readers.listing import refuse_similar_names
from plusx.data.readers.mask_folder import read_classes
from plusx.data.readers.verdicts import OnUnreadable, reason_of, summaries_of_files
from plusx.data.sample import IGNORE_INDEX
from plusx.errors import UserError


_RULES = 1  # of what is kept of masks


class MaskSummary(NamedTuple):
    """What is in one mask: its size, and how many pixels each value has; or why it is refused."""

    problem: str
    height: int = 0
    width: int = 0
    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    content: str = ""  # a digest of the file


def summaries_of(
    images: Sequence[AnnotatedImage], root: str, colours: bool
) -> dict[str, MaskSummary]:
    """Of each mask, by its path, what is in it; read once and remembered until it changes."""
    paths = [image.mask for image in images if image.mask is not None]
    examine = partial(_summary, colours=colours)
    return summaries_of_files(paths, root, "masks", [_RULES, colours], examine, MaskSummary)


def _summary(path: str, colours: bool) -> MaskSummary:
    try:
        data = read_regular(path)
        mask = stored_mask(data, colours)
    except (UnreadableImage, OSError) as error:
        return MaskSummary(reason_of(error))
    height, width = mask.shape
    values, counts = np.unique(mask, return_counts=True)
    content = content_digest(data)
    return MaskSummary("", height, width, tuple(values.tolist()), tuple(counts.tolist()), content)


def classes_of_masks(
    index: AnnotationIndex, images: Sequence[AnnotatedImage], options: LayoutOptions
) -> tuple[tuple[str, ...], MaskEncoding, dict[str, MaskSummary]]:
    """The classes, which values they have, and what is in all masks: as the recipe, classes.csv or
    the masks say.
    """
    names, encoding = read_classes(index.root)
    if encoding.colours and not options.values:
        if options.classes and set(options.classes) != set(names):
            raise UserError(
                f"[data] classes are {', '.join(options.classes)}; "
                f"classes.csv has {', '.join(names)}"
            )
        return names, encoding, summaries_of(images, index.root, colours=True)
    if options.classes or options.values:
        values = options.values or tuple(range(len(options.classes)))
        names = options.classes or tuple(map(str, values))
        if len(values) != len(names) or len(set(values)) != len(values):
            raise UserError(
                f"[data] values {list(values)}: one for each of the {len(names)} classes, and no "
                "two alike"
            )
    elif names:
        values = encoding.numbers
    else:
        values = _values_found(index, images, options)
        names = tuple(map(str, values))
    both = sorted(set(values) & set(options.ignore))
    if both:
        raise UserError(f"[data] ignore: {both[0]} is the value of a class")
    usual = () if IGNORE_INDEX in (*values, *options.ignore) else (IGNORE_INDEX,)
    refuse_similar_names(names, printable(index.root))
    if len(names) > IGNORE_INDEX:
        raise UserError(f"masks can have {IGNORE_INDEX} classes, not {len(names)}")
    encoding = MaskEncoding(values, (), (*encoding.ignored, *options.ignore, *usual))
    return names, encoding, summaries_of(images, index.root, colours=False)


def component_numbers(names: tuple[str, ...], classes: tuple[str, ...]) -> list[int]:
    """The numbers of the classes whose components become boxes."""
    for name in names:
        if name not in classes or names.count(name) > 1:
            reason = unknown_class(name, classes) if name not in classes else f"{name!r} is twice"
            raise UserError(f"[data] components: {reason}")
    return [classes.index(name) for name in names]


def _values_found(
    index: AnnotationIndex, images: Sequence[AnnotatedImage], options: LayoutOptions
) -> tuple[int, ...]:
    """The values in the masks that train. 255 is one only beside 0 alone."""
    train = [image for image in index.images if image.split in ("", "train")] or list(images)
    summaries = summaries_of(train, index.root, colours=False)
    found = {value for summary in summaries.values() for value in summary.values}
    if not found:
        problems = [
            Problem(printable(path, index.root), summary.problem)
            for path, summary in summaries.items()
        ]
        complain(problems, "error", "masks")
    there = found - set(options.ignore)
    if there != {0, IGNORE_INDEX}:
        there -= {IGNORE_INDEX}
    if len(there) < 2:
        values = ", ".join(map(str, sorted(found)[:10]))
        raise UserError(
            f"the masks have the values {values} alone, of which {len(there)} could be a class: "
            "there is nothing to tell apart"
        )
    return tuple(sorted(there))


def read_all_masks(
    images: Sequence[AnnotatedImage],
    sizes: Sequence[tuple[int, int]],
    root: str,
    classes: tuple[str, ...],
    encoding: MaskEncoding,
    summaries: dict[str, MaskSummary],
    on_unreadable: OnUnreadable,
) -> tuple[list[AnnotatedImage], Masks, list[str]]:
    """Which masks can be used, and how many pixels each class has in them."""
    problems, used, paths, rows, contents = [], [], [], [], []
    for image, size in zip(images, sizes):
        assert image.mask is not None
        summary = summaries[image.mask]
        problem = summary.problem
        if not problem:
            problem = encoding.problem(summary.values, summary.counts)
        if not problem and (summary.height, summary.width) != size:
            problem = f"it has {summary.width} x {summary.height} pixels, "
            problem += f"its image {size[1]} x {size[0]}"
        if problem:
            problems.append(Problem(printable(image.mask, root), problem))
            continue
        row = torch.zeros(len(classes), dtype=torch.int64)
        for value, count in zip(summary.values, summary.counts):
            number = encoding.classes[value]
            if number != IGNORE_INDEX:
                row[number] += count
        used.append(image)
        rows.append(row)
        paths.append(image.mask)
        contents.append(summary.content)
    warnings = complain(problems, on_unreadable, "masks")
    counts = torch.stack(rows) if rows else torch.zeros(0, len(classes), dtype=torch.int64)
    return used, Masks(counts, paths, encoding, contents=contents), warnings
