"""Boxes in YOLO's format: a text file for each image, with a line for each box or polygon.

A line is `class x y width height`, the centre and the sides of a box, or `class x1 y1 x2 y2 ...`,
the corners of a polygon, as fractions of the image. ROOT/data.yaml (any .yaml that has names) has
the class names and the locations of the images of train, val and test. Without it, these are
ROOT/images/{train,val,test} or ROOT/{train,val,test}/images, and the names are in classes.txt or a
.names file. The labels of .../images/.../NAME.jpg are in .../labels/.../NAME.txt, or in NAME.txt
beside it. An image with an empty label file has no boxes.
"""

import os
import re
import reprlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from plusx.data.image_file import ENDINGS, UnreadableInput, printable, read_regular
from plusx.data.instance_mask import InstanceMask
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Problem,
    Size,
    by_stem,
)
from plusx.data.readers.coco import segmentation_mask
from plusx.data.readers.listing import class_name, file_problem
from plusx.data.readers.text_file import beginning, decoded
from plusx.data.readers.verdicts import listed
from plusx.data.splits import SPLIT_NAMES
from plusx.errors import UserError


_LIMIT = 2**20  # bytes of data.yaml
_LABEL_LIMIT = 64 * 2**20  # bytes of a label file, and of a list of images
_TOLERANCE = 0.01  # by which fractions may be outside 0 to 1, because of rounding
_KEY = re.compile(r"^([\s{,]*)[\"']?(names|nc|train|val|test|<<)[\"']?\s*:", re.MULTILINE)
_YAML = (".yaml", ".yml")
_CLASSES, _SPLITS = {"names", "nc"}, {"train", "val", "test"}
_MAX_CLASSES = 100_000
_IMAGES = ("images", "obj_train_data", "data")
_NUMBER = re.compile(rb"\s*\d+(\.0+)?(\s+[-+.\deE]+){4,}\s*")


def recognise_yolo(path: str) -> str:
    """Return why read_yolo can read a path, or ""."""
    descriptions = [path] if os.path.isfile(path) else _descriptions(path)
    for file in descriptions:
        if file.lower().endswith(_YAML) and _is_description(file):
            return f"{printable(file, path)} has class names and images, in YOLO's format"
    for _, folder in _image_folders(path):
        if label := _first_label(folder):
            return f"images in {printable(folder, path)}, YOLO labels {printable(label, path)}"
    return ""


def read_yolo(path: str) -> AnnotationIndex:
    """Read every image with its boxes.

    Raises UserError if there are no images or no labels, or data.yaml is invalid.
    """
    shown, real = printable(path), os.path.realpath(path)
    if os.path.isfile(real):
        root, description, others = os.path.dirname(real), real, []
    elif os.path.isdir(real):
        root = real
        descriptions = [name for name in _descriptions(real) if _is_description(name)]
        if len(descriptions) > 1:
            several = ", ".join(printable(name, root) for name in descriptions)
            raise UserError(f"{shown} has several YAML files ({several}): give the path of one")
        description = descriptions[0] if descriptions else ""
        others = [name for name in _descriptions(real) if name not in descriptions]
    else:
        raise UserError(f"{shown} is missing")
    index = AnnotationIndex(root)
    for name in others:
        reason = "has none of the keys names, nc, train, val and test of a description"
        if _is_usual(name):
            raise UserError(f"{printable(name, root)} {reason}: add them, or remove the file")
        index.warnings.append(f"{printable(name, root)} is not read: it {reason}")
    content = _content(description, root) if description else {}
    names = _names(content, root, printable(description, root))
    if description and "names" not in content and not _listed_names(root):
        index.warnings.append(
            f"{printable(description, root)} has no class names: classes are named by their numbers"
        )
    images = list(_listed_images(content, root)) or [
        (split, image)
        for split, folder in _image_folders(root)
        for image in by_stem(folder).values()
    ]
    if not images:
        raise UserError(
            f"{shown} has no images: expected are those listed in data.yaml, images/train or "
            "train/images (and val, test), or images"
        )
    _read_labels(index, images, names, shown)
    return index


def _descriptions(root: str) -> list[str]:
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    return [os.path.join(root, n) for n in names if n.lower().endswith(_YAML) and n[0] != "."]


def _is_description(path: str) -> bool:
    """Whether a YAML file has the keys of a data.yaml; in a file of that name one is enough."""
    keys = _KEY.findall(beginning(path, _LIMIT))
    merges = any(key == "<<" for _, key in keys)  # then nested keys count too
    names = {key for before, key in keys if merges or "{" in before or not before.strip("\n")}
    return bool(names) if _is_usual(path) else bool(names & _CLASSES and names & _SPLITS)


