"""The training loop and evaluation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.tasks.task import Task, compute, require_task
from plusx.train.report import Report
from plusx.train.schedule import Schedule, constant
from plusx.train.state import State
from plusx.train.update import GradientStep, Update


def fit(
    state: State,
    batches: Iterable[Batch],
    lr: Schedule | float | None = None,
    update: Update | None = None,
) -> Iterator[Report]:
    """Train on every batch, and yield a report after each update.

    lr: the learning rate, as a function of the step or a number; None keeps the optimizer's own.
        Parameter groups keep their ratio to the group of the highest rate, which gets `lr`; the
        `lr_scale` of a group is this ratio, as in timm.
    update: the update for a batch; None is `GradientStep()`.

    Logging, evaluation, checkpoints and early stopping belong to the caller, between two reports,
    when `state` contains everything that a resumed run needs. torch's random state is a function of
    `state.seed` and the step, set before every step, so dropout and stochastic depth do not depend
    on what happens between reports.

    A task or network in evaluation mode is put in training mode as a whole. Otherwise submodules
    that are in evaluation mode, such as frozen norms, stay in it. Changes of modes between two
    reports are undone. Raises FloatingPointError from the update if the loss is not finite.
    """
    update = update or GradientStep()
    schedule = lr if callable(lr) or lr is None else constant(lr)
    groups = state.optimizer.param_groups
    scale_rates(groups)
    restore_modes = training_modes(state.task)
    device = state.task.device
    for batch in batches:
        _require_batch(batch, "fit")
        if schedule is not None:
            rate = schedule(state.step)
            for group in groups:
                group["lr"] = rate * group["lr_scale"]
        else:
            rate = max(group["lr"] for group in groups)
        reseed(state.seed, state.step, device)
        restore_modes()
        loss = update(state, batch.to(device))
        state.task.after_step()
        state.step += 1
        scalars = {name: float(value) for name, value in state.task.scalars.items()}
        yield Report(step=state.step, lr=rate, loss=float(loss), scalars=scalars)


def scale_rates(groups: Sequence[dict[str, Any]]) -> None:
    """Set `lr_scale`, the ratio to the highest rate, in every parameter group without one."""
    highest = max(group["lr"] for group in groups)
    for group in groups:
        group.setdefault("lr_scale", group["lr"] / highest if highest else 1.0)


def training_modes(task: Task) -> Callable[[], None]:
    """Put a task in training mode as `fit` describes; return a function that restores the modes."""
    if not (task.training and task.net.training):
        task.train()
    modes = [(module, module.training) for module in task.modules()]

    def restore() -> None:
        for module, mode in modes:
            if module.training is not mode:
                module.training = mode

    return restore


def evaluate(task: Task, batches: Iterable[Batch]) -> dict[str, Any]:
    """Return the metrics of the task's meters over all batches, the most important first.

    The task predicts in evaluation mode, and the modes of all modules are restored. Batches must
    have targets. Raises UserError if there is no batch.
    """
    require_task(task)
    meters = task.meters()
    with evaluating(task), torch.inference_mode():
        for batch in batches:
            _require_batch(batch, "evaluate")
            batch = batch.to(task.device)
            prediction = task.predict(batch)
            for meter in meters:
                meter.update(prediction, batch)
    return compute(task, meters)


def _require_batch(batch: object, function: str) -> None:
    """Raise UserError for another type, such as the tuples of a torch DataLoader."""
    if not isinstance(batch, Batch):
        raise UserError(
            f"{function} takes plusx.Batch, not a {type(batch).__name__}: write "
            f"plusx.{function}(..., (plusx.Batch(x, y) for x, y in batches))"
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode inside the context, and restore the modes of all submodules
    after it."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


def reseed(seed: int, step: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of this device with a function of seed and step.
    Generators on a CPU take 32 bits. For one seed, all steps below 2**32 have different seeds."""
    high = (seed >> 32) ^ 0x9E3779B9
    mixed = _mix((_mix(seed) ^ _mix(high)) + step)
    # not torch.manual_seed, which searches for every kind of device and takes 0.2 ms
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(mixed)  # the task's device need not be the current one
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)


def _mix(x: int) -> int:
    """Return a bijection of 32 bits with full avalanche (the finaliser of MurmurHash3)."""
    x &= 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
