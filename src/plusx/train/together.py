"""Runs of one network with several seeds, trained together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.tasks.together import ClassifyTogether
from plusx.train.loop import reseed, training_modes
from plusx.train.report import Report
from plusx.train.schedule import Schedule
from plusx.train.state import State
from plusx.train.update import Descend, descend


def fit_together(
    states: Sequence[State],
    batches: Iterable[Sequence[Batch]],
    lr: Schedule,
    update: Descend = descend,
) -> Iterator[list[Report]]:
    """Train every state on its own batches, all in one pass, and report for each.

    The states are of classifiers of one make whose networks can be put together (see
    `plusx.nn.together`), and stand at one step. Each is what `fit` would have made of it but for
    rounding, and between two reports all that a run needs, alone or together, to go on; two runs
    together with the same states are equal to the bit. Each step takes a batch for each state, all
    of one shape.

    UserError: the networks cannot be put together. FloatingPointError: a loss is not finite; none
    of the states was updated.
    """
    tasks = [state.task for state in states]
    if len({state.step for state in states}) > 1:
        raise UserError("states that train together have to stand at one step")
    if update.parts > 1 or update.scaling is not None or update.sharing is not None:
        raise UserError("training together knows neither parts of a batch, nor scaling, nor ranks")
    together = ClassifyTogether(tasks)
    modes = [training_modes(task) for task in tasks]
    device = tasks[0].device
    for given in batches:
        mine = [batch.to(device) for batch in given]
        rate = lr(states[0].step)
        for keep in modes:
            keep()
        together.net.follow()
        reseed(states[0].seed, states[0].step, device)
        losses = together(mine)
        total = torch.stack(losses)
        if not bool(total.isfinite().all()):
            raise FloatingPointError(_unsound(states, total, rate))
        total.sum().backward()
        reports = []
        for state, batch, loss, gradients in zip(
            states, mine, losses, together.net.take_gradients(), strict=True
        ):
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            made = replace(update, sharing=_Ready(loss.detach(), gradients))(state, batch)
            state.task.after_step()
            state.step += 1
            seen = {name: float(value) for name, value in state.task.seen.items()}
            reports.append(Report(step=state.step, lr=rate, loss=float(made), seen=seen))
        yield reports


@dataclass(frozen=True, eq=False)
class _Ready:
    """A loss whose backward pass was made with others': its gradients need only be put in place."""

    value: Tensor
    gradients: list[tuple[nn.Parameter, Tensor]]

    def parts(self, step: int, wanted: int) -> int:
        return 1  # it was taken whole

    def loss(self, batch: Batch, last: bool) -> Tensor:
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.value.clone().requires_grad_()

    def weight(self, step: int, count: int) -> float:
        return 1.0

    def mean(self, loss: Tensor, seen: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return loss, dict(seen)


def _unsound(states: Sequence[State], losses: Tensor, rate: float) -> str:
    wrong = [state.seed for state, loss in zip(states, losses) if not bool(loss.isfinite())]
    named = ", ".join(map(str, wrong))
    where = f"step {states[0].step + 1}, rate {rate}"
    return f"{where}: the loss of seed {named} is not finite; no update made"
