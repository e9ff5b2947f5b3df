"""Images in one folder and masks, the class of every pixel, in another.

ROOT/{train,val,test} beside ROOT/{train,val,test}annot (CamVid), ROOT/{images,masks}[/SPLIT],
ROOT/SPLIT/{images,masks}, or Pascal VOC's JPEGImages, SegmentationClass and
ImageSets/Segmentation. A mask has its image's name with any extension, or with _mask, _L, _label,
_labels, _seg or _gt appended. ROOT/classes.csv, or CVAT's ROOT/labelmap.txt, may name the classes
and give their values or colours. Every mask is read once, before training.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from plusx.data.annotations import Boxes, MaskEncoding, Masks, stored_mask
from plusx.data.image_file import (
    ENDINGS,
    UnreadableInput,
    content_digest,
    printable,
    read_regular,
)
from plusx.data.instance_mask import InstanceMask
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    LayoutOptions,
    Problem,
    UsableImages,
    by_stem,
    complain,
    first_file,
    unknown_class,
)
from plusx.data.readers.csv_file import read_rows
from plusx.data.readers.listing import class_name, refuse_similar_names
from plusx.data.readers.text_file import decoded
from plusx.data.readers.verdicts import OnUnreadable, reason_of, summaries_of_files
from plusx.data.readers.voc import voc_lists
from plusx.data.sample import IGNORE_INDEX
from plusx.data.splits import SPLIT_NAMES
from plusx.errors import UserError


_CACHE_VERSION = 1  # increased whenever the content of MaskSummary changes
_CONNECTED = np.ones((3, 3), np.int8)  # pixels that touch at a corner are connected
_IMAGES = ("images", "image", "imgs", "img", "JPEGImages")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "SegmentationClass")
_SUFFIXES = ("", "_mask", "_L", "_label", "_labels", "_seg", "_gt")
_INTEGER = re.compile(r"\d{1,5}")
_SHOWN = 12  # colours in a message
_MAX_UNNAMED = 32  # values that become classes without being named


def recognise_masks(path: str) -> str:
    """Return why read_mask_folder can read a path, or ""."""
    if _has_voc_masks(path):
        return "JPEGImages, SegmentationClass and ImageSets/Segmentation"
    for (_, images), masks in mask_folders(path).items():
        folder = next((name for name in masks if first_file(name, ENDINGS)), None)
        if folder is not None and first_file(images, ENDINGS):
            return f"images in {printable(images, path)} and masks in {printable(folder, path)}"
    return ""


def _has_voc_masks(root: str) -> bool:
    return os.path.isdir(os.path.join(root, "SegmentationClass")) and os.path.isdir(
        os.path.join(root, "ImageSets", "Segmentation")
    )


def read_mask_folder(path: str) -> AnnotationIndex:
    """Read every image with its mask. Raises UserError for another layout."""
    shown, root = printable(path), os.path.realpath(path)
    if not os.path.isdir(root):
        raise UserError(f"{shown} is {'not a folder' if os.path.exists(root) else 'missing'}")
    index = AnnotationIndex(root)
    segmented = os.path.join(root, "SegmentationClass")
    if os.path.isdir(os.path.join(root, "SegmentationObject")):
        index.warnings.append("SegmentationObject is not read: classes are in SegmentationClass")
    lists = voc_lists(root, "Segmentation", index.problems)
    if os.path.isdir(segmented) and lists:
        _from_lists(index, lists, segmented)
        return index
    folders = mask_folders(root)
    if not folders:
        raise UserError(
            f"{shown} has no folders of images and masks: train and trainannot (and val, test), "
            "images and masks, or train/images and train/masks are expected"
        )
    for (split, image_folder), candidates in folders.items():
        images, masks = by_stem(image_folder), _masks_in(candidates, root)
        unpaired = dict(masks)
        for name, image in images.items():
            mask_name = next((name + end for end in _SUFFIXES if name + end in masks), None)
            if mask_name is None:
                index.problems.append(Problem(printable(image, root), "no mask"))
            else:
                unpaired.pop(mask_name, None)
                index.images.append(AnnotatedImage(image, split, mask=masks[mask_name]))
        for mask in unpaired.values():
            index.problems.append(Problem(printable(mask, root), "no image"))
    return index


def mask_folders(root: str) -> dict[tuple[str, str], list[str]]:
    """Return, by split and image folder, the folders that may have the masks."""
    both = list(product(_IMAGES, _MASKS))
    candidates: list[tuple[str, str, str]] = []
    for name, split in SPLIT_NAMES.items():
        candidates.append((split, name, f"{name}annot"))
        for images, masks in both:
            candidates.append((split, os.path.join(name, images), os.path.join(name, masks)))
            candidates.append((split, os.path.join(images, name), os.path.join(masks, name)))
    folders: dict[tuple[str, str], list[str]] = {}
    # folders without splits only if there are none with splits
    for group in (candidates, [("", images, masks) for images, masks in both]):
        for split, *names in group if not folders else ():
            image_folder, mask_folder = (os.path.join(root, name) for name in names)
            if os.path.isdir(image_folder) and os.path.isdir(mask_folder):
                folders.setdefault((split, image_folder), []).append(mask_folder)
    return folders


def _masks_in(folders: list[str], root: str) -> dict[str, str]:
    """Return the masks of the one folder that has some; others may have other labels."""
    masks = {folder: by_stem(folder) for folder in folders}
    used = [folder for folder in folders if masks[folder]]
    if len(used) > 1:
        one, other = (printable(folder, root) for folder in used[:2])
        raise UserError(f"masks are in {one} and in {other}: remove one of these folders")
    return masks[used[0]] if used else {}


def _from_lists(
    index: AnnotationIndex, lists: dict[str, list[tuple[str, str]]], segmented: str
) -> None:
    images, masks = by_stem(os.path.join(index.root, "JPEGImages")), by_stem(segmented)
    for split, names in lists.items():
        for name, where in names:
            if name in images and name in masks:
                index.images.append(AnnotatedImage(images[name], split, mask=masks[name]))
            else:
                kind = "mask" if name in images else "image"
                index.problems.append(Problem(where, f"{printable(name)!r}: no such {kind}"))


def read_classes(root: str) -> tuple[tuple[str, ...], MaskEncoding]:
    """Return class names and their values or colours, from ROOT/classes.csv or CVAT's labelmap.txt.

    The columns are name and value, or name, r, g and b (or red, green and blue). A value without a
    name is ignored. Without a file, no classes are returned. Raises UserError with the row.
    """
    path = os.path.join(root, "classes.csv")
    if not os.path.isfile(path):
        return _read_label_map(os.path.join(root, "labelmap.txt"))
    columns, rows = read_rows(path, "classes.csv")
    short = {name.lower(): name.lower() for name in columns}
    short |= {"red": "r", "green": "g", "blue": "b"}
    columns = [short[name.lower()] for name in columns]
    value_columns = ("value",) if "value" in columns else ("r", "g", "b")
    if not {"name", *value_columns} <= set(columns):
        raise UserError(
            f"classes.csv has the columns {', '.join(columns) or 'none'}; it needs name and value, "
            "or name, r, g and b"
        )
    names: list[str] = []
    values: list[int] = []
    ignored: list[int] = []
    for row in rows:
        cells = {short[name.lower()]: cell.strip() for name, cell in row.cells.items()}
        value = 0
        for column in value_columns:
            highest = 65535 if column == "value" else 255
            if not _INTEGER.fullmatch(cells[column]) or int(cells[column]) > highest:
                raise UserError(
                    f"{row.where}: {column} {cells[column]!r} is not a number from 0 to {highest}"
                )
            value = value << 8 | int(cells[column])
        name = class_name(cells["name"])
        if name in names or value in (*values, *ignored):
            raise UserError(f"{row.where}: a name or a value is repeated")
        if name:
            names.append(name)
        (values if name else ignored).append(value)
    if not names:
        raise UserError("classes.csv names no class")
    colours = value_columns != ("value",)
    return tuple(names), MaskEncoding(tuple(values), tuple(ignored), colours)


def _read_label_map(path: str) -> tuple[tuple[str, ...], MaskEncoding]:
    """Read names and colours of CVAT's labelmap.txt: `name:red,green,blue:parts:actions`."""
    names: list[str] = []
    values: list[int] = []
    lines = decoded(read_regular(path)) if os.path.isfile(path) else ""
    for number, line in enumerate(lines.splitlines(), 1):
        name, _, rest = line.strip().partition(":")
        if not name or name.startswith("#"):
            continue
        colour = rest.partition(":")[0].split(",")
        if len(colour) != 3 or not all(c.isdecimal() and int(c) < 256 for c in colour):
            raise UserError(
                f"labelmap.txt, row {number}: {printable(rest)!r} is not a colour, three "
                "numbers from 0 to 255 separated by commas"
            )
        red, green, blue = map(int, colour)
        names.append(printable(name))
        values.append(red << 16 | green << 8 | blue)
    if len(set(names)) < len(names) or len(set(values)) < len(values):
        raise UserError("labelmap.txt: a name or a colour is repeated")
    return tuple(names), MaskEncoding(tuple(values), colours=bool(names))


