"""Boxes and masks in COCO's format (Lin et al. 2014), one JSON per split.

ROOT/{train,val,test}.json, ROOT/annotations/instances_*.json (CVAT: instances_default.json),
ROOT/{train,valid,test}/_annotations.coco.json (Roboflow), ROOT/labels.json (FiftyOne), or a single
JSON. Images are searched beside the JSON and beside its folder: by their file_name, also in a
folder with the split's name, in images, data or images/SPLIT. Polygons and run lengths, compressed
or not, become masks.
"""

import codecs
import math
import os
import re
import reprlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from plusx.data.image_file import (
    DEFAULT_LIMIT,
    ENDINGS,
    ImageFile,
    UnreadableInput,
    printable,
    read_regular,
)
from plusx.data.instance_mask import InstanceMask
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Identity,
    Problem,
    Size,
)
from plusx.data.readers.listing import class_name, file_problem
from plusx.data.readers.text_file import beginning, decoded, encoding_of
from plusx.data.splits import SPLIT_NAMES, split_of
from plusx.errors import UserError


_LIMIT = 2**31  # bytes of a JSON
_HEAD = 2**20  # bytes of it that are read to recognise it
_FAR = 2.0**20  # corners beyond this are clipped to it, which changes no pixel of an image
_MAX_BITS = 60  # of a compressed run length
_MAX_JSONS = 20  # folders with more have one JSON per image, and are not COCO
_WORDS = "|".join(sorted(SPLIT_NAMES, reverse=True))
_SPLIT = re.compile(rf"(?<![a-z])({_WORDS})(\d*)(?![a-z])", re.IGNORECASE)
_NAME = re.compile(rf"(instances_)?({_WORDS})\d*\.json")
_KEYS = ('"images"', '"annotations"', '"categories"')
_OTHER_KINDS = ("panoptic_", "captions_", "person_keypoints_", "stuff_", "image_info_")
_ANNOTATIONS = ("annotations", "annotation", "labels")  # folders of JSONs, beside those of images
_IMAGES = ("images", "data")


# what is expected of a field, for messages
_IDENTITY = "a whole number or text"
_EXPECTED = {
    "images": "a list",
    "annotations": "a list",
    "categories": "a list of objects with id and name",
    "id": _IDENTITY,
    "image_id": _IDENTITY,
    "category_id": _IDENTITY,
    "name": "text of at least one letter",
    "file_name": "text",
    "height": "a whole number",
    "width": "a whole number",
    "bbox": "four numbers (left, top, width and height)",
    "iscrowd": "0 or 1",
}


class _Category(BaseModel):
    id: Identity
    name: Annotated[str, Field(min_length=1)]
    supercategory: Any = None


class _Image(BaseModel):
    id: Identity
    file_name: str
    height: int | None = None
    width: int | None = None


class RunLengths(BaseModel):
    size: Size
    counts: str | list[NonNegativeInt]


Polygons = list[list[FiniteFloat]]  # x and y of each corner


_SEGMENTATION: TypeAdapter[Polygons | RunLengths] = TypeAdapter(Polygons | RunLengths)


class _Annotation(BaseModel):
    id: Identity | None = None
    image_id: Identity
    category_id: Identity
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    iscrowd: Literal[0, 1] | None = None
    segmentation: Any = None  # validated where masks are wanted


class _File(BaseModel):
    images: list[Any]
    annotations: list[Any]
    categories: list[_Category]


def recognise_coco(path: str) -> str:
    """Return why read_coco can read a path, or ""; only the beginning of JSONs is read."""
    is_json = os.path.isfile(path) and path.lower().endswith(".json")
    for file in [path] if is_json else (name for name, _ in _jsons(path)):
        if _has_keys(file):
            return f"{printable(file, path)} has COCO's images, annotations and categories"
    return ""


def read_coco(path: str) -> AnnotationIndex:
    """Read every image of the JSONs with its boxes. Raises UserError for other files."""
    shown, real = printable(path), os.path.realpath(path)
    warnings: list[str] = []
    if os.path.isfile(real):
        root = _root_of(real)
        files = {real: ""}
    else:
        root = real
        files, warnings = _files(root, shown)
    index = AnnotationIndex(root, warnings=warnings)
    categories: dict[Identity, _Category] = {}
    for file, split in files.items():
        _read_file(index, file, split, categories)
    _leave_out_supercategory(index, categories)
    ids = sorted(categories, key=lambda number: (isinstance(number, str), number))
    index.classes = tuple(categories[number].name for number in ids)
    index.category_ids = tuple(categories[number].id for number in ids)
    return index


