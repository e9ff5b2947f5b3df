"""Gradients: where do they vanish, explode or settle, and what makes the difference?

Norms a block at the start and at every checkpoint, over networks, with and without batch norm,
ways to begin and activations; and He et al. 2016, eq. 5, beside what autograd gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plusx.data.sample import Source
from plusx.grammar.sentence import parse
from plusx.grammar.spec import Net
from plusx.grammar.twins import without_norm
from plusx.recipe import Recipe
from plusx.recipe.studies import Gradients
from plusx.study import drawn
from plusx.study.anatomy import network_of
from plusx.study.bands import band_of, counted, listed, some_batches, spread_of
from plusx.study.gradient import FACTOR, course, shortcut_identity, verdict
from plusx.study.plan import Cell, Made, Study, by_name, opened, spec, with_net
from plusx.study.watch import aligned, mean_ratio, over_depth, over_training


CLIP = 1.0  # of networks without norms, whose first steps would else leave the numbers' range
IMAGES = 16  # that the identity is measured with, in float64
SAID = {"explode": "explode", "vanish": "vanish", "steady": "are steady"}


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Gradients)
    found = []
    for network in said.networks:
        for norm in said.norms:
            for rule in said.rules:
                for act in said.acts:
                    net = replace(spec(network), act=act)
                    if norm == "none":
                        net = without_norm(net)
                    looks = ("gradients", "identity") if is_pre_activation(net) else ("gradients",)
                    found += [
                        Cell(
                            name=f"{network}{'' if norm == 'batch' else ' no norm'} {rule} {act}",
                            seed=seed,
                            recipe=_begun(with_net(recipe, net, seed, source), rule, norm),
                            factors={"network": network, "norm": norm, "rule": rule, "act": act},
                            looks=looks,
                        )
                        for seed in said.seeds
                    ]
    return found


def _begun(recipe: Recipe, rule: Any, norm: str) -> Recipe:
    optim = recipe.optim
    if norm == "none" and optim.clip is None:
        optim = replace(optim, clip=CLIP)
    return replace(recipe, init=replace(recipe.init, rule=rule), optim=optim)


def is_pre_activation(net: Net) -> bool:
    """Whether every block is x + F(x) with nothing behind the sum."""
    bodies = [parse(block.body) for stage in net.stages for block in stage.blocks]
    return all(body.merge == "add" and not body.after for body in bodies)


def identity(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Equation 5 in the trained network, behind the last projection of each stage, as JSON:

    `blocks` (their names), `measured` and `expected` (norms of the gradient at their inputs) and
    `difference`, the largest of all.
    """
    net, sets = opened(recipe, folder)
    (batch,) = some_batches(sets.train, IMAGES)
    found = [
        each
        for stage in range(1, len(network_of(net).spec.stages) + 1)
        for each in shortcut_identity(net, batch.inputs, batch.known_targets, stage=stage)
    ]
    return {
        "blocks": [each.name for each in found],
        "measured": [each.measured for each in found],
        "expected": [each.expected for each in found],
        "difference": max(each.difference for each in found),
    }


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "course", "title": "Gradients", "unit": "", "kind": "text"},
        {"key": "ratio_start", "title": "First / last, outputs", "unit": "at the start",
         "kind": "number"},
        {"key": "weights_start", "title": "First / last, weights", "unit": "at the start",
         "kind": "number"},
        {"key": "ratio_end", "title": "First / last, outputs", "unit": "at the end",
         "kind": "number"},
        drawn.TRAIN_ERROR,
        {"key": "identity", "title": "Largest error of equation 5", "unit": "relative",
         "kind": "number"},
    ]  # fmt: skip


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        looks = aligned([each.seen("gradients") for each in group])
        ratios = [mean_ratio(looks, place) for place in range(len(looks[0]["steps"]))]
        has_identity = any(look.startswith("identity") for look in group[0].cell.looks)
        found.append(
            {
                "name": name,
                **group[0].cell.factors,
                "seeds": [each.cell.seed for each in group],
                "course": course(ratios),
                "at_start": verdict(ratios[0]),
                "at_end": verdict(ratios[-1]),
                "ratio_start": ratios[0],
                "weights_start": mean_ratio([_of_weights(look) for look in looks], 0),
                "ratio_end": ratios[-1],
                "train_error": spread_of([each.run.wrong for each in group if each.run]),
                "identity": max(each.seen("identity")["difference"] for each in group)
                if has_identity
                else None,
            }
        )
    return found


