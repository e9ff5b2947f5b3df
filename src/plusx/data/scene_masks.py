"""The classes of masks, and every mask read once, before anything is learned from them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from plusx.data.check import OnUnreadable
from plusx.data.image import UnreadableImage, printable
from plusx.data.mask_folder import read_classes
from plusx.data.scene_list import (
    THREADS,
    Problem,
    SceneEntry,
    SceneList,
    SceneWish,
    complain,
    sizes_of,
    unknown_class,
)
from plusx.data.truth import NOT_JUDGED, Masks, Meaning, stored_mask
from plusx.errors import UserError


def classes_of_masks(
    listing: SceneList, entries: list[SceneEntry], wish: SceneWish
) -> tuple[tuple[str, ...], Meaning]:
    """The classes and which values they have: as the recipe, classes.csv or the masks say."""
    names, meaning = read_classes(listing.root)
    if meaning.colours and not wish.values:
        if wish.classes and set(wish.classes) != set(names):
            raise UserError(
                f"[data] classes are {', '.join(wish.classes)}; classes.csv has {', '.join(names)}"
            )
        return names, meaning
    if wish.classes or wish.values:
        values = wish.values or tuple(range(len(wish.classes)))
        names = wish.classes or tuple(map(str, values))
        if len(values) != len(names) or len(set(values)) != len(values):
            raise UserError(
                f"[data] values {list(values)}: one for each of the {len(names)} classes, and no "
                "two alike"
            )
    elif names:
        values = meaning.numbers
    else:
        values = _values_found(listing, entries, wish)
        names = tuple(map(str, values))
    both = sorted(set(values) & set(wish.ignore))
    if both:
        raise UserError(f"[data] ignore: {both[0]} is the value of a class")
    unjudged = () if NOT_JUDGED in (*values, *wish.ignore) else (NOT_JUDGED,)
    if len(names) > NOT_JUDGED:
        raise UserError(f"masks can have {NOT_JUDGED} classes, not {len(names)}")
    return names, Meaning(values, (), (*meaning.ignored, *wish.ignore, *unjudged))


def places_of(wanted: tuple[str, ...], classes: tuple[str, ...]) -> list[int]:
    for name in wanted:
        if name not in classes or wanted.count(name) > 1:
            why = unknown_class(name, classes) if name not in classes else f"{name!r} stands twice"
            raise UserError(f"[data] parts: {why}")
    return [classes.index(name) for name in wanted]


def _values_found(
    listing: SceneList, entries: list[SceneEntry], wish: SceneWish
) -> tuple[int, ...]:
    """The values in the masks that train. 255 is one only beside 0 alone."""
    learning = [each for each in listing.entries if each.split in ("", "train")] or entries
    found: set[int] = set()
    problems: list[Problem] = []
    for entry in learning:
        assert entry.mask is not None
        try:
            found.update(np.unique(stored_mask(entry.mask, colours=False)).tolist())
        except (UnreadableImage, OSError) as error:  # where others can be read, it is named later
            problems.append(Problem(printable(entry.mask, listing.root), str(error)))
    if not found:
        complain(problems, "error", "masks")
    there = found - set(wish.ignore)
    if there != {0, NOT_JUDGED}:
        there -= {NOT_JUDGED}
    if len(there) < 2:
        values = ", ".join(map(str, sorted(found)[:10]))
        raise UserError(
            f"the masks have the values {values} alone, of which {len(there)} could be a class: "
            "there is nothing to tell apart"
        )
    return tuple(sorted(there))


def masks_of(
    entries: list[SceneEntry],
    root: str,
    classes: tuple[str, ...],
    meaning: Meaning,
    on_unreadable: OnUnreadable,
) -> tuple[list[SceneEntry], Masks, list[str]]:
    """Every mask, read once: which can be used, and how many pixels each class has in it."""

    def counted(place: int) -> Tensor | str:
        path = entries[place].mask
        assert path is not None
        try:
            mask = meaning.read(path)
        except UnreadableImage as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        if mask.shape != sizes[place]:
            had, has = (f"{size[1]} x {size[0]}" for size in (mask.shape, sizes[place]))
            return f"it has {had} pixels, its image {has}"
        return torch.from_numpy(np.bincount(mask.ravel(), minlength=NOT_JUDGED + 1))

    sizes = sizes_of(entries)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="plusx-scenes") as pool:
        found = list(pool.map(counted, range(len(entries))))
    problems, used, counts = [], [], []
    for entry, count in zip(entries, found):
        assert entry.mask is not None
        if isinstance(count, str):
            problems.append(Problem(printable(entry.mask, root), count))
        else:
            used.append(entry)
            counts.append(count[: len(classes)])
    notices = complain(problems, on_unreadable, "masks")
    paths = [entry.mask or "" for entry in used]
    table = torch.stack(counts) if counts else torch.zeros(0, len(classes), dtype=torch.int64)
    return used, Masks(table, paths, meaning), notices
