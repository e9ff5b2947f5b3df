"""Boxes as Pascal VOC has them (Everingham et al. 2010), in XML files beside the images.

ROOT/{JPEGImages,Annotations,ImageSets/Main/{train,val,test,trainval}.txt}. Without lists every
image that has an annotation is taken. Boxes that are marked as difficult are not judged.
"""

import math
import os
from xml.etree import ElementTree

from plusx.data.image import UnreadableImage, printable, read_regular
from plusx.data.scene_list import SPLITS, Mark, Problem, SceneEntry, SceneList, by_stem
from plusx.errors import UserError


_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FAR = 2.0**31
_LIMIT = 64 * 2**20


def read_voc(path: str) -> SceneList:
    """Every image of the lists with its boxes. UserError where the folder has another layout."""
    shown, root = printable(path), os.path.realpath(path)
    listing = SceneList(root)
    images, notes = os.path.join(root, "JPEGImages"), os.path.join(root, "Annotations")
    for folder in (images, notes):
        if not os.path.isdir(folder):
            raise UserError(
                f"{shown} has no folder {os.path.basename(folder)}: Pascal VOC has JPEGImages, "
                "Annotations and ImageSets/Main"
            )
    pictures, annotations = by_stem(images), by_stem(notes, (".xml",))
    lists = voc_lists(root, "Main", listing.problems)
    if not lists:
        lists = {"": [(name, f"Annotations/{name}.xml") for name in annotations]}
        for name in sorted(set(pictures) - set(annotations)):
            where = printable(pictures[name], root)
            listing.problems.append(Problem(where, "no annotation"))
    for split, names in lists.items():
        for name, where in names:
            if name not in annotations:
                reason = "no such annotation" if name in pictures else "no such image"
                listing.problems.append(Problem(where, f"{printable(name)!r}: {reason}"))
            elif name not in pictures:
                said = printable(annotations[name], root)
                listing.problems.append(Problem(where, f"{said} has no image"))
            else:
                _read(listing, pictures[name], annotations[name], split)
    return listing


def voc_lists(root: str, kind: str, problems: list[Problem]) -> dict[str, list[tuple[str, str]]]:
    """The names in ImageSets/KIND by split, each with where it stands; trainval is cut later."""
    folder = os.path.join(root, "ImageSets", kind)
    found = {
        name: os.path.join(folder, f"{name}.txt")
        for name in ("train", "val", "test", "trainval")
        if os.path.isfile(os.path.join(folder, f"{name}.txt"))
    }
    if "train" in found:
        found.pop("trainval", None)
    lists: dict[str, list[tuple[str, str]]] = {}
    first: dict[str, str] = {}
    for name, path in found.items():
        split = "train" if name == "trainval" else SPLITS[name]
        text = read_regular(path, _LIMIT).decode("utf-8-sig", "surrogateescape")
        kept = lists.setdefault(split, [])
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
            kept.append((stem, where))
    return lists


def _read(listing: SceneList, picture: str, path: str, split: str) -> None:
    where = printable(path, listing.root)
    try:
        entry = _entry(picture, path, split, where)
    except (UnreadableImage, ElementTree.ParseError, OSError) as error:
        listing.problems.append(Problem(where, f"cannot be read: {error}"))
        return
    listing.entries.append(entry)


def _entry(picture: str, path: str, split: str, where: str) -> SceneEntry:
    data = read_regular(path, _LIMIT)
    if b"\0" in data or b"<!ENTITY" in data or b"<!DOCTYPE" in data:
        raise UnreadableImage("it declares entities, which an annotation has no use for")
    tree = ElementTree.fromstring(data)
    marks = []
    for number, thing in enumerate(tree.iter("object"), 1):
        box = thing.find("bndbox")
        corners = tuple(_number(None if box is None else box.findtext(name)) for name in _CORNERS)
        label = (thing.findtext("name") or "").strip()
        left, top, right, bottom = corners
        marks.append(
            Mark(
                f"{where}, object {number}",
                label,
                (left, top, right, bottom),
                crowd=(thing.findtext("difficult") or "0").strip() == "1",
            )
        )
    height, width = _number(tree.findtext("size/height")), _number(tree.findtext("size/width"))
    told = (int(height), int(width)) if 0 < height < _FAR and 0 < width < _FAR else None
    return SceneEntry(picture, split, tuple(marks), size=told, told_by=where)


def _number(text: str | None) -> float:
    """A number as it is written; not a number where none is."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
