"""Boxes as Pascal VOC has them (Everingham et al. 2010), in XML files beside the images.

ROOT/{JPEGImages,Annotations,ImageSets/Main/{train,val,test,trainval}.txt}. Without lists every
image that has an annotation is taken. Boxes that are marked as difficult are ignored.
"""

import math
import os
from xml.etree import ElementTree

from plusx.data.image_file import UnreadableImage, printable, read_regular
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Problem,
    by_stem,
    first_file,
)
from plusx.data.splits import split_of
from plusx.errors import UserError


_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FAR = 2.0**31
_LIMIT = 64 * 2**20


def recognise_voc(path: str) -> str:
    """Why a path can be read by read_voc; "" where it cannot."""
    has_images = os.path.isdir(os.path.join(path, "JPEGImages"))
    if has_images and first_file(os.path.join(path, "Annotations"), (".xml",)):
        return "JPEGImages, and Annotations with XML files"
    return ""


def read_voc(path: str) -> AnnotationIndex:
    """Every image of the lists with its boxes. UserError where the folder has another layout."""
    shown, root = printable(path), os.path.realpath(path)
    index = AnnotationIndex(root)
    images, notes = os.path.join(root, "JPEGImages"), os.path.join(root, "Annotations")
    for folder in (images, notes):
        if not os.path.isdir(folder):
            raise UserError(
                f"{shown} has no folder {os.path.basename(folder)}: Pascal VOC has JPEGImages, "
                "Annotations and ImageSets/Main"
            )
    pictures, annotations = by_stem(images), by_stem(notes, (".xml",))
    lists = voc_lists(root, "Main", index.problems)
    if not lists:
        lists = {"": [(name, f"Annotations/{name}.xml") for name in annotations]}
        for name in sorted(set(pictures) - set(annotations)):
            where = printable(pictures[name], root)
            index.problems.append(Problem(where, "no annotation"))
    for split, names in lists.items():
        for name, where in names:
            if name not in annotations:
                reason = "no such annotation" if name in pictures else "no such image"
                index.problems.append(Problem(where, f"{printable(name)!r}: {reason}"))
            elif name not in pictures:
                note = printable(annotations[name], root)
                index.problems.append(Problem(where, f"{note} has no image"))
            else:
                _read(index, pictures[name], annotations[name], split)
    return index


def voc_lists(root: str, kind: str, problems: list[Problem]) -> dict[str, list[tuple[str, str]]]:
    """The names in ImageSets/KIND by split, each with where it stands; trainval is cut later."""
    folder = os.path.join(root, "ImageSets", kind)
    paths = {
        name: os.path.join(folder, f"{name}.txt")
        for name in ("train", "val", "test", "trainval")
        if os.path.isfile(os.path.join(folder, f"{name}.txt"))
    }
    if "train" in paths:
        paths.pop("trainval", None)
    lists: dict[str, list[tuple[str, str]]] = {}
    first: dict[str, str] = {}
    for name, path in paths.items():
        split = "train" if name == "trainval" else split_of(name)
        text = read_regular(path, _LIMIT).decode("utf-8-sig", "surrogateescape")
        names = lists.setdefault(split, [])
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            # a list of one class has 1 or -1 behind each name
            stem = words[0] if len(words) > 1 and words[-1] in ("1", "-1", "0") else line.strip()
            where = f"{printable(path, root)}, row {number}"
            if stem in first:
                problems.append(Problem(where, f"{printable(stem)!r} repeats {first[stem]}"))
                continue
            first[stem] = where
            names.append((stem, where))
    return lists


def _read(index: AnnotationIndex, image_path: str, path: str, split: str) -> None:
    where = printable(path, index.root)
    try:
        entry = _entry(image_path, path, split, where)
    except (UnreadableImage, ElementTree.ParseError, OSError) as error:
        index.problems.append(Problem(where, f"cannot be read: {error}"))
        return
    index.images.append(entry)


def _entry(image_path: str, path: str, split: str, where: str) -> AnnotatedImage:
    data = read_regular(path, _LIMIT)
    if b"\0" in data or b"<!ENTITY" in data or b"<!DOCTYPE" in data:
        raise UnreadableImage("it declares entities, which an annotation has no use for")
    tree = ElementTree.fromstring(data)
    boxes = []
    for number, thing in enumerate(tree.iter("object"), 1):
        box = thing.find("bndbox")
        corners = tuple(_number(None if box is None else box.findtext(name)) for name in _CORNERS)
        label = (thing.findtext("name") or "").strip()
        left, top, right, bottom = corners
        if right > left and bottom > top:  # pixels count from 1, and the last one is inside
            left, top = left - 1, top - 1
        boxes.append(
            BoxAnnotation(
                f"{where}, object {number}",
                label,
                (left, top, right, bottom),
                crowd=(thing.findtext("difficult") or "0").strip() == "1",
            )
        )
    height, width = _number(tree.findtext("size/height")), _number(tree.findtext("size/width"))
    size = (int(height), int(width)) if 0 < height < _FAR and 0 < width < _FAR else None
    return AnnotatedImage(image_path, split, tuple(boxes), size=size, annotation=where)


def _number(text: str | None) -> float:
    """A number as it is written; not a number where none is."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
