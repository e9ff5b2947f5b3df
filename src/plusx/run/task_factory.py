"""Building the task of a recipe's [task], for training or for a trained network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from plusx.data.annotations import Texts
from plusx.data.command_grammar import grammar_text, open_grammar, shipped_grammars
from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.heads import DECODERS, DETECTORS, SEGMENTERS, TRANSCRIBERS
from plusx.metrics.detection import require_coco_eval
from plusx.metrics.text import require_sacrebleu
from plusx.recipe import Recipe
from plusx.recipe.tables import TaskTable
from plusx.run.adversarial import adversarial
from plusx.run.continual import continual
from plusx.run.selfsupervised import self_supervised, train_represent
from plusx.tasks.classify import Classify
from plusx.tasks.represent import Represent
from plusx.tasks.task import Task


ClassNames = Sequence[str] | None
_TABLES: TypeAdapter[TaskTable] = TypeAdapter(TaskTable)


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """How a kind of task is built from its table.

    use: (table, network, class names) -> the task of a trained network
    train: (recipe, network, training set) -> the task for training
    heads: the kinds of [head] that it needs; (): a linear layer
    outputs: (recipe, training set) -> the width of the linear layer
    has_classes: whether a trained network predicts the classes that it was trained on
    resolve: (table, training set) -> the table with the fields set that follow from the set
    """

    use: Callable[[Any, nn.Module, ClassNames], Task]
    train: Callable[[Recipe, nn.Module, Dataset], Task]
    heads: tuple[str, ...] = ()
    outputs: Callable[[Recipe, Dataset], int] = lambda recipe, dataset: len(dataset.classes)
    has_classes: bool = True
    resolve: Callable[[Any, Dataset], Any] = lambda table, dataset: _for_images(table, dataset)


def make_training_task(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    """Return the recipe's task for training, with label smoothing, class weights, adversarial
    training, continual and self-supervised learning.

    Raises UserError if the data is not for the task, or the monitored metric is not one of the
    task's; RuntimeError if its metrics need an extra that is not installed.
    """
    kind = recipe.task.kind
    task = adversarial(recipe, TASKS[kind].train(recipe, net, dataset), dataset.modality)
    task = continual(recipe, task, dataset)
    task = self_supervised(recipe, task, dataset)
    if recipe.evaluate.tta not in task.tta:
        raise UserError(
            f'[evaluate] tta = "{recipe.evaluate.tta}": predictions of [task] kind = "{kind}" can '
            f"be averaged over {' or '.join(task.tta)}"
        )
    monitor, allowed = recipe.evaluate.monitor, {*task.metrics, *task.monitors}
    if monitor is not None and monitor not in allowed:
        raise UserError(
            f'[evaluate] monitor = "{monitor}": [task] kind = "{kind}" has '
            f"{', '.join(sorted(allowed))}"
        )
    return task


def open_task(table: TaskTable, net: nn.Module, class_names: ClassNames) -> Task:
    """Return the task of a trained network."""
    return TASKS[table.kind].use(table, net, class_names)


def from_dict(values: Mapping[str, Any] | None, multilabel: bool = False) -> TaskTable:
    """Parse the [task] in a weight file; the default is a classifier. Raises UserError."""
    if values is None:
        values = {"kind": "classify", "multilabel": multilabel}
    try:
        return _TABLES.validate_python(dict(values))
    except ValidationError as error:
        raise UserError(f"invalid task {dict(values)!r}: {error.errors()[0]['msg']}") from None


def _classifier(table: Any, net: nn.Module, class_names: ClassNames) -> Task:
    return Classify(net, multilabel=table.multilabel, class_names=class_names)


def _train_classifier(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    table: Any = recipe.task
    if dataset.annotations is not None:
        raise UserError(
            f'[task] kind = "classify", but {dataset.name} has boxes or masks: use "detect" or '
            '"segment"'
        )
    if table.multilabel != dataset.multilabel:
        has = "several labels per sample" if dataset.multilabel else "one label per sample"
        value = str(table.multilabel).lower()
        raise UserError(f"[task] multilabel = {value}, but {dataset.name} has {has}")
    return Classify(
        net,
        label_smoothing=table.label_smoothing,
        class_weights=_weights(table.class_weights, lambda rule: _balanced_labels(dataset)),
        multilabel=table.multilabel,
        class_names=dataset.classes,
    )


def _segmenter(
    table: Any, net: nn.Module, class_names: ClassNames, weights: Tensor | None = None
) -> Task:
    from plusx.tasks.segment import Segment

    return Segment(
        net,
        loss=table.loss,
        class_weights=weights,
        class_names=class_names,
        background=table.background,
        window=table.window,
        overlap=table.overlap,
        spacing=table.spacing,
    )


def _for_images(table: TaskTable, dataset: Dataset) -> TaskTable:
    """Return the table unchanged. Raises UserError if the data set has volumes."""
    if dataset.modality.ndim == 3:
        raise UserError(f'[task] kind = "{table.kind}": volumes need [task] kind = "segment"')
    return table


def _resolve_segmenter(table: Any, dataset: Dataset) -> Any:
    """Return the table with the window, spacing and background of volumes.

    Raises UserError if the window has another number of dimensions, or images have a spacing.
    """
    modality = dataset.modality
    if table.window is not None and len(table.window) != modality.ndim:
        raise UserError(
            f"[task] window = {list(table.window)}: {modality.ndim} numbers are needed, one for "
            f"each dimension of {dataset.name}"
        )
    if modality.grid is None:
        if table.spacing is not None:
            raise UserError(f"[task] spacing is only for volumes, but {dataset.name} has images")
        return table
    return replace(
        table,
        window=table.window or modality.grid.patch,
        spacing=table.spacing or modality.grid.spacing,
        background=table.background or dataset.classes[0],
    )


def _train_segmenter(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    from plusx.tasks.segment import balanced

    table: Any = recipe.task
    weights = _weights(table.class_weights, lambda rule: balanced(dataset.position_counts(), rule))
    return _segmenter(table, net, dataset.classes, weights)


def _detector(table: Any, net: nn.Module, class_names: ClassNames) -> Task:
    from plusx.tasks.detect import Detect

    return Detect(
        net,
        score_threshold=table.score_threshold,
        nms_iou=table.nms_iou,
        max_detections=table.max_detections,
        class_names=class_names,
    )


def _train_detector(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    if not dataset.has_boxes:
        raise UserError(f'[task] kind = "detect", but {dataset.name} has no boxes')
    require_coco_eval()  # before the first epoch
    return _detector(recipe.task, net, dataset.classes)


def _embedder(table: Any, net: nn.Module, class_names: ClassNames) -> Task:
    from plusx.tasks.embed import Embed

    return Embed(
        net,
        loss=table.loss,
        margin=table.margin,
        scale=table.scale,
        class_names=class_names,
        far=table.far,
    )


def _train_embedder(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    table: Any = recipe.task
    if dataset.annotations is not None or dataset.multilabel:
        has = "several labels per sample" if dataset.multilabel else "boxes or masks"
        raise UserError(
            f'[task] kind = "embed" needs one class per {dataset.modality.noun}, but '
            f"{dataset.name} has {has}"
        )
    if table.loss == "triplet" and recipe.data.sampler != "pk":
        raise UserError(
            '[task] loss = "triplet" needs several samples of a class in a batch: set '
            '[data] sampler = "pk"'
        )
    if table.loss == "triplet" and recipe.optim.accumulation_steps > 1:
        raise UserError(
            f"[optim] accumulation_steps = {recipe.optim.accumulation_steps}: the triplet loss is "
            "not a sum over parts of a batch; use accumulation_steps = 1"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _embedder(table, net, dataset.classes)


def _generator(
    table: Any, net: nn.Module, class_names: ClassNames, beam: int | None = None
) -> Task:
    from plusx.tasks.generate import Generate

    return Generate(
        net,
        key="caption" if table.kind == "caption" else "translation",
        label_smoothing=table.label_smoothing,
        beam=beam or table.beam,
        length_penalty=table.length_penalty,
        max_length=table.max_length,
        class_names=class_names,
    )


def _train_generator(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    table: Any = recipe.task
    if not isinstance(dataset.annotations, Texts):
        raise UserError(
            f'[task] kind = "{table.kind}" needs a text for each sample, which {dataset.name} does '
            "not have"
        )
    require_sacrebleu()  # before the first epoch
    return _generator(table, net, dataset.classes, table.training_beam)


def _transcriber(table: Any, net: nn.Module, class_names: ClassNames) -> Task:
    from plusx.tasks.transcribe import Transcribe

    return Transcribe(net, vocabulary=class_names or (), beam=table.beam)


def _train_transcriber(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    from plusx.run.transcribing import check_transcripts

    check_transcripts(dataset, net, recipe.data.augment)
    return _transcriber(recipe.task, net, dataset.classes)


def _commander(table: Any, net: nn.Module, class_names: ClassNames) -> Task:
    from plusx.tasks.within_grammar import WithinGrammar

    task = _transcriber(table, net, class_names)
    return WithinGrammar(task, open_grammar(table.grammar), table.threshold)


def _train_commander(recipe: Recipe, net: nn.Module, dataset: Dataset) -> Task:
    _train_transcriber(recipe, net, dataset)  # checks the transcripts
    return _commander(recipe.task, net, dataset.classes)


def _with_grammar_text(table: Any, dataset: Dataset) -> Any:
    """Return the table with the text of a grammar file, which is then saved with the network."""
    if table.grammar in shipped_grammars():
        return table
    return replace(table, grammar=grammar_text(table.grammar)[1])


def _width(recipe: Recipe, dataset: Dataset) -> int:
    table: Any = recipe.task
    width: int = table.width
    return width


def _weights(value: str | tuple[float, ...], by_rule: Callable[[str], Tensor]) -> Tensor | None:
    """Return class weights from `value`: none, numbers, or a rule for the training set."""
    if value == "none":
        return None
    return by_rule(value) if isinstance(value, str) else torch.tensor(value, dtype=torch.float32)


def _balanced_labels(dataset: Dataset) -> Tensor:
    labels, num_classes = dataset.labels.cpu(), len(dataset.classes)
    if dataset.multilabel:
        positive = labels.sum(0).clamp(min=1)
        return (len(dataset) - positive) / positive
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return (len(dataset) / (num_classes * counts)).to(torch.float32)


TASKS: dict[str, TaskKind] = {
    "classify": TaskKind(use=_classifier, train=_train_classifier),
    "segment": TaskKind(
        use=_segmenter, train=_train_segmenter, heads=SEGMENTERS, resolve=_resolve_segmenter
    ),
    "detect": TaskKind(use=_detector, train=_train_detector, heads=DETECTORS),
    "transcribe": TaskKind(use=_transcriber, train=_train_transcriber, heads=TRANSCRIBERS),
    "spoken-command": TaskKind(
        use=_commander,
        train=_train_commander,
        heads=TRANSCRIBERS,
        resolve=_with_grammar_text,
    ),
    "embed": TaskKind(use=_embedder, train=_train_embedder, outputs=_width, has_classes=False),
    "represent": TaskKind(
        use=lambda table, net, class_names: Represent(net),
        train=train_represent,
        outputs=lambda recipe, dataset: 0,
        has_classes=False,
    ),
    "translate": TaskKind(use=_generator, train=_train_generator, heads=DECODERS),
    "caption": TaskKind(use=_generator, train=_train_generator, heads=DECODERS),
}