def _of_weights(look: Mapping[str, Any]) -> dict[str, Any]:
    """The same look with the ratio of the gradients in the weights."""
    ends = [(norms[0], norms[-1]) for norms in look["weights"]]
    return {"ratio": [None if a is None or not b else a / b for a, b in ends]}


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    usual = [row for row in rows if (row["rule"], row["act"]) == ("he", "relu")]
    said = [f"{row['name'].removesuffix(' he relu')}: gradients {row['course']}" for row in usual]
    of_all = (
        f"Of {len(rows)} settings gradients "
        f"{counted([row['at_start'] for row in rows], SAID)} at the start, "
        f"{counted([row['at_end'] for row in rows], SAID)} at the end"
    )
    known = [row["identity"] for row in rows if row["identity"] is not None]
    beside = [f"Equation 5 of He 2016 holds within {drawn.number(max(known))}"] if known else []
    return ". ".join([of_all, *(["; ".join(said)] if said else []), *beside]) + "."


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = by_name(made)
    usual = [row["name"] for row in rows if (row["rule"], row["act"]) == ("he", "relu")]
    names = usual or list(groups)[:6]
    looks = {name: aligned([each.seen("gradients") for each in groups[name]]) for name in names}
    told = {row["name"]: row for row in rows}
    logarithmic = {"title": "", "scale": "log"}
    found = [
        drawn.lines_figure(
            "Gradient at every block at the start",
            "Norm of the loss gradient in the output of each block, from the first (0) to the last "
            "(1).",
            "; ".join(f"{name}: {drawn.number(told[name]['ratio_start'])}" for name in names),
            [over_depth(name, each) for name, each in looks.items()],
            x={"title": "place of the block", "scale": "linear"},
            y=logarithmic,
        ),
        drawn.lines_figure(
            "First block over last through training",
            "The norm in the first block's output over that in the last one's, at every "
            "checkpoint; 1 is even.",
            "; ".join(f"{name}: {told[name]['course']}" for name in names),
            [over_training(name, each) for name, each in looks.items()],
            x={"title": "step", "scale": "linear"},
            y=logarithmic,
            level=1.0,
        ),
        _over_settings(groups, rows),
    ]
    beside = [name for name in names if told[name]["identity"] is not None]
    return [*found, *([_identity_figure(groups, beside)] if beside else [])]


def _over_settings(
    groups: Mapping[str, Sequence[Made]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    shown = []
    for row in rows:
        ratios = [each.seen("gradients")["ratio"][0] for each in groups[row["name"]]]
        if all(ratios) and row["ratio_start"]:
            shown.append(
                {
                    "name": row["name"],
                    "values": ratios,
                    "mean": row["ratio_start"],
                    "interval": None,
                }
            )
    missing = [row["name"] for row in rows if row["name"] not in {each["name"] for each in shown}]
    without = f" Not drawn, since no gradient arrives: {listed(missing)}." if missing else ""
    return {
        "kind": "dots",
        "title": "First block over last at the start, in every setting",
        "caption": f"Below 1 / {FACTOR:.0f} gradients vanish, above {FACTOR:.0f} they explode."
        + without,
        "alternative": "; ".join(f"{each['name']} {each['mean']:,.3g}" for each in shown) + without,
        "x": {"title": "first / last", "scale": "log"},
        "groups": shown,
    }


def _identity_figure(groups: Mapping[str, Sequence[Made]], names: Sequence[str]) -> dict[str, Any]:
    lines = []
    for name in names:
        looks = [each.seen("identity") for each in groups[name]]
        x = list(range(1, len(looks[0]["blocks"]) + 1))
        lines.append(band_of(f"{name}, measured", x, [look["measured"] for look in looks]))
        lines.append(
            band_of(f"{name}, equation 5", x, [look["expected"] for look in looks], dashed=True)
        )
    return drawn.lines_figure(
        "The gradient at the input of every block, and what equation 5 says",
        "In float64 in the trained network: dL/dx_l = dL/dx_L (1 + d/dx_l of the sum of F), from "
        "the block behind each stage's projection on.",
        "Measured and expected lie on each other.",
        lines,
        x={"title": "block", "scale": "linear"},
        y={"title": "", "scale": "log"},
    )


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            "The ratio is of the norms of the loss gradient in the outputs of the first and the "
            f"last block, of the same training images each time: below 1 / {FACTOR:.0f} it "
            f"vanishes, above {FACTOR:.0f} it explodes, and it settles where it did one of them "
            "at the start and does neither at the end."
        ),
        (
            f"Networks without norms are trained with the gradient clipped to {CLIP:g}, unless the "
            "recipe says another length; what is measured is the gradient before that."
        ),
    ]


GRADIENTS = Study(
    title="Gradients",
    question="Where do gradients vanish, explode or settle?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
