"""Subsets of data sets: some classes, some bands, or a few images of each class."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from plusx.data.dataset import Dataset, MemoryItems, images_of
from plusx.data.modality import GridModality
from plusx.data.modality.bands import select_bands
from plusx.data.splits import stratified_order
from plusx.errors import UserError, counted


def of_classes(source: Dataset, names: Sequence[str]) -> Dataset:
    """Return the samples of these classes, numbered in this order.

    Raises UserError if a class is missing, listed twice or the only one, or images have several.
    """
    if source.multilabel:
        raise UserError(f"[data] classes: a sample of {source.name} has several labels")
    for name in names:
        if name not in source.classes:
            near = difflib.get_close_matches(name, source.classes, 1, 0.5)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"[data] classes: {source.name} has no class {name!r}{hint} "
                f"(it has {', '.join(source.classes[:12])})"
            )
        if list(names).count(name) > 1:
            raise UserError(f"[data] classes: {name!r} is listed twice")
    if len(names) < 2:
        raise UserError("[data] classes: at least two classes are needed")
    numbers = torch.full((len(source.classes),), -1)
    numbers[[source.classes.index(name) for name in names]] = torch.arange(len(names))
    labels = numbers.to(source.labels.device)[source.labels]
    subset = source.subset((labels >= 0).nonzero().flatten().tolist())
    return replace(subset, classes=tuple(names), labels=labels[labels >= 0])


def of_bands(source: Dataset, bands: Sequence[int]) -> Dataset:
    """Return the images with only these bands, counted from 1, in this order.

    Raises UserError if a band is missing or listed twice.
    """
    if not source.in_memory:
        return source  # bands of files are selected when they are read
    _check_bands(bands, source.modality.channels, source.name)
    assert isinstance(source.modality, GridModality)
    channels = [band - 1 for band in bands]
    items = MemoryItems(images_of(source)[:, channels].contiguous())
    return replace(source, items=items, modality=select_bands(source.modality, tuple(bands)))


def few_per_class(source: Dataset, count: int, seed: int) -> Dataset:
    """Return `count` samples of each class, chosen by the seed.

    Raises UserError if a class has fewer, or samples have several classes.
    """
    if source.multilabel:
        raise UserError(f"[data] per_class: a sample of {source.name} has several labels")
    chosen: list[int] = []
    labels, order = source.labels.cpu().numpy(), stratified_order(source.labels, seed)
    for number, name in enumerate(source.classes):
        members = order[labels[order] == number]
        if len(members) < count:
            raise UserError(
                f"[data] per_class = {count}: {source.name} has "
                f"{counted(len(members), source.noun)} of {name!r} to train on"
            )
        chosen += members[:count].tolist()
    return source.subset(sorted(chosen))


def first_images(source: Dataset, amount: int | float, seed: int) -> Dataset:
    """Return a number or a fraction of the samples, stratified by class.

    Classes without a sample are named in the warnings. Raises UserError if there are too few
    samples, or only one class or no box remains.
    """
    total = len(source)
    count = amount if isinstance(amount, int) else round(amount * total)
    where = f"[data] train = {amount}"
    if not 1 <= count <= total:
        raise UserError(f"{where}: {source.name} has {counted(total, source.noun)} to train on")
    chosen = source.subset(np.sort(stratified_order(source.labels, seed)[:count]).tolist())
    if chosen.annotations is not None and (reason := chosen.annotations.nothing_to_learn()):
        raise UserError(f"{where}: there is nothing to learn: {reason}: increase it")
    if source.multilabel:
        return chosen
    present, all_classes = set(chosen.labels.tolist()), set(source.labels.tolist())
    missing = [source.classes[number] for number in sorted(all_classes - present)]
    if not missing:
        return chosen
    if len(present) == 1:
        raise UserError(
            f"{where} leaves one class only ({source.classes[min(present)]!r}), but at least two "
            "are needed: increase it, or set per_class, the number of samples of each class"
        )
    names = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    warning = (
        f"{where} leaves {counted(len(missing), 'class', 'classes')} without a sample to train on "
        f"({names}): set per_class for an equal number of each class"
    )
    return replace(chosen, warnings=[*chosen.warnings, warning])


def _check_bands(bands: Sequence[int], count: int, name: str) -> None:
    for band in bands:
        if not 1 <= band <= count:
            raise UserError(f"[data] bands: {name} has no band {band}, it has 1 to {count}")
        if list(bands).count(band) > 1:
            raise UserError(f"[data] bands: {band} is listed twice")
    if not bands:
        raise UserError("[data] bands: the list is empty")
