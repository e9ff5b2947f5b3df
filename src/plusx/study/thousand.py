"""Do networks of a thousand layers and more build, train a step and pass a gradient to every block?

He et al. 2015, section 4.2 (1,202 layers), and He et al. 2016, section 5 (1,001 layers).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.dataset import Dataset
from plusx.grammar.arithmetic import measure
from plusx.recipe import Recipe
from plusx.recipe.studies import Thousand
from plusx.run import parts
from plusx.statistics import spread
from plusx.study.blocks import require_network
from plusx.study.experiment import (
    PARAMETERS,
    Experiment,
    Group,
    Row,
    column,
    some_batches,
    spec,
    trials_of,
)
from plusx.study.figures import BLOCK, LOG, band, lines_figure, relative
from plusx.study.gradients import BlockGradient, block_gradients
from plusx.study.trial import Measurement, Trial


@dataclass(frozen=True)
class DeepStep:
    """A network's training step.

    `gradients` are those that the step goes by. `loss` is before it, `after` on the same images
    behind it, both with the batch's own statistics. `seconds` are those of the step.
    """

    gradients: tuple[BlockGradient, ...]
    loss: float
    after: float
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether the losses and every block's gradient are finite."""
        norms = [norm for each in self.gradients for norm in (each.weights, each.outputs)]
        return all(map(math.isfinite, (*norms, self.loss, self.after)))

    @property
    def reached(self) -> int:
        """How many blocks have a gradient in their weights and in what they give."""
        return sum(each.weights > 0 and each.outputs > 0 for each in self.gradients)


def deep_step(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    rate: float = 0.01,
    seed: int = 0,
) -> DeepStep:
    """Train a network one step of plain SGD; it is left trained, in training mode.

    He et al. 2015, section 4.2, begin their deep networks at a rate of 0.01. What is drawn
    (dropout, stochastic depth) is drawn from `seed`. UserError: the network has no blocks.
    """
    net = require_network(net)
    net.train()
    gradients = block_gradients(net, inputs, targets, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        began = time.perf_counter()
        optimizer = torch.optim.SGD(net.parameters(), rate)
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        took = time.perf_counter() - began
    with torch.no_grad():
        after = F.cross_entropy(net(inputs), targets)
    return DeepStep(tuple(gradients), loss.item(), after.item(), took)


def measure_step(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The network's first step of plain SGD on one batch of the recipe's images, as JSON."""
    sets = parts.open_sets(recipe)
    recipe = parts.resolved(recipe, sets.train)
    (batch,) = some_batches(sets.train, recipe.batch_size, recipe.batch_size)
    began = time.perf_counter()
    net, _ = parts.make_net(recipe)
    built = time.perf_counter() - began
    step = deep_step(net, batch.inputs, batch.known_targets, rate=recipe.optim.lr, seed=recipe.seed)
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "images": len(batch),
        "rate": recipe.optim.lr,
        "build_seconds": built,
        "step_seconds": step.seconds,
        "loss": _finite(step.loss),
        "after": _finite(step.after),
        "blocks": [each.name for each in step.gradients],
        "weights": [_finite(each.weights) for each in step.gradients],
        "outputs": [_finite(each.outputs) for each in step.gradients],
        "reached": step.reached,
        "finite": step.finite,
    }


def _trials(recipe: Recipe, source: Dataset) -> list[Trial]:
    table = recipe.study
    assert isinstance(table, Thousand)
    depths = {network: measure(spec(network)).depth for network in table.networks}
    measurement = Measurement("thousand")
    trials = trials_of(recipe, depths, table.seeds, source, measurement, train=False)
    return [replace(t, factors={**t.factors, "depth": depths[t.name]}) for t in trials]


def _columns(recipe: Recipe) -> list[dict[str, Any]]:
    return [
        column("depth", "Layers", kind="count"),
        PARAMETERS,
        column("blocks", "Blocks", kind="count"),
        column("reached", "Blocks with a gradient", kind="count"),
        column("ratio", "Gradient, first / last"),
        column("build_seconds", "To build", "s"),
        column("step_seconds", "One step", "s"),
    ]


def _row(group: Group) -> dict[str, Any]:
    answers = group.measured("thousand")
    first, last = answers[0]["outputs"][0], answers[0]["outputs"][-1]
    return {
        "parameters": answers[0]["parameters"],
        "blocks": len(answers[0]["blocks"]),
        "reached": min(answer["reached"] for answer in answers),
        "finite": all(answer["finite"] for answer in answers),
        "images": answers[0]["images"],
        "ratio": None if first is None or not last else first / last,
        "build_seconds": spread([float(answer["build_seconds"]) for answer in answers]),
        "step_seconds": spread([float(answer["step_seconds"]) for answer in answers]),
    }


def _finding(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        if row["reached"] == row["blocks"] and row["finite"]:
            gradient = f"a finite gradient other than 0 in each of its {row['blocks']} blocks"
        else:
            gradient = f"a gradient in {row['reached']} of its {row['blocks']} blocks"
            gradient += "" if row["finite"] else ", not all of it finite"
        parts.append(
            f"{row['name']} ({row['depth']:,} layers) builds in "
            f"{row['build_seconds']['mean']:.1f} s and trains a step in "
            f"{row['step_seconds']['mean']:.1f} s, with {gradient}"
        )
    return "; ".join(parts) + "."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    ratios = "; ".join(
        f"{row['name']}: first over last {row['ratio']:,.3g}" for row in rows
        if row["ratio"] is not None
    )  # fmt: skip
    figures = []
    for part in ("outputs", "weights"):
        lines = []
        for group in groups:
            norms = [answer[part] for answer in group.measured("thousand")]
            x = relative(len(norms[0]))
            lines.append(band(group.name, x, [[norm or None for norm in seed] for seed in norms]))
        title = f"Gradient at every block, in its {part}"
        caption = "Norm at the first step, from the first block (0) to the last (1)."
        figures.append(lines_figure(title, caption, ratios, lines, x=BLOCK, y=LOG))
    return figures


def _notes(recipe: Recipe) -> str:
    return (
        f"One step of SGD at a rate of {recipe.optim.lr:g} on {recipe.batch_size} training images. "
        "Depth is the subject: small images keep it in seconds."
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


THOUSAND = Experiment(
    title="A thousand layers",
    question="Do networks of a thousand layers build, train a step and pass a gradient?",
    trials=_trials,
    columns=_columns,
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
