"""Metrics of a trained network, with every use of the test set recorded."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch

from plusx.data.checks import leaks
from plusx.data.dataset import Dataset, Split, as_split
from plusx.data.loader import Loader
from plusx.data.readers.layouts import kind_of
from plusx.data.readers.open import is_undivided, open_data, splits_of
from plusx.data.sets import NAMED_SETS
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.run import build
from plusx.run.datasets import DATA as DATA_KINDS
from plusx.run.datasets import at_another_path, replace_path
from plusx.run.folder import (
    DATA,
    RECIPE,
    UNFINISHED,
    WEIGHTS,
    Run,
    read_data,
    read_recipe,
    record_test_use,
)
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import HALVES, prepare
from plusx.tasks.tta import TestTimeAugmented, Tta
from plusx.train.loop import evaluate as evaluate_task
from plusx.weights.convert import SOURCE_DEFAULTS, usual_classes, validation_notice


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
    """The metrics of a run on its own data, or on `data` (a name, a folder or a CSV).

    A folder or a CSV without splits is evaluated as a whole, unless the run was trained on it: then
    its validation images are. With split "test" a line is added to the run's test_uses.jsonl.

    tta: "flip" averages over an image and its mirror image, "flip-shift" over both and both moved
        by a pixel; default: as the recipe says.
    UserError: there is no such data, its classes are not the network's, or the images of the run
    have changed since it began, so that nobody knows which of them it was trained on.
    """
    dataset = _dataset(run, data, as_split(split), on_unreadable)
    if dataset.split == "test" and (train := _own_training_set(run, data)) is not None:
        warnings = [*leaks(train, {"test": dataset}), *dataset.warnings]
        dataset = dataclasses.replace(dataset, warnings=warnings)
    task = run.task
    if run.classifies and dataset.classes != run.classes:  # the weights name none
        task = Classify(run.net, multilabel=run.multilabel, class_names=dataset.classes).eval()
    task = prepare(task, device=device, precision="float32")
    augmented = TestTimeAugmented(task, tta_of(run, tta))
    loader = Loader(
        dataset,
        split="all",
        batch_size=build.evaluation_batch_size(dataset, batch_size),
        workers=workers,
        device=task.device,
    )
    with loader:
        metrics = evaluate_task(augmented, loader.epoch(0))
    result: dict[str, Any] = {"data": dataset.name, "split": dataset.split, **metrics}
    result["metrics"] = list(task.metrics)
    result["dtype"] = "float32"
    if len(task.tta) > 1:
        result["tta"] = augmented.views
    warnings = list(dataset.warnings)
    if run.recipe is not None and run.recipe.device.precision in HALVES:
        warnings.append(
            "computed in float32; result.json of the run was computed in "
            f"{run.recipe.device.precision}, so its figures can differ slightly"
        )
    if warnings:
        result["warnings"] = warnings
    home = home_of(run)
    if home is not None and (dataset.split == "test" or _has_test(run, data, dataset)):
        split_used = {} if dataset.split == "test" else {"split": dataset.split}
        foremost = task.metrics[0]
        use = {"count": metrics["count"], foremost: metrics[foremost]}
        result["test_uses"] = record_test_use(home, {"data": dataset.name, **split_used, **use})
    return result


def _own_training_set(run: Run, data: str | Path | None) -> Dataset | None:
    """What the run was trained on; None where it is evaluated on other data."""
    if run.recipe is None or not (data is None or is_own(run.recipe, data)):
        return None
    return build.open_split(run.recipe, "train")


def tta_of(run: Run, tta: Tta | None) -> Tta:
    """The given test-time augmentation, or that of the recipe."""
    return tta or (run.recipe.evaluate.tta if run.recipe is not None else "none")


def _dataset(
    run: Run, data: str | Path | None, split: Split, on_unreadable: OnUnreadable
) -> Dataset:
    home, recipe = home_of(run), run.recipe
    if recipe is None and home is not None and data is not None:
        recipe = read_recipe(home)
    if recipe is not None and not DATA_KINDS[recipe.data.kind].by_class:
        return _of_its_kind(run, recipe, home, data, split)
    undivided = data is not None and is_undivided(data)
    if recipe is not None and (data is None or is_own(recipe, data)):
        assert home is not None
        whole = split == "validation" and undivided and recipe.data.validation == 0
        dataset = build.open_split(recipe, "all" if whole else split)
        refuse_changed(home, dataset)
        trained_on = dataset.split == "all"
    else:
        data = _given(run, data)
        moved = None
        if split == "validation" and undivided:
            moved, split = _moved(home, recipe, data, "validation", on_unreadable), "all"
        size = None if run.assumed and data in NAMED_SETS else run.preprocessing.size[0]
        seed = recipe.seed if recipe is not None else 0
        dataset = moved or other_data(run, data, split, seed, size, on_unreadable)
        trained_on = dataset.split == "all" and (
            _moved(home, recipe, data, "train", on_unreadable) is not None
            or _lies_with(recipe, dataset)
        )
    if trained_on:
        text = f"the images that the run was trained on are among those of {dataset.name}"
        dataset = _with_warning(dataset, text)
    elif recipe is None and (text := _unknown_training(run, data, dataset)):
        dataset = _with_warning(dataset, text)
    notice = validation_notice(run.source, data)
    if notice and dataset.split != "test":
        dataset = _with_warning(dataset, notice)
    dataset = in_order_of(run, dataset)
    refuse_channels(run, dataset)
    if run.assumed and not dataset.in_memory:
        text = "the weights do not say how images are prepared: as is usual (ImageNet)"
        dataset = _with_warning(dataset, text)
    if not run.finished:
        dataset = _with_warning(dataset, f"{run.path}: {UNFINISHED}")
    if run.assumed and dataset.in_memory:
        return dataset  # prepared as is usual for the set
    return dataset.with_modality(run.preprocessing)


def _lies_with(recipe: Recipe | None, dataset: Dataset) -> bool:
    """Whether data in another form, such as packed, is of the folder that the run trained on."""
    path = None if recipe is None else getattr(recipe.data, "path", None)
    return path is not None and dataset.root == os.path.realpath(Path(path).expanduser())


def _unknown_training(run: Run, data: str | Path | None, dataset: Dataset) -> str:
    """The warning that weights without their run may have been trained on what is evaluated."""
    name = dataset.name
    if data in NAMED_SETS or dataset.split != "all":
        return ""
    if not run.data:
        return (
            "the weights do not say what they were trained on: images of their training may be "
            f"among those of {name}"
        )
    if run.data == name:
        return (
            f"the weights were trained on data called {name}, and without their run its training "
            "images cannot be left out: evaluate the run's folder"
        )
    return ""


def _with_warning(dataset: Dataset, text: str) -> Dataset:
    return dataclasses.replace(dataset, warnings=[text, *dataset.warnings])


def _given(run: Run, data: str | Path | None) -> str | Path:
    if data is None:
        raise UserError(f"{run.path} is a file of weights: say which data with --data")
    return data


def own_split(run: Run, data: str | Path | None, split: str) -> Dataset | None:
    """A split of the run's own data; None where `data` is other data.

    UserError: there is neither, or the run's data has changed.
    """
    if run.recipe is None or not (data is None or is_own(run.recipe, data)):
        _given(run, data)
        return None
    dataset = build.open_split(run.recipe, split)
    refuse_changed(run.path, dataset)
    return dataset


def refuse_channels(run: Run, dataset: Dataset) -> None:
    """UserError where images in memory do not have the channels that the network takes."""
    if dataset.in_memory and dataset.modality.channels != run.preprocessing.channels:
        raise UserError(
            f"{dataset.name} has {dataset.modality.channels} channels, the network wants "
            f"{run.preprocessing.channels}"
        )


def _of_its_kind(
    run: Run, recipe: Recipe, home: Path | None, data: str | Path | None, split: Split
) -> Dataset:
    """Data with boxes, masks or people: the run's own, or other data in the same layout."""
    own = data is None or is_own(recipe, data)
    if not own:
        assert data is not None
        classes = run.classes if run.named else ()
        recipe, split = at_another_path(recipe, data, split, classes)
    dataset = build.open_split(recipe, split)
    if own and home is not None:
        refuse_changed(home, dataset)
    has_classes = run.named and run.classes and not (run.recipe is not None and run.embeds)
    if has_classes and dataset.classes != run.classes:
        raise UserError(
            f"{dataset.name} has the classes {', '.join(dataset.classes[:8])}; the network knows "
            f"{', '.join(run.classes[:8])}"
        )
    if not run.finished:
        dataset = _with_warning(dataset, f"{run.path}: {UNFINISHED}")
    # those of the weights that the run began with, where there were some
    mean, std = run.preprocessing.mean, run.preprocessing.std
    return dataset.with_modality(dataclasses.replace(dataset.modality, mean=mean, std=std))


