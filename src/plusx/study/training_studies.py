"""Studies that train networks and compare their errors.

degradation: He et al. 2015, sections 1 and 4.2: deeper plain networks have a higher training error,
    which is not overfitting and, with batch norm, not caused by vanishing gradients.
skips: merges compared at equal cost.
convergence: epochs, and seconds of training, until an accuracy is reached.
generalisation: the gap between training and validation, over depth, remedies and amounts of data.
transfer: few images of some classes, trained from scratch and from weights of other classes.
ablation: the shortcuts and layer orders of He et al. 2016 (tables 1 and 2). The order of the
    variants is compared with the paper's, because errors depend on the budget. Kendall's tau-b
    measures the agreement (1: same order, 0: unrelated, -1: reversed). Variants that failed in the
    paper are tied, and an order without these ties reaches a little less than 1. The interval comes
    from resampling the mean of every variant.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from plusx import store
from plusx.data.dataset import Dataset
from plusx.errors import UserError, did_you_mean
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Block, Net
from plusx.grammar.twins import at_cost, with_dropout, with_merge, without_norm
from plusx.recipe import KnownData, NetByName, OwnData, Recipe
from plusx.recipe.studies import Ablation, Convergence, Degradation, Generalisation, Skips, Transfer
from plusx.report.figures import dots_figure, line, lines_figure
from plusx.statistics import Difference, difference, differences, spread
from plusx.study.experiment import (
    ERROR,
    MULTIPLY_ADDS,
    PARAMETERS,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    adapted_to,
    column,
    compared,
    listed,
    network_trials,
    percent,
    spec,
    with_net,
)
from plusx.study.figures import error_figures, training_lines, validation_lines
from plusx.study.gradients import (
    aligned,
    depth_figure,
    ratios_over_training,
    training_figure,
    verdict,
)
from plusx.study.results import epochs_to
from plusx.study.trial import Measurement, Trial
from plusx.zoo import cifar
from plusx.zoo.blocks import BASIC_A, BOTTLENECK_A, FIRST_PREACT_A, ORDERS, PREACT_A, SHORTCUTS


MARGIN = 0.01  # a deeper network is "not worse" if its error is higher by less than this
UNTRAINED = 0.95  # fraction of the error of chance above which a network has learned nothing
DROPOUT = 0.3  # before the last convolution of a block (Zagoruyko and Komodakis 2016)
DROP_PATH = 0.5  # the last block's rate (Huang et al. 2016)
DRAWS = 1000  # samples of the means, for the interval of Kendall's tau
_BEFORE = "before"  # pretraining on other classes, in the transfer study
_WORDS = {"scratch": "from scratch", "all": "all of it fine-tuned", "head": "its head alone"}
_DEPTH = column("depth", "Depth", kind="count")


def _degradation_trials(recipe: Recipe, table: Degradation, source: Dataset) -> list[Trial]:
    trials = []
    chance = 1 - 1 / len(source.classes)  # the error of guessing
    for norm in table.norms:
        for kind in table.kinds:
            for depth in table.depths:
                name = f"{kind}{depth}"
                try:
                    net = spec(name)
                except ValueError as error:
                    raise UserError(f"[study] depths: {depth}: {error}") from None
                chosen = name if norm == "batch" else without_norm(net)
                trials.append(
                    Trial(
                        name=name if norm == "batch" else f"{name} no norm",
                        recipe=with_net(recipe, chosen, source),
                        factors={"kind": kind, "depth": depth, "norm": norm, "chance": chance},
                        measurements=(Measurement("gradients"),),
                    )
                )
    return trials


def _degradation_row(group: Group) -> dict[str, Any]:
    ratios = ratios_over_training(aligned(group.measured("gradients")))
    return {**group.costs, **group.errors, "ratio_start": ratios[0], "ratio_end": ratios[-1]}


def _degradation_finding(rows: Sequence[Row]) -> str:
    """Compare the training error of the deepest and the shallowest network of each kind."""
    by_kind: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_kind.setdefault((row["norm"], row["kind"]), []).append(row)
    pairs = [
        (max(group, key=lambda row: row["depth"]), min(group, key=lambda row: row["depth"]))
        for group in by_kind.values()
    ]
    pairs = [(deep, shallow) for deep, shallow in pairs if deep is not shallow]
    if not pairs:
        return _finding_at_one_depth(rows)
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    sentences = []
    for (deep, shallow), gap in zip(pairs, differences(errors), strict=True):
        text = compared(deep, shallow, "train_error", gap)
        lowest = min(row["train_error"]["mean"] for row in (deep, shallow))
        chance = deep.get("chance", 1.0)
        if lowest > UNTRAINED * chance:
            sentences.append(
                f"{deep['name']} and {shallow['name']} learned nothing "
                f"({deep['train_error']['mean']:.1%} and {shallow['train_error']['mean']:.1%}, "
                f"chance {chance:.1%})"
            )
            continue
        if gap is not None and gap.low <= 0 <= gap.high < MARGIN:
            text = text.replace("is not known to differ from", "is not worse than")
        if gap is not None and gap.low > 0 and verdict(deep["ratio_end"]) == "steady":
            always = verdict(deep["ratio_start"]) == "steady"
            text += f" while its gradients {'are steady' if always else 'have settled'}"
        sentences.append(text)
    return f"Training error: {'; '.join(sentences)}."


def _finding_at_one_depth(rows: Sequence[Row]) -> str:
    """Compare the training error of every kind with that of the plain networks."""
    plain = {row["norm"]: row for row in rows if row["kind"] == "plain"}
    pairs = [(r, plain[r["norm"]]) for r in rows if r["kind"] != "plain" and r["norm"] in plain]
    if not pairs:
        values = listed([f"{row['name']} {percent(row['train_error'])}" for row in rows])
        return f"Training error at one depth: {values}."
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    sentences = [
        compared(row, other, "train_error", gap)
        for (row, other), gap in zip(pairs, differences(errors), strict=True)
    ]
    return f"Training error: {'; '.join(sentences)}."


def _degradation_figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    without_norms = [group.name for group in groups if group.factors["norm"] == "none"]
    results = {group.name: aligned(group.measured("gradients")) for group in groups}
    return [*error_figures(groups, without_norms), depth_figure(results), training_figure(results)]


DEGRADATION = Experiment[Degradation](
    title="Degradation",
    question="Do deeper networks train worse, and do shortcuts prevent it?",
    trials=_degradation_trials,
    columns=lambda table, groups: [
        _DEPTH,
        PARAMETERS,
        TRAIN_ERROR,
        ERROR,
        column("ratio_start", "Gradient, first / last", "at the start"),
        column("ratio_end", "Gradient, first / last", "at the end"),
    ],
    row=_degradation_row,
    finding=_degradation_finding,
    figures=_degradation_figures,
    notes=lambda recipe, table, groups: (
        "Train error is that of the trained network on its training images. Differences have "
        "Welch's interval over the seeds, all of them together 95 %; not worse means surely less "
        f"than {100 * MARGIN:.0f} point above. Gradients are those in the outputs of the blocks, "
        "of the same 128 images each time, with the batch's own statistics."
    ),
)


def _skips_trials(recipe: Recipe, table: Skips, source: Dataset) -> list[Trial]:
    blocks = _blocks_of(table.depth)
    # bottlenecks of about this depth: 9 n + 2 layers
    bases = {
        "basic": adapted_to(cifar.net(BASIC_A, blocks), source),
        "bottleneck": adapted_to(
            cifar.net(BOTTLENECK_A, max(1, round((table.depth - 2) / 9)), cifar.BOTTLENECK_WIDTHS),
            source,
        ),
    }
    cost = measure(bases["basic"]).multiply_adds
    return [
        Trial(
            name=f"{block} {'plain' if merge == 'none' else merge}",
            recipe=with_net(recipe, at_cost(with_merge(bases[block], merge), cost), source),
            factors={"block": block, "merge": merge},
        )
        for block in table.blocks
        for merge in table.merges
    ]


def _blocks_of(depth: int) -> int:
    """Return the basic blocks per stage of a network of three stages of this depth."""
    if depth < 8:
        raise UserError(f"[study] depth = {depth}: at least 8, for one basic block per stage")
    return (depth - 2) // 6


def _skips_row(group: Group) -> dict[str, Any]:
    spec = group.recipe.net
    assert isinstance(spec, Net)
    return {"depth": measure(spec).depth, **group.costs, **group.errors}


def _skips_finding(rows: Sequence[Row]) -> str:
    """Compare the training error of each merge with that of `+`, and bottleneck with basic."""
    additive = {row["block"]: row for row in rows if row["merge"] == "add"}
    others = [row for row in rows if row["merge"] != "add" and row["block"] in additive]
    pairs = [(row, additive[row["block"]]) for row in others]
    if {"basic", "bottleneck"} <= set(additive):
        pairs.append((additive["bottleneck"], additive["basic"]))
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    sentences = [
        compared(*pair, "train_error", gap)
        for pair, gap in zip(pairs, differences(errors), strict=True)
    ]
    return (
        f"Training error at equal multiply-adds: {'; '.join(sentences)}."
        if sentences
        else "One row."
    )


SKIPS = Experiment[Skips](
    title="Shortcuts",
    question="What does adding do that concatenating, gating or nothing does not, at equal cost?",
    trials=_skips_trials,
    columns=lambda table, groups: [_DEPTH, PARAMETERS, MULTIPLY_ADDS, TRAIN_ERROR, ERROR],
    row=_skips_row,
    finding=_skips_finding,
    figures=lambda groups, rows: error_figures(
        groups, [row["name"] for row in rows if row["merge"] == "none"]
    ),
    notes=lambda recipe, table, groups: (
        "All networks have the multiply-adds of the basic residual one, as near as widths come: "
        "every width is scaled by one factor. With & the stages begin by halving the channels and "
        "pooling, as in DenseNet. Intervals are Welch's over seeds, all of them together 95 %. "
        "Without shortcuts dashed."
    ),
)


def _convergence_trials(recipe: Recipe, table: Convergence, source: Dataset) -> list[Trial]:
    return [
        replace(trial, factors={"threshold": table.threshold})
        for trial in network_trials(recipe, table.networks, source)
    ]


def _convergence_row(group: Group) -> dict[str, Any]:
    threshold = float(group.factors["threshold"])
    reached = [
        (float(epoch), epoch * run.seconds_per_epoch)
        for run in group.runs
        if (epoch := epochs_to(run.points, threshold)) is not None
    ]
    return {
        **group.costs,
        "seconds_per_epoch": spread([run.seconds_per_epoch for run in group.runs]),
        "reached": len(reached),
        "epochs": spread([epochs for epochs, _ in reached]) if reached else None,
        "seconds": spread([seconds for _, seconds in reached]) if reached else None,
        "error": group.errors["error"],
    }


def _convergence_finding(rows: Sequence[Row]) -> str:
    """Name the fastest networks in epochs and seconds, and those that are too inaccurate."""
    complete = [row for row in rows if row["reached"] == len(row["seeds"])]
    incomplete = [row["name"] for row in rows if row not in complete]
    sentences = [_fastest(complete, "epochs"), _fastest(complete, "seconds")] if complete else []
    if incomplete:
        sentences.append(f"{listed(incomplete)} did not reach the accuracy with every seed")
    return f"{'; '.join(sentences)}."


def _fastest(rows: Sequence[Row], key: str) -> str:
    best = min(rows, key=lambda row: row[key]["mean"])
    others = [row for row in rows if row is not best]
    pairs = [(row[key]["seeds"], best[key]["seeds"]) for row in others]
    gaps = differences(pairs, bounds=(-math.inf, math.inf))
    similar = [
        row["name"] for row, gap in zip(others, gaps, strict=True) if gap is None or gap.low <= 0
    ]
    first = f"{best['name']} needs the fewest {key} on average ({best[key]['mean']:.1f})"
    return f"{first}, not known to differ from {listed(similar)}" if similar else first


def _convergence_figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        lines_figure(
            "Validation error",
            "At every evaluation; the dotted line is the threshold.",
            validation_lines(groups),
            level=1 - float(groups[0].factors["threshold"]),
        )
    ]


CONVERGENCE = Experiment[Convergence](
    title="Convergence",
    question="How many epochs, and how many seconds, until an accuracy is reached?",
    trials=_convergence_trials,
    columns=lambda table, groups: [
        PARAMETERS,
        MULTIPLY_ADDS,
        column("reached", "Seeds that reach it", kind="count"),
        column("epochs", "Epochs", f"to {100 * table.threshold:g} %"),
        column("seconds", "Seconds", f"to {100 * table.threshold:g} %"),
        column("seconds_per_epoch", "Seconds", "an epoch"),
        ERROR,
    ],
    row=_convergence_row,
    finding=_convergence_finding,
    figures=_convergence_figures,
    notes=lambda recipe, table, groups: (
        "An accuracy is reached at the first epoch whose evaluation is at least as high; means are "
        "over the seeds that reach it. The first network is compared with each other one by "
        "Welch's intervals over the seeds, with a joint level of 95 %. Seconds are training time "
        "only; runs in parallel share the machine: compare times within one study only."
    ),
)


def _generalisation_trials(recipe: Recipe, table: Generalisation, source: Dataset) -> list[Trial]:
    remedy_keys = {
        "augmentation": ("data.augment", recipe.data.augment),
        "weight-decay": ("optim.weight_decay", recipe.optim.weight_decay),
    }
    for remedy, (key, value) in remedy_keys.items():
        if remedy in table.remedies and not value:
            raise UserError(f"[study] remedies: {remedy} is {key}, which is empty: nothing to try")
    for share in table.shares:
        if round(share * len(source)) < len(source.classes):
            raise UserError(
                f"[study] shares: {share:g} of {len(source):,} images is less than one of each of "
                f"{len(source.classes)} classes"
            )
    return [
        Trial(
            name=f"resnet{depth} {remedy} {100 * share:g} %",
            recipe=_with_remedy(recipe, depth, remedy, share, source),
            factors={"depth": depth, "remedy": remedy, "share": share},
        )
        for depth in table.depths
        for share in table.shares
        for remedy in table.remedies
    ]


def _with_remedy(recipe: Recipe, depth: int, remedy: str, share: float, source: Dataset) -> Recipe:
    """Return the recipe with this remedy and no other."""
    net = spec(f"resnet{depth}")
    if remedy == "dropout":
        net = with_dropout(net, DROPOUT)
    if remedy == "stochastic-depth":
        net = replace(net, drop_path=DROP_PATH)
    assert isinstance(recipe.data, KnownData | OwnData)
    augment = recipe.data.augment if remedy == "augmentation" else ""
    data = replace(recipe.data, augment=augment, train=round(share * len(source)))
    decay = recipe.optim.weight_decay if remedy == "weight-decay" else 0.0
    bare = replace(recipe, data=data, optim=replace(recipe.optim, weight_decay=decay))
    return with_net(bare, net, source)


def _generalisation_row(group: Group) -> dict[str, Any]:
    gaps = [1 - run.metrics["accuracy"] - run.wrong for run in group.runs]
    images = getattr(group.recipe.data, "train", None)
    return {"images": images, **group.errors, "gap": spread(gaps)}


def _generalisation_finding(rows: Sequence[Row]) -> str:
    """Name, for each fraction of the data, the remedies that lower the validation error, and how
    depth changes the gap. A remedy helps if its interval is below 0."""
    pairs = [
        (row, bare)
        for row in rows
        if (bare := _without_remedy(rows, row["depth"], row["share"])) is not None
        and row is not bare
    ]
    helpful: dict[float, list[str]] = {row["share"]: [] for row in rows}
    errors = [tuple(row["error"]["seeds"] for row in pair) for pair in pairs]
    for (row, _), gap in zip(pairs, differences(errors), strict=True):
        if gap is not None and gap.high < 0:
            helpful[row["share"]].append(f"{row['remedy']} ({row['depth']} layers, {gap})")
    parts = []
    for share, remedies in helpful.items():
        effect = (
            f"less error by {', '.join(remedies)}" if remedies else "no remedy is shown to help"
        )
        parts.append(f"with {100 * share:g} % of the images {effect}{_depth_effect(rows, share)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _depth_effect(rows: Sequence[Row], share: float) -> str:
    depths = sorted({row["depth"] for row in rows})
    shallow, deep = (_without_remedy(rows, depth, share) for depth in (depths[0], depths[-1]))
    if shallow is None or deep is None or shallow is deep:
        return ""
    gap = difference(deep["gap"]["seeds"], shallow["gap"]["seeds"], bounds=(-2.0, 2.0))
    if gap is None:
        return ""
    return f"; from {depths[0]} to {depths[-1]} layers the gap changes by {gap}"


def _without_remedy(rows: Sequence[Row], depth: int, share: float) -> Row | None:
    key = ("none", depth, share)
    return next((r for r in rows if (r["remedy"], r["depth"], r["share"]) == key), None)


def _generalisation_figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    figures = []
    for depth in dict.fromkeys(row["depth"] for row in rows):
        of_depth = [row for row in rows if row["depth"] == depth]
        for title, key in (("Validation error", "error"), ("Gap", "gap")):
            figures.append(
                lines_figure(
                    f"{title}, {depth} layers",
                    "Over the number of training images; bands from the lowest to the highest "
                    "seed.",
                    [
                        _over_images(remedy, key, of_depth)
                        for remedy in dict.fromkeys(row["remedy"] for row in rows)
                    ],
                    x={"title": "training images", "scale": "log"},
                )
            )
    return figures


def _over_images(remedy: str, key: str, rows: Sequence[Row]) -> dict[str, Any]:
    chosen = sorted((row for row in rows if row["remedy"] == remedy), key=lambda row: row["images"])
    return line(
        remedy,
        [row["images"] for row in chosen],
        [row[key]["mean"] for row in chosen],
        low=[min(row[key]["seeds"]) for row in chosen],
        high=[max(row[key]["seeds"]) for row in chosen],
        dashed=remedy == "none",
    )


def _generalisation_notes(recipe: Recipe, table: Generalisation, groups: Sequence[Group]) -> str:
    length = (
        "All runs make the same number of updates, whatever the number of images."
        if recipe.steps
        else "All runs make the same number of epochs, so those with fewer images make fewer "
        "updates: what few images cost and what few updates cost is not separated."
    )
    compared = len(table.depths) * len(table.shares) * len(set(table.remedies) - {"none"})
    return (
        f"{length} The gap is the validation error less the training error of the trained network. "
        f"Dropout ({DROPOUT}) stands before the last convolution of a block; stochastic depth "
        f"drops the last block with {DROP_PATH}; weight decay is {recipe.optim.weight_decay:g}; "
        f"augmentation is {recipe.data.augment!r}; none of them stands in the others' rows.\n"
        "Remedies are compared with none of them by Welch's interval over the seeds; the "
        f"{compared} comparisons hold together with 95 %."
    )


GENERALISATION = Experiment[Generalisation](
    title="Generalisation",
    question="How far is validation behind training, and what helps with little data?",
    trials=_generalisation_trials,
    columns=lambda table, groups: [
        _DEPTH,
        column("remedy", "Against it", kind="text"),
        column("images", "Images", kind="count"),
        TRAIN_ERROR,
        ERROR,
        column("gap", "Gap", "points", "share"),
    ],
    row=_generalisation_row,
    finding=_generalisation_finding,
    figures=_generalisation_figures,
    notes=_generalisation_notes,
)


def _transfer_trials(recipe: Recipe, table: Transfer, source: Dataset) -> list[Trial]:
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


def _transfer_row(group: Group) -> dict[str, Any]:
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


def _transfer_finding(rows: Sequence[Row]) -> str:
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


def _transfer_figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
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
    trials=_transfer_trials,
    columns=lambda table, groups: [
        column("images", "Images", kind="count"),
        column("classes", "Classes", kind="count"),
        TRAIN_ERROR,
        {**ERROR, "title": "Test error" if table.split == "test" else "Validation error"},
        column("gain", "Better than from scratch", "points", "text"),
    ],
    row=_transfer_row,
    complete=_with_gains,
    finding=_transfer_finding,
    figures=_transfer_figures,
    notes=lambda recipe, table, groups: (
        f"Before, each network was trained for {table.epochs} epochs on all training images of "
        f"{listed(table.classes)}, with the same seed; the head is new for the other classes. "
        "What is not trained keeps the statistics of its norms. All ways make the same number of "
        "updates at the same rates, and see the same few images of a seed. Intervals are Welch's "
        "over seeds, all of them together 95 %."
    ),
)


class Variant(NamedTuple):
    """A row of the paper: its block, the initial bias of its gates, and the paper's test error."""

    table: int
    block: Block
    paper_error: float
    gate_bias: float | None = None
    first: Block | None = None
    tail: str = "pool"


