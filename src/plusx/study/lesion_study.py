"""Lesions: what does a network lose with one of its blocks?

Veit et al. 2016, sections 4.1 and 4.2: residual networks are barely hurt, plain ones are destroyed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plusx.data.sample import Source
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.recipe import NetByName, Recipe
from plusx.recipe.studies import Lesion
from plusx.run import parts
from plusx.run.folder import record_test_use
from plusx.study import drawn
from plusx.study.anatomy import places
from plusx.study.bands import (
    Number,
    band_of,
    listed,
    median_of,
    relative_places,
    some_batches,
    spread_of,
    wrong_of,
)
from plusx.study.lesion import deletions, lesions, undeletable, without
from plusx.study.plan import Cell, Made, Study, by_name, look_with, opened, spec, with_net


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said, net = recipe.study, recipe.net
    assert isinstance(said, Lesion)
    if source.multilabel:
        raise UserError(
            f"{source.name} has several labels an image; the error without a block is that of one"
        )
    look = look_with("lesion", said.split, said.images, said.draws, *said.counts)
    found = []
    given = isinstance(net, NetByName) and bool(net.weights)
    if isinstance(net, NetByName):
        spec(net.base)  # UserError for a plain module
        if given:
            own = replace(recipe, compare=None, study=None)
            found.append(
                Cell(
                    name=f"{net.base}, given weights",
                    seed=recipe.seed,
                    recipe=own,
                    factors={"network": net.base},
                    train=False,
                    looks=(look,),
                )
            )
        recipe = replace(recipe, net=replace(net, weights=""))
    names = said.networks
    if not names and not given:
        names = (net.base,) if isinstance(net, NetByName) else ("",)
    for name in names:
        chosen: Net | str = net if not name and isinstance(net, Net) else name
        if name:
            spec(name)
        found += [
            Cell(
                name=name or "network",
                seed=seed,
                recipe=with_net(recipe, chosen, seed, source),
                factors={"network": name or "network"},
                looks=(look,),
            )
            for seed in said.seeds
        ]
    return found


def look(
    recipe: Recipe, folder: Path, split: str, images: int, draws: int, *counts: int
) -> dict[str, Any]:
    """The error of the network, whole, without each block and without several, as JSON."""
    net, sets = opened(recipe, folder)
    if split == "test":
        tested = parts.open_split(recipe, "test")
        source = parts.Sets(tested, None).prepared_as(sets.train.preprocessing.to_dict()).train
    else:
        if sets.validation is None:
            raise UserError("[data] validation = 0: there are no validation images to judge by")
        source = sets.validation
    batches = some_batches(source, images)
    with without(net, []):
        whole = wrong_of(net, batches)
    one = lesions(net, lambda each: wrong_of(each, batches))
    able = sum(not undeletable(place) for place in places(net))
    several = deletions(
        net,
        lambda each: wrong_of(each, batches),
        [count for count in counts if count <= able],
        draws=draws,
        seed=recipe.seed,
    )
    used = sum(map(len, batches))
    if split == "test":
        record_test_use(
            folder, {"data": source.name, "count": used, "accuracy": 1 - whole, "for": "lesion"}
        )
    return {
        "error": whole,
        "images": used,
        "blocks": [{"name": each.name, "error": each.error, "why": each.why} for each in one],
        "several": [{"count": each.count, "errors": list(each.errors)} for each in several],
    }


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "error", "title": "Error", "unit": "%", "kind": "share"},
        {"key": "median", "title": "Without one block, median", "unit": "%", "kind": "share"},
        {"key": "worst", "title": "Without one block, worst", "unit": "%", "kind": "share"},
        {"key": "deleted", "title": "Blocks deleted", "unit": "", "kind": "count"},
        {"key": "kept", "title": "Not deletable", "unit": "", "kind": "count"},
        {"key": "images", "title": "Images", "unit": "", "kind": "count"},
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        looks = [each.seen("lesion") for each in group]
        without_one = [
            [block["error"] for block in look["blocks"] if block["error"] is not None]
            for look in looks
        ]
        found.append(
            {
                "name": name,
                "seeds": [each.cell.seed for each in group],
                "error": spread_of([look["error"] for look in looks]),
                "median": spread_of([median_of(errors) or 0.0 for errors in without_one]),
                "worst": spread_of([max(errors, default=0.0) for errors in without_one]),
                "deleted": len(without_one[0]),
                "kept": len(looks[0]["blocks"]) - len(without_one[0]),
                "images": looks[0]["images"],
                "blocks": [
                    {
                        "name": block["name"],
                        "errors": [look["blocks"][place]["error"] for look in looks],
                        "why": block["why"],
                    }
                    for place, block in enumerate(looks[0]["blocks"])
                ],
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    said = [
        f"{row['name']} errs in {drawn.percent(row['error'])}; without one of its "
        f"{row['deleted']} blocks in {drawn.percent(row['median'])} at the median and "
        f"{drawn.percent(row['worst'])} at worst"
        for row in rows
        if row["deleted"]
    ]
    return ". ".join(said) + "." if said else "No block could be deleted."


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    looks = {name: [each.seen("lesion") for each in group] for name, group in by_name(made).items()}
    said = "; ".join(
        f"{row['name']}: {drawn.percent(row['error'])} whole, {drawn.percent(row['median'])} at "
        f"the median without a block"
        for row in rows
    )
    kept = {row["name"]: [block["name"] for block in row["blocks"] if block["why"]] for row in rows}
    gaps = "; ".join(f"{name} without {listed(blocks)}" for name, blocks in kept.items() if blocks)
    found = [
        drawn.lines_figure(
            "Error without one block",
            "Each block deleted alone, from the first (0) to the last (1)."
            + (f" Blocks that cannot be deleted are left out: {gaps}." if gaps else ""),
            said,
            [
                band_of(
                    name,
                    relative_places(len(each[0]["blocks"])),
                    [[block["error"] for block in look["blocks"]] for look in each],
                )
                for name, each in looks.items()
            ],
            x={"title": "place of the deleted block", "scale": "linear"},
        )
    ]
    together = {name: each for name, each in looks.items() if each[0]["several"]}
    if together:
        found.append(
            drawn.lines_figure(
                "Error without several random blocks",
                "Mean over the draws and seeds, and their lowest and highest; 0 is the whole "
                "network.",
                "; ".join(
                    f"{name}: {_mean(each[0]['several'][-1]['errors'])} without "
                    f"{each[0]['several'][-1]['count']}"
                    for name, each in together.items()
                ),
                [_several(name, each) for name, each in together.items()],
                x={"title": "blocks deleted at once", "scale": "linear"},
            )
        )
    return found


def _several(name: str, looks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = [0, *(each["count"] for each in looks[0]["several"])]
    draws = [
        [look["error"], *(each["errors"][draw] for each in look["several"])]
        for look in looks
        for draw in range(len(look["several"][0]["errors"]))
    ]
    return band_of(name, counts, draws)


def _mean(errors: Sequence[Number]) -> str:
    return f"{100 * sum(errors) / len(errors):.1f} %"


def notes(recipe: Recipe) -> list[str]:
    said = recipe.study
    assert isinstance(said, Lesion)
    found = [
        (
            "A residual block loses its branch and passes its shortcut on, a projection included; "
            "a plain block is left out, which is possible only where it does not change the shape. "
            f"Errors are of at most {said.images:,} {said.split} images. Nothing is trained again."
        )
    ]
    if isinstance(recipe.net, NetByName) and recipe.net.weights and said.split == "validation":
        found.append(
            "Given weights may have been trained on the validation images, which are a part of the "
            'training set: split = "test" judges them by others.'
        )
    return found


LESION = Study(
    title="Lesions",
    question="What does a network lose with one of its blocks?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
