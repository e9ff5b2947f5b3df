"""What a reader finds of scenes: images with their boxes or masks as they are written down."""

import difflib
import math
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from plusx.data.image import Picture, printable
from plusx.data.instance_mask import InstanceMask
from plusx.errors import UserError


SceneKind = Literal["voc", "coco", "boxes", "masks"]

SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# how far a box may reach out of its image without a word: libraries count from 0 and from 1
_SLACK = 1.0
_NAMED = 10  # that a message names before it counts
THREADS = 4


class Problem(NamedTuple):
    """Something that cannot be used: where it is, and why."""

    where: str
    reason: str


class Mark(NamedTuple):
    """A box as it is written: left, top, right, bottom."""

    where: str
    label: str
    corners: tuple[float, float, float, float]
    crowd: bool = False
    outline: InstanceMask | None = None


@dataclass(frozen=True)
class SceneEntry:
    """An image, and what is known of it; size (height, width) where the annotation says one."""

    path: str
    split: str = ""
    marks: tuple[Mark, ...] = ()
    mask: str | None = None
    size: tuple[int, int] | None = None
    told_by: str = ""  # the file that says so


@dataclass
class SceneList:
    """All scenes of a set. `classes` is empty where they follow from the labels."""

    root: str
    entries: list[SceneEntry] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def parts(self) -> tuple[str, ...]:
        """The splits that the set has, none where it is to be cut."""
        return tuple(sorted({entry.split for entry in self.entries} - {""}))


@dataclass(frozen=True, kw_only=True)
class SceneWish:
    """What a recipe says of scenes beyond where they are.

    classes  their names in their order; () is what the data says
    values   of masks: the value of each class; () is 0, 1, 2, ... in the order of `classes`
    ignore   of masks: values that are not judged; 255 is not, unless it is a class
    test     the scenes whose names match this regular expression test, the others train
    channels 3, or 1 for grey
    parts    of masks: classes whose connected parts are to become boxes; the classes are then they
    smallest pixels that such a part has to have, to be judged
    """

    classes: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = ()
    test: str = ""
    channels: int = 3
    parts: tuple[str, ...] = ()
    smallest: int = 20
    instances: bool = False  # whether the masks of boxes are wanted, where they are known


def scene_kind(path: str | os.PathLike[str]) -> SceneKind | None:
    """Which layout of images with boxes or masks a folder has; None where it has none of them."""
    root = os.fspath(path)
    try:
        names = set(os.listdir(root))
    except OSError:
        return None
    if {"JPEGImages", "Annotations"} <= names:
        return "voc"
    if any(f"{name}annot" in names for name in SPLITS if name in names):
        return "masks"
    if {"images", "masks"} <= names or {"image", "label"} <= names:
        return "masks"
    notes = os.path.join(root, "annotations")
    coco = os.path.isdir(notes) and any(
        name.startswith("instances_") and name.endswith(".json") for name in os.listdir(notes)
    )
    return "coco" if coco else None


def refuse_scenes(path: str | os.PathLike[str]) -> None:
    """Raise UserError where a folder of class folders is wanted and this has boxes or masks."""
    kind = scene_kind(path)
    if kind is not None:
        what = "masks" if kind == "masks" else "boxes"
        raise UserError(
            f"{printable(os.fspath(path))} has images with {what}, which are not packed: they are "
            f'read as they lie there, and small sets kept in memory ([data] kind = "{kind}")'
        )


def complain(problems: Sequence[Problem], on_unreadable: str, of: str) -> list[str]:
    """Notices of what is left out; with on_unreadable = "error" a UserError that names it."""
    if not problems:
        return []
    said = [f"{where}: {reason}" for where, reason in problems]
    if on_unreadable == "error":
        more = f"; and {len(said) - _NAMED:,} more" if len(said) > _NAMED else ""
        raise UserError(
            f"{of} cannot be used as they are: {'; '.join(said[:_NAMED])}{more} "
            '(on_unreadable = "skip" leaves them out)'
        )
    count = "1 skipped" if len(said) == 1 else f"{len(said):,} skipped"
    return [f"{of}: {count}", *(f"skipped {line}" for line in said)]


def checked_box(mark: Mark, size: tuple[int, int]) -> tuple[float, ...] | str:
    """The corners of a box within an image (height, width), or what is wrong with them."""
    left, top, right, bottom = mark.corners
    height, width = size
    shown = ", ".join(f"{number:g}" for number in mark.corners)
    if not all(map(math.isfinite, mark.corners)):
        return f"{mark.label} [{shown}] has corners that are no numbers"
    if right < left or bottom < top:
        return f"{mark.label} [{shown}] has swapped corners: left, top, right, bottom are meant"
    if right == left or bottom == top:
        return f"{mark.label} [{shown}] has no area"
    out = max(-left, -top, right - width, bottom - height)
    if out > _SLACK:
        return f"{mark.label} [{shown}] is outside the image of {width} x {height} pixels"
    cut = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        return f"{mark.label} [{shown}] is outside the image of {width} x {height} pixels"
    return cut


def unknown_class(label: str, classes: Sequence[str]) -> str:
    """What to say of a label that is no class."""
    near = difflib.get_close_matches(label, classes, 1, 0.5)
    more = ", ..." if len(classes) > 10 else ""
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(classes[:10])}{more}"
    return f"the class {printable(label)!r} is unknown, {hint}"


def divided(listing: SceneList, test: str, shown: str) -> SceneList:
    """Scenes whose names match the pattern `test` are for testing, all others for training.

    A name is that of the file without its ending, or of its path below the root.
    """
    if not test:
        return listing
    if listing.parts:
        raise UserError(
            f"{shown} has splits of its own ({', '.join(listing.parts)}); leave out test = {test!r}"
        )
    try:
        pattern = re.compile(test)
    except re.error as error:
        raise UserError(f"test = {test!r} is no regular expression: {error}") from None
    made = []
    for entry in listing.entries:
        below = os.path.splitext(os.path.relpath(entry.path, listing.root))[0]
        chosen = pattern.fullmatch(os.path.basename(below)) or pattern.fullmatch(below)
        made.append(replace(entry, split="test" if chosen else "train"))
    count = sum(entry.split == "test" for entry in made)
    if not 0 < count < len(made):
        names = ", ".join(os.path.basename(entry.path) for entry in listing.entries[:3])
        raise UserError(
            f"test = {test!r} chooses {count} of the {len(made)} images of {shown} ({names}, ...)"
        )
    return replace(listing, entries=made)


def by_stem(folder: str, endings: Iterable[str] = ENDINGS) -> dict[str, str]:
    """The images of a folder and of those in it, by their names below it without the ending."""
    found: dict[str, str] = {}
    allowed = tuple(endings)
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in allowed and not name.startswith("."):
                below = os.path.normpath(os.path.join(os.path.relpath(place, folder), stem))
                path = os.path.join(place, name)
                if below in found:
                    raise UserError(
                        f"{printable(path)} and {printable(os.path.basename(found[below]))} have "
                        "one name but for its ending: which one is meant?"
                    )
                found[below] = path
    return found


def sizes_of(entries: Sequence[SceneEntry]) -> list[tuple[int, int]]:
    """Height and width of each image, from its header."""

    def size(entry: SceneEntry) -> tuple[int, int]:
        width, height = Picture(entry.path).size
        return height, width

    with ThreadPoolExecutor(THREADS, thread_name_prefix="plusx-scenes") as pool:
        return list(pool.map(size, entries))