VARIANTS: dict[str, Variant] = {
    "original": Variant(1, BASIC_A, 0.0661),
    "constant": Variant(1, SHORTCUTS["constant"], 0.1235),
    "constant-shortcut": Variant(1, SHORTCUTS["constant_shortcut"], 0.2000),
    "exclusive-gate": Variant(1, SHORTCUTS["exclusive_gate"], 0.0870, -6.0),
    "shortcut-gate-0": Variant(1, SHORTCUTS["shortcut_gate"], 0.1286, 0.0),
    "shortcut-gate-6": Variant(1, SHORTCUTS["shortcut_gate"], 0.0691, -6.0),
    "conv-shortcut": Variant(1, SHORTCUTS["conv_shortcut"], 0.1222),
    "dropout-shortcut": Variant(1, SHORTCUTS["dropout_shortcut"], 0.2000),
    "norm-after": Variant(2, ORDERS["norm_after"], 0.0817),
    "act-before": Variant(2, ORDERS["act_before"], 0.0784),
    "act-only": Variant(2, ORDERS["act_only"], 0.0671, tail="act pool"),
    "preact": Variant(2, PREACT_A, 0.0637, first=FIRST_PREACT_A, tail="norm act pool"),
}


def _ablation_trials(recipe: Recipe, table: Ablation, source: Dataset) -> list[Trial]:
    blocks = _blocks_of(table.depth)
    for name in table.variants:
        if name not in VARIANTS:
            raise UserError(
                f"[study] variants: no {name!r} among {', '.join(VARIANTS)}"
                + did_you_mean(name, VARIANTS)
            )
    trials = []
    for name in table.variants or VARIANTS:
        variant = VARIANTS[name]
        net = cifar.net(variant.block, blocks, first=variant.first, tail=variant.tail)
        init = recipe.init
        if variant.gate_bias is not None:
            init = replace(init, gate_bias=variant.gate_bias)
        trials.append(
            Trial(
                name=name,
                recipe=replace(with_net(recipe, net, source), init=init),
                factors={"table": variant.table},
            )
        )
    return trials


