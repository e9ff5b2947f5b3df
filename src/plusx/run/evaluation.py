"""Evaluation of a trained network, which records every use of the test set."""

import dataclasses
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from plusx.data.checks import leaks
from plusx.data.dataset import Dataset, Split, as_split
from plusx.data.modality import Modality
from plusx.data.readers.layouts import LAYOUTS, Annotation, choose_kind, kind_of
from plusx.data.readers.open import is_undivided, open_data, splits_of
from plusx.data.readers.packed import recognise_packed
from plusx.data.readers.packed_file import open_packed_file
from plusx.data.sets import NAMED_SETS
from plusx.data.sets.download import located
from plusx.errors import UserError
from plusx.grammar.model import Model
from plusx.grammar.spec import Net
from plusx.grammar.words import Word, parse
from plusx.recipe import Recipe
from plusx.run import build
from plusx.run.datasets import DATA as DATA_KINDS
from plusx.run.datasets import at_another_path, open_for_network, replace_path
from plusx.run.file_names import DATA, RECIPE, WEIGHTS
from plusx.run.folder import (
    UNFINISHED,
    Run,
    read_data,
    read_recipe,
    read_result,
    record_test_use,
)
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import HALVES, prepare
from plusx.tasks.tta import TestTimeAugmented, Tta
from plusx.train.loop import evaluate as evaluate_task
from plusx.weights.convert import SOURCE_DEFAULTS, usual_classes, validation_warning


OnUnreadable = Literal["error", "skip"]


def evaluate(
    run: Run,
    *,
    data: str | Path | None = None,
    split: str = "validation",
    tta: Tta | None = None,
    batch_size: int = 128,
    workers: int = 0,
    device: str = "auto",
    on_unreadable: OnUnreadable = "error",
) -> dict[str, Any]:
    """Return the metrics of a run on its own data, or on `data` (a name, a folder or a CSV).

    All samples of a folder or a CSV without splits are evaluated; if the run was trained on it,
    only those held out for validation. With split "test", a line is added to the run's
    test_uses.jsonl.

    tta: "flip" averages over an image and its mirror image, "flip-shift" also over both shifted by
        a pixel, "ten-crop" over the corners, the centre and their mirror images, "multi-scale" over
        whole images of five sizes; default: as in the recipe
    Raises UserError if the data is missing, its classes are not the network's, or the run's data
        has changed, so that its training set is unknown.
    """
    dataset = evaluated_dataset(run, data, as_split(split), on_unreadable)
    if dataset.split == "test" and (train := _own_training_set(run, data)) is not None:
        warnings = [*leaks(train, {"test": dataset}), *dataset.warnings]
        dataset = dataclasses.replace(dataset, warnings=warnings)
    task = run.task
    if run.classifies and dataset.classes != run.classes:  # the weights have no class names
        task = Classify(run.net, multilabel=run.multilabel, class_names=dataset.classes).eval()
    task = prepare(task, device=device, precision="float32")
    views, size = tta_of(run, tta), dataset.modality.size
    augmented = TestTimeAugmented(task, views, size)
    dataset = dataset.with_modality(viewed(dataset.modality, views))
    loader = build.evaluation_loader(dataset, batch_size, task.device, workers)
    with loader:
        metrics = evaluate_task(augmented, loader.epoch(0))
    result: dict[str, Any] = {"data": dataset.name, "split": dataset.split, **metrics}
    result |= {"metrics": list(task.metrics), "noun": dataset.noun}
    result["dtype"] = "float32"
    if len(task.tta) > 1:
        result["tta"] = augmented.views
    warnings = list(dataset.warnings)
    if run.recipe is not None and run.recipe.device.precision in HALVES:
        warnings.append(
            "computed in float32; the metrics during training were computed in "
            f"{run.recipe.device.precision}, so they can differ slightly"
        )
    home = home_of(run)
    if data is None and dataset.split == "validation" and _has_best_epoch(run):
        warnings.append(f"optimistic: the epoch was chosen on the same {dataset.inputs}")
    if warnings:
        result["warnings"] = warnings
    if home is not None and (dataset.split == "test" or _has_test(run, data, dataset)):
        split_used = {} if dataset.split == "test" else {"split": dataset.split}
        main = task.metrics[0]
        use = {"count": metrics["count"], main: metrics[main]}
        result["test_uses"] = record_test_use(home, {"data": dataset.name, **split_used, **use})
    return result


