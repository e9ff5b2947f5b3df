"""The loop: a batch, an update, a report."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plusx.data.batch import Batch
from plusx.tasks.meters import Meter
from plusx.tasks.task import Task
from plusx.train.report import Report
from plusx.train.schedule import Schedule
from plusx.train.state import State
from plusx.train.update import Update, descend


def fit(
    state: State, batches: Iterable[Batch], lr: Schedule, update: Update = descend
) -> Iterator[Report]:
    """Train on every batch, and report after each update.

    Logging, evaluation, checkpoints and early stopping are the caller's own code between two
    reports, where `state` is all that is needed to go on. torch's generators are seeded anew before
    every step, from `state.seed` and the step alone, so dropout and stochastic depth are the same
    whatever happened in between.

    A task or a network that is in evaluation mode is put in training mode, whole. Otherwise what
    was put in evaluation mode before, as a norm whose statistics are to stay, remains in it. What
    happens to the modes between two reports is undone.

    FloatingPointError: from the update, where the loss is not finite.
    """
    keep_modes = training_modes(state.task)
    device = state.task.device
    for batch in batches:
        rate = lr(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)  # see make_optimizer
        reseed(state.seed, state.step, device)
        keep_modes()
        loss = update(state, batch.to(device))
        state.task.after_step()
        state.step += 1
        seen = {name: float(value) for name, value in state.task.seen.items()}
        yield Report(step=state.step, lr=rate, loss=float(loss), seen=seen)


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
    """The figures of the task's meters over all batches, in evaluation mode.

    Afterwards every module is in the mode it was in, and no statistic has moved.
    """
    meters = task.meters()
    with evaluating(task), torch.inference_mode():
        for batch in batches:
            batch = batch.to(task.device)
            predictions = task.predict(batch.inputs)
            for meter in meters:
                meter.update(predictions, *batch.truth)
    return computed(task, meters)


def computed(task: Task, meters: Sequence[Meter]) -> dict[str, Any]:
    """The figures of a task's meters: those that say how good it is first, the foremost before."""
    found = {name: figure for meter in meters for name, figure in meter.compute().items()}
    return {name: found[name] for name in task.scores if name in found} | found


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
