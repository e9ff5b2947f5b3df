"""Splitting into training, validation and test samples."""

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from plusx.data.rng import permutation
from plusx.errors import UserError, counted


# names of splits in folders, files and columns, in any case and also with the endings _set, _data
# or _images (see `split_of`)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_ENDING = re.compile(r"[ _-]?(set|data|images|imgs|split)$")
# of the training samples, if the data has no validation split
VALIDATION_FRACTION = 0.2


def split_of(name: str) -> str:
    """Return the split that the name of a folder or file, or a cell, stands for, or "".

    >>> split_of("Training"), split_of("test_set"), split_of("cat")
    ('train', 'test', '')
    """
    plain = name.strip().casefold()
    return SPLIT_NAMES.get(plain) or SPLIT_NAMES.get(_ENDING.sub("", plain), "")


@runtime_checkable
class _HasSplit(Protocol):
    @property
    def split(self) -> str:
        """train, validation, test, or "" if the data does not state it."""


E = TypeVar("E", bound=_HasSplit)


def evenly(count: int, limit: int) -> Int64[np.ndarray, "m"]:
    """Return at most `limit` of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(np.int64))


def own_splits(entries: Sequence[_HasSplit]) -> tuple[str, ...]:
    """Return the splits that the data defines; () if it defines none."""
    return tuple(sorted({entry.split for entry in entries} - {""}))


def empty_split(
    shown: str, split: str, validation: float | int | None, splits: Sequence[str]
) -> UserError:
    """Return the error that the seed puts no sample into a split; `splits`: what the data has."""
    others = ", ".join(name for name in splits if name != split) or "train"
    return UserError(
        f"{shown} has no {split} split with validation = {validation} (its splits: {others})"
    )


def entries_of_split(
    entries: Sequence[E], split: str, validation: float | int | None, shown: str
) -> tuple[list[E], bool]:
    """Return the entries from which a split is taken, and whether the seed splits them.

    Raises UserError if the data has no such split, or has its own although `validation` is given.
    """
    splits = own_splits(entries)
    if split == "all":
        return list(entries), False
    if "validation" in splits and validation:
        raise UserError(
            f"{shown} has a validation split of its own; leave out validation = {validation}"
        )
    if split in splits:
        chosen = [entry for entry in entries if entry.split == split]
        return chosen, split == "train" and "validation" not in splits
    if split == "test" or (splits and "train" not in splits):
        has = ", ".join(splits) if splits else "none: the seed splits it into train and validation"
        raise UserError(f"{shown} has no {split} split (its splits: {has})")
    return [entry for entry in entries if entry.split in ("", "train")], True


def held_out_of(
    labels: Tensor,
    split: str,
    validation: float | int | None,
    seed: int,
    groups: Sequence[str] = (),
) -> Int64[np.ndarray, "m"]:
    """Return the indices of the training or validation samples of a split by the seed.

    Samples of one group, such as a patient, stay together.
    """
    amount = VALIDATION_FRACTION if validation is None else validation
    if split == "validation" and amount and not validation_count(len(labels), amount):
        are = "is" if len(labels) == 1 else "are"
        raise UserError(
            f"{counted(len(labels), 'sample')} {are} too few to hold out {amount:g} of them for "
            "validation: add some, or set validation = 1 or more (a number of samples), or 0 (none)"
        )
    if any(groups):
        held = groups_held_out(labels, groups, amount, seed)
    else:
        held = held_out(labels, amount, seed)
    return held if split == "validation" else np.delete(np.arange(len(labels)), held)


def stratified_order(labels: Tensor, seed: int) -> Int64[np.ndarray, "n"]:
    """Return an order of the samples of which every prefix has nearly equal class fractions.

    Each class is shuffled by the seed and spread evenly over the order. Several labels per sample
    (n, k) are only shuffled. The last sample of a class is never in the first half, so that a
    validation set of at most half leaves every class a training sample.
    """
    count = len(labels)
    shuffled = permutation(count, seed, 0)
    if labels.ndim == 2:
        return shuffled
    classes = labels.cpu().numpy()[shuffled]
    position = np.empty(count)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(position, kind="stable")]


def held_out(labels: Tensor, validation: float | int, seed: int) -> Int64[np.ndarray, "m"]:
    """Return the sorted indices of the validation samples: a fraction below 1, or a number.

    Every class keeps a training sample. Raises UserError if that leaves too few for validation.
    """
    count = validation_count(len(labels), validation)
    order = stratified_order(labels, seed)
    if labels.ndim == 1:
        # the last sample of each class in this order is for training
        _, last = np.unique(labels.cpu().numpy()[order][::-1], return_index=True)
        order = np.delete(order, len(order) - 1 - last)
    if len(order) < count:
        raise UserError(
            f"validation = {validation}: {count:,} of {len(labels):,} samples cannot be held out, "
            f"since each of the {len(labels) - len(order):,} classes needs one for training: add "
            "some, or set validation = 0"
        )
    return np.sort(order[:count])


def lone_classes(labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Return a warning about classes of one sample, which are not in the validation set."""
    if labels.ndim == 2:
        return []
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    names = [name for name, count in zip(classes, counts) if count == 1]
    if not names:
        return []
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    which = (
        f"the class {shown} has" if len(names) == 1 else f"{len(names):,} classes ({shown}) have"
    )
    return [f"{which} one sample, which is used for training and not for validation"]


def groups_held_out(
    labels: Tensor, groups: Sequence[str], validation: float | int, seed: int
) -> Int64[np.ndarray, "m"]:
    """Like held_out, but samples of a group (a patient, a scene) stay together.

    Random groups are chosen until there are about as many samples as `validation` states; a group
    that has all training samples of a class is skipped. Raises UserError if no group can be held
    out.
    """
    target = validation_count(len(labels), validation)
    shown = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels)
    left = shown.cpu().numpy().sum(0)
    names = sorted(set(groups))
    numbers = {name: number for number, name in enumerate(names)}
    members: list[list[int]] = [[] for _ in names]
    for index, group in enumerate(groups):
        members[numbers[group]].append(index)
    order = stratified_order(labels[[group[0] for group in members]], seed)
    chosen: list[int] = []
    for number in order.tolist():
        group_members = members[number]
        over = len(chosen) + len(group_members) - target
        if over > 0 and over >= target - len(chosen):
            continue  # the number is closer to the target without it
        rest = left - shown[group_members].cpu().numpy().sum(0)
        if bool(((rest <= 0) & (left > 0)).any()):
            continue
        chosen, left = [*chosen, *group_members], rest
    if target and not chosen:
        raise UserError(
            f"validation = {validation}: none of {len(names):,} groups can be left out of training"
        )
    return np.sort(np.array(chosen, np.int64))


def validation_count(total: int, validation: float | int) -> int:
    """Return the number of validation samples. Raises UserError if none is left to train."""
    if validation < 0 or (isinstance(validation, float) and not validation < 1):
        raise UserError(
            f"validation = {validation}: a fraction from 0 to below 1, or a number of samples"
        )
    count = round(validation * total) if isinstance(validation, float) else validation
    if count >= total and total:
        raise UserError(
            f"validation = {validation}: that leaves none of {total} samples for training"
        )
    return count
