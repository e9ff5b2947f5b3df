"""From the tables of a recipe to the parts of a training run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from plusx.data import subset
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.readers.open import kind_of, open_data
from plusx.data.readers.people import open_people
from plusx.data.sampler import Sampler
from plusx.data.sets.download import located
from plusx.data.splits import stratified_order
from plusx.data.statistics import measured_modality
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.nn.whitening import whiten
from plusx.recipe import KnownData, NetByName, OwnData, Recipe
from plusx.recipe.sets import CellData, EllipsoidData, PeopleData, SceneData, VolumeData
from plusx.recipe.tables import Classify
from plusx.run.networks import make_net as make_net
from plusx.run.networks import spec_of as spec_of
from plusx.run.prepared import own_preprocessing
from plusx.run.scene_sets import open_scene_split
from plusx.run.task_factory import TASKS
from plusx.run.transfer import freeze
from plusx.run.volumes import asked_of, open_volume_split
from plusx.zoo import External, find


WHITENED = 2000  # training images, the classes in equal shares, whose patches are whitened


@dataclass(frozen=True)
class Sets:
    """What a recipe trains on; `validation` is None where it keeps nothing back."""

    train: Dataset
    validation: Dataset | None

    @property
    def warnings(self) -> list[str]:
        """What was left out or remarked on, said once."""
        held = [] if self.validation is None else self.validation.warnings
        return list(dict.fromkeys([*self.train.warnings, *held]))

    def description(self) -> dict[str, Any]:
        """What data.json says: enough to use the network, and to know the images again."""
        train, held = self.train, self.validation
        return {
            "name": train.name,
            "classes": list(train.classes),
            "preprocessing": train.modality.to_dict(),
            "train": {"count": len(train), "fingerprint": train.fingerprint()},
            "validation": None
            if held is None
            else {"count": len(held), "fingerprint": held.fingerprint()},
            "notices": self.warnings,
        }

    def prepared_as(self, preprocessing: dict[str, Any]) -> "Sets":
        """The same images, prepared as the weights that training begins with expect them."""
        ours = self.train.modality
        if len(preprocessing["mean"]) != ours.channels:
            return self
        wanted = replace(ours, mean=tuple(preprocessing["mean"]), std=tuple(preprocessing["std"]))
        held = self.validation
        return Sets(
            self.train.with_modality(wanted),
            None if held is None else held.with_modality(wanted),
        )


def open_sets(recipe: Recipe) -> Sets:
    """The recipe's training and validation images."""
    train = open_split(recipe, "train")
    measures = isinstance(recipe.data, OwnData) and train.modality.kind != "image"
    if measures:
        train = train.with_modality(measured_modality(train))
    if recipe.data.validation == 0:
        return Sets(train, None)
    held = open_split(recipe, "validation")
    return Sets(train, held.with_modality(train.modality) if measures else held)


def open_split(recipe: Recipe, split: str) -> Dataset:
    """One split of the recipe's data. UserError where there is none, or the data is wrong."""
    data = recipe.data
    if isinstance(data, PeopleData):
        return open_people(
            located(data.path),
            split=split,
            seed=recipe.seed,
            validation=data.validation,
            test=data.test,
            size=data.size,
            channels=data.channels,
            on_unreadable=data.on_unreadable,
        )
    if isinstance(data, SceneData | CellData):
        return _trained_part(open_scene_split(recipe, data, split), split, data.train, recipe)
    if isinstance(data, VolumeData | EllipsoidData):
        return _trained_part(open_volume_split(recipe, data, split), split, data.train, recipe)
    if isinstance(data, OwnData) and (kind := kind_of(data.path)) not in (None, data.kind):
        raise UserError(f'[data] kind = "{data.kind}", but {data.path} is of the kind "{kind}"')
    source = open_data(
        Path(data.path).expanduser() if isinstance(data, OwnData) else data.kind,
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        size=data.size,
        on_unreadable=data.on_unreadable if isinstance(data, OwnData) else "error",
        decoder=data.decoder if isinstance(data, OwnData) else "pillow",
        modality=own_preprocessing(data) if isinstance(data, OwnData) else None,
        multilabel=isinstance(recipe.task, Classify) and recipe.task.multilabel,
    )
    if isinstance(data, KnownData | OwnData):
        source = _chosen(source, data)
        if split == "train" and data.per_class is not None:
            if data.train is not None:
                raise UserError("[data] train and per_class: both say how many images train")
            return subset.few_a_class(source, data.per_class, recipe.seed)
    return _trained_part(source, split, data.train, recipe)


