"""Boxes and masks as COCO has them (Lin et al. 2014), in one JSON for each split.

ROOT/{train,val,test}.json or ROOT/annotations/instances_*.json, or one JSON alone. The images lie
beside it: by their file_name, or in a folder of the split's name, in images, or in images/SPLIT.
Polygons and run lengths, compressed and not, become masks.
"""

import math
import os
import re
import reprlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, ValidationError

from plusx.data.image_file import DEFAULT_LIMIT, ImageFile, UnreadableImage, printable, read_regular
from plusx.data.instance_mask import InstanceMask
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Problem,
)
from plusx.data.splits import split_of
from plusx.errors import UserError


_LIMIT = 2**31  # bytes of a JSON
_HEAD = 2**20  # bytes of it by which it is recognised
_FAR = 2.0**20  # corners further out are moved here, which changes no pixel of an image
_MOST_BITS = 60  # of a compressed run length
_NAME = re.compile(r"(?:instances_)?(train|val|valid|validation|test)(\d*)\.json")

Identity = int | str
Size = tuple[int, int]  # height and width


class _Category(BaseModel):
    id: int
    name: Annotated[str, Field(min_length=1)]


class _Image(BaseModel):
    id: Identity
    file_name: str
    height: int | None = None
    width: int | None = None


class RunLengths(BaseModel):
    size: Size
    counts: str | list[NonNegativeInt]


Polygons = list[list[FiniteFloat]]  # x and y of each corner


class _Annotation(BaseModel):
    id: Identity | None = None
    image_id: Identity
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    iscrowd: Literal[0, 1] | None = None
    segmentation: Polygons | RunLengths | None = None


class _File(BaseModel):
    images: list[Any]
    annotations: list[Any]
    categories: list[_Category]


def recognise_coco(path: str) -> str:
    """Why a path can be read by read_coco; "" where it cannot."""
    files = [path] if os.path.isfile(path) else [*json_files(path)]
    for file in files:
        if file.lower().endswith(".json") and _begins_as_coco(file):
            return f"{printable(file, path)} has COCO's images, annotations and categories"
    return ""


def _begins_as_coco(file: str) -> bool:
    """Whether a JSON has the lists of COCO, as far as its first megabyte shows."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            head = opened.read(_HEAD)
    except OSError:
        return False
    return head.lstrip().startswith(b"{") and any(
        f'"{name}"'.encode() in head for name in ("images", "annotations", "categories")
    )


def read_coco(path: str) -> AnnotationIndex:
    """Every image of the JSONs with its boxes. UserError: there are none, or not COCO's."""
    shown = printable(path)
    if os.path.isfile(path):
        files = {os.path.realpath(path): ("", "")}
        root = os.path.dirname(os.path.realpath(path))
    else:
        root = os.path.realpath(path)
        files = json_files(root)
        if not files:
            raise UserError(
                f"{shown} has no COCO JSON: looked for are train.json, val.json and test.json, or "
                "annotations/instances_*.json"
            )
    index = AnnotationIndex(root)
    names: dict[int, str] = {}
    for file, (split, folder) in files.items():
        _read_file(index, file, split, folder, names)
    index.classes = tuple(names[number] for number in sorted(names))
    return index


def json_files(root: str) -> dict[str, tuple[str, str]]:
    """Each JSON with its split and the name of the folder that its images may be in."""
    files: dict[str, tuple[str, str]] = {}
    for folder in (root, os.path.join(root, "annotations")):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            match = _NAME.fullmatch(name)
            if match:
                path, split = os.path.join(folder, name), split_of(match[1])
                if split in {other for other, _ in files.values()}:
                    raise UserError(f"{printable(path)} is a second JSON of {split}")
                files[path] = (split, match[1] + match[2])
    return files