def _leave_out_supercategory(index: AnnotationIndex, categories: dict[Identity, _Category]) -> None:
    """Remove the category that Roboflow adds as the supercategory of all others."""
    labels = {box.label for image in index.images for box in image.boxes}
    for number, category in list(categories.items()):
        others = [other for key, other in categories.items() if key != number]
        parents = {class_name(str(other.supercategory)) for other in others}
        if category.name not in labels and parents == {category.name}:
            del categories[number]
            index.warnings.append(
                f"the category {category.name!r} is not a class: it is the supercategory of the "
                "others, and no box has it"
            )


def _json_bytes(data: bytes) -> bytes:
    """Return a JSON in UTF-8 without a byte order mark."""
    if encoding_of(data) == "utf-8-sig":
        return data.removeprefix(codecs.BOM_UTF8)
    return decoded(data).encode("utf-8", "replace")


def _root_of(path: str) -> str:
    """Return the folder that contains the images of one JSON: its own, or the one above."""
    folder = os.path.dirname(path)
    above = os.path.dirname(folder)
    if os.path.basename(folder).lower() in _ANNOTATIONS:
        return above
    beside = any(
        name in _IMAGES or split_of(name) or name.lower().endswith(ENDINGS)
        for name in os.listdir(folder)
    )
    return folder if beside or not os.path.isdir(os.path.join(above, "images")) else above


def _jsons(root: str) -> Iterator[tuple[str, str]]:
    """Yield each COCO JSON in the usual places below a root with its split, or ""."""
    if not os.path.isdir(root):
        return
    folders = [name for name in sorted(os.listdir(root)) if not name.startswith(".")]
    below = [name for name in folders if name.lower() in _ANNOTATIONS or split_of(name)]
    for name in ("", *below):
        folder = os.path.join(root, name)
        files = [] if not os.path.isdir(folder) else sorted(os.listdir(folder))
        files = [f for f in files if f.lower().endswith(".json") and not f.startswith(".")]
        files = [f for f in files if f.startswith("instances")] or [
            f for f in files if not f.startswith(_OTHER_KINDS)
        ] or files  # fmt: skip
        for file in files:
            path, match = os.path.join(folder, file), _SPLIT.search(file)
            split = split_of(match[1] if match else name)
            usual = _NAME.fullmatch(file) is not None
            if usual or ((match or len(files) <= _MAX_JSONS) and _has_keys(path)):
                yield path, split


def _has_keys(path: str) -> bool:
    """Whether the beginning of a JSON has one of COCO's lists."""
    head = beginning(path, _HEAD)
    return any(key in head for key in _KEYS)


def _files(root: str, shown: str) -> tuple[dict[str, str], list[str]]:
    """Return the JSONs to read with their splits, and warnings about others."""
    jsons = list(_jsons(root))
    divided = {path: split for path, split in jsons if split}
    others = [path for path, split in jsons if not split]
    if not divided and len(others) == 1:
        return {others[0]: ""}, []
    names = ", ".join(printable(path, root) for path in others[:5])
    if not divided:
        if others:
            raise UserError(
                f"{shown} has {len(others)} COCO JSONs, none named after a split ({names}): give "
                "the path of one of them, or name them train.json, val.json and test.json"
            )
        raise UserError(
            f"{shown} has no COCO JSON: expected are train.json, val.json and test.json, the same "
            "or instances_*.json in annotations, _annotations.coco.json in train, valid and test, "
            "or labels.json"
        )
    first: dict[str, str] = {}
    for path, split in divided.items():
        if (other := first.setdefault(split, path)) != path:
            raise UserError(
                f"{printable(path)} is a second JSON of {split}, beside {printable(other, root)}"
            )
    return divided, [f"not read, because it belongs to no split: {names}"] if others else []


