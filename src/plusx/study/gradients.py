"""Gradients of blocks: where they vanish, explode or settle, and the gradient identity.

The identity of residual networks is that of He et al. 2016 (Identity Mappings in Deep Residual
Networks), section 2.
"""

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx import store
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.grammar.twins import without_norm
from plusx.grammar.words import parse
from plusx.nn.block import run_layers
from plusx.nn.layers import ConstantScale
from plusx.recipe import Recipe
from plusx.recipe.studies import Gradients
from plusx.report import values
from plusx.report.figures import LOG, Figure, band, dots_figure, lines_figure
from plusx.run import build
from plusx.run.task_factory import open_task
from plusx.statistics import spread
from plusx.study.blocks import (
    BlockPosition,
    block_positions,
    head,
    preserved,
    require_network,
    run_blocks,
    stage_modules,
    total_norm,
)
from plusx.study.experiment import (
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    finite,
    listed,
    open_trial,
    some_batches,
    spec,
    with_net,
)
from plusx.study.figures import BLOCK, relative
from plusx.study.trial import Measurement, Trial


# A gradient vanishes if its norm at the first block's output is less than 1 / FACTOR of that at the
# last block's, and explodes if it is more than FACTOR times that; otherwise it is steady.
FACTOR = 100.0
IMAGES = 128  # the first training images, for which gradients are measured
IDENTITY_IMAGES = 16  # for which the identity is measured, in float64
CLIP = 1.0  # for networks without norms, whose first steps would overflow otherwise
VERBS = {"explode": "explode", "vanish": "vanish", "steady": "are steady"}
STEP = {"title": "step", "scale": "linear"}

Verdict = Literal["vanish", "explode", "steady"]
TensorKind = Literal["weights", "outputs"]
Ratio = int | float | None  # None: there is no gradient to compare
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BlockGradient:
    """Norms of the loss gradient at one block.

    `weights`: with respect to the weights of convolutions, linear layers and attention (without
    norms and biases, so that networks with and without batch norm can be compared). `outputs`: with
    respect to the block's output for the whole batch; the loss is the mean over the batch.
    """

    name: str
    weights: float
    outputs: float


def block_gradients(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    loss: Loss = F.cross_entropy,
    training: bool = True,
    seed: int = 0,
) -> list[BlockGradient]:
    """Return the norm of the loss gradient at every block, in order.

    `training`: with statistics of the batch and with dropout drawn from `seed`, as in a training
    step; else as in evaluation. A dropped block has a gradient of 0 in its weights. Weights, their
    .grad, buffers, modes and torch's random state are left unchanged. Raises UserError if the
    network is not made of blocks.
    """
    positions = block_positions(net)
    with preserved(net), torch.enable_grad():
        net.train(training)
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        torch.manual_seed(seed)
        forward = run_blocks(net, inputs)
        weights = [[p for p in position.block.parameters() if p.ndim > 1] for position in positions]
        tensors = [*forward.outputs, *itertools.chain.from_iterable(weights)]
        gradients = torch.autograd.grad(
            loss(forward.logits, targets), tensors, allow_unused=True, materialize_grads=True
        )
    weight_gradients = iter(gradients[len(positions) :])
    return [
        BlockGradient(
            position.name,
            total_norm(*(next(weight_gradients) for _ in parameters)),
            total_norm(output),
        )
        for position, parameters, output in zip(positions, weights, gradients)
    ]


def gradient_ratio(
    gradients: Sequence[BlockGradient], tensor_kind: TensorKind = "outputs"
) -> float | None:
    """Return the norm at the first block over that at the last. Infinite if only the last is 0,
    None if both are 0, NaN if one of them is not finite."""
    first, last = (getattr(block, tensor_kind) for block in (gradients[0], gradients[-1]))
    if last:
        return float(first / last)
    return math.inf if first else None


def verdict(ratio: Ratio) -> Verdict:
    """Classify the ratio of first to last block as vanishing, exploding or steady."""
    if ratio is None or ratio < 1 / FACTOR:
        return "vanish"
    return "steady" if ratio <= FACTOR else "explode"


