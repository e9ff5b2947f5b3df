"""Building the data sets and the network of a recipe, ready for training."""

import difflib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plusx.data.annotations import Boxes
from plusx.data.checks import leaks
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.modality import modality_from_dict
from plusx.data.splits import stratified_order
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.grammar.validate import validate
from plusx.nn.build import build
from plusx.nn.frozen import freeze_below, freeze_norms, head_depth
from plusx.nn.init import initialise
from plusx.nn.network import Backbone
from plusx.nn.whitening import whiten
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import NetByName, Recipe
from plusx.recipe.tables import Init
from plusx.run import datasets
from plusx.run.continual import stream_sets, stream_split
from plusx.run.datasets import DATA, open_train_and_validation
from plusx.run.file_names import RECIPE, WEIGHTS
from plusx.run.selfsupervised import with_views
from plusx.run.task_factory import TASKS
from plusx.weights.convert import validation_warning
from plusx.weights.fetch import NAME, find_weights, load_into, model_of_file
from plusx.weights.files import Weights
from plusx.weights.published import published_names
from plusx.zoo import External, find


WHITENED_IMAGES = 2000  # training images, equally many of each class, for the whitening
TRAINED = ("weights", "train", "freeze_norms")  # fields of [net] that no spec has, besides base


@dataclass(frozen=True)
class Sets:
    """The data sets of a recipe; `validation` is None if no samples are held out."""

    train: Dataset
    validation: Dataset | None

    @property
    def warnings(self) -> list[str]:
        """Return the distinct warnings of both sets, and those about samples that are in both."""
        if self.validation is None:
            return list(dict.fromkeys(self.train.warnings))
        common = leaks(self.train, {"validation": self.validation})
        return list(dict.fromkeys([*common, *self.train.warnings, *self.validation.warnings]))

    def description(self) -> dict[str, Any]:
        """Return the content of data.json: classes, preprocessing, and fingerprints of the data."""
        train, validation = self.train, self.validation
        boxes = train.annotations
        ids = boxes.category_ids if isinstance(boxes, Boxes) else ()
        return {
            "name": train.name,
            "classes": list(train.classes),
            **({"category_ids": list(ids)} if ids else {}),
            "preprocessing": train.modality.to_dict(),
            "train": {"count": len(train), "fingerprint": train.fingerprint()},
            "validation": None
            if validation is None
            else {"count": len(validation), "fingerprint": validation.fingerprint()},
            "warnings": self.warnings,
        }

    def with_preprocessing(self, preprocessing: Mapping[str, Any]) -> "Sets":
        """Return the sets with the preprocessing of a network's weights."""
        modality, validation = modality_from_dict(dict(preprocessing)), self.validation
        return Sets(
            self.train.like(modality), None if validation is None else validation.like(modality)
        )


def open_sets(recipe: Recipe) -> Sets:
    """Open the recipe's training and validation sets; of a stream, those of its task."""
    opened = open_train_and_validation if recipe.stream is None else stream_sets
    return Sets(*opened(recipe))


def open_split(recipe: Recipe, split: str) -> Dataset:
    """Open a split of the recipe's data; of a stream, that of its task. Raises UserError if it is
    missing or invalid."""
    return (datasets.open_split if recipe.stream is None else stream_split)(recipe, split)


def evaluation_batch_size(dataset: Dataset, batch_size: int) -> int:
    """Return `batch_size`, or 1 if inputs vary in size, since padding changes predictions."""
    return 1 if dataset.modality.varies else batch_size


def evaluation_loader(
    dataset: Dataset, batch_size: int, device: torch.device, workers: int = 0
) -> Loader:
    """Return a loader of all samples in their order, without augmentation."""
    return Loader(
        dataset,
        split="all",
        batch_size=evaluation_batch_size(dataset, batch_size),
        workers=workers,
        device=device,
    )


