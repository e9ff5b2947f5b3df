"""A folder of people, one folder per person, where splits have different people.

Images must be aligned face crops, as detectors with landmarks produce them; this is not checked.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from plusx.data.dataset import Dataset, as_split
from plusx.data.image_file import printable
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD, ImageModality
from plusx.data.readers.folder import scan
from plusx.data.readers.listing import file_items
from plusx.data.readers.verdicts import Entry, OnUnreadable, Skipped, check_entries, listed
from plusx.data.rng import permutation
from plusx.data.splits import VALIDATION_FRACTION
from plusx.errors import UserError


_NAMED = 10  # people that a message names

# a number of people, a fraction of them, or a pattern of their names
IdentitySelector = int | float | str


class _People(NamedTuple):
    """Images by person.

    splits: those of the folder; () if the seed splits
    """

    root: str
    splits: tuple[str, ...]
    images: dict[str, list[Entry]]
    warnings: list[str]


def open_people(
    path: str | Path,
    *,
    split: str = "train",
    seed: int = 0,
    validation: IdentitySelector | None = None,
    test: IdentitySelector = 0,
    size: tuple[int, int] = (112, 112),
    channels: int = 3,
    on_unreadable: OnUnreadable = "error",
    max_pixels: int | None = None,
) -> Dataset:
    """Open PATH/PERSON/..., or PATH/train/PERSON/..., PATH/val/... and PATH/test/...

    split: "train", "validation", "test" or "all". Its people are its classes
    validation: the validation people, among those not in the test split: a number of people or a
        fraction (below 1), chosen by the seed, or a regular expression that matches their whole
        names. None: those of PATH/val, or else 0.2 and at least two; 0 and "": nobody
    test: the test people, given in the same way; 0 and "": those of PATH/test, or nobody
    size: height and width of the network's input, to which whole images are resized
    channels: 1 or 3
    on_unreadable: "error": an unusable file, or a person with fewer than two images, is an error
        that names it; "skip": they are left out and named in the warnings
    max_pixels: of an image; None: 200 million
    Raises UserError for a folder without people, a person in two splits, a pattern that matches
    nobody, or fewer than two people in a split.
    """
    split = as_split(split)
    if channels not in IMAGENET_MEAN:
        raise UserError(f"channels = {channels}: 1 or 3")
    shown = printable(path)
    modality = people_modality(size, channels, max_pixels)
    people = _read(path, on_unreadable, modality)
    names = sorted(people.images)
    if split != "all":
        names = _of_split(people, split, seed, validation, test, shown)
    if len(names) < 2:
        who = "nobody" if not names else f"one person only ({names[0]!r})"
        raise UserError(f"{shown} has {who} in {split}: at least two people are needed")
    numbers = {name: number for number, name in enumerate(names)}
    entries = [entry for name in names for entry in people.images[name]]
    return Dataset(
        name=printable(os.path.basename(people.root)),
        split=split,
        classes=tuple(names),
        labels=torch.tensor([numbers[entry.label] for entry in entries], dtype=torch.int64),
        modality=modality,
        items=file_items(entries),
        root=people.root,
        warnings=people.warnings,
    )


def _of_split(
    people: _People,
    split: str,
    seed: int,
    validation: IdentitySelector | None,
    test: IdentitySelector,
    shown: str,
) -> list[str]:
    """Return the people of a split, from the folder or chosen by the seed."""
    names, splits = sorted(people.images), people.splits
    for key, selector in (("validation", validation), ("test", test)):
        if selector and (key in splits or (key == "test" and splits)):
            raise UserError(
                f"{shown} has splits of its own ({', '.join(splits)}): leave out {key} = "
                f"{selector!r}"
            )
    if split in splits and (split != "train" or "validation" in splits):
        return [name for name in names if people.images[name][0].split == split]
    if splits and "train" not in splits:
        raise UserError(f"{shown} has no {split} split (its splits: {', '.join(splits)})")
    available = [name for name in names if people.images[name][0].split in ("", "train")]
    return divided(available, seed, validation, test, shown)[split]


def people_modality(
    size: tuple[int, int], channels: int, max_pixels: int | None = None
) -> ImageModality:
    """Return the modality of aligned crops, which are resized whole."""
    mean, std = IMAGENET_MEAN[channels], IMAGENET_STD[channels]
    return ImageModality(size, channels, mean, std, resize="stretch", max_pixels=max_pixels)


def divided(
    names: Sequence[str],
    seed: int,
    validation: IdentitySelector | None,
    test: IdentitySelector,
    shown: str = "the data",
) -> dict[str, list[str]]:
    """Return the people of each split; `names` are sorted."""
    testing = _selected(names, test or 0, seed, "test", shown)
    others = [name for name in names if name not in testing]
    if validation is None:
        validation = max(2, round(VALIDATION_FRACTION * len(others)))
    validating = _selected(others, validation or 0, seed, "validation", shown)
    return {
        "train": [name for name in others if name not in validating],
        "validation": validating,
        "test": testing,
    }


def images_of_people(
    path: str | Path, on_unreadable: OnUnreadable
) -> tuple[list[Entry], list[str]]:
    """Return the images of a folder of people, also of those with one image, and warnings."""
    people = _read(path, on_unreadable, people_modality((1, 1), 3), min_images=1)
    return [entry for images in people.images.values() for entry in images], people.warnings


def _without_twins(entries: list[Entry], root: str) -> tuple[list[Entry], list[str]]:
    """Return the images without those of two people, and warnings about these."""
    by_content: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.verdict is not None:
            by_content.setdefault(entry.verdict.content, []).append(entry)
    twins = [same for same in by_content.values() if len({entry.label for entry in same}) > 1]
    names = [" and ".join(sorted(entry.name(root) for entry in same)[:3]) for same in twins]
    lines = [f"{name} are the same image under several people" for name in names]
    paths = {entry.path for same in twins for entry in same}
    return [entry for entry in entries if entry.path not in paths], lines


def _selected(
    names: Sequence[str], selector: IdentitySelector, seed: int, key: str, shown: str
) -> list[str]:
    if isinstance(selector, str):
        try:
            matching = [name for name in names if re.fullmatch(selector, name)]
        except re.error as error:
            raise UserError(
                f"[data] {key} = {selector!r} is not a regular expression: {error}"
            ) from None
        if not matching:
            raise UserError(
                f"[data] {key} = {selector!r} matches no name in {shown} "
                f"({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
            )
        return matching
    if selector < 0 or (isinstance(selector, float) and not selector < 1):
        raise UserError(f"[data] {key} = {selector}: a fraction below 1, or a number of people")
    count = round(selector * len(names)) if isinstance(selector, float) else selector
    if selector and (count < 2 or len(names) - count < 2):
        raise UserError(
            f"[data] {key} = {selector}: that is {count} of {len(names)} people in {shown}; each "
            "split needs two or more"
        )
    drawn = permutation(len(names), seed, 0)[:count].tolist()
    return sorted(names[index] for index in drawn)


def _read(
    path: str | Path, on_unreadable: OnUnreadable, modality: ImageModality, min_images: int = 2
) -> _People:
    """Return the people of a folder and their images, each decoded once."""
    listing, shown = scan(Path(path).expanduser(), same_classes=False), printable(path)
    splits: dict[str, str] = {}
    for entry in listing.entries:
        if entry.label and splits.setdefault(entry.label, entry.split) != entry.split:
            raise UserError(
                f"{shown}: {entry.label!r} is in {splits[entry.label]} and in {entry.split}: "
                "splits must have different people"
            )
    try:
        used, warnings = check_entries(listing.entries, listing.root, on_unreadable, modality)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    used, twins = _without_twins(used, listing.root)
    if twins and on_unreadable == "error":
        raise UserError(f'{shown}: {listed(twins)} (on_unreadable = "skip" leaves them out)')
    warnings = [*warnings, *(Skipped(f"skipped {line}") for line in twins)]
    images: dict[str, list[Entry]] = {name: [] for name in listing.classes}
    for entry in used:
        images[entry.label].append(entry)
    few = {name: entries for name, entries in images.items() if len(entries) < min_images}
    lines = [
        f"{name} has one image ({entries[0].name(listing.root)}), but two are needed"
        if entries
        else f"{name} has no image"
        for name, entries in few.items()
    ]
    if few and on_unreadable == "error":
        raise UserError(
            f"{shown}: {len(few):,} of {len(images):,} people cannot be used: {listed(lines)} "
            '(on_unreadable = "skip" leaves them out)'
        )
    if few:
        warnings = [*warnings, *(Skipped(f"skipped {line}") for line in lines[:_NAMED])]
        if len(few) > _NAMED:
            warnings.append(Skipped(f"skipped {len(few):,} people with too few images in total"))
        images = {name: entries for name, entries in images.items() if name not in few}
    return _People(listing.root, listing.splits, images, warnings)
