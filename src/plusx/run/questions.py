"""From a recipe's [task] to the task: in training, and to use what was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.metrics.detection import require_coco_eval
from plusx.recipe import Recipe
from plusx.recipe.tables import Classify as ClassifyTable
from plusx.recipe.tables import Detect as DetectTable
from plusx.recipe.tables import Embed as EmbedTable
from plusx.recipe.tables import Segment as SegmentTable
from plusx.recipe.tables import TaskTable
from plusx.tasks.classify import Classify
from plusx.tasks.task import Task


_ADAPTER: TypeAdapter[TaskTable] = TypeAdapter(TaskTable)


def make_training_task(recipe: Recipe, net: nn.Module, source: Dataset) -> Task:
    """The recipe's task with what only training knows: smoothing, the weights of the classes.

    UserError: the images do not have what the task asks for, or the run is to be judged by what
    the task does not tell. RuntimeError: its figures need an extra that is not installed.
    """
    task = _made(recipe, net, source)
    if recipe.evaluate.tta not in task.tta:
        raise UserError(
            f'[evaluate] tta = "{recipe.evaluate.tta}": predictions of [task] kind = '
            f'"{recipe.task.kind}" can be averaged over {" or ".join(task.tta)}'
        )
    said = recipe.evaluate.monitor
    known = set(task.metrics)
    known |= set(task.monitors)
    if said is not None and said not in known:
        raise UserError(
            f'[evaluate] monitor = "{said}": [task] kind = "{recipe.task.kind}" has '
            f"{', '.join(sorted(known))}"
        )
    return task


def _made(recipe: Recipe, net: nn.Module, source: Dataset) -> Task:
    table = recipe.task
    if isinstance(table, SegmentTable):
        return _segmenter(table, net, source.classes, _position_weights(table, source))
    if isinstance(table, EmbedTable):
        return _embedder(recipe, table, net, source)
    if isinstance(table, DetectTable):
        if not source.has_boxes:
            raise UserError(f'[task] kind = "detect", but {source.name} has no boxes')
        require_coco_eval()  # said now, and not when the first epoch is judged
        return open_task(table, net, source.classes)
    return _classifier(table, net, source)


def open_task(table: TaskTable, net: nn.Module, classes: Sequence[str] | None) -> Task:
    """The task that a trained network answers."""
    if isinstance(table, SegmentTable):
        return _segmenter(table, net, classes, None)
    if isinstance(table, DetectTable):
        from plusx.tasks.detect import Detect

        return Detect(
            net,
            score_threshold=table.score_threshold,
            nms_iou=table.nms_iou,
            max_detections=table.max_detections,
            class_names=classes,
        )
    if isinstance(table, EmbedTable):
        from plusx.tasks.embed import Embed

        return Embed(
            net,
            loss=table.loss,
            margin=table.margin,
            scale=table.scale,
            class_names=classes,
            far=table.far,
        )
    return Classify(net, multilabel=table.multilabel, class_names=classes)


def told(table: TaskTable) -> dict[str, Any]:
    """A task as a file of weights says it; `read` is the other way round."""
    return asdict(table)


def read(said: Mapping[str, Any] | None, multilabel: bool = False) -> TaskTable:
    """The table that a file of weights holds; a classifier where it says nothing.

    UserError: it is no table of a task.
    """
    if said is None:
        return ClassifyTable(multilabel=multilabel)
    try:
        return _ADAPTER.validate_python(dict(said))
    except ValidationError as error:
        raise UserError(f"no task is {dict(said)!r}: {error.errors()[0]['msg']}") from None


def _classifier(table: ClassifyTable, net: nn.Module, source: Dataset) -> Classify:
    if source.annotations is not None:
        raise UserError(
            f'[task] kind = "classify", but {source.name} has boxes or masks: "detect" or "segment"'
        )
    if table.multilabel != source.multilabel:
        has = "several labels a sample" if source.multilabel else "one label a sample"
        said = str(table.multilabel).lower()
        raise UserError(f"[task] multilabel = {said}, but {source.name} has {has}")
    return Classify(
        net,
        label_smoothing=table.label_smoothing,
        class_weights=_class_weights(table, source),
        multilabel=table.multilabel,
        class_names=source.classes,
    )


def _embedder(recipe: Recipe, table: EmbedTable, net: nn.Module, source: Dataset) -> Task:
    if source.annotations is not None or source.multilabel:
        has = "several labels an image" if source.multilabel else "boxes or masks"
        raise UserError(f'[task] kind = "embed" needs one class an image: {source.name} has {has}')
    if table.loss == "triplet" and getattr(recipe.data, "sampling", "") != "people":
        raise UserError(
            '[task] loss = "triplet" compares images of one class within a batch: it needs '
            '[data] sampling = "people"'
        )
    if table.loss == "triplet" and recipe.optim.accumulation_steps > 1:
        raise UserError(
            f"[optim] accumulation_steps = {recipe.optim.accumulation_steps}: triplets are of a "
            "whole batch, and its parts do not add up to it"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return open_task(table, net, source.classes)


def _class_weights(table: ClassifyTable, source: Dataset) -> Tensor | None:
    said = table.class_weights
    if said == "none":
        return None
    if said != "balanced":
        return torch.tensor(said, dtype=torch.float32)
    labels, classes = source.labels.cpu(), len(source.classes)
    if source.multilabel:
        positive = labels.sum(0).clamp(min=1)
        return (len(source) - positive) / positive
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return (len(source) / (classes * counts)).to(torch.float32)


def _segmenter(
    table: SegmentTable, net: nn.Module, classes: Sequence[str] | None, weights: Tensor | None
) -> Task:
    from plusx.tasks.segment import Segment

    return Segment(
        net,
        loss=table.loss,
        class_weights=weights,
        class_names=classes,
        background=table.background,
        window=table.window,
        overlap=table.overlap,
        spacing=table.spacing,
    )


def _position_weights(table: SegmentTable, source: Dataset) -> Tensor | None:
    said = table.class_weights
    if said == "none":
        return None
    if isinstance(said, tuple):
        return torch.tensor(said, dtype=torch.float32)
    from plusx.tasks.segment import balanced

    return balanced(source.position_counts(), said)
