"""Few images of some classes: from scratch, and from what a network learned on other classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plusx import store
from plusx.data.source import Source
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.recipe import NetByName, Recipe
from plusx.recipe.sets import KnownData, OwnData
from plusx.recipe.studies import Transfer
from plusx.study import drawn
from plusx.study.bands import listed
from plusx.study.finding import difference
from plusx.study.plan import Cell, Made, Study, by_name, with_net
from plusx.study.rows import spread


Way = str | int

_BEFORE = "before"
_WORDS = {"scratch": "from scratch", "all": "all of it fine-tuned", "head": "its head alone"}


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said, data = recipe.study, recipe.data
    assert isinstance(said, Transfer)
    if isinstance(recipe.net, Net) or recipe.net.weights:
        raise UserError("[net]: the study names its networks and trains their weights itself")
    if not isinstance(data, KnownData | OwnData) or data.classes is None:
        raise UserError("[data] classes: which ones are to be learned from few images?")
    shared = [name for name in said.classes if name in data.classes]
    if shared:
        raise UserError(f"[study] classes: {shared[0]!r} is among those of [data] too")
    before = replace(
        recipe,
        data=replace(data, classes=said.classes, train=None, per_class=None),
        epochs=said.epochs,
        steps=None,
    )
    made = []
    for network in said.networks:
        for seed in said.seeds:
            first = Cell(
                name=f"{network} {_BEFORE}",
                seed=seed,
                recipe=with_net(before, network, seed, source),
                factors={"network": network, "way": _BEFORE},
                split=said.split,
            )
            made.append(first)
            for way in said.ways:
                own = with_net(recipe, network, seed, source)
                assert isinstance(own.net, NetByName)
                trained = "all" if way == "scratch" else way
                made.append(
                    Cell(
                        name=f"{network} {in_words(way)}",
                        seed=seed,
                        recipe=replace(own, net=replace(own.net, train=trained)),
                        factors={"network": network, "way": way},
                        begins="" if way == "scratch" else first.folder,
                        split=said.split,
                    )
                )
    return made


def in_words(way: Way) -> str:
    """What is trained, of a network that was trained before."""
    if isinstance(way, int):
        return f"its last {'stage' if way == 1 else f'{way} stages'} fine-tuned"
    return _WORDS[way]


def columns(recipe: Recipe) -> list[dict[str, str]]:
    said = recipe.study
    assert isinstance(said, Transfer)
    title = "Test error" if said.split == "test" else "Validation error"
    return [
        {"key": "images", "title": "Images", "unit": "", "kind": "count"},
        {"key": "classes", "title": "Classes", "unit": "", "kind": "count"},
        drawn.TRAIN_ERROR,
        {**drawn.ERROR, "title": title},
        {"key": "gain", "title": "Better than from scratch", "unit": "points", "kind": "text"},
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, group in by_name(made).items():
        runs = [each.run for each in group if each.run is not None]
        known = store.read_json(group[0].folder / "data.json")
        found.append(
            {
                "name": name,
                **group[0].cell.factors,
                "seeds": [run.seed for run in runs],
                "images": known["train"]["count"],
                "classes": len(known["classes"]),
                "train_error": spread([run.wrong for run in runs]),
                "error": spread([_error(each) for each in group]),
            }
        )
    for row in found:
        told = None if row["way"] in (_BEFORE, "scratch") else _gain(row, found)
        row["gain"] = "" if told is None else str(told).replace(" points", "")
    return found


def _error(made: Made) -> float:
    assert made.run is not None
    if made.cell.split == "validation":
        return 1 - made.run.scores["accuracy"]
    figures: dict[str, float] = store.read_json(made.folder / f"{made.cell.split}.json")
    return 1 - figures["accuracy"]


def _gain(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    """How much less error than from scratch, with Welch's interval of 95 % over the seeds."""
    for other in rows:
        if (other["network"], other["way"]) == (row["network"], "scratch"):
            return difference(other["error"]["seeds"], row["error"]["seeds"])
    return None


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each network the ways that are better or worse than from scratch: those whose interval
    excludes 0."""
    said = []
    for network in dict.fromkeys(row["network"] for row in rows):
        told: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
        for row in rows:
            found = _gain(row, rows)
            if row["network"] != network or row["way"] in (_BEFORE, "scratch") or found is None:
                continue
            how = "better" if found.low > 0 else "worse" if found.high < 0 else "not told apart"
            told[how].append(f"{in_words(row['way'])} ({found})")
        parts = [f"{listed(ways)} {how}" for how, ways in told.items() if ways]
        said.append(
            f"{network} that was trained on other classes, against from scratch: "
            f"{'; '.join(parts) or 'one seed tells nothing of chance'}"
        )
    return f"{'. '.join(said)}."


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    few = [row for row in rows if row["way"] != _BEFORE]
    return [
        {
            "kind": "dots",
            "title": "Error after training on few images",
            "caption": "Every seed, and the mean as a line.",
            "alternative": drawn.errors_in_words(few),
            "x": {"title": "error", "scale": "share"},
            "groups": [
                {
                    "name": row["name"],
                    "values": row["error"]["seeds"],
                    "mean": row["error"]["mean"],
                    "interval": None,
                }
                for row in few
            ],
        }
    ]


def notes(recipe: Recipe) -> list[str]:
    said = recipe.study
    assert isinstance(said, Transfer)
    return [
        (
            f"Before, each network was trained for {said.epochs} epochs on all training images of "
            f"{listed(said.classes)}, with the same seed; the head is new for the other classes. "
            "What is not trained keeps the statistics of its norms. All ways make the same number "
            "of updates at the same rates, and see the same few images of a seed. Intervals are "
            "Welch's of 95 % over seeds, each for itself."
        )
    ]


TRANSFER = Study(
    title="Transfer",
    question="What does a network that learned other classes gain where there are few images?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