def _ablation_row(group: Group) -> dict[str, Any]:
    variant = VARIANTS[group.name]
    return {
        "sentence": variant.block.body,
        "shortcut": variant.block.identity or "the identity",
        **group.errors,
        "paper": variant.paper_error,
    }


def _ablation_finding(rows: Sequence[Row]) -> str:
    """Return Kendall's tau between our order and the paper's, for each table."""
    taus = []
    for table, title in ((1, "shortcuts (table 1)"), (2, "orders (table 2)"), (0, "all")):
        selected = [row for row in rows if table in (0, row["table"])]
        if table == 2:
            selected = [*(row for row in rows if row["name"] == "original"), *selected]
        if len(selected) < 3:
            continue
        papers = [row["paper"] for row in selected]
        tau, interval = agreement([row["error"]["seeds"] for row in selected], papers)
        interval_text = (
            "no interval"
            if interval is None
            else f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
        )
        max_tau = max_tau_with_ties(papers)
        ties = f", at most {max_tau:.2f} for the paper's ties" if max_tau < 1 else ""
        taus.append(f"{title} {tau:.2f} ({interval_text}{ties})")
    if not taus:
        return "Fewer than three variants: there is no order to compare with the paper's."
    order = f"Kendall's tau of the order against the paper's: {'; '.join(taus)}."
    return " ".join([order, *_against_best(rows)])