class MaskSummary(NamedTuple):
    """Size and value counts of one mask, or why it is refused."""

    problem: str
    height: int = 0
    width: int = 0
    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    content: str = ""  # a digest of the file


def read_masks(
    index: AnnotationIndex,
    images: Sequence[AnnotatedImage],
    sizes: dict[str, tuple[int, int]],
    options: LayoutOptions,
    on_unreadable: OnUnreadable,
    split: str,
) -> UsableImages:
    """Return the images with usable masks, with these masks, or boxes of their components."""
    classes, encoding = _classes(index, images, options)
    summaries = _summaries(images, index.root, encoding.colours)
    white = _refuse_white(index, list(summaries.values()), encoding, options)
    problems: list[Problem] = []
    usable: list[AnnotatedImage] = []
    contents: list[str] = []
    counts = torch.zeros(len(images), len(classes), dtype=torch.int64)
    for image in images:
        assert image.mask is not None
        summary, (height, width) = summaries[image.mask], sizes[image.path]
        problem = summary.problem or encoding.problem(summary.values, summary.counts)
        if white and not problem and set(summary.values) in ({0, IGNORE_INDEX}, {IGNORE_INDEX}):
            problem = white
        if not problem and (summary.height, summary.width) != (height, width):
            problem = f"it has {summary.width} x {summary.height} pixels, "
            problem += f"its image {width} x {height}"
        if problem:
            problems.append(Problem(printable(image.mask, index.root), problem))
            continue
        for value, count in zip(summary.values, summary.counts):
            number = encoding.classes[value]
            if number != IGNORE_INDEX:
                counts[len(usable), number] += count
        usable.append(image)
        contents.append(summary.content)
    warnings = complain(problems, on_unreadable, "masks", len(usable))
    counts = counts[: len(usable)]
    if split == "train" and usable:
        _refuse_unused(classes, encoding, counts, summaries)
    paths = [image.mask for image in usable if image.mask is not None]
    masks = Masks(counts, paths, encoding, contents=contents)
    if not options.components:
        return UsableImages(usable, classes, masks, (counts > 0).to(torch.float32), warnings)
    names = options.components
    for name in names:
        if name not in classes or names.count(name) > 1:
            reason = unknown_class(name, classes) if name not in classes else f"{name!r} is twice"
            raise UserError(f"[data] components: {reason}")
    numbers = [classes.index(name) for name in names]
    boxes = boxes_of_components(masks, numbers, options.min_area, options.instances)
    return UsableImages(usable, names, boxes, boxes.presence(len(names)), warnings)


