"""Boxes and masks as COCO has them (Lin et al. 2014), in one JSON for each split.

ROOT/{train,val,test}.json or ROOT/annotations/instances_*.json, or one JSON alone. The images lie
beside it: by their file_name, or in a folder of the split's name, in images, or in images/SPLIT.
Polygons and run lengths, compressed and not, become masks.
"""

import json
import math
import os
import re
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from plusx.data.image_file import DEFAULT_LIMIT, ImageFile, UnreadableImage, printable, read_regular
from plusx.data.instance_mask import InstanceMask
from plusx.data.readers.annotation_index import (
    AnnotatedImage,
    AnnotationIndex,
    BoxAnnotation,
    Problem,
)
from plusx.data.splits import SPLIT_NAMES
from plusx.errors import UserError


_LIMIT = 2**31
# corners that are further out are as good as there
_FAR = 2.0**20
# bits of a run length in its packed letters
_LONGEST = 60
_NAME = re.compile(r"(?:instances_)?(train|val|valid|validation|test)(\d*)\.json")


def read_coco(path: str) -> AnnotationIndex:
    """Every image of the JSONs with its boxes. UserError where there are none, or no COCO's."""
    shown = printable(path)
    if os.path.isfile(path):
        files = {os.path.realpath(path): ("", "")}
        root = os.path.dirname(os.path.realpath(path))
    else:
        root = os.path.realpath(path)
        files = _files(root)
        if not files:
            raise UserError(
                f"{shown} has no COCO JSON: looked for are train.json, val.json and test.json, or "
                "annotations/instances_*.json"
            )
    index = AnnotationIndex(root)
    names: dict[int, str] = {}
    for file, (split, folder) in files.items():
        _Reader(index, file, split, folder, names).read()
    index.classes = tuple(names[number] for number in sorted(names))
    return index


def _files(root: str) -> dict[str, tuple[str, str]]:
    """Each JSON with its split and the name of the folder that its images may be in."""
    found: dict[str, tuple[str, str]] = {}
    for folder in (root, os.path.join(root, "annotations")):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            match = _NAME.fullmatch(name)
            if match:
                split = SPLIT_NAMES[match[1]]
                if split in {other for other, _ in found.values()}:
                    raise UserError(
                        f"{printable(os.path.join(folder, name))} is a second JSON of {split}"
                    )
                found[os.path.join(folder, name)] = (split, match[1] + match[2])
    return found