def _against_best(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for every variant that errs less here than the paper's best one: whether
    the seeds show it, and the smallest difference that they could have shown."""
    best = min(rows, key=lambda row: float(row["paper"]))
    sentences = []
    for row in rows:
        if row["error"]["mean"] >= best["error"]["mean"]:
            continue
        gap = difference(row["error"]["seeds"], best["error"]["seeds"])
        if gap is None:
            continue
        shown = 100 * (gap.high - gap.low) / 2
        settled = "" if gap.high < 0 else ": INCONCLUSIVE"
        sentences.append(
            f"{row['name']} against {best['name']}, the paper's best: {gap}{settled}; these seeds "
            f"show differences from {shown:.1f} points on, the paper prints "
            f"{100 * (row['paper'] - best['paper']):+.2f}."
        )
    return sentences


def max_tau_with_ties(paper: Sequence[float]) -> float:
    """Return the highest possible tau-b between these errors and an order without ties."""
    differ = [a != b for a, b in itertools.combinations(paper, 2)]
    return float((sum(differ) / len(differ)) ** 0.5)


def agreement(
    errors: Sequence[Sequence[float]], paper: Sequence[float]
) -> tuple[float, tuple[float, float] | None]:
    """Return Kendall's tau-b between the mean errors and the paper's, with its 95 % interval.

    `errors` has one list of seeds per variant. The interval is that of the percentiles over samples
    of every mean from Student's t; bootstrapping three seeds would vary far less than their mean
    does. It is None if a variant has one seed, or all samples agree. The tau is NaN if all means or
    all errors of the paper are equal.
    """
    from scipy.stats import kendalltau

    def tau(means: Sequence[float]) -> float:
        return float(kendalltau(means, paper).statistic)

    point_tau = tau([float(np.mean(values)) for values in errors])
    if min(map(len, errors)) < 2:
        return point_tau, None
    rng = np.random.default_rng(0)
    sampled_means = np.stack(
        [
            np.mean(values)
            + rng.standard_t(len(values) - 1, DRAWS) * (np.std(values, ddof=1) / len(values) ** 0.5)
            for values in errors
        ],
        axis=1,
    )
    taus = [tau(means.tolist()) for means in sampled_means]
    low, high = map(float, np.nanpercentile(taus, (2.5, 97.5)))
    return point_tau, (low, high) if low < high else None


def _ablation_figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    ordered = sorted(rows, key=lambda row: row["paper"])
    figures = []
    for table, title in ((1, "kinds of shortcut"), (2, "orders of norm and activation")):
        chosen = [row for row in ordered if row["table"] == table or row["name"] == "original"]
        if any(row["table"] == table for row in rows):
            figures.append(
                dots_figure(
                    f"Validation error, {title}",
                    "Every seed, and the mean as a line; the paper's order from top to bottom.",
                    {"title": "validation error", "scale": "share"},
                    {row["name"]: row["error"] for row in chosen},
                )
            )
    caption = "Mean over the epoch while it trains."
    return [*figures, lines_figure("Training error", caption, training_lines(groups))]


ABLATION = Experiment[Ablation](
    title="Shortcuts and orders of He et al. 2016",
    question="Is the identity the best shortcut, and full pre-activation the best order?",
    trials=_ablation_trials,
    columns=lambda table, groups: [
        column("table", "Table", "He 2016", "count"),
        column("sentence", "Block", kind="text"),
        column("shortcut", "Shortcut", kind="text"),
        TRAIN_ERROR,
        ERROR,
        {**column("paper", "Paper's test error", "%, 110 layers", "share"), "places": 2},
    ],
    row=_ablation_row,
    finding=_ablation_finding,
    figures=_ablation_figures,
    notes=lambda recipe, table, groups: (
        "The paper's errors are of 110 layers on CIFAR-10 after 64,000 steps; where training "
        "failed in the paper, 20 % stands, its bound. Gates begin at the paper's biases (-6 for "
        "the exclusive gate, 0 and -6 for the shortcut's)."
    ),
)
