"""Honest figures of a trained network, with every look at the test set recorded."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import torch

from plusx import store
from plusx.data.dataset import Dataset, Split, as_split
from plusx.data.loader import Loader
from plusx.data.readers.open import is_undivided, kind_of, open_data, splits_of
from plusx.data.sets import NAMED_SETS
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.recipe.tables import Embed
from plusx.run import parts
from plusx.run.datasets import DATA as DATA_KINDS
from plusx.run.datasets import at_another_path, replace_path
from plusx.run.folder import DATA, RECIPE, UNFINISHED, WEIGHTS, Run, read_recipe, record_test_use
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import prepare
from plusx.tasks.tta import TestTimeAugmented, Tta
from plusx.train.loop import evaluate as figures_of
from plusx.weights.convert import SOURCE_DEFAULTS, usual_classes


def evaluate(
    run: Run,
    *,
    data: str | Path | None = None,
    split: str = "validation",
    tta: Tta | None = None,
    batch_size: int = 128,
    workers: int = 0,
    device: str = "auto",
    on_unreadable: Literal["error", "skip"] = "error",
) -> dict[str, Any]:
    """The figures of a run on its own data, or on `data` (a name, a folder or a CSV).

    A folder or a CSV without splits is evaluated as a whole, unless the run was trained on it: then
    the images that it kept back are. `tta` "flip" averages over an image and its mirror image,
    "flip-shift" over both and both moved by a pixel.
    With split "test" a line is added to the run's test_uses.jsonl.
    UserError: there is no such data, its classes are not the network's, or the images of the run
    have changed since it began, so that nobody knows which of them it was trained on.
    """
    source = _source(run, data, as_split(split), on_unreadable)
    task = run.task
    if run.classifies and source.classes != run.classes:  # the data's, where the weights name none
        task = Classify(run.net, multilabel=run.multilabel, class_names=source.classes).eval()
    task = prepare(task, device=device, precision="float32")
    augmented = TestTimeAugmented(task, tta_of(run, tta))
    loader = Loader(
        source,
        split="all",
        batch_size=parts.judged_at_a_time(source, batch_size),
        workers=workers,
        device=task.device,
    )
    with loader:
        figures = figures_of(augmented, loader.epoch(0))
    result: dict[str, Any] = {"data": source.name, "split": source.split, **figures}
    result["metrics"] = list(task.metrics)
    result["dtype"] = "float32"
    if len(task.tta) > 1:
        result["tta"] = augmented.views
    if source.warnings:
        result["warnings"] = source.warnings
    home = home_of(run)
    if home is not None and (source.split == "test" or _has_test(run, data, source)):
        split_said = {} if source.split == "test" else {"split": source.split}
        result["test_uses"] = record_test_use(
            home,
            {
                "data": source.name,
                **split_said,
                "count": figures["count"],
                task.metrics[0]: figures[task.metrics[0]],
            },
        )
    return result


def tta_of(run: Run, tta: Tta | None) -> Tta:
    """The test-time augmentation that is asked for, or that of the recipe."""
    return tta or (run.recipe.evaluate.tta if run.recipe is not None else "none")


def _source(
    run: Run, data: str | Path | None, split: Split, on_unreadable: Literal["error", "skip"]
) -> Dataset:
    home = home_of(run)
    recipe = run.recipe
    if recipe is None and home is not None and data is not None:
        recipe = read_recipe(home)
    if recipe is not None and not DATA_KINDS[recipe.data.kind].by_class:
        return _of_its_kind(run, recipe, home, data, split)
    if data is None and recipe is None:
        raise UserError(f"{run.path} is a file of weights: say which data with --data")
    trained_on = False
    if recipe is not None and (data is None or is_own(recipe, data)):
        assert home is not None
        whole = split == "validation" and data is not None and _keeps_nothing(recipe, data)
        source = parts.open_split(recipe, "all" if whole else split)
        refuse_changed(home, source)
        trained_on = source.split == "all"
    else:
        assert data is not None
        seed = recipe.seed if recipe is not None else 0
        size: int | None = run.preprocessing.size[0]
        kept = None
        if split == "validation" and is_undivided(data):
            kept, split = _moved(home, recipe, data, "validation", on_unreadable), "all"
        if run.assumed and data in NAMED_SETS:
            size = None
        source = kept or other_data(run, data, split, seed, size, on_unreadable)
        if source.split == "all":
            trained_on = _moved(home, recipe, data, "train", on_unreadable) is not None
    if trained_on:
        said = f"the images that the run was trained on are among those of {source.name}"
        source = dataclasses.replace(source, warnings=[said, *source.warnings])
    source = in_order_of(run, source)
    if source.modality.channels != run.preprocessing.channels and source.in_memory:
        raise UserError(
            f"{source.name} has {source.modality.channels} channels, the network wants "
            f"{run.preprocessing.channels}"
        )
    warnings = [*source.warnings]
    if run.assumed and not source.in_memory:
        warnings.insert(0, "the weights do not say how images are prepared: as is usual (ImageNet)")
    if not run.finished:
        warnings.insert(0, f"{run.path}: {UNFINISHED}")
    source = dataclasses.replace(source, warnings=warnings)
    if run.assumed and source.in_memory:
        return source  # as is usual for the set
    return source.with_modality(run.preprocessing)


def _of_its_kind(
    run: Run, recipe: Recipe, home: Path | None, data: str | Path | None, split: Split
) -> Dataset:
    """Images with boxes, masks and the like: the run's own, or others laid out as they are."""
    own = data is None or is_own(recipe, data)
    if not own:
        assert data is not None
        classes = tuple(run.classes) if run.named else ()
        recipe, split = at_another_path(recipe, data, split, classes)
    source = parts.open_split(recipe, split)
    if own and home is not None:
        refuse_changed(home, source)
    if run.named and run.classes and source.classes != run.classes and not told_by_people(run):
        raise UserError(
            f"{source.name} has the classes {', '.join(source.classes[:8])}; the network knows "
            f"{', '.join(run.classes[:8])}"
        )
    if not run.finished:
        source = dataclasses.replace(
            source, warnings=[f"{run.path}: {UNFINISHED}", *source.warnings]
        )
    # those of the weights that it began with, where there were some
    mean, std = run.preprocessing.mean, run.preprocessing.std
    return source.with_modality(dataclasses.replace(source.modality, mean=mean, std=std))