def course(ratios: Sequence[Ratio]) -> str:
    """Describe the course of ratios over training in words. Gradients settle if they vanish or
    explode at the start and are steady at the end."""
    verdicts = [verdict(ratio) for ratio in ratios]
    first, last = verdicts[0], verdicts[-1]
    start_ratio, end_ratio = _ratio_text(ratios[0]), _ratio_text(ratios[-1])
    if len(ratios) == 1:
        return f"{VERBS[first]} at the start ({start_ratio})"
    if first == last:
        others = " and ".join(VERBS[other] for other in sorted(set(verdicts) - {first}))
        between = f", though between they {others}" if others else ""
        return f"{VERBS[first]} from the start ({start_ratio}) to the end ({end_ratio}){between}"
    verb = "settle" if last == "steady" else VERBS[last]
    return f"{VERBS[first]} at the start ({start_ratio}) and {verb} by the end ({end_ratio})"


def _ratio_text(ratio: Ratio) -> str:
    if ratio is None:
        return "no gradient at all"
    if 0 < ratio < 1e-3:
        return f"{values.power(round(math.log10(ratio)))} times"
    return f"{ratio:,.0f} times" if ratio >= 99.5 else f"{ratio:.2g} times"


@dataclass(frozen=True)
class IdentityCheck:
    """Equation 5 at the input of one block of a stage.

    `measured` and `expected` are norms of dL/dx_l, by autograd through the blocks and by the
    equation; `difference` is the largest absolute difference of an entry over the largest entry.
    """

    name: str
    measured: float
    expected: float
    difference: float


def shortcut_identity(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    stage: int = 1,
    branches: bool = True,
    loss: Loss = F.cross_entropy,
) -> list[IdentityCheck]:
    """Compare both sides of He et al. 2016, eq. 5, at every depth of a stage (counted from 1):

        dL/dx_l = dL/dx_L (1 + d/dx_l (F_l + ... + F_(L-1)))

    in float64 and evaluation mode, from the block after the last projection on. If shortcuts are
    scaled by lambda, eq. 8 applies: the 1 is lambda^(L-l), and the branches are scaled likewise.
    Without `branches` F is 0, and the gradient is dL/dx_L times that factor at every depth. Raises
    UserError if the stage does not exist or is not pre-activation: something follows the sum, or
    the shortcut is not the identity times a constant.
    """
    net = copy.deepcopy(require_network(net)).double().eval().requires_grad_(False)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    blocks = _identity_blocks(net, stage)
    if not branches:
        for position in blocks:
            words = [getattr(position.block, word) for word in position.block.branch]
            for parameter in next(w for w in reversed(words) if [*w.parameters()]).parameters():
                nn.init.zeros_(parameter)
    names = [position.name for position in block_positions(net)]
    first = names.index(blocks[0].name)
    with torch.enable_grad():
        # the blocks before give the input of the stage, those after it the loss
        forward = run_blocks(net, inputs)
        stage_input = forward.outputs[first - 1] if first else forward.start
        outputs = [stage_input.detach().requires_grad_()]
        for position in blocks:
            outputs.append(position.block(outputs[-1]))
        x, modules = outputs[-1], stage_modules(net)
        for module in modules[modules.index(blocks[-1].block) + 1 :]:
            x = module(x)
        loss_value = loss(head(net, x), targets)
        *measured, last = torch.autograd.grad(loss_value, outputs)
        return [
            _check_identity(blocks[l:], measured[l], last, outputs[l].detach().requires_grad_())
            for l in range(len(blocks))
        ]


def _identity_blocks(net: nn.Module, stage: int) -> list[BlockPosition]:
    """Return the blocks of a stage after its last projection, all x + F(x) or lambda x + F(x)."""
    positions = block_positions(net)
    count = len(require_network(net).spec.stages)
    if not 1 <= stage <= count:
        raise UserError(f"there is no stage {stage}: this network has 1 to {count}")
    blocks = [position for position in positions if position.name.startswith(f"layer{stage}.")]
    projecting = [i for i, position in enumerate(blocks) if position.block.projects]
    blocks = blocks[projecting[-1] + 1 :] if projecting else blocks
    wrong = [p for p in blocks if p.block.merge != "add" or p.block.after or _factor(p) is None]
    if wrong or not blocks:
        raise UserError(
            "equation 5 holds for x + F(x) with nothing after the sum, as in preact_resnet56; "
            f"stage {stage} of this network "
            + (f"has {wrong[0].name} of another form" if wrong else "has only a projection")
        )
    return blocks


