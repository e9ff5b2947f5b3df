"""The optimizer, the schedule and the update of a recipe's [optim] and [schedule]."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plusx.nn.frozen import rates_by_depth
from plusx.recipe import Recipe
from plusx.tasks.task import Task
from plusx.train import schedule
from plusx.train.muon import make_muon
from plusx.train.optim import make_optimizer
from plusx.train.schedule import Schedule
from plusx.train.update import DistributedReducer, GradientStep, Scaling, Update, with_ema


def optimizer_of(recipe: Recipe, task: Task) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the task's parameters."""
    return OPTIMIZERS[recipe.optim.kind](recipe, task)


def schedule_of(recipe: Recipe, total: int) -> Schedule:
    """Return the recipe's learning rate as a function of the step, for `total` steps."""
    table: Any = recipe.schedule
    if table.kind == "one-cycle":  # with its own warm-up
        return schedule.one_cycle(recipe.optim.lr, total, rise=table.rise)
    warmup = _steps(table.warmup, total)
    rates = SCHEDULES[table.kind](table, recipe.optim.lr, warmup, total)
    if warmup:
        rates = schedule.warmup(rates, warmup)
    if table.warmup_until:
        return schedule.WarmupUntil(rates, table.warmup_lr, table.warmup_until)
    return rates


def schedule_warnings(recipe: Recipe, total: int) -> list[str]:
    """Return warnings about parts of [schedule] beyond the `total` steps."""
    table: Any = recipe.schedule
    warnings = []
    warmup = _steps(getattr(table, "warmup", 0), total)
    if warmup >= total:
        warnings.append(
            f"[schedule] warmup: {warmup:,} steps, but the run has {total:,}: it never reaches the "
            "full learning rate"
        )
    milestones = [_steps(part, total) for part in getattr(table, "milestones", ())]
    late = [f"{step:,}" for step in milestones if step >= total]
    if late:
        warnings.append(
            f"[schedule] milestones: the learning rate does not change at step {', '.join(late)}, "
            f"since the run ends at {total:,}"
        )
    return warnings


def update_of(recipe: Recipe, reducer: DistributedReducer | None = None) -> Update:
    """Return the recipe's update; `reducer` reduces the gradients of several processes."""
    table = recipe.optim
    update: Update = GradientStep(
        clip=table.clip,
        accumulation_steps=table.accumulation_steps,
        scaling=Scaling() if recipe.device.precision == "float16" else None,
        reducer=reducer,
    )
    return with_ema(update, table.ema) if table.ema else update


def _steps(steps: int | float, total: int) -> int:
    """Return a number of steps; a float is a fraction of `total`."""
    return steps if isinstance(steps, int) else round(steps * total)


def _lr_scales(layer_decay: float, net: nn.Module) -> Mapping[Tensor, float] | None:
    """Return the learning rate factor of each parameter; None if all have the same."""
    if layer_decay == 1:
        return None
    by_name = rates_by_depth(net, layer_decay)
    return {parameter: by_name[name] for name, parameter in net.named_parameters()}


def _by_table(*fields: str) -> Callable[[Recipe, Task], torch.optim.Optimizer]:
    """Return the constructor of an optimizer whose table has these fields beside the common
    ones."""

    def make(recipe: Recipe, task: Task) -> torch.optim.Optimizer:
        table: Any = recipe.optim
        return make_optimizer(
            task,
            table.kind,
            lr=table.lr,
            weight_decay=table.weight_decay,
            decay_norms=table.decay_norms,
            lr_scales=_lr_scales(table.layer_decay, task.net),
            **{name: getattr(table, name) for name in fields},
        )

    return make


def _muon(recipe: Recipe, task: Task) -> torch.optim.Optimizer:
    table: Any = recipe.optim
    return make_muon(
        task,
        lr=table.lr,
        momentum=table.momentum,
        iterations=table.iterations,
        head_lr=table.head_lr,
        bias_lr=table.bias_lr,
        sgd_momentum=table.sgd_momentum,
        weight_decay=table.weight_decay,
    )


def _constant(table: Any, lr: float, warmup: int, total: int) -> Schedule:
    return schedule.constant(lr)


def _multistep(table: Any, lr: float, warmup: int, total: int) -> Schedule:
    milestones = [_steps(milestone, total) for milestone in table.milestones]
    return schedule.steps(lr, milestones, table.gamma)


def _cosine(table: Any, lr: float, warmup: int, total: int) -> Schedule:
    return schedule.cosine(lr, max(total, warmup + 1), begin=warmup, end=table.end)


OPTIMIZERS: dict[str, Callable[[Recipe, Task], torch.optim.Optimizer]] = {
    "sgd": _by_table("momentum", "nesterov"),
    "adamw": _by_table("betas"),
    "lars": _by_table("momentum", "trust"),
    "lamb": _by_table("betas"),
    "muon": _muon,
}
# schedules that can begin with a warm-up
SCHEDULES: dict[str, Callable[[Any, float, int, int], Schedule]] = {
    "constant": _constant,
    "steps": _multistep,
    "cosine": _cosine,
}
