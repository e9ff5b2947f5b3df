"""Path study: the lengths of paths and their gradients (Veit et al. 2016, sections 3, 4.3, 4.4).

At every block a path takes the branch or the shortcut; its length is the number of branches.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.nn.block import ResidualBlock, run_layers
from plusx.recipe import Recipe
from plusx.recipe.studies import Paths
from plusx.report.figures import LOG, band, lines_figure
from plusx.statistics import spread
from plusx.study.blocks import block_positions, head, require_network, stage_modules, total_norm
from plusx.study.experiment import (
    ERROR,
    Experiment,
    Group,
    Row,
    column,
    merges_of,
    network_trials,
    open_trial,
    some_batches,
    spec,
)
from plusx.study.gradients import Loss
from plusx.study.trial import Measurement, Trial


IMAGES = 32
SHARE = 0.95  # fraction of the gradient that the effective lengths carry


@dataclass(frozen=True)
class PathGradient:
    """Gradients along sampled paths of one length, at the input of the first block. `norms` are
    those of the sampled paths; `paths` is the fraction of all paths that have this length."""

    length: int
    paths: float
    norms: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.norms) / len(self.norms)


def length_fractions(blocks: int) -> list[float]:
    """Return the fraction of the 2^n paths through n blocks that has each length 0..n: binomial."""
    return [comb(blocks, length) / 2**blocks for length in range(blocks + 1)]


def path_gradients(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    lengths: Iterable[int] | None = None,
    samples: int = 24,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
) -> list[PathGradient]:
    """Return the gradients along random paths of each length (None: all lengths 0..n).

    The forward pass is that of the whole network, in evaluation mode. In the backward pass each
    block propagates the gradient through the branch alone if the path takes it, else through the
    shortcut alone (section 4.3). No path is sampled twice. Raises UserError if a block is not x +
    F(x), or a length is not in 0..n.
    """
    backward = PathBackward(net, inputs, targets, loss)
    count = len(backward.names)
    fractions = length_fractions(count)
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for length in range(count + 1) if lengths is None else lengths:
        if not 0 <= length <= count:
            raise UserError(f"no path is {length} long: through {count} blocks 0 to {count}")
        sampled: set[frozenset[int]] = set()
        norms = []
        for _ in range(samples):
            branches = frozenset(torch.randperm(count, generator=generator)[:length].tolist())
            if branches not in sampled:
                sampled.add(branches)
                norms.append(total_norm(backward.along(branches)))
        gradients.append(PathGradient(length, fractions[length], tuple(norms)))
    return gradients


def contributions(gradients: Sequence[PathGradient]) -> list[float]:
    """Return the fraction of the total gradient magnitude that comes from paths of each length. The
    weight of a length is the number of its paths times their mean gradient (figure 6 c)."""
    weights = [gradient.paths * gradient.mean for gradient in gradients]
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def effective_lengths(gradients: Sequence[PathGradient], share: float = 0.95) -> tuple[int, int]:
    """Return the shortest range of lengths that carries `share` of the gradient magnitude."""
    weights = contributions(gradients)
    lengths = [gradient.length for gradient in gradients]
    ranges = [
        (lengths[j] - lengths[i], i, j)
        for i in range(len(weights))
        for j in range(i, len(weights))
        if sum(weights[i : j + 1]) >= share - 1e-12
    ]
    if not ranges:
        return lengths[0], lengths[-1]
    _, i, j = min(ranges)
    return lengths[i], lengths[j]


class PathBackward:
    """Backward passes along single paths. Each block's graph is built once; a path then costs the
    backward passes of its branches."""

    def __init__(self, net: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> None:
        # a copy: the graphs must not change if the network is trained on
        net = copy.deepcopy(require_network(net)).eval().requires_grad_(False)
        self.names = [position.name for position in block_positions(net)]
        for position in block_positions(net):
            if position.block.merge != "add":
                raise UserError(
                    f"{position.name} is not x + F(x): paths exist only in residual networks, "
                    "such as resnet56"
                )
        self.steps: list[_Step | _Entry] = []
        with torch.enable_grad():
            x = run_layers(net, net.stem, inputs)
            for module in stage_modules(net):
                step = _Step(module, x) if isinstance(module, ResidualBlock) else _Entry(module, x)
                # layers before the first block are not part of a path
                self.steps += [step] if self.steps or isinstance(step, _Step) else []
                x = step.output
            end = x.detach().requires_grad_()
            (self.end_gradient,) = torch.autograd.grad(loss(head(net, end), targets), end)

    def along(self, branches: Set[int]) -> Tensor:
        """Return the gradient at the first block's input along the path through these branches."""
        gradient, position = self.end_gradient, len(self.names)
        for step in reversed(self.steps):
            if isinstance(step, _Entry):
                gradient = _back(step.output, step.x, gradient)
                continue
            position -= 1
            gradient = step.back(gradient, position in branches)
        return gradient