def _summaries(
    images: Sequence[AnnotatedImage], root: str, colours: bool
) -> dict[str, MaskSummary]:
    """Return the summary of each mask by path; cached until the file changes."""
    paths = [image.mask for image in images if image.mask is not None]
    examine = partial(_summary, colours=colours)
    return summaries_of_files(paths, root, "masks", [_CACHE_VERSION, colours], examine, MaskSummary)


def _summary(path: str, colours: bool) -> MaskSummary:
    try:
        data = read_regular(path)
        mask = stored_mask(data, colours)
    except (UnreadableInput, OSError) as error:
        return MaskSummary(reason_of(error))
    height, width = mask.shape
    values, counts = np.unique(mask, return_counts=True)
    content = content_digest(data)
    return MaskSummary("", height, width, tuple(values.tolist()), tuple(counts.tolist()), content)


def _classes(
    index: AnnotationIndex, images: Sequence[AnnotatedImage], options: LayoutOptions
) -> tuple[tuple[str, ...], MaskEncoding]:
    """Return classes and values, from the recipe, classes.csv or the masks."""
    names, encoding = read_classes(index.root)
    if encoding.colours and not options.values:
        if options.classes and set(options.classes) != set(names):
            raise UserError(
                f"[data] classes are {', '.join(options.classes)}; "
                f"classes.csv has {', '.join(names)}"
            )
        return names, encoding
    if options.classes or options.values:
        values = options.values or tuple(range(len(options.classes)))
        names = options.classes or tuple(map(str, values))
        if len(values) != len(names) or len(set(values)) != len(values):
            raise UserError(
                f"[data] values {list(values)}: a different value is needed for each of the "
                f"{len(names)} classes"
            )
    elif names:
        values = encoding.values
    else:
        values = _values_in_masks(index, images, options)
        names = tuple(map(str, values))
    common = sorted(set(values) & set(options.ignore))
    if common:
        raise UserError(f"[data] ignore: {common[0]} is the value of a class")
    default = () if IGNORE_INDEX in (*values, *options.ignore) else (IGNORE_INDEX,)
    refuse_similar_names(names, printable(index.root))
    if len(names) > IGNORE_INDEX:
        raise UserError(f"masks can have {IGNORE_INDEX} classes, not {len(names)}")
    ignored = () if encoding.colours else encoding.ignored
    return names, MaskEncoding(values, (*ignored, *options.ignore, *default))