def _has_best_epoch(run: Run) -> bool:
    """Return whether the epoch of a finished run was chosen by its validation metrics."""
    home = home_of(run)
    return home is not None and run.finished and bool(read_result(home).get("best_epoch"))


def _own_training_set(run: Run, data: str | Path | None) -> Dataset | None:
    """Return the run's training set, or None if `data` is other data."""
    if run.recipe is None or not (data is None or is_own(run.recipe, data)):
        return None
    return build.open_split(run.recipe, "train")


def tta_of(run: Run, tta: Tta | None) -> Tta:
    """Return `tta`, or by default that of the recipe. Raises UserError if the network or its inputs
    do not allow it."""
    views = tta or (run.recipe.evaluate.tta if run.recipe is not None else "none")
    refuse_views(run.preprocessing, getattr(run.net, "spec", None), views)
    return views


def viewed(modality: Modality, views: Tta) -> Modality:
    """Return the modality with the inputs from which test-time augmentation takes its views."""
    if views == "ten-crop":
        return modality.before_crop()
    return modality.uncropped() if views == "multi-scale" else modality


def refuse_views(modality: Modality, spec: Model | None, views: Tta) -> None:
    """Raise UserError if the views are not valid for the inputs, or the network.

    Texts cannot be mirrored, crops and scales are for images, and several scales need a network
    that takes images of any size.

    spec: None if it is unknown
    """
    if views == "none":
        return
    if "flip" not in modality.words:
        raise UserError(f"tta = {views!r}: {modality.inputs} cannot be mirrored; allowed is none")
    if views in ("ten-crop", "multi-scale") and modality.ndim != 2:
        raise UserError(f"tta = {views!r} is for images, not for {modality.inputs}")
    if views != "multi-scale":
        return
    if not isinstance(spec, Net):
        raise UserError(
            "tta = 'multi-scale' is for networks made of sentences, which are fully convolutional "
            "if they end in global pooling; this one is an external module or an exported file"
        )
    words = [word for text in (spec.stem, spec.tail) for word in parse(text).words]
    if fixed := [str(word) for word in words if _is_of_one_size(word)]:
        raise UserError(
            f"tta = 'multi-scale': the network takes images of one size, because of {fixed[0]}; it "
            "is for networks that are fully convolutional up to a global pooling"
        )


def _is_of_one_size(word: Word) -> bool:
    """Whether a word of a stem or tail needs inputs of one size, or is not a convolution."""
    return word.kind in ("pos", "fc", "top") or (word.kind == "pool" and (word.value or 1) > 1)