def resolved(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe with the fields set that follow from its training set.

    These are classes, channels, size and spacing. A method sets the sampler that it needs.
    """
    recipe = with_views(recipe)
    recipe = replace(
        recipe,
        task=TASKS[recipe.task.kind].resolve(recipe.task, dataset),
        data=DATA[recipe.data.kind].resolve(recipe.data, dataset),
    )
    net = recipe.net_by_name
    if net is None:
        return recipe
    sides = set(dataset.modality.size)
    net = replace(
        net,
        num_classes=TASKS[recipe.task.kind].outputs(recipe, dataset)
        if net.num_classes is None
        else net.num_classes,
        in_channels=net.in_channels or dataset.modality.channels,
        size=net.size or (sides.pop() if len(sides) == 1 else None),
    )
    return replace(recipe, net=net)


def spec_of(net: NetByName | Net) -> Net | External:
    """Return the validated model that a recipe's [net] describes.

    If the weight file contains a spec of that name, it is used: converted networks of other
    libraries can have other shortcuts than the zoo's.
    """
    if isinstance(net, Net):
        validate(net)
        return net
    spec: Any = find(net.base)
    weights = net.weights and resolve_weights(net.weights)
    if weights and Path(weights).is_file():
        stored = find_weights(net.base, weights)
        if stored.model == net.base:
            spec = model_of_file(stored, spec)
    changes = spec_changes(net)
    if isinstance(spec, External):
        unsupported = sorted(set(changes) - {"num_classes", "in_channels", "size"})
        if unsupported:
            raise UserError(
                f"[net] {unsupported[0]}: {net.base} is an external module; only num_classes and "
                "in_channels can be changed"
            )
        changes.pop("size", None)
        return replace(spec, **changes)
    spec = replace(spec, **changes)
    validate(spec)
    return spec


def spec_changes(net: NetByName) -> dict[str, Any]:
    """Return the fields of a spec that a recipe's [net] changes, with their values."""
    return {
        field.name: getattr(net, field.name)
        for field in fields(net)
        if field.name not in ("base", *TRAINED) and getattr(net, field.name) is not None
    }


def make_net(recipe: Recipe) -> tuple[Backbone, dict[str, Any] | None]:
    """Build the recipe's network; return it with the preprocessing of its initial weights."""
    spec, init = spec_of(recipe.net), recipe.init
    external = isinstance(spec, External)
    if external and init != Init():
        raise UserError(
            f"[init]: {recipe.net_name} is an external module with its own initialisation"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = build(spec, initialised=False)
        if not external:
            initialise(net, init.rule, init.zero_last_gamma, init.gate_bias)
    net = _with_head(recipe, net, recipe.net.num_classes)
    source = initial_weights(recipe)
    if not source:
        return net, None
    weights = _open_weights(recipe.net_name, source)
    load_into(net, recipe.net_name, weights, new_head=True)
    warning = validation_warning(weights.source, recipe.data.kind)
    if warning and recipe.data.validation != 0:
        warnings.warn(f"[net] weights: {warning}", stacklevel=2)
    return net, weights.preprocessing


def _open_weights(network: str | None, source: str) -> Weights:
    """Open a recipe's weights. Raises UserError, with the key, if there are none."""
    path_or_name = resolve_weights(source)
    if not Path(path_or_name).exists() and not NAME.fullmatch(path_or_name):
        names = published_names(network) if network else ()
        published = f"; published for {network}: {', '.join(names)}" if names else ""
        raise UserError(
            f"[net] weights = {json.dumps(source)}: no such file or run{published}; leave it empty "
            "(net.weights=) to train from scratch"
        )
    return find_weights(network, path_or_name)


def initial_weights(recipe: Recipe) -> str:
    """Return the source of the initial weights: the run of a stream's previous task, or [net]
    weights; "" for a random initialisation."""
    if recipe.stream is not None and recipe.stream.previous:
        return recipe.stream.previous
    return "" if recipe.net_by_name is None else recipe.net_by_name.weights


def blank_net(recipe: Recipe, num_classes: int) -> Backbone:
    """Build the recipe's network for `num_classes` without initialising its weights."""
    outputs = num_classes if TASKS[recipe.task.kind].has_classes else recipe.net.num_classes
    spec = spec_of(recipe.net)
    if outputs is not None:
        spec = replace(spec, num_classes=outputs)
    with torch.random.fork_rng(devices=[]):
        return _with_head(recipe, build(spec, initialised=False), num_classes)


def _with_head(recipe: Recipe, net: Backbone, num_classes: int | None) -> Backbone:
    """Return the network with the recipe's [head], if there is one."""
    kinds = TASKS[recipe.task.kind].heads
    if recipe.head is None:
        if not kinds:
            return net
        raise UserError(
            f'[task] kind = "{recipe.task.kind}" needs a [head]: kind = {" or ".join(kinds)}'
        )
    if recipe.head.kind not in kinds:
        allowed = f"which needs {' or '.join(kinds)}" if kinds else "which takes no [head]"
        raise UserError(
            f'[head] kind = "{recipe.head.kind}" is not for [task] kind = "{recipe.task.kind}", '
            f"{allowed}"
        )
    assert num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return NetworkWithHead(net, recipe.head, num_classes)


def resolve_weights(text: str) -> str:
    """Return the path or the published name of a recipe's weights; for a run's folder, its file.

    Raises UserError if the folder is not that of a finished run.
    """
    path = Path(text).expanduser()
    if not path.is_dir():
        return str(path) if path.is_file() else text
    if (path / WEIGHTS).is_file():
        return str(path / WEIGHTS)
    if (path / RECIPE).is_file():
        raise UserError(f"[net] weights: the run {path} is not finished, it has no {WEIGHTS} yet")
    runs = sorted(file.parent.name for file in path.glob(f"*/{WEIGHTS}"))
    near = difflib.get_close_matches(path.name, runs, 1, 0.0)
    hint = f"; did you mean {path / near[0]}?" if near else ""
    raise UserError(f"[net] weights: {path} is not a run's folder: it has no {WEIGHTS}{hint}")


def freeze_and_whiten(recipe: Recipe, net: nn.Module, dataset: Dataset) -> None:
    """Freeze the recipe's frozen layers, and initialise its whitening layer from the images."""
    table = recipe.net_by_name
    if table is not None:
        _freeze(table, net)
    if not recipe.init.whiten:
        return
    if table is not None and table.weights:
        raise UserError("[init] whiten: not with [net] weights, which are loaded")
    chosen = np.sort(stratified_order(dataset.labels, recipe.seed)[:WHITENED_IMAGES])
    with Loader(dataset.subset(chosen.tolist()), split="validation") as loader:
        whiten(net, (batch.inputs for batch in loader.epoch(0)))


def _freeze(table: NetByName, net: nn.Module) -> None:
    """Freeze the parameters and the batch norm statistics that are not trained.

    Raises UserError if the network has fewer stages than are to be trained, or no head.
    """
    if table.freeze_norms and not freeze_norms(net):
        raise UserError(f"[net] freeze_norms: {table.base} has no batch norms")
    if table.train == "all":
        return
    head = head_depth(net)
    if table.train == "head":
        freeze_below(net, head)
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise UserError('[net] train = "head": the network has no head')
        return
    if table.train >= head:
        raise UserError(
            f'[net] train = {table.train}: {table.base} has {head - 1} stages; "all" trains them '
            "and the stem"
        )
    freeze_below(net, head - table.train)


def untrained_warning(recipe: Recipe) -> str:
    """Return a warning if only a part of an initialised network is trained, else ""."""
    table = recipe.net_by_name
    if table is None or table.train == "all" or table.weights:
        return ""
    return (
        f"[net] train = {json.dumps(table.train)} without [net] weights: the other layers stay "
        "randomly initialised"
    )
