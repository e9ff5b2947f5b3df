"""Boxes in Pascal VOC's format (Everingham et al. 2010): an XML file for each image.

ROOT/{JPEGImages,Annotations,ImageSets/Main/{train,val,test,trainval}.txt}; the first two may also
be called images and annotations; ROOT/SPLIT/{images,annotations}, or ROOT/SPLIT with images and XML
files in one folder. Without lists, every image that has an annotation is used. Boxes marked as
difficult are ignored.
"""

import math
import os
import re
from itertools import product
from xml.etree import ElementTree

from plusx.data.image_file import ENDINGS, UnreadableInput, printable, read_regular
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Problem,
    by_stem,
    first_file,
)
from plusx.data.readers.listing import class_name, file_problem
from plusx.data.readers.text_file import decoded, encoding_of
from plusx.data.splits import SPLIT_NAMES, split_of
from plusx.errors import UserError


_IMAGES = ("JPEGImages", "images", "image", "imgs")
_ANNOTATIONS = ("Annotations", "annotations", "annotation", "xmls", "labels")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)[\"']")
# files that declare the first encoding are often in the second, a superset of it
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "ascii": "utf-8"}
_FAR = 2.0**31
_LIMIT = 64 * 2**20


def recognise_voc(path: str) -> str:
    """Return why read_voc can read a path, or ""."""
    for _, images, notes in _folders(path):
        if first_file(notes, (".xml",)):
            return f"images in {printable(images, path)} and XML files in {printable(notes, path)}"
    return ""


def read_voc(path: str) -> AnnotationIndex:
    """Read every image of the lists with its boxes. Raises UserError for another layout."""
    shown, root = printable(path), os.path.realpath(path)
    index = AnnotationIndex(root)
    folders = _folders(root)
    if not folders:
        raise UserError(
            f"{shown} has no images with XML files: expected are JPEGImages and Annotations (with "
            "ImageSets/Main), images and annotations, the same in train, val and test, or both in "
            "one folder"
        )
    lists = voc_lists(root, "Main", index.problems)
    for split, image_folder, annotation_folder in folders:
        images, annotations = by_stem(image_folder), by_stem(annotation_folder, (".xml",))
        lists_here = lists if lists and not split else {}
        if not lists_here:
            names = [(name, printable(path, root)) for name, path in annotations.items()]
            lists_here = {split: names}
            for name in sorted(set(images) - set(annotations)):
                index.problems.append(Problem(printable(images[name], root), "no annotation"))
        for list_split, names in lists_here.items():
            for name, where in names:
                if name not in annotations:
                    reason = "no such annotation" if name in images else "no such image"
                    index.problems.append(Problem(where, f"{printable(name)!r}: {reason}"))
                elif name not in images:
                    annotation = printable(annotations[name], root)
                    index.problems.append(Problem(where, f"{annotation} has no image"))
                else:
                    _read(index, images[name], annotations[name], list_split)
    return index


def _folders(root: str) -> list[tuple[str, str, str]]:
    """Return the folders of images and of annotations, each pair after its split or ""."""
    candidates = [("", images, notes) for images, notes in product(_IMAGES, _ANNOTATIONS)]
    for name, split in SPLIT_NAMES.items():
        for images, notes in product(_IMAGES, _ANNOTATIONS):
            candidates.append((split, os.path.join(name, images), os.path.join(name, notes)))
            candidates.append((split, os.path.join(images, name), os.path.join(notes, name)))
        candidates.append((split, name, name))
    candidates.append(("", ".", "."))
    folders: list[tuple[str, str, str]] = []
    for split, *names in candidates:
        images, notes = (os.path.normpath(os.path.join(root, name)) for name in names)
        xmls = os.path.join(notes, "xmls")
        notes = xmls if os.path.isdir(xmls) else notes
        used = any(split == other or not other for other, _, _ in folders)
        if not used and os.path.isdir(images) and os.path.isdir(notes):
            usual = os.path.basename(images) == "JPEGImages"
            if _has_xml(notes) or (usual and images != notes):
                folders.append((split, images, notes))
    return folders


