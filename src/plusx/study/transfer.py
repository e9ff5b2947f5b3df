"""Few images of some classes, trained from scratch and from weights of other classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plusx import store
from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.recipe import KnownData, NetByName, OwnData, Recipe
from plusx.recipe.studies import Transfer
from plusx.report.figures import dots_figure
from plusx.statistics import Difference, differences
from plusx.study.experiment import (
    ERROR,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    listed,
    with_net,
)
from plusx.study.trial import Trial


_BEFORE = "before"  # pretraining on other classes, in the transfer study
_WORDS = {"scratch": "from scratch", "all": "all of it fine-tuned", "head": "its head alone"}


def _trials(recipe: Recipe, table: Transfer, source: Dataset) -> list[Trial]:
    data = recipe.data
    if isinstance(recipe.net, Net) or recipe.net.weights:
        raise UserError("[net]: the study names its networks and trains their weights itself")
    if not isinstance(data, KnownData | OwnData) or data.classes is None:
        raise UserError("[data] classes: list the classes that are trained with few images")
    shared = [name for name in table.classes if name in data.classes]
    if shared:
        raise UserError(f"[study] classes: {shared[0]!r} is among those of [data] too")
    pretraining = replace(
        recipe,
        data=replace(data, classes=table.classes, train=None, per_class=None),
        epochs=table.epochs,
        steps=None,
    )
    trials = []
    for network in table.networks:
        pretrained = Trial(
            name=f"{network} {_BEFORE}",
            recipe=with_net(pretraining, network, source),
            factors={"network": network, "way": _BEFORE},
            split=table.split,
        )
        trials.append(pretrained)
        for way in table.ways:
            with_network = with_net(recipe, network, source)
            assert isinstance(with_network.net, NetByName)
            trained_part = "all" if way == "scratch" else way
            trials.append(
                Trial(
                    name=f"{network} {way_title(way)}",
                    recipe=replace(with_network, net=replace(with_network.net, train=trained_part)),
                    factors={"network": network, "way": way},
                    initial_weights="" if way == "scratch" else pretrained.name,
                    split=table.split,
                )
            )
    return trials


def way_title(way: str | int) -> str:
    """Return which part of a pretrained network is trained, in words."""
    if isinstance(way, int):
        return f"its last {'stage' if way == 1 else f'{way} stages'} fine-tuned"
    return _WORDS[way]


def _row(group: Group) -> dict[str, Any]:
    data = store.read_json(group.results[0].folder / "data.json")
    return {"images": data["train"]["count"], "classes": len(data["classes"]), **group.errors}


def _with_gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    gains = _gains(rows)
    for row in rows:
        gain = gains.get(row["name"])
        row["gain"] = "" if gain is None else str(gain).replace(" points", "")
    return rows


def _gains(rows: Sequence[Row]) -> dict[str, Difference]:
    """Return the error reduction over training from scratch, by name, where it is known."""
    scratch = {row["network"]: row for row in rows if row["way"] == "scratch"}
    others = [
        row for row in rows if row["way"] not in (_BEFORE, "scratch") and row["network"] in scratch
    ]
    errors = [(scratch[r["network"]]["error"]["seeds"], r["error"]["seeds"]) for r in others]
    gains = zip(others, differences(errors), strict=True)
    return {row["name"]: gain for row, gain in gains if gain is not None}


def _finding(rows: Sequence[Row]) -> str:
    """Name for each network the ways that are better or worse than training from scratch."""
    gains = _gains(rows)
    sentences = []
    for network in dict.fromkeys(row["network"] for row in rows):
        ways: dict[str, list[str]] = {"better": [], "worse": [], "not known to differ": []}
        for row in rows:
            if row["network"] == network and row["name"] in gains:
                gain = gains[row["name"]]
                relation = (
                    "better"
                    if gain.low > 0
                    else "worse"
                    if gain.high < 0
                    else "not known to differ"
                )
                ways[relation].append(f"{way_title(row['way'])} ({gain})")
        relations = [f"{listed(names)} {relation}" for relation, names in ways.items() if names]
        sentences.append(
            f"{network} that was trained on other classes, against from scratch: "
            f"{'; '.join(relations) or 'chance unknown'}"
        )
    return f"{'. '.join(sentences)}."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    few = [row for row in rows if row["way"] != _BEFORE]
    return [
        dots_figure(
            "Error after training on few images",
            "Every seed, and the mean as a line.",
            {"title": "error", "scale": "share"},
            {row["name"]: row["error"] for row in few},
        )
    ]


TRANSFER = Experiment[Transfer](
    title="Transfer",
    question="What does a network that learned other classes gain where there are few images?",
    trials=_trials,
    columns=lambda table, groups: [
        column("images", "Images", kind="count"),
        column("classes", "Classes", kind="count"),
        TRAIN_ERROR,
        {**ERROR, "title": "Test error" if table.split == "test" else "Validation error"},
        column("gain", "Better than from scratch", "points", "text"),
    ],
    row=_row,
    complete=_with_gains,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        f"Before, each network was trained for {table.epochs} epochs on all training images of "
        f"{listed(table.classes)}, with the same seed; the head is new for the other classes. "
        "What is not trained keeps the statistics of its norms. All ways make the same number of "
        "updates at the same rates, and see the same few images of a seed. Intervals are Welch's "
        "over seeds, all of them together 95 %."
    ),
)
