"""Few images of some classes: from scratch, and from what a network learned on other classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plusx import store
from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.recipe import NetByName, Recipe
from plusx.recipe.sets import KnownData, OwnData
from plusx.recipe.studies import Transfer
from plusx.statistics import Difference, differences, spread
from plusx.study.experiment import (
    ERROR,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    TrialResult,
    column,
    listed,
    with_net,
)
from plusx.study.figures import dots_figure, errors_in_words
from plusx.study.trial import Trial


_BEFORE = "before"
_WORDS = {"scratch": "from scratch", "all": "all of it fine-tuned", "head": "its head alone"}


def _trials(recipe: Recipe, source: Dataset) -> list[Trial]:
    table, data = recipe.study, recipe.data
    assert isinstance(table, Transfer)
    if isinstance(recipe.net, Net) or recipe.net.weights:
        raise UserError("[net]: the study names its networks and trains their weights itself")
    if not isinstance(data, KnownData | OwnData) or data.classes is None:
        raise UserError("[data] classes: which ones are to be learned from few images?")
    shared = [name for name in table.classes if name in data.classes]
    if shared:
        raise UserError(f"[study] classes: {shared[0]!r} is among those of [data] too")
    before = replace(
        recipe,
        data=replace(data, classes=table.classes, train=None, per_class=None),
        epochs=table.epochs,
        steps=None,
    )
    trials = []
    for network in table.networks:
        for seed in table.seeds:
            first = Trial(
                name=f"{network} {_BEFORE}",
                seed=seed,
                recipe=with_net(before, network, seed, source),
                factors={"network": network, "way": _BEFORE},
                split=table.split,
            )
            trials.append(first)
            for way in table.ways:
                own = with_net(recipe, network, seed, source)
                assert isinstance(own.net, NetByName)
                trained = "all" if way == "scratch" else way
                trials.append(
                    Trial(
                        name=f"{network} {in_words(way)}",
                        seed=seed,
                        recipe=replace(own, net=replace(own.net, train=trained)),
                        factors={"network": network, "way": way},
                        begins="" if way == "scratch" else first.folder,
                        split=table.split,
                    )
                )
    return trials


def in_words(way: str | int) -> str:
    """Which parts of a pretrained network are trained."""
    if isinstance(way, int):
        return f"its last {'stage' if way == 1 else f'{way} stages'} fine-tuned"
    return _WORDS[way]


def _columns(recipe: Recipe) -> list[dict[str, Any]]:
    table = recipe.study
    assert isinstance(table, Transfer)
    title = "Test error" if table.split == "test" else "Validation error"
    return [
        column("images", "Images", kind="count"),
        column("classes", "Classes", kind="count"),
        TRAIN_ERROR,
        {**ERROR, "title": title},
        column("gain", "Better than from scratch", "points", "text"),
    ]


def _row(group: Group) -> dict[str, Any]:
    data = store.read_json(group.results[0].folder / "data.json")
    return {
        "images": data["train"]["count"],
        "classes": len(data["classes"]),
        "train_error": group.errors["train_error"],
        "error": spread([_error(result) for result in group.results]),
    }


def _complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    gains = _gains(rows)
    for row in rows:
        gain = gains.get(row["name"])
        row["gain"] = "" if gain is None else str(gain).replace(" points", "")
    return rows


def _error(result: TrialResult) -> float:
    assert result.run is not None
    if result.trial.split == "validation":
        return 1 - result.run.metrics["accuracy"]
    metrics: dict[str, float] = store.read_json(result.folder / f"{result.trial.split}.json")
    return 1 - metrics["accuracy"]


def _gains(rows: Sequence[Row]) -> dict[str, Difference]:
    """How much less error than from scratch, by name, where it can be compared."""
    scratch = {row["network"]: row for row in rows if row["way"] == "scratch"}
    others = [
        row for row in rows if row["way"] not in (_BEFORE, "scratch") and row["network"] in scratch
    ]
    errors = [(scratch[r["network"]]["error"]["seeds"], r["error"]["seeds"]) for r in others]
    gains = zip(others, differences(errors), strict=True)
    return {row["name"]: gain for row, gain in gains if gain is not None}


def _finding(rows: Sequence[Row]) -> str:
    """Of each network the ways that are better or worse than from scratch: those whose interval
    excludes 0."""
    gains = _gains(rows)
    sentences = []
    for network in dict.fromkeys(row["network"] for row in rows):
        ways: dict[str, list[str]] = {"better": [], "worse": [], "not known to differ": []}
        for row in rows:
            if row["network"] == network and row["name"] in gains:
                gain = gains[row["name"]]
                how = (
                    "better"
                    if gain.low > 0
                    else "worse"
                    if gain.high < 0
                    else "not known to differ"
                )
                ways[how].append(f"{in_words(row['way'])} ({gain})")
        parts = [f"{listed(several)} {how}" for how, several in ways.items() if several]
        sentences.append(
            f"{network} that was trained on other classes, against from scratch: "
            f"{'; '.join(parts) or 'chance unknown'}"
        )
    return f"{'. '.join(sentences)}."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    few = [row for row in rows if row["way"] != _BEFORE]
    return [
        dots_figure(
            "Error after training on few images",
            "Every seed, and the mean as a line.",
            errors_in_words(few),
            {"title": "error", "scale": "share"},
            {row["name"]: row["error"] for row in few},
        )
    ]


def _notes(recipe: Recipe) -> str:
    table = recipe.study
    assert isinstance(table, Transfer)
    return (
        f"Before, each network was trained for {table.epochs} epochs on all training images of "
        f"{listed(table.classes)}, with the same seed; the head is new for the other classes. "
        "What is not trained keeps the statistics of its norms. All ways make the same number of "
        "updates at the same rates, and see the same few images of a seed. Intervals are Welch's "
        "over seeds, all of them together 95 %."
    )


TRANSFER = Experiment(
    title="Transfer",
    question="What does a network that learned other classes gain where there are few images?",
    trials=_trials,
    columns=_columns,
    row=_row,
    complete=_complete,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