class _Step:
    """One block at its input in the forward pass, with separate graphs of branch and shortcut."""

    def __init__(self, block: ResidualBlock, x: Tensor) -> None:
        self.x = x.detach().requires_grad_()
        y = run_layers(block, block.lead, self.x)
        self.skip = self.x
        if block.downsample is not None:
            self.skip = block.downsample(y if block.projects else self.x)
        self.branch = block.stochastic_depth(run_layers(block, block.branch, y))
        self.sum = (self.branch + self.skip).detach().requires_grad_()
        # clone: an activation may work in place
        self.output = run_layers(block, block.after, self.sum.clone())

    def back(self, gradient: Tensor, through_branch: bool) -> Tensor:
        gradient = _back(self.output, self.sum, gradient)
        return _back(self.branch if through_branch else self.skip, self.x, gradient)


class _Entry:
    """The layers on entry to a stage, which are on every path."""

    def __init__(self, enter: nn.Module, x: Tensor) -> None:
        self.x = x.detach().requires_grad_()
        self.output: Tensor = enter(self.x)


def _back(output: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    if output is x:
        return gradient
    (result,) = torch.autograd.grad(
        output, x, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return result


def measure_paths(recipe: Recipe, folder: Path, samples: int) -> dict[str, Any]:
    """Measure the gradients along sampled paths of every length, as JSON: `shares` of all paths by
    length, and `norms` of the sampled paths."""
    net, sets = open_trial(recipe, folder)
    (batch,) = some_batches(sets.train, IMAGES)
    gradients = path_gradients(
        net, batch.inputs, batch.known_targets, samples=samples, seed=recipe.seed
    )
    return {
        "shares": [gradient.paths for gradient in gradients],
        "norms": [list(gradient.norms) for gradient in gradients],
    }


def _read(result: Mapping[str, Any]) -> list[PathGradient]:
    pairs = zip(result["shares"], result["norms"], strict=True)
    return [
        PathGradient(length, float(share), tuple(map(float, norms)))
        for length, (share, norms) in enumerate(pairs)
    ]


def _trials(recipe: Recipe, table: Paths, source: Dataset) -> list[Trial]:
    for network in table.networks:
        if merges_of(spec(network)) != {"add"}:
            raise UserError(
                f"[study] networks: {network} has blocks that are not x + F(x), so it is not a sum "
                "over paths; a residual network is needed, such as resnet56"
            )
    return network_trials(recipe, table.networks, source, Measurement("paths", (table.samples,)))


def _row(group: Group) -> dict[str, Any]:
    seeds = [_read(result) for result in group.measured("paths")]
    ranges = [effective_lengths(paths, SHARE) for paths in seeds]
    blocks = len(seeds[0]) - 1
    lengths = [sum(n * share for n, share in enumerate(contributions(p))) for p in seeds]
    shares = [
        sum(path.paths for path in paths[low : high + 1])
        for paths, (low, high) in zip(seeds, ranges, strict=True)
    ]
    return {
        "blocks": blocks,
        "usual": blocks / 2,
        "length": spread(lengths),
        "shortest": spread([float(low) for low, _ in ranges]),
        "longest": spread([float(high) for _, high in ranges]),
        "paths": spread(shares),
        "error": group.errors["error"],
    }


def _finding(rows: Sequence[Row]) -> str:
    return " ".join(
        f"A path through {row['name']} takes {row['usual']:g} of its {row['blocks']} branches on "
        f"average; the gradient comes through paths of {row['length']['mean']:.1f}, "
        f"{100 * SHARE:.0f} % of it through {row['shortest']['mean']:.0f} to "
        f"{row['longest']['mean']:.0f}, which are {100 * row['paths']['mean']:.2g} % of all paths."
        for row in rows
    )


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    seeds = {group.name: [_read(path) for path in group.measured("paths")] for group in groups}
    branches = {"title": "branches on the path", "scale": "linear"}
    shares, norms = [], []
    for name, gradients in seeds.items():
        x = list(range(len(gradients[0])))
        paths = [[path.paths for path in seed] for seed in gradients]
        shares.append(band(f"{name}, gradient", x, [contributions(seed) for seed in gradients]))
        shares.append(band(f"{name}, paths", x, paths, dashed=True))
        norms.append(band(name, x, [[path.mean or None for path in seed] for seed in gradients]))
    return [
        lines_figure(
            "Which lengths carry the gradient",
            "Share of the gradient that comes through paths of each length, and of all paths that "
            "have it (Veit 2016, figure 6).",
            shares,
            x=branches,
        ),
        lines_figure(
            "Gradient along one path",
            "Mean norm at the first block's input over the sampled paths of each length; bands are "
            "over seeds.",
            norms,
            x=branches,
            y=LOG,
        ),
    ]


PATHS = Experiment[Paths](
    title="Paths",
    question="How long are the paths that carry the gradient?",
    trials=_trials,
    columns=lambda table, groups: [
        column("blocks", "Blocks", kind="count"),
        column("usual", "Mean length of a path", "blocks"),
        column("length", "Mean length by gradient", "blocks"),
        column("shortest", f"{100 * SHARE:.0f} % of the gradient from", "blocks"),
        column("longest", "to", "blocks"),
        column("paths", "Share of all paths", "%", "share"),
        ERROR,
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "The forward pass is the whole network's, in evaluation mode; in the backward pass each "
        "block passes the gradient on through its branch or through its shortcut alone. "
        f"{table.samples} random paths of each length, {IMAGES} training images."
    ),
)
