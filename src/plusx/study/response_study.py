"""Responses: how strongly do layers answer, with and without shortcuts?

He et al. 2015, section 4.2 and figure 7: residual functions are generally closer to zero than those
of plain networks, and in deeper residual networks each layer changes the signal less.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from plusx.data.sample import Source
from plusx.recipe import Recipe
from plusx.recipe.studies import Responses
from plusx.study import drawn
from plusx.study.bands import band_of, listed, relative_places, some_batches, spread_of
from plusx.study.plan import Cell, Made, Study, by_name, opened, spec, with_net
from plusx.study.response import responses


IMAGES = 256


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Responses)
    for network in said.networks:
        spec(network)  # UserError for a plain module
    return [
        Cell(
            name=network,
            seed=seed,
            recipe=with_net(recipe, network, seed, source),
            factors={"network": network},
            looks=("responses",),
        )
        for network in said.networks
        for seed in said.seeds
    ]


def layers(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The response of every layer of the trained network, as JSON: `layers` and `std`."""
    net, sets = opened(recipe, folder)
    found = responses(net, [batch.inputs for batch in some_batches(sets.train, IMAGES)])
    return {"layers": [each.name for each in found], "std": [each.std for each in found]}


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "layers", "title": "Layers of 3 x 3", "unit": "", "kind": "count"},
        {"key": "response", "title": "Mean response", "unit": "std", "kind": "number"},
        {"key": "smallest", "title": "Smallest", "unit": "std", "kind": "number"},
        {"key": "largest", "title": "Largest", "unit": "std", "kind": "number"},
        drawn.TRAIN_ERROR,
        drawn.ERROR,
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        looks = [each.seen("responses")["std"] for each in group]
        runs = [each.run for each in group if each.run is not None]
        found.append(
            {
                "name": name,
                "seeds": [each.cell.seed for each in group],
                "layers": len(looks[0]),
                "response": spread_of([mean(look) for look in looks]),
                "smallest": spread_of([min(look) for look in looks]),
                "largest": spread_of([max(look) for look in looks]),
                "train_error": spread_of([run.wrong for run in runs]),
                "error": spread_of([1 - run.scores["accuracy"] for run in runs]),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    order = sorted(rows, key=lambda row: row["response"]["mean"])
    said = [f"{row['name']} {row['response']['mean']:.2f}" for row in order]
    return (
        f"Standard deviation of the response, mean over the layers, the weakest first: "
        f"{listed(said)}."
    )


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    looks = {
        name: [each.seen("responses")["std"] for each in group]
        for name, group in by_name(made).items()
    }
    strength = {"title": "standard deviation", "scale": "linear"}
    told = "; ".join(f"{row['name']} {row['response']['mean']:.2f} on average" for row in rows)
    return [
        drawn.lines_figure(
            "Response of every layer",
            "Behind batch norm, before the nonlinearity and the sum (He 2015, figure 7, top).",
            told,
            [band_of(name, relative_places(len(s[0])), s) for name, s in looks.items()],
            x={"title": "place of the layer", "scale": "linear"},
            y=strength,
        ),
        drawn.lines_figure(
            "Responses in order of their strength",
            "The same, sorted (He 2015, figure 7, bottom).",
            told,
            [
                band_of(name, relative_places(len(s[0])), [sorted(e, reverse=True) for e in s])
                for name, s in looks.items()
            ],
            x={"title": "rank of the layer", "scale": "linear"},
            y=strength,
        ),
    ]


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            f"Measured in evaluation mode on at most {IMAGES} training images, not augmented. In "
            "pre-activation networks the second convolution of a block has no norm behind it, and "
            "its own output is taken."
        )
    ]


RESPONSES = Study(
    title="Responses",
    question="How strongly do layers respond, with and without shortcuts?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
