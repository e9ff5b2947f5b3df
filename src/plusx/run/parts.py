"""From the tables of a recipe to the parts of a training run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.splits import stratified_order
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.nn.whitening import whiten
from plusx.recipe import NetByName, Recipe
from plusx.run.datasets import open_split as open_split
from plusx.run.datasets import open_train_and_validation
from plusx.run.networks import make_net as make_net
from plusx.run.networks import spec_of as spec_of
from plusx.run.task_factory import TASKS
from plusx.run.transfer import freeze
from plusx.run.volumes import asked_of
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
            "warnings": self.warnings,
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
    return Sets(*open_train_and_validation(recipe))


def judged_at_a_time(source: Dataset, batch_size: int) -> int:
    """Images that are judged at a time: one of those that come as large as they are, since beside
    a larger one it would be padded, and answers at its edges would be others.
    """
    return 1 if source.modality.varies else batch_size


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