def other_data(
    run: Run,
    data: str | Path,
    split: Split,
    seed: int,
    size: int | None,
    on_unreadable: OnUnreadable,
) -> Dataset:
    """Data that the run was not trained on, with the run's classes in their order."""
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
    """Whether classes of other names can be taken in the order that the data has them.

    So it is where the names of the network's classes are not known, and with the thousand classes
    of ImageNet, which the weights number by the names of its folders (n01440764, ...).
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
    """Whether images that are kept for the test are among those of the split "all"."""
    if source.split != "all":
        return False
    if run.recipe is not None and not DATA_KINDS[run.recipe.data.kind].by_class:
        return True  # nothing but the recipe says which of them test
    if data is None:
        assert run.recipe is not None
        path = getattr(run.recipe.data, "path", None)
        data = run.recipe.data.kind if path is None else Path(path).expanduser()
    return "test" in splits_of(data)


def home_of(run: Run) -> Path | None:
    """The folder of the run that the network comes from, also where its weights alone are used."""
    folder = run.path
    if run.recipe is None:
        folder = run.path.parent
        if run.path.name != WEIGHTS or not (folder / RECIPE).is_file():
            return None
    return folder if (folder / DATA).is_file() else None


def is_own(recipe: Recipe, data: str | Path) -> bool:
    """Whether `data` is what the recipe says to train on."""
    path = getattr(recipe.data, "path", None)
    if path is None:
        return data == recipe.data.kind
    own, given = Path(path).expanduser(), Path(data).expanduser()
    return own.exists() and given.exists() and own.samefile(given)


def _keeps_nothing(recipe: Recipe, data: str | Path) -> bool:
    return recipe.data.validation == 0 and is_undivided(data)


def refuse_changed(home: Path, source: Dataset) -> None:
    """UserError where a split that the run knows is no longer what it was."""
    known = read_data(home).get(source.split)
    if known is not None and known["fingerprint"] != source.fingerprint():
        raise UserError(
            f"the images of {source.name} have changed since {home} was begun, so its training "
            "images cannot be separated from its held-out ones (--data FOLDER --split all "
            "evaluates other images)"
        )


def _moved(
    home: Path | None,
    recipe: Recipe | None,
    data: str | Path,
    split: Literal["train", "validation"],
    on_unreadable: OnUnreadable,
) -> Dataset | None:
    """This split of `data`, if the run had the very same one, wherever the files lay then."""
    if home is None or recipe is None or getattr(recipe.data, "path", None) is None:
        return None
    if kind_of(data) != recipe.data.kind:
        return None
    known = read_data(home)[split]
    there = replace_path(recipe.data, str(data), on_unreadable)
    try:
        source = build.open_split(dataclasses.replace(recipe, data=there), split)
    except ValueError:  # too few images to keep some back; as a whole they may do
        return None
    same = known is not None and known["fingerprint"] == source.fingerprint()
    return source if same else None


def in_order_of(run: Run, source: Dataset) -> Dataset:
    """The images with the run's class numbers, matched by the classes' names."""
    if source.classes == run.classes:
        return source
    if source.multilabel != run.multilabel:
        has, knows = ("several labels", "one") if source.multilabel else ("one label", "several")
        raise UserError(f"{source.name} has {has} per image, the network predicts {knows}")
    unknown = [name for name in source.classes if name not in run.classes]
    if unknown and run.recipe is None and _by_number(run, source):
        reason = (
            "the classes are ImageNet's folders"
            if run.named
            else "the weights do not name their classes"
        )
        warning = f"{reason}: the {len(source.classes)} of {source.name} are taken in their order"
        classes = run.classes if run.named else source.classes
        return dataclasses.replace(source, classes=classes, warnings=[warning, *source.warnings])
    if unknown and not run.named:
        raise UserError(
            f"the weights do not name their {len(run.classes)} classes, and {source.name} has "
            f"{len(source.classes)}: they cannot be matched"
        )
    if unknown:
        raise UserError(
            f"{source.name} has the class {unknown[0]!r}, which the network "
            f"does not know (it knows {', '.join(run.classes[:8])}"
            f"{', ...' if len(run.classes) > 8 else ''})"
        )
    place = torch.tensor([run.classes.index(name) for name in source.classes])
    return dataclasses.replace(source, classes=run.classes, labels=place[source.labels])
