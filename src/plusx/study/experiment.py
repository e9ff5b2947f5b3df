"""The building blocks of a study: trials, their measurements, and the report of the results.

An `Experiment` is declarative: `runner.study` runs its trials, groups the results by name, and
calls it for the rows, the finding and the figures.
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
from plusx.statistics import LEVEL, UNBOUNDED, Difference, chance_of_order, differences, spread
from plusx.study.results import FinishedRun
from plusx.study.trial import Factor, Measurement, Trial
from plusx.zoo import External, find


Row = Mapping[str, Any]
Column = Mapping[str, Any]
T = TypeVar("T")
IMAGE_SEED = 0  # selects the measured images: the same in every trial


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial and its results; `run` is None if nothing was trained."""

    trial: Trial
    folder: Path
    run: FinishedRun | None
    values: Mapping[str, Any]  # by the text of the measurement

    def measured(self, name: str) -> Any:
        """Return the result of the measurement with this name, for any settings."""
        (value,) = (v for text, v in self.values.items() if Measurement.parse(text).name == name)
        return value


@dataclass(frozen=True)
class Group:
    """The results of the trials of one name, ordered by seed: one row."""

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
        """Return the results of this measurement for all seeds."""
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

    All functions take the recipe's table: [study] or [compare].

    trials: the trials for the recipe, the table and the training images, without seeds; raises
        UserError if a network does not suit the study.
    row: the values of a row, in addition to name, factors and seeds.
    complete: adds values that depend on other rows.
    notes: one line per paragraph.
    tables: several tables instead of one.
    files: the texts of files for these tables, written next to result.json.
    extra: further keys of result.json.

    docs/studies.md describes columns, rows and figures.
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
    """Return a column of a study's table; kind: text, count, number or share."""
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
    """Return a trial for each network; the factor is `network`."""
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
    """Return the recipe of one trial: with this network, without the tables of studies.

    A spec is adapted to the inputs (channels, size, classes), and so is a network of images by name
    where the inputs are texts or sounds. A name keeps the other keys of the recipe's [net].
    """
    base = replace(recipe, compare=None, study=None, tune=None)
    if isinstance(net, str) and not suits(find(net), source):
        net = spec(net)
    if isinstance(net, Net):
        return replace(base, net=adapted_to(net, source))
    if isinstance(find(net), External) or isinstance(recipe.net, Net):
        return replace(base, net=NetByName(base=net))
    return replace(base, net=replace(recipe.net, base=net))


def suits(net: Net | External, source: Dataset) -> bool:
    """Whether a network takes inputs of this kind: its dimensions are theirs, and it embeds tokens
    if they are tokens. Raises UserError for an external module that does not."""
    modality = source.modality
    if isinstance(net, Net):
        return (net.ndim, net.takes_tokens) == (modality.ndim, modality.tokens)
    if modality.ndim != 2:
        raise UserError(f"{net.name} is an external module for images, not for {modality.inputs}")
    return True


def adapted_to(net: Net, source: Dataset) -> Net:
    """Return the spec with channels, size, classes and dimensions of these inputs; the stem of a
    network for tokens begins with their embedding."""
    modality, size = source.modality, source.modality.size
    embeds = modality.tokens and not net.takes_tokens
    return replace(
        net,
        ndim=modality.ndim,  # type: ignore[arg-type]
        stem=f"embed{net.stem_width} {net.stem}" if embeds else net.stem,
        in_channels=source.modality.channels,
        num_classes=len(source.classes),
        size=size[0] if len(set(size)) == 1 else size,
    )


def spec(name: str) -> Net:
    """Return the spec of a network of the zoo. Raises UserError if it is unknown or an external
    module."""
    net = find(name)
    if isinstance(net, External):
        raise UserError(f"{name} is an external module: it has no blocks to measure or change")
    return net


def blocks_per_stage(depth: int) -> int:
    """Return the basic blocks in each of the three stages of a network of this depth (6 n + 2).

    Raises UserError if it is less than 8.
    """
    if depth < 8:
        raise UserError(f"[study] depth = {depth}: at least 8, for one basic block per stage")
    return (depth - 2) // 6


def merges_of(net: Net) -> set[Merge]:
    """Return the merges of the blocks of a spec."""
    return {parse(block.body).merge for stage in net.stages for block in stage.blocks}


class OpenTrial(NamedTuple):
    """A network in evaluation mode and the images of its recipe."""

    net: nn.Module
    sets: build.Sets


def open_trial(recipe: Recipe, folder: Path) -> OpenTrial:
    """Return the trained network of the folder; if nothing was trained, the recipe's initial
    network."""
    sets = build.open_sets(recipe)
    if (folder / "result.json").is_file():
        return OpenTrial(load_run(folder).net, sets)
    net, preprocessing = build.make_net(build.resolved(recipe, sets.train))
    if preprocessing is not None:
        sets = sets.with_preprocessing(preprocessing)
    build.freeze_and_whiten(recipe, net, sets.train)
    return OpenTrial(net.eval(), sets)