class _Reader:
    """Reads one JSON into a list of scenes."""

    def __init__(
        self, index: AnnotationIndex, path: str, split: str, folder: str, names: dict[int, str]
    ) -> None:
        self.index = index
        self.path = path
        self.split = split
        self.folder = folder
        self.names = names
        self.shown = printable(path, index.root)
        self.refused: set[Any] = set()  # images that cannot be used
        self.sizes: dict[str, tuple[int, int] | None] = {}  # of those whose size it does not say

    def read(self) -> None:
        """Add what the JSON holds. Raises UserError where it is none of COCO's."""
        try:
            told = json.loads(read_regular(self.path, _LIMIT))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.shown} is no JSON: {error}") from None
        if not isinstance(told, dict) or not all(
            isinstance(told.get(key), list) for key in ("images", "annotations", "categories")
        ):
            raise UserError(f"{self.shown} needs the lists images, annotations and categories")
        known = self._categories(told["categories"])
        images = self._images(told["images"])
        boxes: dict[Any, list[BoxAnnotation]] = {number: [] for number in images}
        seen: set[Any] = set()
        for place, note in enumerate(told["annotations"], 1):
            note = note if isinstance(note, dict) else {}
            named, image = _identity(note.get("id")), _identity(note.get("image_id"))
            where = f"{self.shown}, annotation {place if named is None else named}"
            if image in self.refused:
                continue  # what is wrong with its image was said
            if image not in images:
                self._problem(where, f"image_id {note.get('image_id')!r} is none of the images")
            elif named is not None and named in seen:
                self._problem(where, "a second annotation of this id")
            else:
                seen.add(named)
                box = self._box(note, where, known, *images[image])
                if isinstance(box, str):
                    self._problem(where, box)
                else:
                    boxes[image].append(box)
        for number, (path, size) in images.items():
            self.index.images.append(
                AnnotatedImage(
                    path, self.split, tuple(boxes[number]), size=size, annotation=self.shown
                )
            )

    def _problem(self, where: str, reason: str) -> None:
        self.index.problems.append(Problem(where, reason))

    def _categories(self, told: list[Any]) -> dict[int, str]:
        known: dict[int, str] = {}
        for place, each in enumerate(told, 1):
            number = _identity(each.get("id")) if isinstance(each, dict) else None
            name = each.get("name") if isinstance(each, dict) else None
            if not isinstance(number, int) or not isinstance(name, str) or not name:
                raise UserError(f"{self.shown}, category {place}: id and name are needed")
            if number in known or self.names.get(number, name) != name:
                other = known.get(number) or self.names[number]
                raise UserError(f"{self.shown}, category {number} is {name!r} and {other!r}")
            if name in known.values():
                raise UserError(f"{self.shown}: two categories are called {name!r}")
            known[number] = name
        if not known:
            raise UserError(f"{self.shown}: the list categories is empty")
        self.names.update(known)
        return known

    def _images(self, told: list[Any]) -> dict[Any, tuple[str, tuple[int, int] | None]]:
        """Path and size of each image that is there, by its id."""
        folders = self._folders()
        taken = {entry.path: entry.split for entry in self.index.images}
        found: dict[Any, tuple[str, tuple[int, int] | None]] = {}
        ids: set[Any] = set()
        for place, each in enumerate(told, 1):
            where = f"{self.shown}, image {place}"
            name = each.get("file_name") if isinstance(each, dict) else None
            number = _identity(each.get("id")) if isinstance(each, dict) else None
            if not isinstance(name, str) or number is None:
                self._problem(where, "id and file_name are needed")
                continue
            where = f"{self.shown}, image {number}"
            if number in ids:
                self._problem(where, "a second image of this id")
                continue
            ids.add(number)
            path = _place(name, folders)
            if path is None or path in taken:
                reason = "is missing"
                if path is not None:
                    reason = f"is in {taken[path] or 'the images'} already"
                elif os.path.isabs(name) or ".." in re.split(r"[/\\]", name):
                    reason = "leaves the folder"
                self._problem(where, f"{printable(name)!r} {reason}")
                self.refused.add(number)
                continue
            taken[path] = self.split
            tall, wide = _whole(each.get("height")), _whole(each.get("width"))
            told_size = None if tall is None or wide is None else (tall, wide)
            if told_size and not (min(told_size) > 0 and math.prod(told_size) <= DEFAULT_LIMIT):
                self._problem(where, f"it says {wide} x {tall} pixels")
                self.refused.add(number)
                continue
            found[number] = (path, told_size)
        return found

    def _folders(self) -> list[str]:
        root, beside = self.index.root, os.path.dirname(self.path)
        below = [self.folder, os.path.join("images", self.folder), "images", ""]
        short = self.folder.rstrip("0123456789")
        below += [short, os.path.join("images", short)]
        places = [os.path.join(top, name) for top in (root, beside) for name in below]
        return [place for place in dict.fromkeys(map(os.path.normpath, places)) if _is_dir(place)]

    def _size_in_file(self, path: str) -> tuple[int, int] | None:
        """Height and width, where the JSON does not say; None where the file cannot be used."""
        if path not in self.sizes:
            try:
                width, height = ImageFile(path).size
                self.sizes[path] = height, width
            except (UnreadableImage, OSError):  # which is said when it is decoded
                self.sizes[path] = None
        return self.sizes[path]

    def _box(
        self,
        note: dict[str, Any],
        where: str,
        known: dict[int, str],
        path: str,
        size: tuple[int, int] | None,
    ) -> BoxAnnotation | str:
        """A box, or what is wrong with it."""
        number, crowd = _identity(note.get("category_id")), note.get("iscrowd", 0)
        if not isinstance(number, int) or number not in known:
            wanted = ", ".join(map(str, sorted(known)[:20]))
            return f"category_id {note.get('category_id')!r} is none of {wanted}"
        if crowd not in (0, 1, None):
            return f"iscrowd {crowd!r}: 0 or 1 is meant"
        outline = None
        told = note.get("segmentation")
        if told and size is None:
            size = self._size_in_file(path)
        if told and size is not None:
            try:
                found = InstanceMask.of(_inside(told, size))
            except (ValueError, TypeError, LookupError, OverflowError) as error:
                return f"its segmentation cannot be read: {error}"
            outline = found
        box = note.get("bbox")
        if box is None and outline is not None and outline.height:
            box = [outline.left, outline.top, outline.width, outline.height]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            return f"bbox {box!r}: four numbers are meant, left, top, width and height"
        left, top, width, height = map(float, box)
        corners = (left, top, left + width, top + height)
        return BoxAnnotation(where, known[number], corners, bool(crowd), outline)