def _read_file(
    index: AnnotationIndex, path: str, split: str, categories: dict[Identity, _Category]
) -> None:
    """Add the images of one JSON to the index, and its categories to those of the others."""
    shown = printable(path, index.root)
    if (problem := file_problem(path, index.root)) is not None:
        raise UserError(f"{shown}: {problem}")
    try:
        content = _File.model_validate_json(_json_bytes(read_regular(path, _LIMIT)))
    except ValidationError as error:
        raise UserError(f"{shown}: {_reason(error)}") from None
    if any(
        isinstance(values, dict) and "segments_info" in values for values in content.annotations
    ):
        raise UserError(
            f"{shown} is a panoptic JSON, with segments in PNGs, which is not supported: give a "
            "JSON of instances"
        )
    names = _categories(content.categories, shown, categories)
    folders = _folders(index, path)
    splits = {image.path: image.split for image in index.images}
    images: dict[Identity, AnnotatedImage | None] = {}  # None: it cannot be used
    for position, values in enumerate(content.images, 1):
        where = f"{shown}, image {_identity(values, position)}"
        try:
            image = _Image.model_validate(values)
            number = _number(image.id)
            if number in images:
                raise UserError("its id is used twice")
            images[number] = None
            image_path, size = _image_path(image.file_name, folders, splits, index.root), None
            if image.height is not None and image.width is not None:
                size = image.height, image.width
                if min(size) < 1 or math.prod(size) > DEFAULT_LIMIT:
                    raise UserError(f"it states {image.width} x {image.height} pixels")
            splits[image_path] = split
            images[number] = AnnotatedImage(
                image_path, split, size=size, annotation=shown, id=image.id
            )
        except ValueError as error:
            index.problems.append(Problem(where, _reason(error)))
    boxes: dict[Identity, list[BoxAnnotation]] = {number: [] for number in images}
    ids: set[Identity | None] = set()
    for position, values in enumerate(content.annotations, 1):
        where = f"{shown}, annotation {_identity(values, position)}"
        try:
            annotation = _Annotation.model_validate(values)
            number = _number(annotation.image_id)
            if number not in images:
                raise UserError(f"image_id {annotation.image_id!r} is not an image of this JSON")
            annotated = images[number]
            if annotated is None:
                continue  # the problem of its image is listed
            if annotation.id is not None and annotation.id in ids:
                raise UserError("its id is used twice")
            ids.add(annotation.id)
            boxes[number].append(_box(annotation, where, names, annotated))
        except ValueError as error:
            index.problems.append(Problem(where, _reason(error)))
    for number, annotated in images.items():
        if annotated is not None:
            index.images.append(replace(annotated, boxes=tuple(boxes[number])))


def _number(identity: Identity) -> Identity:
    """Return an id for look-ups: "7" becomes 7, since some programs mix text and numbers."""
    is_number = isinstance(identity, str) and identity.isdecimal() and identity.isascii()
    return int(identity) if is_number and str(int(identity)) == identity else identity


def _identity(values: Any, position: int) -> Any:
    """Return the name of an image or annotation: its id, or else its position in the list."""
    number = values.get("id") if isinstance(values, dict) else None
    return position if number is None else reprlib.repr(number)


def _reason(error: ValueError) -> str:
    """Return the message of an error, of a validation error the first of several."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"it is not JSON, or truncated: {first['ctx']['error']}"
    fields = [name for name in first["loc"] if name in _EXPECTED]
    items = [f"{fields[0]}, item {at + 1}: " for at in first["loc"] if isinstance(at, int)]
    where = items[0] if len(fields) > 1 and items else ""
    given = reprlib.repr(first["input"])
    if not fields:
        return f"it is {given}, not a JSON object"
    field = str(fields[-1])
    is_missing = first["type"] == "missing"
    if is_missing and first["loc"][-1] == field:
        return f"{where}{field} is missing"
    is_item = field == "bbox" and isinstance(first["loc"][-1], int) and not is_missing
    verb = "has" if is_item else "is"
    return f"{where}{field} {verb} {given}, not {_EXPECTED[field]}"


def _categories(
    categories: list[_Category], shown: str, others: dict[Identity, _Category]
) -> dict[Identity, str]:
    """Return the class names of a JSON by id; its categories are added to `others`."""
    by_id: dict[Identity, str] = {}
    for category in categories:
        number, name = _number(category.id), class_name(category.name)
        other = by_id.get(number) or (others[number].name if number in others else name)
        if number in by_id or other != name:
            raise UserError(
                f"{shown}, category {number} is {name!r} and {other!r}: ids must be unique"
            )
        if name in by_id.values():
            raise UserError(f"{shown}: two categories are named {name!r}")
        by_id[number] = name
        others[number] = category.model_copy(update={"name": name})
    if not by_id:
        raise UserError(f"{shown}: the list categories is empty")
    return by_id


def _folders(index: AnnotationIndex, path: str) -> list[str]:
    """Return the existing folders that may contain the images."""
    match = _SPLIT.search(os.path.basename(path))
    splits = [match[1] + match[2], match[1]] if match else []
    below = ["", *_IMAGES]
    for split in splits:
        below += [split, os.path.join("images", split), os.path.join(split, "images")]
    tops = os.path.dirname(path), index.root
    folders = [os.path.normpath(os.path.join(top, name)) for top in tops for name in below]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _image_path(name: str, folders: list[str], splits: dict[str, str], root: str) -> str:
    """Return the path of an image in one of the folders or below; backslashes are tried as slashes.

    Raises UserError if there is none, or it is in `splits`, the images so far.
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
    below = ", ".join(printable(folder, root) for folder in folders if folder != root)
    where = f"beside the JSON and in {below}" if below else "beside the JSON"
    raise UserError(f"{printable(name)!r} is missing: looked for {where}")