def _values_in_masks(
    index: AnnotationIndex, images: Sequence[AnnotatedImage], options: LayoutOptions
) -> tuple[int, ...]:
    """Return the values in the training masks; 255 only if 0 is the only other one."""
    train = [image for image in index.images if image.split in ("", "train")] or list(images)
    summaries = _summaries(train, index.root, colours=False)
    values = {value for summary in summaries.values() for value in summary.values}
    if not values:
        _refuse_colours(index, train)
        problems = [
            Problem(printable(path, index.root), summary.problem)
            for path, summary in summaries.items()
        ]
        complain(problems, "error", "masks", 0)
    class_values = values - set(options.ignore)
    if class_values != {0, IGNORE_INDEX}:
        class_values -= {IGNORE_INDEX}
    if len(class_values) < 2:
        listed = ", ".join(map(str, sorted(values)[:10]))
        raise UserError(
            f"the masks have only the values {listed}, {len(class_values)} of which can be a "
            "class: at least two classes are needed"
        )
    if len(class_values) > _MAX_UNNAMED:
        first = ", ".join(map(str, sorted(class_values)[:8]))
        raise UserError(
            f"the masks have {len(class_values)} values ({first}, ...): smoothed (anti-aliased) "
            "edges have values between the classes, and instance masks one per object; if all of "
            "them are classes, list them in classes.csv or in [data] values"
        )
    return tuple(sorted(class_values))