def _has_xml(folder: str) -> bool:
    return any(name.lower().endswith(".xml") for name in os.listdir(folder))


def voc_lists(root: str, kind: str, problems: list[Problem]) -> dict[str, list[tuple[str, str]]]:
    """Return the names in ImageSets/KIND by split with their positions; trainval is split later."""
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
        text = decoded(read_regular(path, _LIMIT))
        names = lists.setdefault(split, [])
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            # a list of one class has 1 or -1 after each name; some programs write paths
            name = words[0] if len(words) > 1 and words[-1] in ("1", "-1", "0") else line.strip()
            stem = _without_ending(name)
            where = f"{printable(path, root)}, row {number}"
            if stem in first:
                problems.append(Problem(where, f"{printable(stem)!r} repeats {first[stem]}"))
                continue
            first[stem] = where
            names.append((stem, where))
    return lists


def _without_ending(name: str) -> str:
    """Return the name of an image from a line of a list, which may be a file name or a path."""
    stem, ending = os.path.splitext(name)
    if ending.lower() not in (*ENDINGS, ".xml"):
        return name
    return re.sub(
        rf"^(?:.*/)?(?:{'|'.join((*_IMAGES, *_ANNOTATIONS))})/", "", stem.replace("\\", "/")
    )


def _read(index: AnnotationIndex, image_path: str, path: str, split: str) -> None:
    where = printable(path, index.root)
    if (reason := file_problem(path, index.root)) is not None:
        index.problems.append(Problem(where, reason))
        return
    try:
        entry = _entry(image_path, path, split, where)
    except (ValueError, LookupError, ElementTree.ParseError, OSError) as error:
        index.problems.append(Problem(where, f"cannot be read: {error}"))
        return
    index.images.append(entry)


def _entry(image_path: str, path: str, split: str, where: str) -> AnnotatedImage:
    text = _decoded(read_regular(path, _LIMIT))
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise UnreadableInput("it declares entities, which annotations do not need")
    tree = ElementTree.fromstring(text)
    boxes = []
    for element in tree.iter():  # some programs write a namespace, or other capitals
        element.tag = element.tag.rpartition("}")[2].casefold()
    objects = list(tree.iter("object"))
    if not objects and tree.tag != "annotation":
        raise UnreadableInput(
            f"its root is <{printable(tree.tag[:40])}> and it has no <object>: <annotation>, with "
            "an <object> for each box, is expected"
        )
    in_objects = sum(len(list(element.iter("bndbox"))) for element in objects)
    if len(list(tree.iter("bndbox"))) > in_objects:
        raise UnreadableInput("it has a <bndbox> outside of any <object>")
    for number, element in enumerate(objects, 1):
        box = element.find("bndbox")
        corners = tuple(_number(None if box is None else box.findtext(name)) for name in _CORNERS)
        label = class_name(element.findtext("name") or "")
        left, top, right, bottom = corners
        if right > left and bottom > top:  # pixels count from 1, and the last one is inside
            left, top = left - 1, top - 1
        boxes.append(
            BoxAnnotation(
                f"{where}, object {number}",
                label,
                (left, top, right, bottom),
                crowd=(element.findtext("difficult") or "0").strip() == "1",
            )
        )
    height, width = _number(tree.findtext("size/height")), _number(tree.findtext("size/width"))
    size = (int(height), int(width)) if 0 < height < _FAR and 0 < width < _FAR else None
    return AnnotatedImage(image_path, split, tuple(boxes), size=size, annotation=where)


def _decoded(data: bytes) -> str:
    """Decode an XML file by its byte order mark or the encoding that it declares.

    Raises LookupError or ValueError if the encoding is unknown or wrong.
    """
    encoding = encoding_of(data)
    if encoding == "utf-8-sig":
        declared = _DECLARED.match(data.removeprefix(b"\xef\xbb\xbf"))
        name = declared[1].decode("ascii") if declared else "utf-8"
        encoding = _SUPERSETS.get(name.lower(), "utf-8-sig" if name.lower() == "utf-8" else name)
    return data.decode(encoding)


def _number(text: str | None) -> float:
    """Return a number as written, NaN if there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