def _size_in_file(path: str) -> Size | None:
    """Return height and width; None if the file is unreadable, which decoding reports."""
    try:
        width, height = ImageFile(path).size
        return height, width
    except (UnreadableInput, OSError):
        return None


def _box(
    annotation: _Annotation, where: str, names: dict[Identity, str], image: AnnotatedImage
) -> BoxAnnotation:
    """Return the box of an annotation. Raises UserError if it is invalid."""
    number = _number(annotation.category_id)
    if number not in names:
        allowed = ", ".join(map(str, list(names)[:20]))
        raise UserError(f"category_id {annotation.category_id!r} is not one of {allowed}")
    mask = partial(_mask, annotation.segmentation) if annotation.segmentation else None
    if annotation.bbox is not None:
        left, top, width, height = annotation.bbox
    else:
        size = image.size or _size_in_file(image.path)
        drawn = None if mask is None or size is None else mask(size)
        if drawn is None or not drawn.height:
            raise UserError("it has no bbox and no mask")
        left, top, width, height = drawn.left, drawn.top, drawn.width, drawn.height
    corners = (float(left), float(top), float(left + width), float(top + height))
    return BoxAnnotation(where, names[number], corners, bool(annotation.iscrowd), mask)


def _mask(segmentation: Any, size: Size) -> InstanceMask:
    """Return the mask of polygons or run lengths. Raises UserError if they are invalid."""
    try:
        outline = _SEGMENTATION.validate_python(segmentation)
        return InstanceMask.of(segmentation_mask(outline, size))
    except ValidationError:
        raise UserError(
            f"its segmentation is {reprlib.repr(segmentation)}, not polygons [[x, y, x, y, ...]] "
            'or run lengths {"size": [height, width], "counts": ...}'
        ) from None
    except LookupError:
        raise UserError("its segmentation cannot be read: its run lengths are truncated") from None
    except ValueError as error:
        raise UserError(f"its segmentation cannot be read: {error}") from None


def segmentation_mask(segmentation: Polygons | RunLengths, size: Size) -> Bool[np.ndarray, "h w"]:
    """Draw polygons, or run lengths down the columns, in an image (height, width)."""
    if not isinstance(segmentation, RunLengths):
        mask = np.zeros(size, np.bool_)
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                raise UserError("a polygon needs three corners or more, each with x and y")
            corners = np.array(polygon).reshape(-1, 2)
            inside = polygon_mask(corners, size)
            mask |= inside if inside.any() else _touched(corners, size)
        return mask
    height, width = segmentation.size
    if (height, width) != size:
        raise UserError(f"it has {width} x {height} pixels, the image {size[1]} x {size[0]}")
    counts = segmentation.counts
    runs = _decoded_runs(counts) if isinstance(counts, str) else counts
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"its runs have {sum(runs)} pixels, the image {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _touched(corners: Float64[np.ndarray, "_ 2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels under the sides of a polygon that is too thin to contain pixel centres."""
    height, width = size
    first = corners.clip(-1, (width + 1, height + 1))
    second = np.roll(first, -1, 0)
    steps = np.linspace(0, 1, 2 * math.ceil(np.abs(second - first).max()) + 2)[:, None, None]
    x, y = np.floor(first + steps * (second - first)).astype(np.int64).reshape(-1, 2).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    mask = np.zeros(size, np.bool_)
    mask[y[inside], x[inside]] = True
    return mask


def _decoded_runs(text: str) -> list[int]:
    """Decode COCO's compressed run lengths: five bits per character, as differences."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        number = shift = 0
        more = True
        while more:
            if shift > _MAX_BITS:
                raise UserError("a run is longer than any image")
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
    """Return the pixels of an image (height, width) with centres inside a polygon of (x, y)."""
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
