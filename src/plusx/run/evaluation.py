"""Honest figures of a trained network, with every look at the test set recorded."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plusx import store
from plusx.data.loader import Loader
from plusx.data.sample import as_split
from plusx.data.source import Source, Split, is_undivided, open_data
from plusx.recipe import OwnData, Recipe
from plusx.run import parts
from plusx.run.folder import DATA, RECIPE, WEIGHTS, Run, read_recipe, record_test_use
from plusx.tasks.meters import Meter
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.train.loop import evaluate as figures_of


Views = Literal["one", "flip"]


def evaluate(
    run: Run,
    *,
    data: str | Path | None = None,
    split: str = "validation",
    views: Views | None = None,
    batch_size: int = 128,
    workers: int = 0,
    device: str = "auto",
    damaged: Literal["error", "skip"] = "error",
) -> dict[str, Any]:
    """The figures of a run on its own data, or on `data` (a name, a folder or a CSV).

    A folder or a CSV without splits is evaluated as a whole, unless the run was trained on it: then
    the images that it kept back are. `views` "flip" averages over an image and its mirror image.
    With split "test" a line is added to the run's test_uses.jsonl.
    ValueError: there is no such data, its classes are not the network's, or the images of the run
    have changed since it began, so that nobody knows which of them it was trained on.
    """
    source = _source(run, data, as_split(split), damaged)
    task = prepare(run.task, device=device)
    chosen = views or (run.recipe.evaluate.views if run.recipe is not None else "one")
    loader = Loader(source, split="all", batch_size=batch_size, workers=workers, device=task.device)
    with loader:
        figures = figures_of(Viewed(task, chosen), loader.epoch(0))
    result = {"data": source.name, "split": source.split, "views": chosen, **figures}
    if source.notices:
        result["notices"] = source.notices
    if source.split == "test" and run.path.is_dir():
        result["test_uses"] = record_test_use(
            run.path,
            {"data": source.name, "count": figures["count"], "accuracy": figures["accuracy"]},
        )
    return result


class Viewed(Task):
    """A task whose prediction is the mean over views of an image."""

    def __init__(self, task: Task, views: Views) -> None:
        super().__init__()
        self.task = task
        self.views = views

    @property
    def net(self) -> torch.nn.Module:  # type: ignore[override]
        return self.task.net

    def forward(self, batch: Any) -> Tensor:
        loss: Tensor = self.task(batch)
        return loss

    def predict(self, inputs: Tensor) -> Tensor:
        told = self.task.predict(inputs)
        if self.views == "flip":
            told = (told + self.task.predict(inputs.flip(-1))) / 2
        return told

    def meters(self) -> list[Meter]:
        return self.task.meters()


def _source(
    run: Run, data: str | Path | None, split: Split, damaged: Literal["error", "skip"]
) -> Source:
    home = _home(run)
    recipe = run.recipe
    if recipe is None and home is not None and data is not None:
        recipe = read_recipe(home)
    if data is None and recipe is None:
        raise ValueError(f"{run.path} is a file of weights: say which data with --data")
    trained_on = False
    if recipe is not None and (data is None or _is_own(recipe, data)):
        assert home is not None
        whole = split == "validation" and data is not None and _keeps_nothing(recipe, data)
        source = parts.open_split(recipe, "all" if whole else split)
        _refuse_changed(home, source)
        trained_on = source.split == "all"
    else:
        assert data is not None
        seed, size = recipe.seed if recipe is not None else 0, run.preprocessing.size[0]
        kept = None
        if split == "validation" and is_undivided(data):
            kept, split = _moved(run, home, recipe, data, "validation", damaged), "all"
        source = kept or open_data(data, split=split, seed=seed, size=size, damaged=damaged)
        if source.split == "all":
            trained_on = _moved(run, home, recipe, data, "train", damaged) is not None
    if trained_on:
        said = f"the images that the run was trained on are among those of {source.name}"
        source = dataclasses.replace(source, notices=[said, *source.notices])
    return _in_order_of(run, source).with_preprocessing(run.preprocessing)


def _home(run: Run) -> Path | None:
    """The folder of the run that the network comes from, also where its weights alone are used."""
    folder = run.path
    if run.recipe is None:
        folder = run.path.parent
        if run.path.name != WEIGHTS or not (folder / RECIPE).is_file():
            return None
    return folder if (folder / DATA).is_file() else None


def _is_own(recipe: Recipe, data: str | Path) -> bool:
    """Whether `data` is what the recipe says to train on."""
    if not isinstance(recipe.data, OwnData):
        return data == recipe.data.kind
    own, given = Path(recipe.data.path).expanduser(), Path(data).expanduser()
    return own.exists() and given.exists() and own.samefile(given)


def _keeps_nothing(recipe: Recipe, data: str | Path) -> bool:
    return recipe.data.validation == 0 and is_undivided(data)


def _refuse_changed(home: Path, source: Source) -> None:
    """ValueError where a split that the run knows is no longer what it was."""
    known = store.read_json(home / DATA).get(source.split)
    if known is not None and known["fingerprint"] != source.fingerprint():
        raise ValueError(
            f"the images of {source.name} have changed since {home} was begun, so that what it was "
            "trained on cannot be told from what it kept back (--data FOLDER --split all "
            "evaluates other images)"
        )


def _moved(
    run: Run,
    home: Path | None,
    recipe: Recipe | None,
    data: str | Path,
    split: Literal["train", "validation"],
    damaged: Literal["error", "skip"],
) -> Source | None:
    """This split of `data`, if the run had the very same one, wherever the files lay then."""
    if home is None or recipe is None:
        return None
    known = store.read_json(home / DATA)[split]
    try:
        source = open_data(
            data,
            split=split,
            seed=recipe.seed,
            validation=recipe.data.validation,
            size=run.preprocessing.size[0],
            damaged=damaged,
        )
    except ValueError:  # too few images to keep some back; as a whole they may do
        return None
    same = known is not None and known["fingerprint"] == source.fingerprint()
    return source if same else None


def _in_order_of(run: Run, source: Source) -> Source:
    """The images with the run's class numbers, matched by the classes' names."""
    if source.classes == run.classes:
        return source
    unknown = [name for name in source.classes if name not in run.classes]
    if unknown or source.multilabel:
        raise ValueError(
            f"{source.name} has the class {(unknown or source.classes)[0]!r}, which the network "
            f"does not know (it knows {', '.join(run.classes[:8])}"
            f"{', ...' if len(run.classes) > 8 else ''})"
        )
    place = torch.tensor([run.classes.index(name) for name in source.classes])
    return dataclasses.replace(source, classes=run.classes, labels=place[source.labels])
