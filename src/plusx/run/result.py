"""What a finished run says of its network, and the weights that it keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from plusx.data.dataset import Dataset
from plusx.grammar.arithmetic import each_dimension, measure
from plusx.grammar.spec import Net
from plusx.nn.costs import multiply_adds
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import Recipe
from plusx.run import parts
from plusx.run.task_factory import TASKS
from plusx.run.task_factory import to_dict as task_to_dict
from plusx.tasks.task import Task
from plusx.weights import save_network


def write_kept(path: Path, recipe: Recipe, source: Dataset, task: Task) -> None:
    """Write the weights of a task's network with all that is needed to use them.

    source: the images that it was trained on. OSError: they cannot be written.
    """
    save_network(
        task.net,
        path,
        model=_name(recipe),
        preprocessing=source.modality.to_dict(),
        classes=source.classes if TASKS[recipe.task.kind].has_classes else None,
        multilabel=getattr(recipe.task, "multilabel", False),
        task=task_to_dict(recipe.task),
    )


def described(recipe: Recipe, net: nn.Module) -> dict[str, Any]:
    """The network's name and counts, for result.json."""
    spec = parts.spec_of(recipe.net)
    counted = measure(spec) if isinstance(spec, Net) else parts.plain_figures(spec)
    work = counted.multiply_adds
    if isinstance(net, NetworkWithHead):
        work = multiply_adds(net, _seen(recipe, spec))
    return {
        "name": _name(recipe) or "inline",
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "multiply_adds": work,
    }


def _seen(recipe: Recipe, spec: Net | str) -> tuple[int, ...]:
    """Positions of an input, a dimension each: the data's size, else the network's own.

    A volume that a network of images sees slice by slice counts with all of them.
    """
    ndim = spec.ndim if isinstance(spec, Net) else 2
    patch = getattr(recipe.data, "patch", None)
    if patch is not None:
        return tuple(patch)
    own = spec if isinstance(spec, Net) else parts.plain_figures(spec)
    return each_dimension(getattr(recipe.data, "size", None) or own.size, ndim)


def of_training(task: Task, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says of the training images; `scores` are the keys of a task's figures.

    `train_error` is the share of wrong answers, None where an answer is not right or wrong.
    """
    keys = ("count", "loss", task.metrics[0])
    wrong = None
    if "accuracy" in figures:
        wrong = round((1 - figures["accuracy"]) * figures["count"]) / figures["count"]
    return {
        "metrics": list(task.metrics),
        "train": {key: figures[key] for key in keys if key in figures},
        "train_error": wrong,
    }


def _name(recipe: Recipe) -> str | None:
    return None if isinstance(recipe.net, Net) else recipe.net.base