def _chosen(source: Dataset, data: KnownData | OwnData) -> Dataset:
    """The classes and the bands that the recipe names."""
    if data.classes is not None:
        source = subset.of_classes(source, data.classes)
    return source if data.bands is None else subset.of_bands(source, data.bands)


def _trained_part(
    source: Dataset, split: str, train: int | float | None, recipe: Recipe
) -> Dataset:
    """Of the training images so many, or that share (None: all): the classes in equal parts, by
    the seed.
    """
    if split != "train" or train is None:
        return source
    whole = len(source)
    count = train if isinstance(train, int) else round(train * whole)
    if not 1 <= count <= whole:
        raise UserError(f"[data] train = {train}: {source.name} has {whole:,} images to train on")
    chosen = np.sort(stratified_order(source.labels, recipe.seed)[:count])
    return source.subset(chosen.tolist())


def judged_at_a_time(source: Dataset, batch_size: int) -> int:
    """Images that are judged at a time: one of those that come as large as they are, since beside
    a larger one it would be padded, and answers at its edges would be others.
    """
    return 1 if source.modality.varies else batch_size


def sampling_of(recipe: Recipe) -> tuple[Sampler, int]:
    """How an epoch is ordered, and how many images of a class stand together with "people"."""
    data = recipe.data
    kind = getattr(data, "sampling", "uniform")
    sampler: Sampler = "pk" if kind == "people" else "balanced" if kind == "balanced" else "uniform"
    return sampler, getattr(data, "pictures", 1)


def resolved(recipe: Recipe, source: Dataset) -> Recipe:
    """The recipe with what follows from the data said: classes, channels and size."""
    recipe = asked_of(recipe, source)
    if isinstance(recipe.net, Net):
        return recipe
    height, width = source.modality.size
    net = recipe.net
    said = replace(
        net,
        num_classes=net.num_classes or TASKS[recipe.task.kind].outputs(recipe, source),
        in_channels=net.in_channels or source.modality.channels,
        size=net.size or (height if height == width else None),
    )
    return replace(recipe, net=said)


def begin_from(recipe: Recipe, net: nn.Module, source: Dataset) -> None:
    """What is done to a network before it trains: parts of it are frozen, and where the recipe
    says so its first convolution whitens patches of the images.
    """
    freeze(recipe, net)
    if not recipe.init.whiten:
        return
    if isinstance(recipe.net, NetByName) and recipe.net.weights:
        raise UserError("[init] whiten: the network begins with weights that are loaded")
    few = source.subset(np.sort(stratified_order(source.labels, recipe.seed)[:WHITENED]).tolist())
    with Loader(few, split="validation") as loader:
        whiten(net, (batch.inputs for batch in loader.epoch(0)))


def mixed(
    recipe: Recipe, batches: Iterable[Batch], step: Callable[[], int], num_classes: int
) -> Iterator[Batch]:
    """The batches, mixed as the recipe says; `step` tells how many updates were made."""
    said = recipe.data.mix
    if said.kind == "none":
        yield from batches
        return
    from plusx.data.mix import cutmix, mixup

    mix = {"mixup": mixup, "cutmix": cutmix}[said.kind](said.alpha)
    for batch in batches:
        yield mix(batch, recipe.seed, step(), num_classes)


def plain_figures(name: str) -> External:
    """The figures of an external module."""
    found = find(name)
    assert isinstance(found, External)
    return found