def some_batches(source: Dataset, images: int, batch_size: int = 256) -> list[Batch]:
    """Return at most `images` images in batches, selected by IMAGE_SEED, not augmented."""
    chosen = np.random.default_rng(IMAGE_SEED).permutation(len(source))[:images]
    subset = source.subset(np.sort(chosen).tolist())
    with Loader(subset, split="validation", batch_size=batch_size) as loader:
        return list(loader.epoch(0))


def error_rate(net: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the fraction of images whose most likely class is wrong."""
    wrong = sum(int((net(b.inputs).argmax(1) != b.known_targets).sum()) for b in batches)
    return wrong / sum(map(len, batches))


def finite(value: float | None) -> float | None:
    """Return the value, or None if it is not finite (JSON has no NaN)."""
    return value if value is not None and math.isfinite(value) else None


def listed(words: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def percent(value: Row) -> str:
    """Return the mean of a spread as a percentage."""
    return f"{100 * value['mean']:.1f} %"


def compared(row: Row, other: Row, key: str, gap: Difference | None) -> str:
    """Return a sentence on two rows and their difference in a key where smaller is better.

    Without an interval, since no seed of either row differs from its others, a permutation test
    decides, which needs four seeds of each row for 95 %.
    """
    first, second = row[key]["seeds"], other[key]["seeds"]
    if min(len(first), len(second)) < 2:
        values = " and ".join(f"{r['name']} {percent(r[key])}" for r in (row, other))
        return f"{values} (one seed: chance unknown)"
    difference = row[key]["mean"] - other[key]["mean"]
    if gap is None and not difference:
        seeds = f"all {len(first)} seeds"
        return f"{row['name']} and {other['name']} are equal ({percent(row[key])}, {seeds})"
    if gap is None:
        chance = chance_of_order(len(first), len(second))
        clear = chance <= 1 - LEVEL
        detail = f"{100 * difference:+.1f} points with every seed, p = {chance:.2g}"
    else:
        clear = gap.low > 0 or gap.high < 0
        detail = str(gap)
    relation = "is not known to differ from"
    if clear:
        relation = "is worse than" if difference > 0 else "is better than"
    return f"{row['name']} {relation} {other['name']} ({detail})"


def lowest(rows: Sequence[Row], key: str) -> tuple[Row, str]:
    """Return the row with the lowest mean of a key, and the rows that are not known to differ from
    it (Holm) as text, to follow its name; "" if there are none."""
    best = min(rows, key=lambda row: row[key]["mean"])
    others = [row for row in rows if row is not best]
    pairs = [(row[key]["seeds"], best[key]["seeds"]) for row in others]
    gaps = differences(pairs, bounds=UNBOUNDED)
    similar = [
        row["name"] for row, gap in zip(others, gaps, strict=True) if gap is None or gap.low <= 0
    ]
    return best, f", not known to differ from {listed(similar)}" if similar else ""


def against_base(
    rows: Sequence[Row], base: str, key: str
) -> tuple[Row, list[tuple[Row, Difference | None]]] | None:
    """Return the row of this name, and every other row with how much larger its value of the key
    is (Holm); None if that row is missing or alone."""
    first = next((row for row in rows if row["name"] == base), None)
    others = [row for row in rows if row is not first]
    if first is None or not others:
        return None
    gaps = differences([(row[key]["seeds"], first[key]["seeds"]) for row in others])
    return first, list(zip(others, gaps, strict=True))


def with_differences(rows: list[dict[str, Any]], base: str, key: str) -> list[dict[str, Any]]:
    """Return the rows, all but that of this name with their `difference` to it in the key, with low
    and high, and the same as text, `gap`."""
    compared_rows = against_base(rows, base, key)
    if compared_rows is None:
        return rows
    first, pairs = compared_rows
    added: dict[str, dict[str, Any]] = {}
    for row, gap in pairs:
        middle = row[key]["mean"] - first[key]["mean"]
        low, high = (None, None) if gap is None else (gap.low, gap.high)
        unknown = "one seed" if len(row["seeds"]) < 2 else "the same with every seed"
        added[row["name"]] = {
            "difference": {"difference": middle, "low": low, "high": high},
            "gap": unknown if gap is None else str(gap),
        }
    return [{**row, **added.get(row["name"], {})} for row in rows]


def sentences_against(rows: Sequence[Row], base: str, key: str) -> str:
    """Return how every row differs from that of this name, as text; empty without it."""
    compared_rows = against_base(rows, base, key)
    if compared_rows is None:
        return ""
    first, pairs = compared_rows
    return "; ".join(compared(row, first, key, gap) for row, gap in pairs)