def _factor(position: BlockPosition) -> float | None:
    """Return the factor of the shortcut; None if it is not a multiplication by a constant."""
    side = position.block.downsample
    if side is None:
        return 1.0
    scales = [word.value for word in side if isinstance(word, ConstantScale)]
    return math.prod(scales) if len(scales) == len(side) else None


def _check_identity(
    blocks: Sequence[BlockPosition], measured: Tensor, last: Tensor, x: Tensor
) -> IdentityCheck:
    """Compute the right-hand side of equation 5 from the branches, and compare."""
    branch_sum, factor, state = torch.zeros_like(x), 1.0, x
    for position in blocks:
        block, scale = position.block, _factor(position) or 0.0
        branch = run_layers(block, block.branch, run_layers(block, block.lead, state))
        branch_sum, factor = scale * branch_sum + branch, scale * factor
        state = scale * state + branch
    (branch_gradient,) = torch.autograd.grad(
        branch_sum, x, last, allow_unused=True, materialize_grads=True
    )
    expected = factor * last + branch_gradient
    largest = float(expected.abs().max()) or 1.0
    return IdentityCheck(
        blocks[0].name,
        total_norm(measured),
        total_norm(expected),
        float((measured - expected).abs().max()) / largest,
    )


def measure_gradients(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure norms of the loss gradient at every block, at the start and at every checkpoint.

    The images are the same each time. Returns JSON: `steps` (0 is the start), `blocks` (their
    names), `outputs` and `weights` (for each step the norm at each block, None if it is not finite)
    and `ratio` (the output norm at the first block over that at the last, or None).
    """
    sets = build.open_sets(recipe)
    recipe = build.resolved(recipe, sets.train)
    net, preprocessing = build.make_net(recipe)
    if preprocessing is not None:
        sets = sets.with_preprocessing(preprocessing)
    build.freeze_and_whiten(recipe, net, sets.train)
    task = open_task(recipe.task, net, sets.train.classes)
    subset = sets.train.subset(list(range(min(IMAGES, len(sets.train)))))
    with Loader(subset, split="validation", batch_size=IMAGES) as loader:
        batch = next(iter(loader.epoch(0)))
    result: dict[str, list[Any]] = {"steps": [], "outputs": [], "weights": [], "ratio": []}

    def add(step: int) -> None:
        blocks = block_gradients(net, batch.inputs, batch.known_targets)
        result["blocks"] = [block.name for block in blocks]
        result["steps"].append(step)
        result["outputs"].append([finite(block.outputs) for block in blocks])
        result["weights"].append([finite(block.weights) for block in blocks])
        result["ratio"].append(finite(gradient_ratio(blocks)))

    add(0)
    every_steps = recipe.checkpoint.every_steps
    result_file = folder / "result.json"
    last_step = int(store.read_json(result_file)["steps"]) if result_file.is_file() else None
    for saved in store.read_checkpoints(folder / store.CHECKPOINTS):
        if every_steps and saved.step % every_steps and saved.step != last_step:
            continue  # saved at an interruption: other seeds have no such checkpoint
        weights = saved.tensors["weights"]
        task.load_state_dict({name.removeprefix("task."): t for name, t in weights.items()})
        add(saved.step)
    return result


def measure_identity(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure equation 5 in the trained network, after the last projection of each stage, as JSON:

    `blocks` (their names), `measured` and `expected` (norms of the gradient at their inputs) and
    `difference`, the largest over all blocks.
    """
    net, sets = open_trial(recipe, folder)
    (batch,) = some_batches(sets.train, IDENTITY_IMAGES)
    identities = [
        identity
        for stage in range(1, len(require_network(net).spec.stages) + 1)
        for identity in shortcut_identity(net, batch.inputs, batch.known_targets, stage=stage)
    ]
    return {
        "blocks": [identity.name for identity in identities],
        "measured": [identity.measured for identity in identities],
        "expected": [identity.expected for identity in identities],
        "difference": max(identity.difference for identity in identities),
    }


def aligned(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the gradients of several seeds at the steps that all of them have. Steps differ if
    checkpoints were saved by time, or more often later on."""
    shared = set.intersection(*(set(result["steps"]) for result in results))
    trimmed = []
    for result in results:
        common = [index for index, step in enumerate(result["steps"]) if step in shared]
        per_step = {key: [result[key][index] for index in common]
                    for key in ("steps", "outputs", "weights", "ratio")}  # fmt: skip
        trimmed.append({**result, **per_step})
    return trimmed


def mean_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """Return the geometric mean over the seeds; 0 if one of them is 0."""
    values = [float(ratio) for ratio in ratios if ratio is not None]
    if len(values) < len(ratios):
        return None
    return geometric_mean(values) if min(values) > 0 else 0.0


def ratios_over_training(results: Sequence[Mapping[str, Any]]) -> list[Ratio]:
    """Return the ratio of first to last block at every step, averaged over the seeds."""
    return [
        mean_ratio(seeds) for seeds in zip(*(result["ratio"] for result in results), strict=True)
    ]


def depth_figure(by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Return the figure of the gradient norm at every block's output at the start."""
    lines = [
        _geometric_band(
            name,
            relative(len(results[0]["blocks"])),
            [result["outputs"][0] for result in results],
        )
        for name, results in by_name.items()
    ]
    return lines_figure(
        "Gradient at every block at the start",
        "Norm of the loss gradient in the output of each block, from the first (0) to the last "
        "(1); geometric mean over the seeds.",
        lines,
        x=BLOCK,
        y=LOG,
    )


def training_figure(by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Return the figure of the ratio of first to last block over the steps."""
    lines = [over_training(name, results) for name, results in by_name.items()]
    return lines_figure(
        "Gradient at the first block over that at the last",
        "Norms in the outputs of the blocks, at the start and at every checkpoint that was kept; 1 "
        "is even.",
        lines,
        x=STEP,
        y=LOG,
        level=1.0,
    )


def over_training(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return _geometric_band(name, results[0]["steps"], [result["ratio"] for result in results])


def _geometric_band(
    name: str, x: Sequence[int | float], seeds: Sequence[Sequence[int | float | None]]
) -> dict[str, Any]:
    """Return a line for a logarithmic axis: the geometric mean of the seeds; zeros are drawn."""
    return band(name, x, seeds, average=lambda values: mean_ratio(values) or 0.0)


def _trials(recipe: Recipe, table: Gradients, source: Dataset) -> list[Trial]:
    trials = []
    for network, norm, rule, act in itertools.product(
        table.networks, table.norms, table.rules, table.acts
    ):
        net = replace(spec(network), act=act)
        net = without_norm(net) if norm == "none" else net
        measured = ["gradients", *(["identity"] if is_pre_activation(net) else [])]
        trials.append(
            Trial(
                name=f"{network}{'' if norm == 'batch' else ' no norm'} {rule} {act}",
                recipe=_with_init(with_net(recipe, net, source), rule, norm),
                factors={"network": network, "norm": norm, "rule": rule, "act": act},
                measurements=tuple(map(Measurement, measured)),
            )
        )
    return trials


def _with_init(recipe: Recipe, rule: Any, norm: str) -> Recipe:
    optim = recipe.optim
    if norm == "none" and optim.clip is None:
        optim = replace(optim, clip=CLIP)
    return replace(recipe, init=replace(recipe.init, rule=rule), optim=optim)


def is_pre_activation(net: Net) -> bool:
    """Whether every block is x + F(x) with nothing after the sum."""
    bodies = [parse(block.body) for stage in net.stages for block in stage.blocks]
    return all(body.merge == "add" and not body.after for body in bodies)


def _row(group: Group) -> dict[str, Any]:
    results = aligned(group.measured("gradients"))
    ratios = ratios_over_training(results)
    ends = [(norms[0], norms[-1]) for norms in (result["weights"][0] for result in results)]
    pre_activation = Measurement("identity") in group.results[0].trial.measurements
    return {
        "course": course(ratios),
        "at_start": verdict(ratios[0]),
        "at_end": verdict(ratios[-1]),
        "ratio_start": ratios[0],
        "weights_start": mean_ratio([None if a is None or not b else a / b for a, b in ends]),
        "ratio_end": ratios[-1],
        "train_error": spread([run.wrong for run in group.runs]),
        "identity": max(result["difference"] for result in group.measured("identity"))
        if pre_activation
        else None,
    }


def _finding(rows: Sequence[Row]) -> str:
    default_rows = [row for row in rows if (row["rule"], row["act"]) == ("he", "relu")]
    courses = [
        f"{r['name'].removesuffix(' he relu')}: gradients {r['course']}" for r in default_rows
    ]
    counts = [
        listed([f"{verb} in {n}" for key, verb in VERBS.items()
                if (n := sum(row[when] == key for row in rows))])
        for when in ("at_start", "at_end")
    ]  # fmt: skip
    overview = f"Of {len(rows)} settings gradients {counts[0]} at the start, {counts[1]} at the end"
    differences = [row["identity"] for row in rows if row["identity"] is not None]
    identity = (
        [f"Equation 5 of He 2016 holds within {values.number(max(differences))}"]
        if differences
        else []
    )
    return ". ".join([overview, *(["; ".join(courses)] if courses else []), *identity]) + "."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    by_name = {group.name: group for group in groups}
    table = {row["name"]: row for row in rows}
    default_names = [row["name"] for row in rows if (row["rule"], row["act"]) == ("he", "relu")]
    names = default_names or list(by_name)[:6]
    results = {name: aligned(by_name[name].measured("gradients")) for name in names}
    figures = [depth_figure(results), training_figure(results), _settings_figure(groups, table)]
    pre_activation = [by_name[name] for name in names if table[name]["identity"] is not None]
    return [*figures, *([_identity_figure(pre_activation)] if pre_activation else [])]


def _settings_figure(groups: Sequence[Group], table: Mapping[str, Row]) -> dict[str, Any]:
    ratios_by_name = {}
    for group in groups:
        ratios = [result["ratio"][0] for result in group.measured("gradients")]
        mean = table[group.name]["ratio_start"]
        if all(ratios) and mean:
            ratios_by_name[group.name] = {"seeds": ratios, "mean": mean}
    missing = [group.name for group in groups if group.name not in ratios_by_name]
    missing_note = f" Not drawn, since no gradient arrives: {listed(missing)}." if missing else ""
    return dots_figure(
        "First block over last at the start, in every setting",
        f"Below 1 / {FACTOR:.0f} gradients vanish, above {FACTOR:.0f} they explode.{missing_note}",
        {"title": "first / last", "scale": "log"},
        ratios_by_name,
    )


def _identity_figure(groups: Sequence[Group]) -> dict[str, Any]:
    lines = []
    for group in groups:
        results = group.measured("identity")
        x = list(range(1, len(results[0]["blocks"]) + 1))
        lines += [
            band(f"{group.name}, measured", x, [result["measured"] for result in results]),
            band(f"{group.name}, equation 5", x, [a["expected"] for a in results], dashed=True),
        ]
    return lines_figure(
        "The gradient at the input of every block, and by equation 5",
        "In float64 in the trained network: dL/dx_l = dL/dx_L (1 + d/dx_l of the sum of F), from "
        "the block after each stage's projection on.",
        lines,
        x={"title": "block", "scale": "linear"},
        y=LOG,
    )


GRADIENTS = Experiment[Gradients](
    title="Gradients",
    question="Where do gradients vanish, explode or settle?",
    trials=_trials,
    columns=lambda table, groups: [
        column("course", "Gradients", kind="text"),
        column("ratio_start", "First / last, outputs", "at the start"),
        column("weights_start", "First / last, weights", "at the start"),
        column("ratio_end", "First / last, outputs", "at the end"),
        TRAIN_ERROR,
        column("identity", "Largest error of equation 5", "relative"),
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "The ratio is of the norms of the loss gradient in the outputs of the first and the last "
        f"block, of the same training images each time: below 1 / {FACTOR:.0f} it vanishes, above "
        f"{FACTOR:.0f} it explodes, and it settles where it did one of them at the start and does "
        "neither at the end.\n"
        f"Networks without norms are trained with the gradient clipped to {CLIP:g}, unless the "
        "recipe has another length; the gradient is measured before that."
    ),
)
