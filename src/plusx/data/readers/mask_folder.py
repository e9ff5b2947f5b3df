"""Images in one folder and masks in another: the class of every pixel.

ROOT/{train,val,test} beside ROOT/{train,val,test}annot (CamVid), ROOT/{images,masks}[/SPLIT],
ROOT/SPLIT/{images,masks}, or Pascal VOC's JPEGImages, SegmentationClass and
ImageSets/Segmentation. A mask has the name of its image but for the ending, or with _mask, _L,
_label, _seg or _gt behind it. ROOT/classes.csv may name the classes and say which value or which
colour each has.
"""

import os
import re

from plusx.data.annotations import Colour, MaskEncoding
from plusx.data.image_file import printable
from plusx.data.readers.annotation_index import AnnotatedImage, AnnotationIndex, Problem, by_stem
from plusx.data.readers.csv_file import read_rows
from plusx.data.readers.voc import voc_lists
from plusx.data.splits import SPLIT_NAMES
from plusx.errors import UserError


_IMAGES = ("images", "image", "imgs", "img", "JPEGImages")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "SegmentationClass")
_BEHIND = ("", "_mask", "_L", "_label", "_labels", "_seg", "_gt")
_WHOLE = re.compile(r"\d{1,5}")


def read_mask_folder(path: str) -> AnnotationIndex:
    """Every image with its mask. UserError where the folder has another layout."""
    shown, root = printable(path), os.path.realpath(path)
    if not os.path.isdir(root):
        raise UserError(f"{shown} is {'no folder' if os.path.exists(root) else 'missing'}")
    index = AnnotationIndex(root)
    segmented = os.path.join(root, "SegmentationClass")
    if os.path.isdir(segmented) and os.path.isdir(os.path.join(root, "ImageSets", "Segmentation")):
        _from_lists(index, root, segmented)
        return index
    pairs = _pairs(root)
    if not pairs:
        raise UserError(
            f"{shown} has no folders of images and masks: looked for are train and trainannot "
            "(and val, test), images and masks, or train/images and train/masks"
        )
    beside: dict[tuple[str, str], list[str]] = {}
    for split, images, masks in pairs:
        beside.setdefault((split, images), []).append(masks)
    for (split, images), folders in beside.items():
        _pair(index, split, by_stem(images), _masks_in(folders, root))
    return index


def _masks_in(folders: list[str], root: str) -> dict[str, str]:
    """The masks of the one folder that has some; another one may have labels of other kinds."""
    found = {folder: by_stem(folder) for folder in folders}
    used = [folder for folder, masks in found.items() if masks]
    if len(used) > 1:
        one, other = (printable(folder, root) for folder in used[:2])
        raise UserError(f"masks lie in {one} and in {other}: which ones are meant?")
    return found[used[0]] if used else {}


def _pairs(root: str) -> list[tuple[str, str, str]]:
    """Split, folder of images, folder of masks."""

    def below(*names: str) -> str:
        return os.path.join(root, *names)

    found = []
    for name, split in SPLIT_NAMES.items():
        if os.path.isdir(below(name)) and os.path.isdir(below(f"{name}annot")):
            found.append((split, below(name), below(f"{name}annot")))
        for images in _IMAGES:
            for masks in _MASKS:
                if os.path.isdir(below(name, images)) and os.path.isdir(below(name, masks)):
                    found.append((split, below(name, images), below(name, masks)))
                if os.path.isdir(below(images, name)) and os.path.isdir(below(masks, name)):
                    found.append((split, below(images, name), below(masks, name)))
    if found:
        return found
    return [
        ("", below(images), below(masks))
        for images in _IMAGES
        for masks in _MASKS
        if os.path.isdir(below(images)) and os.path.isdir(below(masks))
    ]


def _pair(
    index: AnnotationIndex, split: str, images: dict[str, str], masks: dict[str, str]
) -> None:
    taken = set()
    for name, image in images.items():
        mask = next((name + end for end in _BEHIND if name + end in masks), None)
        if mask is None:
            index.problems.append(Problem(printable(image, index.root), "no mask"))
            continue
        taken.add(mask)
        index.images.append(AnnotatedImage(image, split, mask=masks[mask]))
    for name in masks:
        if name not in taken:
            index.problems.append(Problem(printable(masks[name], index.root), "no image"))


def _from_lists(index: AnnotationIndex, root: str, segmented: str) -> None:
    images, masks = by_stem(os.path.join(root, "JPEGImages")), by_stem(segmented)
    for split, names in voc_lists(root, "Segmentation", index.problems).items():
        for name, where in names:
            if name in images and name in masks:
                index.images.append(AnnotatedImage(images[name], split, mask=masks[name]))
            else:
                kind = "mask" if name in images else "image"
                index.problems.append(Problem(where, f"{printable(name)!r}: no such {kind}"))


def read_classes(root: str) -> tuple[tuple[str, ...], MaskEncoding]:
    """The names in ROOT/classes.csv with their values or colours; nothing where there is none.

    Columns name and value, or name, r, g and b (or red, green and blue). What has no name is not
    judged. Raises UserError with the row.
    """
    path = os.path.join(root, "classes.csv")
    if not os.path.isfile(path):
        return (), MaskEncoding()
    columns, rows = read_rows(path, "classes.csv")
    short = {"red": "r", "green": "g", "blue": "b"}
    columns = [short.get(name.lower(), name.lower()) for name in columns]
    wanted = ("value",) if "value" in columns else ("r", "g", "b")
    if "name" not in columns or not set(wanted) <= set(columns):
        raise UserError(
            f"classes.csv has the columns {', '.join(columns) or 'none'}; it needs name and value, "
            "or name, r, g and b"
        )
    names: list[str] = []
    values: list[tuple[int, ...]] = []
    ignored: list[tuple[int, ...]] = []
    for row in rows:
        cells = dict(zip(columns, (cell.strip() for cell in row.cells.values())))
        for name in wanted:
            highest = 65535 if name == "value" else 255
            if not _WHOLE.fullmatch(cells[name]) or int(cells[name]) > highest:
                raise UserError(
                    f"{row.where}: {name} {cells[name]!r} is no number from 0 to {highest}"
                )
        value = tuple(int(cells[name]) for name in wanted)
        if cells["name"] in names or value in (*values, *ignored):
            raise UserError(f"{row.where}: a name and a value stand once each")
        if cells["name"]:
            names.append(cells["name"])
        (values if cells["name"] else ignored).append(value)
    if not names:
        raise UserError("classes.csv names no class")
    if wanted == ("value",):
        known, void = (tuple(value[0] for value in some) for some in (values, ignored))
        return tuple(names), MaskEncoding(known, ignored=void)
    return tuple(names), MaskEncoding(colours=_colours(values), ignored_colours=_colours(ignored))


def _colours(values: list[tuple[int, ...]]) -> tuple[Colour, ...]:
    return tuple((value[0], value[1], value[2]) for value in values)