def _read_file(
    index: AnnotationIndex, path: str, split: str, folder: str, names: dict[int, str]
) -> None:
    """Add the images of one JSON to the index, and its categories to `names`."""
    shown = printable(path, index.root)
    try:
        content = _File.model_validate_json(read_regular(path, _LIMIT))
    except ValidationError as error:
        raise UserError(f"{shown}, {_reason(error)}") from None
    categories = _categories(content.categories, shown, names)
    folders = _folders(index, path, folder)
    splits = {image.path: image.split for image in index.images}
    images: dict[Identity, AnnotatedImage | None] = {}  # None: it cannot be used
    for position, values in enumerate(content.images, 1):
        where = f"{shown}, image {_identity(values, position)}"
        try:
            image = _Image.model_validate(values)
            if image.id in images:
                raise UserError("a second image of this id")
            images[image.id] = None
            image_path, size = _image_path(image.file_name, folders, splits), None
            if image.height is not None and image.width is not None:
                size = image.height, image.width
                if min(size) < 1 or math.prod(size) > DEFAULT_LIMIT:
                    raise UserError(f"it says {image.width} x {image.height} pixels")
            splits[image_path] = split
            images[image.id] = AnnotatedImage(image_path, split, size=size, annotation=shown)
        except ValueError as error:
            index.problems.append(Problem(where, _reason(error)))
    boxes: dict[Identity, list[BoxAnnotation]] = {number: [] for number in images}
    ids: set[Identity | None] = set()
    size_in_file = cache(_size_in_file)
    for position, values in enumerate(content.annotations, 1):
        where = f"{shown}, annotation {_identity(values, position)}"
        try:
            annotation = _Annotation.model_validate(values)
            number = annotation.image_id
            if number not in images:
                raise UserError(f"image_id {number!r} is none of the images")
            annotated = images[number]
            if annotated is None:
                continue  # the problem of its image is listed
            if annotation.id is not None and annotation.id in ids:
                raise UserError("a second annotation of this id")
            ids.add(annotation.id)
            box = _box(annotation, where, categories, annotated, size_in_file)
            boxes[number].append(box)
        except ValueError as error:
            index.problems.append(Problem(where, _reason(error)))
    for number, annotated in images.items():
        if annotated is not None:
            index.images.append(replace(annotated, boxes=tuple(boxes[number])))


def _identity(values: Any, position: int) -> Any:
    """What to call an image or an annotation: its id, else where it stands in the list."""
    number = values.get("id") if isinstance(values, dict) else None
    return position if number is None else reprlib.repr(number)


