"""The rate finder of `plusx tune --rate`: the loss while the learning rate rises exponentially.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3. The network is
trained for a few hundred steps from the recipe's initial weights and then dropped.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from plusx import store
from plusx.data.batch import Batch
from plusx.recipe import Recipe
from plusx.report.tune import rate_page
from plusx.run import optim
from plusx.run.distributed import DistributedContext
from plusx.run.environment import environment
from plusx.run.trainer import Trainer
from plusx.run.training import make_trainer
from plusx.study.results import recorded_environment
from plusx.study.search_space import plain
from plusx.study.tuning import refuse_folder
from plusx.train.loop import fit


JSON, PAGE = "rate.json", "rate.html"
LOW, HIGH, STEPS = 1e-5, 10.0, 200  # the first and the last rate, and the number of steps
SMOOTHING = 0.9  # decay of the exponential mean of the losses
DIVERGED = 4.0  # the run ends when the smoothed loss is this multiple of its lowest
FIRST = 10  # steps before a rate is suggested, as the mean of fewer losses is noisy


def find_rate(
    recipe: Recipe, out: str | Path, *, name: str = "recipe", command: str = ""
) -> dict[str, Any]:
    """Train while the rate rises from LOW to HIGH in STEPS steps, or until the loss diverges;
    return the content of rate.json, which is written into `out` with its page.

    Raises UserError as training does; RuntimeError if the loss does not fall at any rate.
    """
    out = Path(out)
    refuse_folder(out)
    trainer = make_trainer(plain(recipe), out / "trials" / "rate", DistributedContext())
    with store.lock(out):
        rates, losses = _losses(trainer)
        smoothed = smooth(losses)
        suggested = steepest(rates, smoothed)
        lowest = rates[int(np.argmin(smoothed))]
        finding = (
            f"Suggested learning rate: {suggested:.2g}. The smoothed loss is lowest at "
            f"{lowest:.2g}; the recipe has {recipe.optim.lr:g}."
        )
        result = {
            "finding": finding,
            "kind": "rate",
            "name": name,
            "data": trainer.sets.train.name,
            "suggested": suggested,
            "lowest": lowest,
            "recipe_lr": recipe.optim.lr,
            "low": LOW,
            "high": HIGH,
            "rates": rates,
            "losses": losses,
            "smoothed": smoothed,
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **recorded_environment(environment(trainer.state.task.device)),
        }
        store.write_json(out / JSON, result)
        store.write_text(out / PAGE, rate_page(result))
    return result


def smooth(losses: list[float], decay: float = SMOOTHING) -> list[float]:
    """Return the exponential means of the losses so far, without the bias of their start at 0
    (Kingma and Ba 2015, section 3)."""
    means, mean = [], 0.0
    for count, loss in enumerate(losses, 1):
        mean = decay * mean + (1 - decay) * loss
        means.append(mean / (1 - decay**count))
    return means


def steepest(rates: list[float], smoothed: list[float]) -> float:
    """Return the rate at which the smoothed loss falls most steeply over the logarithm of the rate,
    before its lowest value. Raises RuntimeError if it does not fall."""
    end = int(np.argmin(smoothed)) + 1
    if end - FIRST < 2:
        raise RuntimeError(
            f"the loss does not fall at any learning rate from {rates[0]:.2g} to {rates[-1]:.2g}: "
            "no rate can be suggested"
        )
    slopes = np.gradient(np.array(smoothed[FIRST:end]), np.log(rates[FIRST:end]))
    return rates[FIRST + int(np.argmin(slopes))]


def _losses(trainer: Trainer) -> tuple[list[float], list[float]]:
    """Return the rate and the loss of every step."""
    factor = (HIGH / LOW) ** (1 / (STEPS - 1))
    rates: list[float] = []
    losses: list[float] = []
    lowest = math.inf
    reports = fit(
        trainer.state,
        _batches(trainer),
        lambda step: LOW * factor**step,
        optim.update_of(trainer.recipe),
    )
    try:
        for report in reports:
            rates.append(report.lr)
            losses.append(report.loss)
            smoothed = smooth(losses)[-1]
            lowest = min(lowest, smoothed)
            if len(losses) > FIRST and smoothed > DIVERGED * lowest:
                break
    except FloatingPointError:  # the rate is too high: the losses so far are the result
        pass
    if len(losses) <= FIRST:
        raise RuntimeError(f"the loss diverged after {len(losses)} steps, at a rate of {LOW}")
    return rates, losses


def _batches(trainer: Trainer) -> Iterator[Batch]:
    """Yield the training batches of as many epochs as there are steps for."""
    with trainer.loader as loader:
        for epoch in range(math.ceil(STEPS / len(loader))):
            trainer.epoch, trainer.batch = epoch, 0
            yield from trainer.batches(STEPS)
