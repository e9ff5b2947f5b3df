"""Annotated images as the readers list them, before they are decoded and checked."""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from jaxtyping import Float32
from torch import Tensor

from plusx.data.annotations import Annotations
from plusx.data.image_file import ENDINGS, printable
from plusx.data.instance_mask import InstanceMask
from plusx.data.readers.verdicts import listed, skipped_warnings
from plusx.data.splits import own_splits
from plusx.errors import UserError


Identity = int | str  # of an image or a category in a JSON
Size = tuple[int, int]  # height and width

# pixels by which a box may extend beyond its image: libraries count from 0 or from 1
_SLACK = 1.0


class Problem(NamedTuple):
    """An unusable item: its name, and the reason."""

    where: str
    reason: str


class BoxAnnotation(NamedTuple):
    """A box as stored: left, top, right, bottom.

    mask: draws the mask of the object in an image of a size, or raises UserError if the outline
        is invalid; None: no outline
    """

    where: str
    label: str
    corners: tuple[float, float, float, float]
    crowd: bool = False
    mask: Callable[[Size], InstanceMask] | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotations; `size` if the annotation states one.

    normalised: whether corners are fractions of the image's width and height
    """

    path: str
    split: str = ""
    boxes: tuple[BoxAnnotation, ...] = ()
    mask: str | None = None
    size: Size | None = None
    annotation: str = ""  # the file of the annotation
    id: Identity | None = None
    normalised: bool = False


@dataclass
class AnnotationIndex:
    """All annotated images of a data set. `classes` is empty if they follow from the labels.

    category_ids: of the classes, in a JSON
    problems: unusable items; an error unless they are skipped
    warnings: what is unusual
    """

    root: str
    images: list[AnnotatedImage] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    category_ids: tuple[Identity, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class UsableImages:
    """The images with usable annotations, these annotations, and warnings about the others.

    labels: for multi-label sampling, 1 for every class that an image has (n, k)
    """

    images: list[AnnotatedImage]
    classes: tuple[str, ...]
    annotations: Annotations
    labels: Float32[Tensor, "n k"]
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How annotations are read; the options of a recipe.

    classes     class names in order; (): those of the data
    values      of masks: the value of each class; (): 0, 1, 2, ... in the order of `classes`
    ignore      of masks: values that are ignored; 255 is too, unless it is a class
    test        regular expression for the names of the test images; the others are for training
    channels    3, or 1 for grey
    components  of masks: classes whose connected components become boxes
    min_area    pixels below which a component is ignored
    instances   whether boxes need an instance mask
    max_pixels  of an image; None: 200 million
    """

    classes: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = ()
    test: str = ""
    channels: int = 3
    components: tuple[str, ...] = ()
    min_area: int = 20
    instances: bool = False
    max_pixels: int | None = None


def complain(problems: Sequence[Problem], on_unreadable: str, of: str, remain: int) -> list[str]:
    """Return warnings about skipped items, or raise UserError with on_unreadable = "error".

    remain: number of usable items
    """
    if not problems:
        return []
    lines = [f"{where}: {reason}" for where, reason in problems]
    if on_unreadable == "error":
        raise UserError(
            f"{of} cannot be used as they are: {listed(lines)} "
            '(on_unreadable = "skip" leaves them out)'
        )
    return skipped_warnings(f"{of}: {len(lines):,} skipped, {remain:,} can be used", lines)


def checked_box(
    box: BoxAnnotation, size: Size, normalised: bool = False
) -> tuple[float, float, float, float]:
    """Return the corners of a box in pixels, clipped to the image. Raises UserError.

    normalised: whether corners are fractions of the image's width and height
    """
    height, width = size
    left, top, right, bottom = box.corners
    if normalised:
        left, top, right, bottom = left * width, top * height, right * width, bottom * height
    shown = f"{box.label} [{', '.join(f'{number:g}' for number in box.corners)}]"
    if not all(map(math.isfinite, box.corners)):
        raise UserError(f"{shown} has corners that are not finite numbers")
    if right < left or bottom < top:
        raise UserError(f"{shown} has swapped corners: left, top, right, bottom are expected")
    if right == left or bottom == top:
        raise UserError(f"{shown} has no area")
    cut = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    outside = max(-left, -top, right - width, bottom - height)
    if outside > _SLACK or cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise UserError(f"{shown} is outside the image of {width} x {height} pixels")
    if not normalised and max(right, bottom) <= 1 < max(size):
        raise UserError(f"{shown} is within one pixel: corners are in pixels, not fractions")
    return cut


def unknown_class(label: str, classes: Sequence[str]) -> str:
    """Return the message for a label that is not a class."""
    near = difflib.get_close_matches(label, classes, 1, 0.5)
    more = ", ..." if len(classes) > 10 else ""
    hint = f"did you mean {near[0]!r}?" if near else f"classes are {', '.join(classes[:10])}{more}"
    return f"the class {printable(label)!r} is unknown, {hint}"


def with_test_split(index: AnnotationIndex, test: str, shown: str) -> AnnotationIndex:
    """Put images whose names match the pattern `test` into the test split, others into training.

    The name is the file name, or the path below the root, without the extension.
    """
    if not test:
        return index
    if splits := own_splits(index.images):
        raise UserError(
            f"{shown} has splits of its own ({', '.join(splits)}); leave out test = {test!r}"
        )
    try:
        pattern = re.compile(test)
    except re.error as error:
        raise UserError(f"test = {test!r} is not a regular expression: {error}") from None
    images = []
    for image in index.images:
        below = os.path.splitext(os.path.relpath(image.path, index.root))[0]
        chosen = pattern.fullmatch(os.path.basename(below)) or pattern.fullmatch(below)
        images.append(replace(image, split="test" if chosen else "train"))
    count = sum(image.split == "test" for image in images)
    if not 0 < count < len(images):
        names = ", ".join(os.path.basename(image.path) for image in index.images[:3])
        raise UserError(
            f"test = {test!r} matches {count} of the {len(images)} images of {shown} ({names}, ...)"
        )
    return replace(index, images=images)


def first_file(folder: str, endings: Sequence[str]) -> str:
    """Return the name of the first file in a folder with one of the endings, or ""."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(tuple(endings)) and not name.startswith("."):
                return os.path.relpath(os.path.join(parent, name), folder)
    return ""


def by_stem(folder: str, endings: Iterable[str] = ENDINGS) -> dict[str, str]:
    """Return the images in a folder and its subfolders, by relative name without extension."""
    paths: dict[str, str] = {}
    allowed = tuple(endings)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in allowed and not name.startswith("."):
                below = os.path.normpath(os.path.join(os.path.relpath(parent, folder), stem))
                path = os.path.join(parent, name)
                if below in paths:
                    raise UserError(
                        f"{printable(path)} and {printable(os.path.basename(paths[below]))} have "
                        "the same name except for the extension: remove one of them"
                    )
                paths[below] = path
    return paths
