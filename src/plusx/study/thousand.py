"""Whether networks of a thousand layers build, train a step and pass a gradient to every block.

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
from plusx.report.figures import LOG, band, lines_figure
from plusx.run import build
from plusx.statistics import spread
from plusx.study.blocks import (
    require_network,
)
from plusx.study.experiment import (
    PARAMETERS,
    Experiment,
    Group,
    Row,
    column,
    finite,
    network_trials,
    some_batches,
    spec,
)
from plusx.study.figures import BLOCK, relative
from plusx.study.gradients import BlockGradient, block_gradients
from plusx.study.trial import Measurement, Trial


@dataclass(frozen=True)
class DeepStep:
    """A training step of a network.

    `gradients` are those of the step. `loss` is before it, `after` after it on the same images,
    both with the batch's own statistics. `seconds` is the time of the step.
    """

    gradients: tuple[BlockGradient, ...]
    loss: float
    after: float
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether the losses and every block's gradient are finite."""
        norms = [norm for block in self.gradients for norm in (block.weights, block.outputs)]
        return all(map(math.isfinite, (*norms, self.loss, self.after)))

    @property
    def reached(self) -> int:
        """The number of blocks with a non-zero gradient in their weights and outputs."""
        return sum(block.weights > 0 and block.outputs > 0 for block in self.gradients)


def deep_step(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    rate: float = 0.01,
    seed: int = 0,
) -> DeepStep:
    """Train a network for one step of plain SGD; it is left trained, in training mode.

    The default rate is that of He et al. 2015, section 4.2, for the first steps of deep networks.
    Dropout and stochastic depth are drawn from `seed`. Raises UserError if the network has no
    blocks.
    """
    net = require_network(net)
    net.train()
    gradients = block_gradients(net, inputs, targets, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = time.perf_counter()
        optimizer = torch.optim.SGD(net.parameters(), rate)
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - start
    with torch.no_grad():
        after = F.cross_entropy(net(inputs), targets)
    return DeepStep(tuple(gradients), loss.item(), after.item(), seconds)


def measure_step(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure the network's first step of plain SGD on one batch of training images, as JSON."""
    sets = build.open_sets(recipe)
    recipe = build.resolved(recipe, sets.train)
    (batch,) = some_batches(sets.train, recipe.batch_size, recipe.batch_size)
    start = time.perf_counter()
    net, _ = build.make_net(recipe)
    build_seconds = time.perf_counter() - start
    step = deep_step(net, batch.inputs, batch.known_targets, rate=recipe.optim.lr, seed=recipe.seed)
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "images": len(batch),
        "rate": recipe.optim.lr,
        "build_seconds": build_seconds,
        "step_seconds": step.seconds,
        "loss": finite(step.loss),
        "after": finite(step.after),
        "blocks": [block.name for block in step.gradients],
        "weights": [finite(block.weights) for block in step.gradients],
        "outputs": [finite(block.outputs) for block in step.gradients],
        "reached": step.reached,
        "finite": step.finite,
    }


def _trials(recipe: Recipe, table: Thousand, source: Dataset) -> list[Trial]:
    depths = {network: measure(spec(network)).depth for network in table.networks}
    trials = network_trials(recipe, depths, source, Measurement("thousand"), train=False)
    return [replace(t, factors={**t.factors, "depth": depths[t.name]}) for t in trials]


def _row(group: Group) -> dict[str, Any]:
    results = group.measured("thousand")
    first, last = results[0]["outputs"][0], results[0]["outputs"][-1]
    return {
        "parameters": results[0]["parameters"],
        "blocks": len(results[0]["blocks"]),
        "reached": min(result["reached"] for result in results),
        "finite": all(result["finite"] for result in results),
        "images": results[0]["images"],
        "ratio": None if first is None or not last else first / last,
        "build_seconds": spread([float(result["build_seconds"]) for result in results]),
        "step_seconds": spread([float(result["step_seconds"]) for result in results]),
    }


def _finding(rows: Sequence[Row]) -> str:
    sentences = []
    for row in rows:
        if row["reached"] == row["blocks"] and row["finite"]:
            gradient = f"a finite gradient other than 0 in each of its {row['blocks']} blocks"
        else:
            gradient = f"a gradient in {row['reached']} of its {row['blocks']} blocks"
            gradient += "" if row["finite"] else ", not all of it finite"
        sentences.append(
            f"{row['name']} ({row['depth']:,} layers) builds in "
            f"{row['build_seconds']['mean']:.1f} s and trains a step in "
            f"{row['step_seconds']['mean']:.1f} s, with {gradient}"
        )
    return "; ".join(sentences) + "."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    figures = []
    for kind in ("outputs", "weights"):
        lines = []
        for group in groups:
            norms = [result[kind] for result in group.measured("thousand")]
            x = relative(len(norms[0]))
            lines.append(band(group.name, x, [[norm or None for norm in seed] for seed in norms]))
        title = f"Gradient at every block, in its {kind}"
        caption = "Norm at the first step, from the first block (0) to the last (1)."
        figures.append(lines_figure(title, caption, lines, x=BLOCK, y=LOG))
    return figures


THOUSAND = Experiment[Thousand](
    title="A thousand layers",
    question="Do networks of a thousand layers build, train a step and pass a gradient?",
    trials=_trials,
    columns=lambda table, groups: [
        column("depth", "Layers", kind="count"),
        PARAMETERS,
        column("blocks", "Blocks", kind="count"),
        column("reached", "Blocks with a gradient", kind="count"),
        column("ratio", "Gradient, first / last"),
        column("build_seconds", "To build", "s"),
        column("step_seconds", "One step", "s"),
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        f"One step of SGD at a rate of {recipe.optim.lr:g} on {recipe.batch_size} training images. "
        "Small images keep the times short: the study is about depth."
    ),
)