def _refuse_colours(index: AnnotationIndex, images: Sequence[AnnotatedImage]) -> None:
    """Raise UserError with the colours of the masks, if all of them are in colours."""
    pixels: Counter[int] = Counter()
    for summary in _summaries(images, index.root, colours=True).values():
        if summary.problem:
            return
        pixels.update(dict(zip(summary.values, summary.counts)))
    total = sum(pixels.values())
    colours = [
        (f"{value >> 16},{value >> 8 & 255},{value & 255}", f"{count / total:.2%}")
        for value, count in pixels.most_common()
    ]
    first = "; ".join(f"{colour} ({share} of the pixels)" for colour, share in colours[:_SHOWN])
    more = len(colours) - _SHOWN
    if len(colours) > _MAX_UNNAMED:
        raise UserError(
            f"the masks have {len(colours):,} colours ({first}; ...): smoothed (anti-aliased) or "
            "compressed edges have colours between those of the classes; save masks without "
            "either, and name the colour of each class in classes.csv (name,red,green,blue)"
        )
    rows = " ".join(f"NAME,{colour}" for colour, _ in colours[:_SHOWN])
    raise UserError(
        f"the masks are in colours, which no file assigns to classes: they have {first}"
        f"{f'; and {more} more' if more > 0 else ''}: write {printable(index.root)}/classes.csv "
        f"with the lines name,red,green,blue {rows}, where each NAME is a class, or empty for "
        "a colour that is ignored"
    )


def _refuse_white(
    index: AnnotationIndex,
    summaries: Sequence[MaskSummary],
    encoding: MaskEncoding,
    options: LayoutOptions,
) -> str:
    """Return the problem of a mask with only 0 and 255, if the classes are 0 and 1; else "".

    In such a mask 255, which is ignored by default, probably means class 1. Raises UserError if all
    masks are like this.
    """
    stated = (*options.ignore, *read_classes(index.root)[1].ignored)
    if encoding.values != (0, 1) or IGNORE_INDEX in stated:
        return ""
    values = {value for summary in summaries for value in summary.values}
    if values and values <= {0, IGNORE_INDEX} and IGNORE_INDEX in values:
        raise UserError(
            "the masks have the values 0 and 255, and the classes the values 0 and 1: set "
            "values = [0, 255] in [data]"
        )
    return (
        "it has only the values 0 and 255, other masks 0 and 1: write 1 for 255, or set ignore = "
        "[255] in [data] to ignore these pixels"
    )


def _refuse_unused(
    classes: Sequence[str],
    encoding: MaskEncoding,
    counts: Int64[torch.Tensor, "n k"],
    summaries: dict[str, MaskSummary],
) -> None:
    """Raise UserError if a class has no pixel in the training masks."""
    unused = [number for number, count in enumerate(counts.sum(0).tolist()) if not count]
    if not unused:
        return
    names = ", ".join(repr(classes[number]) for number in unused[:5])
    what = f"the class {names} has" if len(unused) == 1 else f"the classes {names} have"
    hint = "leave it out" if len(unused) == 1 else "leave them out"
    values = sorted({value for summary in summaries.values() for value in summary.values})
    if not encoding.colours:
        listed = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        hint += f", or state the value of each class in [data] values (the masks have {listed})"
    raise UserError(f"{what} no pixel in the training masks: {hint}")


def boxes_of_components(
    masks: Masks, chosen: Sequence[int], min_area: int, instances: bool
) -> Boxes:
    """Return boxes of the connected components of the classes `chosen`, numbered 0, 1, ...

    Components of fewer than `min_area` pixels become crowds, which are ignored, such as an object
    that is partly hidden or too far away to be recognised. Touching objects are one component. With
    `instances` each box has its mask.
    """
    from scipy import ndimage  # slow to import

    image_rows, image_masks = [], []
    for index in range(len(masks)):
        mask = masks.mask(index)
        rows: list[tuple[float, ...]] = []
        instance_masks = []
        for number, value in enumerate(chosen):
            components, _ = ndimage.label(mask == value, _CONNECTED)
            sizes = np.bincount(components.ravel())
            for component, (down, along) in enumerate(ndimage.find_objects(components), 1):
                crowd = float(sizes[component] < min_area)
                rows.append((along.start, down.start, along.stop, down.stop, number, crowd))
                if instances:
                    instance_masks.append(InstanceMask.of(components == component))
        image_rows.append(np.array(rows, np.float32).reshape(-1, 6))
        image_masks.append(instance_masks)
    return Boxes(image_rows, image_masks if instances else None)