def told_by_people(run: Run) -> bool:
    """Whether the network is for classes, such as people, that it never saw."""
    return run.recipe is not None and isinstance(run.recipe.task, Embed)


def other_data(
    run: Run,
    data: str | Path,
    split: Split,
    seed: int,
    size: int | None,
    on_unreadable: Literal["error", "skip"],
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
    known = store.read_json(home / DATA).get(source.split)
    if known is not None and known["fingerprint"] != source.fingerprint():
        raise UserError(
            f"the images of {source.name} have changed since {home} was begun, so that what it was "
            "trained on cannot be told from what it kept back (--data FOLDER --split all "
            "evaluates other images)"
        )


def _moved(
    home: Path | None,
    recipe: Recipe | None,
    data: str | Path,
    split: Literal["train", "validation"],
    on_unreadable: Literal["error", "skip"],
) -> Dataset | None:
    """This split of `data`, if the run had the very same one, wherever the files lay then."""
    if home is None or recipe is None or getattr(recipe.data, "path", None) is None:
        return None
    if kind_of(data) != recipe.data.kind:
        return None
    known = store.read_json(home / DATA)[split]
    there = replace_path(recipe.data, str(data), on_unreadable)
    try:
        source = parts.open_split(dataclasses.replace(recipe, data=there), split)
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
        raise UserError(f"{source.name} has {has} an image, the network tells {knows}")
    unknown = [name for name in source.classes if name not in run.classes]
    if unknown and run.recipe is None and _by_number(run, source):
        said = (
            "the classes are ImageNet's folders"
            if run.named
            else "the weights do not name their classes"
        )
        warning = f"{said}: the {len(source.classes)} of {source.name} are taken in their order"
        classes = run.classes if run.named else source.classes
        return dataclasses.replace(source, classes=classes, warnings=[warning, *source.warnings])
    if unknown and not run.named:
        raise UserError(
            f"the weights do not name their {len(run.classes)} classes, and {source.name} has "
            f"{len(source.classes)}: which is which cannot be told"
        )
    if unknown:
        raise UserError(
            f"{source.name} has the class {unknown[0]!r}, which the network "
            f"does not know (it knows {', '.join(run.classes[:8])}"
            f"{', ...' if len(run.classes) > 8 else ''})"
        )
    place = torch.tensor([run.classes.index(name) for name in source.classes])
    return dataclasses.replace(source, classes=run.classes, labels=place[source.labels])