def evaluated_dataset(
    run: Run, data: str | Path | None, split: Split, on_unreadable: OnUnreadable
) -> Dataset:
    """Return the run's own data, or `data`, with the run's classes, as `evaluate` uses it."""
    home, recipe = home_of(run), run.recipe
    if recipe is None and home is not None and data is not None:
        recipe = read_recipe(home)
    if recipe is not None and not DATA_KINDS[recipe.data.kind].by_class:
        return _annotated_dataset(run, recipe, home, data, split)
    if recipe is None and run.preprocessing.kind in ("text", "audio"):
        return _texts_or_recordings(run, _require_data(run, data), split)
    undivided = data is not None and is_undivided(data)
    if recipe is not None and (data is None or is_own(recipe, data)):
        assert home is not None
        none_held_out = split == "validation" and undivided and recipe.data.validation == 0
        dataset = build.open_split(recipe, "all" if none_held_out else split)
        refuse_changed(home, dataset)
        trained_on = dataset.split == "all"
    else:
        data = _require_data(run, data)
        moved_split = None
        if split == "validation" and undivided:
            moved_split = _moved_split(home, recipe, data, "validation", on_unreadable)
            split = "all"
        size = None if run.assumed and data in NAMED_SETS else run.preprocessing.size[0]
        seed = recipe.seed if recipe is not None else 0
        dataset = moved_split or other_data(run, data, split, seed, size, on_unreadable)
        trained_on = dataset.split == "all" and (
            _moved_split(home, recipe, data, "train", on_unreadable) is not None
            or _is_of_training_folder(recipe, dataset)
        )
    if trained_on:
        text = f"{dataset.name} includes {dataset.inputs} that the run was trained on"
        dataset = _with_warning(dataset, text)
    elif recipe is None and (text := _unknown_training(run, data, dataset)):
        dataset = _with_warning(dataset, text)
    warning = validation_warning(run.source, data)
    if warning and dataset.split != "test":
        dataset = _with_warning(dataset, warning)
    dataset = with_run_classes(run, dataset)
    refuse_channels(run, dataset)
    if run.assumed and not dataset.in_memory:
        text = "the weights do not state their preprocessing: that of ImageNet is used"
        dataset = _with_warning(dataset, text)
    if not run.finished:
        dataset = _with_warning(dataset, f"{run.path}: {UNFINISHED}")
    if recipe is not None and recipe.stream is not None and recipe.stream.scenario == "task":
        text = (
            'a run of a stream with scenario = "task": here, one of the classes of all tasks is '
            "predicted; stream.json has the accuracies among the classes of each task"
        )
        dataset = _with_warning(dataset, text)
    if run.assumed and dataset.in_memory:
        return dataset  # with the named set's own preprocessing
    return dataset.with_modality(run.preprocessing)


def _is_of_training_folder(recipe: Recipe | None, dataset: Dataset) -> bool:
    """Whether data in another format is from the run's training folder: a packed file of it, or the
    folder of a packed file."""
    path = None if recipe is None else getattr(recipe.data, "path", None)
    if path is None:
        return False
    root = os.path.realpath(Path(path).expanduser())
    if recognise_packed(root):
        with suppress(UserError):  # the file is damaged
            root = open_packed_file(root).root
    return dataset.root == os.path.realpath(root)


def _unknown_training(run: Run, data: str | Path | None, dataset: Dataset) -> str:
    """Return a warning if the weights may have been trained on the evaluated samples, or ""."""
    name, inputs = dataset.name, dataset.inputs
    if data in NAMED_SETS or dataset.split != "all":
        return ""
    if not run.data:
        return (
            f"the training data of the weights is unknown: {name} may include some of its {inputs}"
        )
    if run.data == name:
        return (
            f"the weights were trained on data named {name}; evaluate the run's folder to leave "
            f"its training {inputs} out"
        )
    return ""


def _with_warning(dataset: Dataset, text: str) -> Dataset:
    return dataclasses.replace(dataset, warnings=[text, *dataset.warnings])


def _require_data(run: Run, data: str | Path | None) -> str | Path:
    if data is None:
        raise UserError(f"{run.path} is a weight file: give the data with --data")
    return data


def own_split(run: Run, data: str | Path | None, split: str) -> Dataset | None:
    """Return a split of the run's own data, or None if `data` is other data.

    Raises UserError if a weight file is used without `data`, or the run's data has changed.
    """
    if run.recipe is None or not (data is None or is_own(run.recipe, data)):
        _require_data(run, data)
        return None
    # with the network's vocabulary
    dataset = build.open_split(run.recipe, split).like(run.preprocessing, run.classes)
    refuse_changed(run.path, dataset)
    return dataset


