"""Thousand: do networks of a thousand layers and more build, train a step and pass a gradient?

He et al. 2015, section 4.2 (1,202 layers), and He et al. 2016, section 5 (1,001 layers).
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx.data.sample import Source
from plusx.grammar.shapes import measure
from plusx.recipe import Recipe
from plusx.recipe.studies import Thousand
from plusx.run import parts
from plusx.study import drawn
from plusx.study.bands import Number, band_of, relative_places, some_batches, spread_of
from plusx.study.plan import Cell, Made, Study, by_name, spec, with_net
from plusx.study.thousand import deep_step


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Thousand)
    return [
        Cell(
            name=network,
            seed=seed,
            recipe=with_net(recipe, network, seed, source),
            factors={"network": network, "depth": measure(spec(network)).depth},
            train=False,
            looks=("thousand",),
        )
        for network in said.networks
        for seed in said.seeds
    ]


def look(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The network's first step of plain SGD on one batch of the recipe's images, as JSON."""
    sets = parts.open_sets(recipe)
    recipe = parts.resolved(recipe, sets.train)
    (batch,) = some_batches(sets.train, recipe.batch_size, recipe.batch_size)
    began = time.perf_counter()
    net, _ = parts.make_net(recipe)
    built = time.perf_counter() - began
    found = deep_step(
        net, batch.inputs, batch.known_targets, rate=recipe.optim.lr, seed=recipe.seed
    )
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "images": len(batch),
        "rate": recipe.optim.lr,
        "build_seconds": built,
        "step_seconds": found.seconds,
        "loss": _finite(found.loss),
        "after": _finite(found.after),
        "blocks": [each.name for each in found.gradients],
        "weights": [_finite(each.weights) for each in found.gradients],
        "outputs": [_finite(each.outputs) for each in found.gradients],
        "reached": found.reached,
        "finite": found.finite,
    }


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "depth", "title": "Layers", "unit": "", "kind": "count"},
        drawn.PARAMETERS,
        {"key": "blocks", "title": "Blocks", "unit": "", "kind": "count"},
        {"key": "reached", "title": "Blocks with a gradient", "unit": "", "kind": "count"},
        {"key": "ratio", "title": "Gradient, first / last", "unit": "", "kind": "number"},
        {"key": "build_seconds", "title": "To build", "unit": "s", "kind": "number"},
        {"key": "step_seconds", "title": "One step", "unit": "s", "kind": "number"},
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        looks = [each.seen("thousand") for each in group]
        found.append(
            {
                "name": name,
                **group[0].cell.factors,
                "seeds": [each.cell.seed for each in group],
                "parameters": looks[0]["parameters"],
                "blocks": len(looks[0]["blocks"]),
                "reached": min(look["reached"] for look in looks),
                "finite": all(look["finite"] for look in looks),
                "images": looks[0]["images"],
                "ratio": _ratio(looks[0]["outputs"]),
                "build_seconds": spread_of([look["build_seconds"] for look in looks]),
                "step_seconds": spread_of([look["step_seconds"] for look in looks]),
            }
        )
    return found


def _ratio(norms: Sequence[Number | None]) -> float | None:
    first, last = norms[0], norms[-1]
    return None if first is None or not last else first / last


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for row in rows:
        every = row["reached"] == row["blocks"] and row["finite"]
        said.append(
            f"{row['name']} ({row['depth']:,} layers) builds in "
            f"{row['build_seconds']['mean']:.1f} s and trains a step in "
            f"{row['step_seconds']['mean']:.1f} s, with "
            + (
                f"a finite gradient other than 0 in each of its {row['blocks']} blocks"
                if every
                else f"a gradient in {row['reached']} of its {row['blocks']} blocks"
                + ("" if row["finite"] else ", not all of it finite")
            )
        )
    return "; ".join(said) + "."


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    looks = {
        name: [each.seen("thousand") for each in group] for name, group in by_name(made).items()
    }
    return [
        drawn.lines_figure(
            f"Gradient at every block, in its {part}",
            "Norm at the first step, from the first block (0) to the last (1).",
            "; ".join(f"{row['name']}: first over last {row['ratio']:,.3g}" for row in rows
                      if row["ratio"] is not None),
            [
                band_of(
                    name,
                    relative_places(len(each[0]["blocks"])),
                    [[norm or None for norm in look[part]] for look in each],
                )
                for name, each in looks.items()
            ],
            x={"title": "place of the block", "scale": "linear"},
            y={"title": "", "scale": "log"},
        )
        for part in ("outputs", "weights")
    ]  # fmt: skip


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            f"One step of SGD at a rate of {recipe.optim.lr:g} on {recipe.batch_size} training "
            "images. It is the depth that is looked at: small images keep it in seconds."
        )
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


THOUSAND = Study(
    title="A thousand layers",
    question="Do networks of a thousand layers build, train a step and pass a gradient?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