def _is_usual(path: str) -> bool:
    """Whether a file has the name of a description, data.yaml."""
    return os.path.splitext(os.path.basename(path))[0].lower() in ("data", "dataset")


def _content(path: str, root: str) -> dict[str, Any]:
    import yaml  # only for this layout

    shown = printable(path, root)
    try:
        text = decoded(read_regular(path, _LIMIT))
        content = yaml.safe_load(re.sub(r":[ \t]*\t[ \t]*", ": ", text))  # PyYAML refuses tabs
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        raise UserError(f"{shown}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{shown} has no keys: names, train and val are expected")
    return content


def _names(content: dict[str, Any], root: str, shown: str) -> tuple[str, ...]:
    """Return the names of the classes in order; () if they are not defined."""
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(
                f"{shown}: names have the numbers {', '.join(map(printable, map(str, names)))}, "
                f"not 0 to {len(names) - 1} without gaps"
            )
        names = [names[number] for number in range(len(names))]
    if names is not None and not isinstance(names, list):
        raise UserError(f"{shown}: names is {type(names).__name__}, not a list")
    for name in names or ():
        if type(name) not in (str, int):  # YAML reads no, on and 1.10 as something else
            raise UserError(f"{shown}: the name {reprlib.repr(name)} is not text: put it in quotes")
    count = content.get("nc")
    if names is not None and count is not None and count != len(names):
        raise UserError(f"{shown}: nc is {reprlib.repr(count)}, but there are {len(names)} names")
    if names is None:
        names = _listed_names(root)
        if not names and type(count) is int and 0 < count <= _MAX_CLASSES:
            names = list(range(count))
    classes = tuple(class_name(str(name)) for name in names)
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise UserError(f"{shown}: the class {twice[0]!r} is listed twice")
    return classes


def _listed_names(root: str) -> list[str]:
    """Return the lines of classes.txt, in the root or in labels, or of the first .names file."""
    candidates = [
        os.path.join(root, *part) for part in (("classes.txt",), ("labels", "classes.txt"))
    ]
    candidates += [os.path.join(root, n) for n in sorted(os.listdir(root)) if n.endswith(".names")]
    for path in candidates:
        if os.path.isfile(path):
            return [line.strip() for line in _lines(path) if line.strip()]
    return []


def _lines(path: str) -> list[str]:
    try:
        return decoded(read_regular(path, _LABEL_LIMIT)).splitlines()
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"not text: {error}") from None


def _listed_images(content: dict[str, Any], root: str) -> Iterator[tuple[str, str]]:
    """Yield the splits and paths of the images listed in a data.yaml."""
    first: dict[str, str] = {}
    for name, split in SPLIT_NAMES.items():
        entries = content.get(name)
        for entry in entries if isinstance(entries, list) else [entries]:
            if not entry:
                continue
            if not isinstance(entry, str):
                raise UserError(f"{name}: {reprlib.repr(entry)} is not a path")
            folder = content.get("path")
            path = _below(entry, folder if isinstance(folder, str) else "", root)
            if path is None:
                raise UserError(f"{name}: {printable(entry)!r} is not below {printable(root)}")
            images = by_stem(path).values() if os.path.isdir(path) else _image_list(path, root)
            for image in images:
                if first.setdefault(image, split) == split:
                    yield split, image
                else:
                    raise UserError(f"{printable(image, root)} is in {first[image]} and in {split}")


def _below(entry: str, folder: str, root: str) -> str | None:
    """Return the existing path below the root for a path in a data.yaml, or None.

    Absolute paths of other machines, and paths with .., are matched by their last components.
    """
    entry = entry.replace("\\", "/")
    for text in (f"{folder}/{entry}", entry):
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        for begin in range(len(parts)):
            path = os.path.join(root, *parts[begin:])
            if os.path.exists(path):
                return path
    return None