def refuse_channels(run: Run, dataset: Dataset) -> None:
    """Raise UserError if images in memory have another number of channels than the network."""
    if dataset.in_memory and dataset.modality.channels != run.preprocessing.channels:
        raise UserError(
            f"{dataset.name} has {dataset.modality.channels} channels; the network takes "
            f"{run.preprocessing.channels}"
        )


def _annotated_dataset(
    run: Run, recipe: Recipe, home: Path | None, data: str | Path | None, split: Split
) -> Dataset:
    """Return data with boxes, masks or people: the run's own, or other data of the same kind."""
    other = data is not None and not is_own(recipe, data)
    if other:
        assert data is not None
        classes = run.classes if run.named else ()
        recipe, split = at_another_path(recipe, data, split, classes)
    # with the network's vocabulary and preprocessing, which can be that of its initial weights
    dataset = build.open_split(recipe, split).like(run.preprocessing, run.classes)
    if not other and home is not None:
        refuse_changed(home, dataset)
    has_classes = run.named and run.classes and not (run.recipe is not None and run.embeds)
    if has_classes and dataset.classes != run.classes:
        raise UserError(
            f"{dataset.name} has the classes {', '.join(dataset.classes[:8])}; the network has "
            f"{', '.join(run.classes[:8])}"
        )
    if not run.finished:
        dataset = _with_warning(dataset, f"{run.path}: {UNFINISHED}")
    return dataset


def _texts_or_recordings(run: Run, data: str | Path, split: Split) -> Dataset:
    """Return texts or recordings for a weight file or an ONNX file without its run's folder."""
    annotation = _ANNOTATIONS.get((run.preprocessing.kind, run.classifies))
    if annotation is None:
        raise UserError(
            f"{run.path} does not state the languages of its corpus: evaluate the run's folder"
        )
    advice = f"; {run.path} needs {annotation}"
    kind = choose_kind(os.fspath(data), None, [annotation], advice)
    if split == "validation" and not LAYOUTS[kind].splits(os.fspath(located(data))):
        split = "all"
    dataset = open_for_network(kind, data, split, run.preprocessing, run.classes)
    text = _unknown_training(run, data, dataset)
    return _with_warning(dataset, text) if text else dataset


# by the kind of inputs, and whether the network classifies
_ANNOTATIONS: dict[tuple[str, bool], Annotation] = {
    ("text", True): "texts",
    ("audio", True): "sounds",
    ("audio", False): "transcripts",
}


def other_data(
    run: Run,
    data: str | Path,
    split: Split,
    seed: int,
    size: int | None,
    on_unreadable: OnUnreadable,
) -> Dataset:
    """Return other data, with the run's classes in their order."""
    if data in NAMED_SETS:
        return open_data(data, split=split, seed=seed, size=size)
    try:
        return open_data(
            data,
            split=split,
            seed=seed,
            size=size,
            on_unreadable=on_unreadable,
            classes=run.classes,
            multilabel=run.multilabel,
            modality=None if run.preprocessing.kind == "image" else run.preprocessing,
        )
    except ValueError:
        if run.recipe is not None:
            raise
        try:
            source = open_data(data, split=split, seed=seed, size=size, on_unreadable=on_unreadable)
        except ValueError:
            source = None
        if source is None or (run.named and not _by_number(run, source)):
            raise
        return source


def _by_number(run: Run, source: Dataset) -> bool:
    """Whether classes with other names can be matched by their order.

    This is the case if the network's class names are unknown, and for the thousand folders of
    ImageNet (n01440764, ...), whose order defines the class numbers.
    """
    if len(source.classes) != len(run.classes) or source.multilabel:
        return False
    if not run.named:
        return True
    by_folder = all(re.fullmatch(r"n\d{8}", name) for name in source.classes)
    return by_folder and run.classes == usual_classes(
        len(run.classes), SOURCE_DEFAULTS["torchvision"]
    )