def _place(name: str, folders: list[str]) -> str | None:
    """Where an image lies, in one of the folders or below; Windows writes \\ for /."""
    for said in (name, name.replace("\\", "/")):
        if os.path.isabs(said) or ".." in said.split("/"):
            continue
        for folder in folders:
            if os.path.isfile(os.path.join(folder, said)):
                return os.path.normpath(os.path.join(folder, said))
    return None


def _is_dir(path: str) -> bool:
    return os.path.isdir(path)


def _is_number(value: object) -> bool:
    # a whole number in JSON can be larger than any float
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _identity(value: object) -> int | str | None:
    return value if isinstance(value, str) else _whole(value)


def _whole(value: object) -> int | None:
    """A whole number; some programs write all numbers as 3.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _inside(told: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a segmentation: polygons, or run lengths down the columns."""
    if isinstance(told, list):
        made = np.zeros(size, np.bool_)
        for polygon in told:
            numbers = np.array(polygon, np.float64)
            if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
                raise UserError("a polygon has three corners or more, x and y of each")
            if not np.isfinite(numbers).all():
                raise UserError("a corner that is no number")
            inside = polygon_mask(numbers.reshape(-1, 2), size)
            made |= inside if inside.any() else _touched(numbers.reshape(-1, 2), size)
        return made
    tall, wide = told["size"]
    if (tall, wide) != size:
        raise UserError(f"it is of {wide} x {tall} pixels, the image of {size[1]} x {size[0]}")
    counts = told["counts"]
    runs = _unpacked(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if min(runs, default=0) < 0 or sum(runs) != tall * wide:
        raise UserError(f"its runs are {sum(runs)} pixels long, the image has {tall * wide}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(wide, tall).T


def _touched(corners: Float64[np.ndarray, "_ 2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels under the sides of a polygon that is too thin to hold the middle of any."""
    height, width = size
    first = corners.clip(-1, (width + 1, height + 1))
    second = np.roll(first, -1, 0)
    shares = np.linspace(0, 1, 2 * math.ceil(np.abs(second - first).max()) + 2)[:, None, None]
    x, y = np.floor(first + shares * (second - first)).astype(np.int64).reshape(-1, 2).T
    there = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    made = np.zeros(size, np.bool_)
    made[y[there], x[there]] = True
    return made


def _unpacked(text: str) -> list[int]:
    """Run lengths as COCO packs them: five bits a letter, each but the first three a difference."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        number = shift = 0
        more = True
        while more:
            if shift > _LONGEST:
                raise UserError("a run of more than any image has")
            bits = ord(text[place]) - 48
            number |= (bits & 31) << shift
            more = bool(bits & 32)
            place, shift = place + 1, shift + 5
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
    made = np.zeros(size, np.bool_)
    top = max(0, int(np.floor(first[:, 1].min() - 0.5)))
    bottom = min(height, int(np.ceil(first[:, 1].max() + 0.5)))
    for row in range(top, bottom):
        middle = row + 0.5
        crosses = (first[:, 1] <= middle) != (second[:, 1] <= middle)
        if not crosses.any():
            continue
        here, there = first[crosses], second[crosses]
        share = (middle - here[:, 1]) / (there[:, 1] - here[:, 1])
        places = np.sort(here[:, 0] + share * (there[:, 0] - here[:, 0]))
        edges = np.clip(np.ceil(places - 0.5), 0, width).astype(np.int64)
        for begin, end in zip(edges[::2], edges[1::2]):
            made[row, begin:end] = True
    return made
