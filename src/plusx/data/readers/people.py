"""A folder of people: one folder a person, split so that nobody who trains is judged.

Crops are taken as they are: that faces lie alike in all of them (aligned, as face detectors with
landmarks do it) is assumed and cannot be checked.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from plusx.data.dataset import Dataset, Split, as_split
from plusx.data.image_file import printable
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality
from plusx.data.readers.folder import scan
from plusx.data.readers.listing import file_items
from plusx.data.readers.verdicts import Entry, OnUnreadable, check_entries
from plusx.data.rng import permutation
from plusx.errors import UserError


# of people who do not test, where nobody says how many validate
VALIDATION_SHARE = 0.2
# the names of folders that say themselves who trains, validates and tests
_PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
_NAMED = 10  # people that a message names before it counts

# a number of people, a share of them, or a pattern of their names
Who = int | float | str


class _People(NamedTuple):
    """Pictures by the names of the people on them, and what of the rest there is to say."""

    root: str
    pictures: dict[str, list[Entry]]
    warnings: list[str]


def open_people(
    path: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    validation: Who | None = None,
    test: Who = 0,
    size: tuple[int, int] = (112, 112),
    channels: int = 3,
    on_unreadable: OnUnreadable = "error",
) -> Dataset:
    """Open PATH/PERSON/..., or PATH/train/PERSON/..., PATH/val/... and PATH/test/...

    split       "train", "validation", "test" or "all". Each has people of its own, who are its
                classes
    validation  who validates, of those who do not test: a number of people, a share (below 1), both
                drawn by the seed, or a regular expression that fits the whole of their names; None
                is a share of 0.2 and two at least, 0 is nobody
    test        who tests, said in the same way, of all
    size        height and width that the network sees: the whole picture, scaled to it
    channels    1 or 3
    on_unreadable   "error": a file that cannot be used, and a person with fewer than two
                pictures, is an error that names it; "skip": they are left out, and named in the
                warnings

    Raises UserError for a folder without people, somebody who is in two splits, a pattern that
    fits nobody, or fewer than two people in a split, which leaves nobody to tell them from.
    """
    wanted = as_split(split)
    if channels not in IMAGENET_MEAN:
        raise UserError(f"channels = {channels}: pictures of people have 1 or 3")
    shown = printable(path)
    own = _own_parts(Path(path).expanduser())
    if own:
        if validation is not None or test != 0:
            raise UserError(
                f"{shown} has the folders {', '.join(map(str, own.values()))}, which say who "
                "trains: leave out validation and test"
            )
        parts = {part: _listed(folder, on_unreadable) for part, folder in own.items()}
        _refuse_shared(shown, parts)
        found = _People(
            os.path.realpath(Path(path).expanduser()),
            {name: pictures for each in parts.values() for name, pictures in each.pictures.items()},
            [warning for each in parts.values() for warning in each.warnings],
        )
        names = {part: sorted(each.pictures) for part, each in parts.items()}
    else:
        found = _listed(Path(path).expanduser(), on_unreadable)
        names = divided(sorted(found.pictures), seed, validation, test, shown)
    chosen = sorted(found.pictures) if wanted == "all" else names.get(wanted, [])
    if len(chosen) < 2:
        has = "nobody" if not chosen else f"one person only ({chosen[0]!r})"
        raise UserError(
            f"{shown} has {has} in {wanted}: two people at least can be told from each other"
        )
    numbers = {name: number for number, name in enumerate(chosen)}
    entries = [entry for name in chosen for entry in found.pictures[name]]
    return Dataset(
        name=printable(os.path.basename(found.root)),
        split=wanted,
        classes=tuple(chosen),
        labels=torch.tensor([numbers[entry.label] for entry in entries], dtype=torch.int64),
        modality=people_modality(size, channels),
        items=file_items(entries),
        root=found.root,
        warnings=found.warnings,
    )


def people_modality(size: tuple[int, int], channels: int) -> ImageModality:
    """Aligned crops, of which the whole is seen."""
    mean, std = IMAGENET_MEAN[channels], IMAGENET_STD[channels]
    return ImageModality(size, channels, mean, std, resize="stretch")


def divided(
    names: Sequence[str], seed: int, validation: Who | None, test: Who, shown: str = "the data"
) -> dict[Split, list[str]]:
    """Who trains, validates and tests, of people whose names are given in order."""
    testing = _chosen(names, test, seed, "test", shown)
    left = [name for name in names if name not in testing]
    if validation is None:
        validation = max(2, round(VALIDATION_SHARE * len(left)))
    validating = _chosen(left, validation, seed, "validation", shown)
    return {
        "train": [name for name in left if name not in validating],
        "validation": validating,
        "test": testing,
    }


def people_splits(path: str | Path) -> tuple[Split, ...]:
    """The splits that a folder of people has of its own; none where they are to be drawn."""
    return tuple(_own_parts(Path(path).expanduser()))


def listed_people(path: str | Path, on_unreadable: OnUnreadable) -> tuple[list[Entry], list[str]]:
    """The pictures of a folder of people, who may have one each, and what is to be said of them."""
    found = _listed(Path(path).expanduser(), on_unreadable, fewest=1)
    return [entry for own in found.pictures.values() for entry in own], found.warnings


def _chosen(names: Sequence[str], who: Who, seed: int, key: str, shown: str) -> list[str]:
    if isinstance(who, str):
        try:
            fits = [name for name in names if re.fullmatch(who, name)]
        except re.error as error:
            raise UserError(f"[data] {key} = {who!r}: no regular expression: {error}") from None
        if not fits:
            raise UserError(
                f"[data] {key} = {who!r} fits the name of nobody in {shown} "
                f"({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
            )
        return fits
    if who < 0 or (isinstance(who, float) and not who < 1):
        raise UserError(f"[data] {key} = {who}: a share below 1, or a number of people")
    count = round(who * len(names)) if isinstance(who, float) else who
    if who and (count < 2 or len(names) - count < 2):
        raise UserError(
            f"[data] {key} = {who}: that is {count} of {len(names)} people in {shown}; each split "
            "needs two or more"
        )
    drawn = permutation(len(names), seed, 0)[:count].tolist()
    return sorted(names[place] for place in drawn)


def _own_parts(path: Path) -> dict[Split, Path]:
    """The folders that say who trains, validates and tests; none where there is no `train`."""
    if not (path / "train").is_dir():
        return {}
    found: dict[Split, Path] = {}
    for part, names in _PARTS.items():
        there = [name for name in names if (path / name).is_dir()]
        if len(there) > 1:
            raise UserError(f"{printable(path)} has {' and '.join(there)}: one folder a split")
        if there:
            found[part] = path / there[0]
    return found


def _refuse_shared(shown: str, parts: dict[Split, _People]) -> None:
    where: dict[str, str] = {}
    for part, each in parts.items():
        for name in each.pictures:
            if name in where:
                raise UserError(
                    f"{shown}: {name!r} is in {where[name]} and in {part}; a person who trains "
                    "cannot be a stranger to the network"
                )
            where[name] = part


def _listed(path: Path, on_unreadable: OnUnreadable, fewest: int = 2) -> _People:
    """The people of a folder and their pictures, each of them decoded once."""
    report = scan(path)
    try:
        used, warnings = check_entries(
            report.entries, report.root, on_unreadable, people_modality((1, 1), 3)
        )
    except ValueError as error:
        raise UserError(f"{printable(path)}: {error}") from None
    pictures: dict[str, list[Entry]] = {name: [] for name in report.classes}
    for entry in used:
        pictures.setdefault(entry.label, []).append(entry)
    few = [name for name, own in pictures.items() if len(own) < fewest]
    if few:
        said = [_with_few(name, pictures[name], report.root) for name in few[:_NAMED]]
        more = f"; and {len(few) - _NAMED:,} more" if len(few) > _NAMED else ""
        if on_unreadable == "error":
            raise UserError(
                f"{printable(path)}: {len(few):,} of {len(pictures):,} people cannot be used: "
                f'{"; ".join(said)}{more} (on_unreadable = "skip" leaves them out)'
            )
        warnings = [*warnings, *(f"skipped {each}" for each in said)]
        if more:
            warnings.append(f"skipped {len(few):,} people with too few pictures in all")
        pictures = {name: own for name, own in pictures.items() if name not in few}
    return _People(report.root, pictures, warnings)


def _with_few(name: str, own: list[Entry], root: str) -> str:
    if not own:
        return f"{name} has no picture"
    return f"{name} has one picture ({own[0].name(root)}), and two are the fewest to compare"