def _image_list(path: str, root: str) -> Iterator[str]:
    """Yield the images of a list with one path per line."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            image = _below(line.strip(), "", root)
            if image is None or not os.path.isfile(image):
                where = f"{printable(path, root)}, line {number}"
                raise UserError(f"{where}: {printable(line.strip())!r} is missing")
            yield image


def _image_folders(root: str) -> Iterator[tuple[str, str]]:
    """Yield the usual folders of images with their splits."""
    names = {name.lower(): name for name in os.listdir(root)} if os.path.isdir(root) else {}
    splits = [(name, split) for name, split in SPLIT_NAMES.items() if name in names]
    candidates: list[tuple[str, tuple[str, ...]]] = []
    candidates += [(split, (names[name], "images")) for name, split in splits]
    candidates += [(split, ("images", name)) for name, split in SPLIT_NAMES.items()]
    candidates += [(split, (names[name],)) for name, split in splits]
    candidates += [("", (name,)) for name in _IMAGES]
    candidates.append(("", ()))
    divided = False
    for split, parts in candidates:
        folder = os.path.join(root, *parts)
        if divided and (not split or len(parts) == 1):
            return
        if os.path.isdir(folder) and _has_images(folder):
            divided = True
            yield split, folder
            if not split:
                return


def _has_images(folder: str) -> bool:
    return any(name.lower().endswith(ENDINGS) for name in os.listdir(folder))


def _first_label(folder: str) -> str:
    """Return the first label file for the images in a folder, or ""."""
    for name in sorted(os.listdir(folder)):
        path = _label_path(os.path.join(folder, name))
        if name.lower().endswith(ENDINGS) and os.path.isfile(path):
            with open(path, "rb") as file:
                line = file.readline(4096)
            return path if not line.strip() or _NUMBER.fullmatch(line) else ""
    return ""


def _label_path(image: str) -> str:
    """Return the label file of an image: in labels, if it is in images, or beside it."""
    stem = os.path.splitext(image)[0]
    before, images, after = stem.rpartition(f"{os.sep}images{os.sep}")
    path = f"{before}{os.sep}labels{os.sep}{after}.txt"
    return path if images and os.path.isfile(path) else f"{stem}.txt"


def _read_labels(
    index: AnnotationIndex, images: list[tuple[str, str]], names: tuple[str, ...], shown: str
) -> None:
    """Add images with their boxes, and the classes, to the index."""
    missing: list[str] = []
    highest = -1
    for split, image in images:
        path, boxes = _label_path(image), []
        where = printable(path, index.root)
        if not os.path.isfile(path):
            missing.append(printable(image, index.root))
            where = ""
        else:
            if (reason := file_problem(path, index.root)) is not None:
                index.problems.append(Problem(where, reason))
                continue
            try:
                lines = _lines(path)
            except (UnreadableInput, OSError) as error:
                index.problems.append(Problem(where, f"cannot be read: {error}"))
                continue
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                line_name = f"{where}, line {number}"
                try:
                    label, box = _box(line, names, line_name)
                except UserError as error:
                    index.problems.append(Problem(line_name, str(error)))
                    continue
                highest = max(highest, label)
                boxes.append(box)
        index.images.append(
            AnnotatedImage(image, split, tuple(boxes), annotation=where, normalised=True)
        )
    if len(missing) == len(images):
        raise UserError(
            f"{shown} has no label files: expected are labels/.../NAME.txt or NAME.txt beside the "
            f"images, such as {printable(_label_path(images[0][1]), index.root)}"
        )
    if missing:
        count = "1 image has" if len(missing) == 1 else f"{len(missing):,} images have"
        index.warnings.append(f"{count} no label file and no boxes: {listed(missing)}")
    index.classes = names or tuple(map(str, range(highest + 1)))


def _box(line: str, names: tuple[str, ...], where: str) -> tuple[int, BoxAnnotation]:
    """Return the class and the box of a line. Raises UserError."""
    words = line.split()
    try:
        number, *values = (float(word) for word in words)
    except ValueError:
        raise UserError(f"{printable(line.strip()[:40])!r} is not a class and numbers") from None
    count = len(values)
    if count != 4 and (count < 6 or count % 2):
        raise UserError(
            f"{len(words)} numbers: a class with x, y, width and height, or with the x and y of "
            "three corners or more, is expected"
        )
    if not number.is_integer() or number < 0:
        raise UserError(f"the class {words[0]!r} is not an integer from 0")
    if names and number >= len(names):
        valid = f"0 to {len(names) - 1} ({', '.join(names[:10])}{', ...' * (len(names) > 10)})"
        raise UserError(f"the class {int(number)} is not one of {valid}")
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        raise UserError(
            f"{' '.join(words[1:5])}{' ...' * (count > 4)} are not from 0 to 1: fractions of the "
            "image are expected, not pixels"
        )
    mask = None
    if count == 4:
        x, y, width, height = values
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        corners = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        mask = partial(_mask, tuple(values))
    label = names[int(number)] if names else str(int(number))
    return int(number), BoxAnnotation(where, label, corners, mask=mask)


def _mask(polygon: tuple[float, ...], size: Size) -> InstanceMask:
    """Return the mask of a polygon with corners as fractions of the image."""
    height, width = size
    corners = np.array(polygon) * ([width, height] * (len(polygon) // 2))
    return InstanceMask.of(segmentation_mask([corners.tolist()], size))
