"""Honest figures of a trained network, with every look at the test set recorded."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plusx import store
from plusx.data.loader import Loader
from plusx.data.source import Source, is_undivided, open_data
from plusx.run import parts
from plusx.run.folder import DATA, Run, record_test_use
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
    ValueError: there is no such data, or its classes are not the network's.
    """
    source = _source(run, data, split, damaged)
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
    run: Run, data: str | Path | None, split: str, damaged: Literal["error", "skip"]
) -> Source:
    if data is None:
        if run.recipe is None:
            raise ValueError(f"{run.path} is a file of weights: say which data with --data")
        source = parts.open_split(run.recipe, split)
    else:
        seed, size = run.recipe.seed if run.recipe is not None else 0, run.preprocessing.size[0]
        kept = None
        if split == "validation" and is_undivided(data):
            kept, split = _kept_back(run, data, damaged), "all"
        source = kept or open_data(data, split=split, seed=seed, size=size, damaged=damaged)
    return _in_order_of(run, source).with_preprocessing(run.preprocessing)


def _kept_back(run: Run, data: str | Path, damaged: Literal["error", "skip"]) -> Source | None:
    """What the run kept back of `data` to validate on, if it is the data that it was trained on."""
    if run.recipe is None:
        return None
    known = store.read_json(run.path / DATA)["validation"]
    try:
        source = open_data(
            data,
            split="validation",
            seed=run.recipe.seed,
            validation=run.recipe.data.validation,
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
