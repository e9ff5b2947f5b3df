"""The self-supervised learning of a recipe's [method]."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import nn

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.splits import stratified_order
from plusx.errors import UserError
from plusx.recipe import KnownData, OwnData, Recipe
from plusx.recipe.sets import RecordingData
from plusx.selfsupervised import METHODS
from plusx.tasks.represent import Represent
from plusx.tasks.task import Task


REFERENCE = 10_000  # training images at most, as neighbours in evaluations
COMPARED = 64  # training images whose two views are compared before the first epoch


def is_self_supervised(recipe: Recipe) -> bool:
    """Whether the recipe's [method] is one of self-supervised learning."""
    return recipe.method is not None and recipe.method.kind in METHODS


def require_method(recipe: Recipe, name: str) -> None:
    """Raise UserError if the recipe has no method of self-supervised learning."""
    if not is_self_supervised(recipe):
        raise UserError(
            f"{name} has no [method] of self-supervised learning: set task.kind=represent and "
            f"method.kind to {', '.join(METHODS)}; `plusx train {name}` trains it as it is"
        )


def with_views(recipe: Recipe) -> Recipe:
    """Return the recipe with the sampler that its self-supervised method needs, and without an
    evaluation on the training set, in which the nearest neighbour of an image is itself."""
    table, data = recipe.method, recipe.data
    if table is None or not is_self_supervised(recipe):
        return recipe
    recipe, kind = replace(recipe, evaluate=replace(recipe.evaluate, train_set=False)), table.kind
    if METHODS[kind].views == 1 or data.sampler == "views":
        return recipe
    if data.sampler != "uniform":
        raise UserError(
            f'[data] sampler = "{data.sampler}": [method] kind = "{kind}" needs two views of each '
            'image, sampler = "views"'
        )
    if not isinstance(data, KnownData | OwnData | RecordingData):
        raise UserError(
            f'[method] kind = "{kind}" needs two views of each sample, which [data] kind = '
            f'"{data.kind}" does not have'
        )
    return replace(recipe, data=replace(data, sampler="views"))


def train_represent(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    """Return the task whose loss the method replaces; it is evaluated by nearest neighbours among
    the training images."""
    if not is_self_supervised(recipe):
        raise UserError(
            '[task] kind = "represent" needs a [method] of self-supervised learning: kind = '
            f"{', '.join(METHODS)}"
        )
    if dataset.annotations is not None or dataset.multilabel:
        has = "several labels per sample" if dataset.multilabel else "boxes, masks or texts"
        raise UserError(
            f'[task] kind = "represent" is evaluated with one class per {dataset.modality.noun}, '
            f"and {dataset.name} has {has}"
        )
    return Represent(net, reference=_reference(recipe, dataset), num_classes=len(dataset.classes))


def self_supervised(recipe: Recipe, task: Task, dataset: Dataset) -> Task:
    """Return the task with the recipe's method around it, if it is one of self-supervised learning.

    Raises UserError for a task, inputs or an augmentation that the method cannot have.
    """
    table = recipe.method
    if table is None or not is_self_supervised(recipe):
        return task
    where, cls = f'[method] kind = "{table.kind}"', METHODS[table.kind]
    if recipe.task.kind != "represent":
        raise UserError(
            f'{where} trains embeddings, not [task] kind = "{recipe.task.kind}": set [task] kind = '
            '"represent"; the result is fine-tuned with net.weights=RUN'
        )
    if recipe.adversarial is not None:
        raise UserError(f"{where}: not together with [adversarial]")
    if recipe.data.mix.kind != "none":
        raise UserError(f"{where}: not together with [data] mix")
    count = min(recipe.batch_size, len(dataset))
    if cls.views == 2 and count < 2:
        raise UserError(
            f"{where} compares images with each other: batch_size = {recipe.batch_size} and "
            f"{len(dataset):,} training {dataset.inputs}, but it needs two or more at a time"
        )
    if cls.views == 2 and recipe.optim.accumulation_steps > 1:
        raise UserError(
            f"[optim] accumulation_steps = {recipe.optim.accumulation_steps}: the loss of {where} "
            "is not a sum over parts of a batch; use accumulation_steps = 1"
        )
    if cls.views == 2:
        _refuse_equal_views(recipe, dataset)
    fields = {key: value for key, value in asdict(table).items() if key != "kind"}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return cls(task, dataset.modality, **fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_processes(recipe: Recipe, processes: int) -> None:
    """Raise UserError if the recipe's method cannot be trained by this number of processes."""
    table = recipe.method
    if table is None or not is_self_supervised(recipe):
        return
    where, cls = f'[method] kind = "{table.kind}"', METHODS[table.kind]
    if cls.has_queue:
        raise UserError(
            f"{where}: its queue is not shared by processes; use another method, or one process"
        )
    if cls.has_teacher and recipe.device.parallel == "fsdp":
        raise UserError(
            f'{where}: its teacher needs unsharded weights; use [device] parallel = "ddp"'
        )
    if cls.views == 2 and recipe.batch_size < 2 * processes:
        raise UserError(
            f"{where} compares the images of each of {processes} processes: batch_size = "
            f"{2 * processes} or more"
        )


def _reference(recipe: Recipe, dataset: Dataset) -> Callable[[], Iterable[Batch]]:
    """Return a function that yields batches of training images without augmentation."""
    if len(dataset) > REFERENCE:
        chosen = np.sort(stratified_order(dataset.labels, recipe.seed)[:REFERENCE])
        dataset = dataset.subset(chosen.tolist())

    def batches() -> Iterable[Batch]:
        with Loader(
            dataset, split="validation", batch_size=256, workers=recipe.data.workers
        ) as loader:
            yield from loader.epoch(0)

    return batches


def _refuse_equal_views(recipe: Recipe, dataset: Dataset) -> None:
    """Raise UserError if the two views of some training images are equal."""
    count = min(COMPARED, len(dataset))
    with Loader(
        dataset.subset(range(count)),
        split="train",
        augment=recipe.data.augment,
        batch_size=count,
        seed=recipe.seed,
        sampler="views",
    ) as loader:
        inputs = next(iter(loader.epoch(0))).inputs
    if torch.equal(inputs[0::2], inputs[1::2]):
        raise UserError(
            f"[data] augment = {recipe.data.augment!r} changes nothing, so both views of an image "
            'are the same and the task is trivial: add words such as "resizedcrop flip jitter.4"'
        )