def _reason(error: ValueError) -> str:
    """Why a value is wrong; of several of one object the first."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{(*first['loc'], '')[0]} {reprlib.repr(first['input'])}: {first['msg']}".strip()


def _categories(categories: list[_Category], shown: str, names: dict[int, str]) -> dict[int, str]:
    """The names of one JSON by their ids; `names` are those of the JSONs before it."""
    by_id: dict[int, str] = {}
    for category in categories:
        number, name = category.id, category.name
        if number in by_id or names.get(number, name) != name:
            other = by_id.get(number) or names[number]
            raise UserError(f"{shown}, category {number} is {name!r} and {other!r}")
        if name in by_id.values():
            raise UserError(f"{shown}: two categories are called {name!r}")
        by_id[number] = name
    if not by_id:
        raise UserError(f"{shown}: the list categories is empty")
    names.update(by_id)
    return by_id


def _folders(index: AnnotationIndex, path: str, folder: str) -> list[str]:
    """The folders that images may lie in."""
    short = folder.rstrip("0123456789")
    below = [folder, os.path.join("images", folder), "images", ""]
    below += [short, os.path.join("images", short)]
    tops = index.root, os.path.dirname(path)
    folders = [os.path.normpath(os.path.join(top, name)) for top in tops for name in below]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _image_path(name: str, folders: list[str], splits: dict[str, str]) -> str:
    """The path of an image in one of the folders or below; Windows writes \\ for /.

    UserError: there is none, or it is in `splits`, the images so far.
    """
    for relative in (name, name.replace("\\", "/")):
        if os.path.isabs(relative) or ".." in relative.split("/"):
            raise UserError(f"{printable(name)!r} leaves the folder")
        for folder in folders:
            path = os.path.normpath(os.path.join(folder, relative))
            if path in splits:
                raise UserError(f"{printable(name)!r} is in {splits[path] or 'the images'} already")
            if os.path.isfile(path):
                return path
    raise UserError(f"{printable(name)!r} is missing")


def _size_in_file(path: str) -> Size | None:
    """Height and width; None where the file cannot be used, an error that follows on decoding."""
    try:
        width, height = ImageFile(path).size
        return height, width
    except (UnreadableImage, OSError):
        return None


def _box(
    annotation: _Annotation,
    where: str,
    categories: dict[int, str],
    image: AnnotatedImage,
    size_in_file: Callable[[str], Size | None],
) -> BoxAnnotation:
    """The box of an annotation. UserError says why there is none."""
    if annotation.category_id not in categories:
        allowed = ", ".join(map(str, sorted(categories)[:20]))
        raise UserError(f"category_id {annotation.category_id} is none of {allowed}")
    mask = None
    size = image.size
    if annotation.segmentation and size is None:
        size = size_in_file(image.path)
    if annotation.segmentation and size is not None:
        try:
            mask = InstanceMask.of(segmentation_mask(annotation.segmentation, size))
        except (ValueError, LookupError) as error:
            raise UserError(f"its segmentation cannot be read: {error}") from None
    if annotation.bbox is not None:
        left, top, width, height = annotation.bbox
    elif mask is not None and mask.height:
        left, top, width, height = mask.left, mask.top, mask.width, mask.height
    else:
        raise UserError("it has no bbox and no mask")
    corners = (float(left), float(top), float(left + width), float(top + height))
    label = categories[annotation.category_id]
    return BoxAnnotation(where, label, corners, bool(annotation.iscrowd), mask)


def segmentation_mask(segmentation: Polygons | RunLengths, size: Size) -> Bool[np.ndarray, "h w"]:
    """The pixels of polygons, or of run lengths down the columns, in an image (height, width)."""
    if not isinstance(segmentation, RunLengths):
        mask = np.zeros(size, np.bool_)
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                raise UserError("a polygon has three corners or more, x and y of each")
            corners = np.array(polygon).reshape(-1, 2)
            inside = polygon_mask(corners, size)
            mask |= inside if inside.any() else _touched(corners, size)
        return mask
    height, width = segmentation.size
    if (height, width) != size:
        raise UserError(f"it is of {width} x {height} pixels, the image of {size[1]} x {size[0]}")
    counts = segmentation.counts
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"its runs are {sum(runs)} pixels long, the image has {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _touched(corners: Float64[np.ndarray, "_ 2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels under the sides of a polygon that is too thin to hold the middle of any."""
    height, width = size
    first = corners.clip(-1, (width + 1, height + 1))
    second = np.roll(first, -1, 0)
    steps = np.linspace(0, 1, 2 * math.ceil(np.abs(second - first).max()) + 2)[:, None, None]
    x, y = np.floor(first + steps * (second - first)).astype(np.int64).reshape(-1, 2).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    mask = np.zeros(size, np.bool_)
    mask[y[inside], x[inside]] = True
    return mask


def _unpacked(text: str) -> list[int]:
    """Run lengths as COCO packs them: five bits a letter, each but the first three a difference."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        number = shift = 0
        more = True
        while more:
            if shift > _MOST_BITS:
                raise UserError("a run of more than any image has")
            bits = ord(text[position]) - 48
            number |= (bits & 31) << shift
            more = bool(bits & 32)
            position, shift = position + 1, shift + 5
            if not more and bits & 16:
                number |= -1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs


def polygon_mask(
    corners: Float64[np.ndarray, "_ 2"], size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """The pixels of an image (height, width) whose middles are within a polygon of (x, y)."""
    height, width = size
    first = corners.clip(-_FAR, _FAR)
    second = np.roll(first, -1, 0)
    mask = np.zeros(size, np.bool_)
    top = max(0, int(np.floor(first[:, 1].min() - 0.5)))
    bottom = min(height, int(np.ceil(first[:, 1].max() + 0.5)))
    for row in range(top, bottom):
        y = row + 0.5
        crosses = (first[:, 1] <= y) != (second[:, 1] <= y)
        begin, end = first[crosses], second[crosses]
        slope = (end[:, 0] - begin[:, 0]) / (end[:, 1] - begin[:, 1])
        x = np.sort(begin[:, 0] + (y - begin[:, 1]) * slope)
        edges = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        for left, right in zip(edges[::2], edges[1::2]):
            mask[row, left:right] = True
    return mask
