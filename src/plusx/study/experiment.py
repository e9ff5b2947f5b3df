"""The parts of a study: trials, measurements in them, and the report of the results.

An `Experiment` is declarative: `runner.study` makes its trials, groups the results by name, and
asks it for a row of each group, the finding and the figures.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from torch import nn

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.grammar.words import Merge, parse
from plusx.recipe import NetByName, Recipe
from plusx.run import build, load_run
from plusx.statistics import Difference, spread
from plusx.study.results import FinishedRun
from plusx.study.trial import Factor, Measurement, Trial
from plusx.zoo import External, find


Row = Mapping[str, Any]
Column = Mapping[str, Any]
T = TypeVar("T")
IMAGE_SEED = 0  # chooses which images are measured: the same in every trial


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial and its results; `run` is None where nothing was trained."""

    trial: Trial
    folder: Path
    run: FinishedRun | None
    answers: Mapping[str, Any]  # by the text of the measurement

    def measured(self, name: str) -> Any:
        """The result of the measurement of that name, whatever its settings."""
        (answer,) = (a for text, a in self.answers.items() if Measurement.parse(text).name == name)
        return answer


@dataclass(frozen=True)
class Group:
    """The results of the trials of one name, in the order of their seeds: they make one row."""

    results: tuple[TrialResult, ...]

    @property
    def name(self) -> str:
        return self.results[0].trial.name

    @property
    def factors(self) -> Mapping[str, Factor]:
        return self.results[0].trial.factors

    @property
    def recipe(self) -> Recipe:
        return self.results[0].trial.recipe

    @property
    def seeds(self) -> list[int]:
        return [result.trial.seed or 0 for result in self.results]

    @property
    def runs(self) -> list[FinishedRun]:
        return [result.run for result in self.results if result.run is not None]

    def measured(self, name: str) -> list[Any]:
        """The results of all seeds."""
        return [result.measured(name) for result in self.results]

    @property
    def costs(self) -> dict[str, int]:
        run = self.runs[0]
        return {"parameters": run.parameters, "multiply_adds": run.multiply_adds}

    @property
    def errors(self) -> dict[str, Any]:
        """Training and validation error over the seeds."""
        return {
            "train_error": spread([run.wrong for run in self.runs]),
            "error": spread([1 - run.metrics["accuracy"] for run in self.runs]),
        }


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[T]):
    """A question, the trials that answer it, and the report of their results.

    Its functions take the table of the recipe that describes it: [study] or [compare].

    trials: of the recipe, the table and the images it trains on, without seeds; UserError where the
        study cannot be made of a network.
    row: what a row has besides name, factors and seeds.
    complete: adds to rows what depends on other rows.
    notes: a line for each paragraph.
    tables: tables in the place of one. files: of these tables, to be written beside result.json.
    extra: further keys of result.json.

    Columns, rows and figures are as docs/studies.md describes.
    """

    title: str
    question: str
    trials: Callable[[Recipe, T, Dataset], Sequence[Trial]]
    columns: Callable[[T, Sequence[Group]], Sequence[Column]]
    row: Callable[[Group], dict[str, Any]]
    finding: Callable[[Sequence[Row]], str]
    figures: Callable[[Sequence[Group], Sequence[Row]], list[dict[str, Any]]]
    notes: Callable[[Recipe, T, Sequence[Group]], str] = lambda recipe, table, groups: ""
    complete: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda rows: rows
    tables: Callable[[T, Sequence[Group], Sequence[Row]], list[dict[str, Any]]] | None = None
    files: Callable[[Sequence[Mapping[str, Any]], Sequence[Group]], dict[str, str]] | None = None
    extra: Callable[[T, Sequence[Group]], dict[str, Any]] = lambda table, groups: {}

    def rows(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        return self.complete(
            [
                {"name": group.name, **group.factors, "seeds": group.seeds, **self.row(group)}
                for group in groups
            ]
        )


def grouped(results: Iterable[TrialResult]) -> list[Group]:
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(result.trial.name, []).append(result)
    return [Group(tuple(members)) for members in groups.values()]


def column(key: str, title: str, unit: str = "", kind: str = "number") -> dict[str, Any]:
    """A column of a study's table; kind: text, count, number or share."""
    return {"key": key, "title": title, "unit": unit, "kind": kind}


PARAMETERS = column("parameters", "Parameters", kind="count")
MULTIPLY_ADDS = column("multiply_adds", "MACs", kind="count")
TRAIN_ERROR = column("train_error", "Train error", "%", "share")
ERROR = column("error", "Validation error", "%", "share")


def network_trials(
    recipe: Recipe,
    networks: Iterable[str],
    source: Dataset,
    *measurements: Measurement,
    train: bool = True,
) -> list[Trial]:
    """A trial of each network; `network` is the factor."""
    return [
        Trial(
            name=network,
            recipe=with_net(recipe, network, source),
            factors={"network": network},
            train=train,
            measurements=measurements,
        )
        for network in networks
    ]


def with_net(recipe: Recipe, net: Net | str, source: Dataset) -> Recipe:
    """The recipe of one trial: another network, and nothing of a study.

    A spec is fitted to the images: their channels, size and classes. A name keeps what the
    recipe's [net] has besides.
    """
    base = replace(recipe, compare=None, study=None)
    if isinstance(net, Net):
        return replace(base, net=fitted(net, source))
    if isinstance(find(net), External) or isinstance(recipe.net, Net):
        return replace(base, net=NetByName(base=net))
    return replace(base, net=replace(recipe.net, base=net))


def fitted(net: Net, source: Dataset) -> Net:
    """The spec for these images."""
    height, width = source.modality.size
    return replace(
        net,
        in_channels=source.modality.channels,
        num_classes=len(source.classes),
        size=height if height == width else (height, width),
    )


def spec(name: str) -> Net:
    """The spec of a network of the zoo. UserError for an unknown name, or an external module."""
    net = find(name)
    if isinstance(net, External):
        raise UserError(
            f"{name} is an external module: it has no blocks that a study could measure or change"
        )
    return net


def merges_of(net: Net) -> set[Merge]:
    """How the blocks of a spec end their branches."""
    return {parse(block.body).merge for stage in net.stages for block in stage.blocks}


class Opened(NamedTuple):
    """A network in evaluation mode and the images of its recipe."""

    net: nn.Module
    sets: build.Sets


def open_trial(recipe: Recipe, folder: Path) -> Opened:
    """The network that was trained in the folder; where none was, the recipe's at the start."""
    sets = build.open_sets(recipe)
    if (folder / "result.json").is_file():
        return Opened(load_run(folder).net, sets)
    net, preprocessing = build.make_net(build.resolved(recipe, sets.train))
    if preprocessing is not None:
        sets = sets.with_preprocessing(preprocessing)
    build.begin_from(recipe, net, sets.train)
    return Opened(net.eval(), sets)


def some_batches(source: Dataset, images: int, batch_size: int = 256) -> list[Batch]:
    """So many images (all where there are fewer), chosen by IMAGE_SEED, not augmented."""
    chosen = np.random.default_rng(IMAGE_SEED).permutation(len(source))[:images]
    subset = source.subset(np.sort(chosen).tolist())
    with Loader(subset, split="validation", batch_size=batch_size) as loader:
        return list(loader.epoch(0))


def error_rate(net: nn.Module, batches: Sequence[Batch]) -> float:
    """The share of the images whose most likely class is not theirs."""
    wrong = sum(int((net(b.inputs).argmax(1) != b.known_targets).sum()) for b in batches)
    return wrong / sum(map(len, batches))


def finite(value: float | None) -> float | None:
    """The value as JSON has it: None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def listed(words: Sequence[str]) -> str:
    """In words: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def percent(value: Row) -> str:
    """The mean of a spread, as a percentage."""
    return f"{100 * value['mean']:.1f} %"


def compared(row: Row, other: Row, key: str, gap: Difference | None) -> str:
    """Two rows side by side with their difference in a key, where smaller is better."""
    if gap is None:
        values = " and ".join(
            f"{compared_row['name']} {percent(compared_row[key])}" for compared_row in (row, other)
        )
        one = min(len(compared_row[key]["seeds"]) for compared_row in (row, other)) < 2
        return f"{values} ({'one seed' if one else 'no seed differs'}: chance unknown)"
    how = (
        "is worse than"
        if gap.low > 0
        else "is better than"
        if gap.high < 0
        else "is not known to differ from"
    )
    return f"{row['name']} {how} {other['name']} ({gap})"
