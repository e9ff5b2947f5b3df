"""What makes a deep plain network trainable, besides skips: activation, initialisation, norms.

none: the plain network of He et al. 2015 without batch norm, with ReLU and He's initialisation.
tanh: the same with tanh. orthogonal: with delta-orthogonal convolutions (Xiao et al. 2018), times
    the square root of 2 for ReLU. tanh-orthogonal: both, without the factor.
batch-norm: the plain network with batch norm (Ioffe and Szegedy 2015).
skips: the residual network without batch norm. fixup, rezero, skipinit: the same with their
    initialisations and scales (Zhang et al. 2019, Bachlechner et al. 2020, De and Smith 2020).
skips-batch-norm: the residual network of He et al. 2015.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.spec import Activation, Net
from plusx.grammar.twins import without_norm
from plusx.recipe import Recipe
from plusx.recipe.studies import Remedies, Remedy
from plusx.report.figures import SHARE, dots_figure
from plusx.study.experiment import (
    ERROR,
    PARAMETERS,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    sentences_against,
    spec,
    with_differences,
    with_net,
)
from plusx.study.figures import error_figures
from plusx.study.trial import Trial


TRAINED = 0.01  # training error up to which a network counts as trained

# the network's name before its depth, whether it keeps its norms, activation and initialisation
_CHANGES: dict[Remedy, tuple[str, bool, Activation, str | None]] = {
    "none": ("plain", False, "relu", "he"),
    "tanh": ("plain", False, "tanh", "he"),
    "orthogonal": ("plain", False, "relu", "orthogonal_relu"),
    "tanh-orthogonal": ("plain", False, "tanh", "orthogonal"),
    "batch-norm": ("plain", True, "relu", "he"),
    "skips": ("resnet", False, "relu", "he"),
    "fixup": ("fixup_resnet", False, "relu", None),
    "rezero": ("rezero_resnet", False, "relu", None),
    "skipinit": ("skipinit_resnet", False, "relu", None),
    "skips-batch-norm": ("resnet", True, "relu", "he"),
}


def network(remedy: Remedy, depth: int) -> Net:
    """Return the network of CIFAR of this depth with a remedy. Raises UserError if there is none of
    this depth."""
    name, has_norms, act, _ = _CHANGES[remedy]
    try:
        net = spec(f"{name}{depth}")
    except ValueError as error:
        raise UserError(f"[study] depth = {depth}: {error}") from None
    return replace(net if has_norms else without_norm(net), act=act)


def _trials(recipe: Recipe, table: Remedies, source: Dataset) -> list[Trial]:
    trials = []
    for remedy in table.remedies:
        rule: Any = _CHANGES[remedy][3]
        changed = with_net(recipe, network(remedy, table.depth), source)
        changed = replace(changed, init=replace(changed.init, rule=rule))
        trials.append(Trial(name=remedy, recipe=changed, factors={"remedy": remedy}))
    return trials


def _row(group: Group) -> dict[str, Any]:
    errors = group.errors
    trained = sum(value <= TRAINED for value in errors["train_error"]["seeds"])
    count = len(errors["train_error"]["seeds"])
    return {**group.costs, **errors, "trained": f"{trained} of {count}"}


def _finding(rows: Sequence[Row]) -> str:
    by_count: dict[str, list[str]] = {}
    for row in rows:
        by_count.setdefault(row["trained"], []).append(row["name"])
    counts = "; ".join(
        f"{count} seeds with {', '.join(names)}" for count, names in by_count.items()
    )
    text = f"At most {100 * TRAINED:.0f} % of training error in {counts}."
    sentences = sentences_against(rows, "none", "train_error")
    return f"{text} Training error: {sentences}." if sentences else text


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    dots = dots_figure(
        "Training error at the end, every seed",
        "Dot: one seed; line: their mean.",
        {"title": "training error", "scale": SHARE["scale"]},
        {row["name"]: row["train_error"] for row in rows},
    )
    return [*error_figures(groups, []), dots]


REMEDIES = Experiment[Remedies](
    title="Remedies",
    question="What makes a deep plain network trainable?",
    trials=_trials,
    columns=lambda table, groups: [
        PARAMETERS,
        TRAIN_ERROR,
        ERROR,
        column("trained", "Trained", f"training error of {100 * TRAINED:.0f} % or less", "text"),
        column("gap", "Difference to none", "95 % interval", "text"),
    ],
    row=_row,
    complete=lambda rows: with_differences(rows, "none", "train_error"),
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "Train error is that of the trained network on its training images. Differences to the "
        "network without a remedy have Welch's interval over the seeds, all of them together 95 %."
    ),
)
