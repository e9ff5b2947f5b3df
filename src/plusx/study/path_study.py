"""Paths: how long are they, and which of them carry the gradient?

Veit et al. 2016, sections 4.3 and 4.4: most paths have medium length, but the gradient comes from
the short ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx.data.sample import Source
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.recipe.studies import Paths
from plusx.study import drawn
from plusx.study.bands import band_of, merges_of, some_batches, spread_of
from plusx.study.paths import (
    PathGradient,
    contributions,
    effective_lengths,
    path_gradients,
)
from plusx.study.plan import Cell, Made, Study, by_name, look_with, opened, spec, with_net


IMAGES = 32
SHARE = 0.95  # of the gradient that the effective lengths carry


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Paths)
    for network in said.networks:
        if merges_of(spec(network)) != {"add"}:
            raise UserError(
                f"[study] networks: {network} has blocks that are not x + F(x), so it is no sum "
                "over paths; a residual network is needed, such as resnet56"
            )
    return [
        Cell(
            name=network,
            seed=seed,
            recipe=with_net(recipe, network, seed, source),
            factors={"network": network},
            looks=(look_with("paths", said.samples),),
        )
        for network in said.networks
        for seed in said.seeds
    ]


def look(recipe: Recipe, folder: Path, samples: int) -> dict[str, Any]:
    """The gradients along sampled paths of every length, as JSON: `shares` of all paths by length,
    `norms` of those that were sampled."""
    net, sets = opened(recipe, folder)
    (batch,) = some_batches(sets.train, IMAGES)
    found = path_gradients(
        net, batch.inputs, batch.known_targets, samples=samples, seed=recipe.seed
    )
    return {
        "shares": [each.paths for each in found],
        "norms": [list(each.norms) for each in found],
    }


def _read(look: Mapping[str, Any]) -> list[PathGradient]:
    pairs = zip(look["shares"], look["norms"], strict=True)
    return [
        PathGradient(k, float(share), tuple(map(float, norms)))
        for k, (share, norms) in enumerate(pairs)
    ]


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "blocks", "title": "Blocks", "unit": "", "kind": "count"},
        {"key": "usual", "title": "Mean length of a path", "unit": "blocks", "kind": "number"},
        {"key": "length", "title": "Mean length by gradient", "unit": "blocks", "kind": "number"},
        {"key": "shortest", "title": f"{100 * SHARE:.0f} % of the gradient from", "unit": "blocks",
         "kind": "number"},
        {"key": "longest", "title": "to", "unit": "blocks", "kind": "number"},
        {"key": "paths", "title": "Share of all paths", "unit": "%", "kind": "share"},
        drawn.ERROR,
    ]  # fmt: skip


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        looks = [_read(each.seen("paths")) for each in group]
        ranges = [effective_lengths(look, SHARE) for look in looks]
        found.append(
            {
                "name": name,
                "seeds": [each.cell.seed for each in group],
                "blocks": len(looks[0]) - 1,
                "usual": (len(looks[0]) - 1) / 2,
                "length": spread_of(
                    [sum(k * c for k, c in enumerate(contributions(look))) for look in looks]
                ),
                "shortest": spread_of([float(low) for low, _ in ranges]),
                "longest": spread_of([float(high) for _, high in ranges]),
                "paths": spread_of(
                    [
                        sum(each.paths for each in look[low : high + 1])
                        for look, (low, high) in zip(looks, ranges, strict=True)
                    ]
                ),
                "error": spread_of([1 - each.run.scores["accuracy"] for each in group if each.run]),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(
        f"A path through {row['name']} takes {row['usual']:g} of its {row['blocks']} branches on "
        f"average; the gradient comes through paths of {row['length']['mean']:.1f}, "
        f"{100 * SHARE:.0f} % of it through {row['shortest']['mean']:.0f} to "
        f"{row['longest']['mean']:.0f}, which are {100 * row['paths']['mean']:.2g} % of all paths."
        for row in rows
    )


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    looks = {
        name: [_read(each.seen("paths")) for each in group] for name, group in by_name(made).items()
    }
    length = {"title": "branches on the path", "scale": "linear"}
    beside = []
    for name, each in looks.items():
        x = list(range(len(each[0])))
        beside.append(band_of(f"{name}, gradient", x, [contributions(look) for look in each]))
        shares = [[one.paths for one in look] for look in each]
        beside.append(band_of(f"{name}, paths", x, shares, dashed=True))
    return [
        drawn.lines_figure(
            "Which lengths carry the gradient",
            "Share of the gradient that comes through paths of each length, and of all paths that "
            "have it (Veit 2016, figure 6).",
            finding(rows),
            beside,
            x=length,
        ),
        drawn.lines_figure(
            "Gradient along one path",
            "Mean norm at the first block's input over the sampled paths of each length; bands are "
            "over seeds.",
            "; ".join(
                f"{name}: {each[0][0].mean:.2g} at length 0, {each[0][-1].mean:.2g} through all"
                for name, each in looks.items()
            ),
            [
                band_of(
                    name,
                    list(range(len(each[0]))),
                    [[one.mean or None for one in look] for look in each],
                )
                for name, each in looks.items()
            ],
            x=length,
            y={"title": "", "scale": "log"},
        ),
    ]


def notes(recipe: Recipe) -> list[str]:
    said = recipe.study
    assert isinstance(said, Paths)
    return [
        (
            "The forward pass is the whole network's, in evaluation mode; on the way back each "
            "block passes the gradient on through its branch or through its shortcut alone. "
            f"{said.samples} random paths of each length, {IMAGES} training images."
        )
    ]


PATHS = Study(
    title="Paths",
    question="How long are the paths that carry the gradient?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