def _has_test(run: Run, data: str | Path | None, source: Dataset) -> bool:
    """Whether the split "all" includes samples of a test set."""
    if source.split != "all":
        return False
    if run.recipe is not None and not DATA_KINDS[run.recipe.data.kind].by_class:
        return True  # only the recipe defines its test images
    if data is None:
        assert run.recipe is not None
        path = getattr(run.recipe.data, "path", None)
        data = run.recipe.data.kind if path is None else Path(path).expanduser()
    return "test" in splits_of(data)


def home_of(run: Run) -> Path | None:
    """Return the folder of the run, also of a run's weight file; None if there is none."""
    folder = run.path
    if run.recipe is None:
        folder = run.path.parent
        if run.path.name != WEIGHTS or not (folder / RECIPE).is_file():
            return None
    return folder if (folder / DATA).is_file() else None


def is_own(recipe: Recipe, data: str | Path) -> bool:
    """Whether `data` is the data of the recipe."""
    path = getattr(recipe.data, "path", None)
    if path is None:
        return data == recipe.data.kind
    a, b = Path(path).expanduser(), Path(data).expanduser()
    return a.exists() and b.exists() and a.samefile(b)


def refuse_changed(home: Path, source: Dataset) -> None:
    """Raise UserError if a split of the run has changed since it was recorded."""
    recorded = read_data(home).get(source.split)
    if recorded is not None and recorded["fingerprint"] != source.fingerprint():
        raise UserError(
            f"the {source.inputs} of {source.name} have changed since the training of "
            f"{home}, so its training set is unknown (--data FOLDER --split all evaluates others)"
        )


def _moved_split(
    home: Path | None,
    recipe: Recipe | None,
    data: str | Path,
    split: Literal["train", "validation"],
    on_unreadable: OnUnreadable,
) -> Dataset | None:
    """Return this split of `data` if its fingerprint is that of the run, from any path."""
    if home is None or recipe is None or getattr(recipe.data, "path", None) is None:
        return None
    if kind_of(data) != recipe.data.kind:
        return None
    recorded = read_data(home)[split]
    table = replace_path(recipe.data, str(data), on_unreadable)
    try:
        source = build.open_split(dataclasses.replace(recipe, data=table), split)
    except ValueError:  # for example, too few images to hold some out
        return None
    same = recorded is not None and recorded["fingerprint"] == source.fingerprint()
    return source if same else None


def with_run_classes(run: Run, source: Dataset) -> Dataset:
    """Return the data set with the run's class numbers, matched by name."""
    if source.classes == run.classes:
        return source
    if source.multilabel != run.multilabel:
        has, predicts = ("several labels", "one") if source.multilabel else ("one label", "several")
        raise UserError(
            f"{source.name} has {has} per {source.noun}; the network predicts {predicts}"
        )
    unknown = [name for name in source.classes if name not in run.classes]
    if unknown and run.recipe is None and _by_number(run, source):
        reason = (
            "the classes are the folders of ImageNet"
            if run.named
            else "the weights have no class names"
        )
        warning = (
            f"{reason}: the {len(source.classes)} classes of {source.name} are matched by order"
        )
        classes = run.classes if run.named else source.classes
        return dataclasses.replace(source, classes=classes, warnings=[warning, *source.warnings])
    if unknown and not run.named:
        raise UserError(
            f"{source.name} has {len(source.classes)} classes, and the weights have "
            f"{len(run.classes)} without names: they cannot be matched"
        )
    if unknown:
        raise UserError(
            f"{source.name} has the class {unknown[0]!r}, which the network "
            f"does not have (it has {', '.join(run.classes[:8])}"
            f"{', ...' if len(run.classes) > 8 else ''})"
        )
    indices = torch.tensor([run.classes.index(name) for name in source.classes])
    return dataclasses.replace(source, classes=run.classes, labels=indices[source.labels])
