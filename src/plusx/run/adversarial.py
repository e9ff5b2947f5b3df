"""The adversarial training of a recipe's [adversarial]."""

from collections.abc import Callable
from typing import Any

import torch

from plusx.attack.ascent import Ascent
from plusx.attack.ball import Ball
from plusx.attack.pgd import step_length
from plusx.attack.training import FastTraining, PgdTraining, TradesTraining
from plusx.data.modality import Modality
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.tasks.task import Task


FAST_STEP = 1.25  # times eps (Wong et al. 2020, section 5)


def adversarial(recipe: Recipe, task: Task, modality: Modality) -> Task:
    """Return the task with the recipe's adversarial training around it, if there is one.

    Raises UserError for inputs without pixels, and for a training that the task cannot have.
    """
    table = recipe.adversarial
    if table is None:
        return task
    try:
        modality.to_pixels(torch.zeros(1, *modality.input_shape))  # raises an error without pixels
        return ADVERSARIAL[table.kind](table, task, modality)
    except UserError as error:
        raise UserError(f'[adversarial] kind = "{table.kind}": {error}') from None


def _pgd(table: Any, task: Task, modality: Modality) -> Task:
    return PgdTraining(task, modality, _ascent(table), table.evaluate_steps)


def _fast(table: Any, task: Task, modality: Modality) -> Task:
    ball = Ball(table.norm, table.eps)
    step_size = FAST_STEP * table.eps if table.step_size is None else table.step_size
    ascent = Ascent(ball=ball, steps=1, step_size=step_size)
    return FastTraining(task, modality, ascent, table.evaluate_steps)


def _trades(table: Any, task: Task, modality: Modality) -> Task:
    ascent = _ascent(table)
    return TradesTraining(task, modality, ascent, table.evaluate_steps, beta=table.beta)


def _ascent(table: Any) -> Ascent:
    ball = Ball(table.norm, table.eps)
    length = step_length(ball, table.steps, table.step_size)
    return Ascent(ball=ball, steps=table.steps, step_size=length)


ADVERSARIAL: dict[str, Callable[[Any, Task, Modality], Task]] = {
    "pgd": _pgd,
    "fast": _fast,
    "trades": _trades,
}
