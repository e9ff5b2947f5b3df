"""The loop: a batch, an update, a report."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plusx.data.batch import Batch
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
    """Train on every batch, and report after each update.

    lr: the learning rate, as a function of the step or a number; None leaves the optimizer's own.
        Parameter groups keep their ratio to the group of the highest rate, which gets `lr`; a
        group's `lr_scale` says the ratio, as in timm.
    update: what is done with a batch; None is `GradientStep()`.

    Logging, evaluation, checkpoints and early stopping are the caller's own code between two
    reports, where `state` is all that is needed to go on. torch's generators are seeded anew before
    every step, from `state.seed` and the step alone, so dropout and stochastic depth are the same
    whatever happened in between.

    A task or a network that is in evaluation mode is put in training mode, whole. Otherwise what
    was put in evaluation mode before, as a norm whose statistics are to stay, remains in it. What
    happens to the modes between two reports is undone.

    FloatingPointError: from the update, where the loss is not finite.
    """
    update = update or GradientStep()
    schedule = lr if callable(lr) or lr is None else constant(lr)
    groups = state.optimizer.param_groups
    scale_rates(groups)
    keep_modes = training_modes(state.task)
    device = state.task.device
    for batch in batches:
        if schedule is not None:
            rate = schedule(state.step)
            for group in groups:
                group["lr"] = rate * group["lr_scale"]
        else:
            rate = max(group["lr"] for group in groups)
        reseed(state.seed, state.step, device)
        keep_modes()
        loss = update(state, batch.to(device))
        state.task.after_step()
        state.step += 1
        scalars = {name: float(value) for name, value in state.task.scalars.items()}
        yield Report(step=state.step, lr=rate, loss=float(loss), scalars=scalars)


def scale_rates(groups: Sequence[dict[str, Any]]) -> None:
    """Give every parameter group without one an `lr_scale`: its rate over the highest."""
    highest = max(group["lr"] for group in groups)
    for group in groups:
        group.setdefault("lr_scale", group["lr"] / highest if highest else 1.0)


def training_modes(task: Task) -> Callable[[], None]:
    """Put a task in training mode as `fit` says; a call that undoes every later change of modes."""
    if not (task.training and task.net.training):
        task.train()
    modes = [(part, part.training) for part in task.modules()]

    def keep() -> None:
        for part, mode in modes:
            if part.training is not mode:
                part.training = mode

    return keep


def evaluate(task: Task, batches: Iterable[Batch]) -> dict[str, Any]:
    """The metrics of the task's meters over all batches, in evaluation mode.

    Afterwards every module is in the mode it was in, and no statistic has moved.
    """
    require_task(task)
    meters = task.meters()
    with evaluating(task), torch.inference_mode():
        for batch in batches:
            batch = batch.to(task.device)
            prediction = task.predict(batch)
            for meter in meters:
                meter.update(prediction, batch)
    return compute(task, meters)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; outside, every submodule as it was, frozen ones too."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def reseed(seed: int, step: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of this device with a function of seed and step.

    Generators on a CPU take 32 bits. For one seed, steps have different ones up to 2**32.
    """
    high = (seed >> 32) ^ 0x9E3779B9
    mixed = _mix((_mix(seed) ^ _mix(high)) + step)
    # Not torch.manual_seed, which looks for every kind of device and takes 0.2 ms.
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(mixed)  # the task's device need not be the current one
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)


def _mix(x: int) -> int:
    """A bijection of 32 bits in which every bit in moves every bit out (the end of MurmurHash3)."""
    x &= 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
