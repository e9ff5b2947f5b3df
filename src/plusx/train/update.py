"""The update for one batch: gradient step, accumulation, clipping, loss scaling, averaged
weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.train.optim import trained_parameters
from plusx.train.state import State, start_ema


# updates the state with one batch and returns its loss
Update = Callable[[State, Batch], Tensor]


@runtime_checkable
class DistributedReducer(Protocol):
    """Communication between processes that each have a part of every batch."""

    def loss(self, batch: Batch, last: bool) -> Tensor:
        """Return the task's loss; with `last`, the backward pass averages gradients over
        processes."""

    def parts(self, step: int, at_most: int) -> int:
        """Return the number of parts in which every process computes its samples of this step."""

    def weight(self, step: int, count: int) -> float:
        """Return the weight of the loss of `count` samples of this step in that mean."""

    def mean(self, loss: Tensor, scalars: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of a loss and of scalars over processes."""


@dataclass(frozen=True)
class Scaling:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018, section 3.2).

    A step whose gradients overflow is skipped and halves the scale; `patience` clean steps double
    it. The scale is a power of two, so it changes no other gradient.
    """

    start: float = 2.0**16
    patience: int = 2000
    floor: float = 2.0**-14  # an overflow at a lower scale is an error


@dataclass(frozen=True)
class GradientStep:
    """One step of gradient descent.

    clip: the largest norm of the whole gradient; a longer one is scaled down to it.
    accumulation_steps: compute the batch in this number of parts and add their gradients, for a
        batch that does not fit in memory. The sum equals that of the whole batch up to rounding
        (1e-6 of the largest gradient in float32), unless batch norm or dropout depends on the
        parts.
    scaling: for float16.
    reducer: for batches that are distributed over processes.

    Raises FloatingPointError if the loss, or the gradient to be clipped, is not finite. Nothing is
    updated then except batch-norm statistics.
    """

    clip: float | None = None
    accumulation_steps: int = 1
    scaling: Scaling | None = None
    reducer: DistributedReducer | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip is {self.clip}; it must be above 0")
        if self.accumulation_steps < 1:
            raise UserError(
                f"accumulation_steps is {self.accumulation_steps}; it must be at least 1"
            )

    def __call__(self, state: State, batch: Batch) -> Tensor:
        scale = self._scale(state)
        state.optimizer.zero_grad()
        steps, reducer = self.accumulation_steps, self.reducer
        num_parts = steps if reducer is None else reducer.parts(state.step, steps)
        loss = _backward(state, batch.split(num_parts), scale, reducer)
        # checked after the backward pass, so that a GPU is not idle during the synchronisation
        if not bool(loss.isfinite()):
            state.optimizer.zero_grad()
            raise FloatingPointError(f"{_where(state)}: the loss is {float(loss)}; no update made")
        if self.clip is None and self.scaling is None:
            state.optimizer.step()
            return loss
        gradients = _gradients(state)
        if scale != 1:
            torch._foreach_mul_(gradients, 1 / scale)
        norm = get_total_norm(gradients)
        is_finite = bool(norm.isfinite())
        if not is_finite and self.scaling is None:
            state.optimizer.zero_grad()
            raise FloatingPointError(
                f"{_where(state)}: the norm of the gradient is {float(norm)}; no update made"
            )
        if is_finite:
            if self.clip is not None:
                clip_grads_with_norm_(trained_parameters(state.optimizer), self.clip, norm)
            state.optimizer.step()
        self._rescale(state, is_finite)
        return loss

    def _scale(self, state: State) -> float:
        if self.scaling is None:
            return 1.0
        if state.loss_scale is None:
            state.loss_scale = self.scaling.start
        return state.loss_scale

    def _rescale(self, state: State, is_finite: bool) -> None:
        if self.scaling is None:
            return
        assert state.loss_scale is not None
        state.clean_steps = state.clean_steps + 1 if is_finite else 0
        if not is_finite:
            state.loss_scale /= 2
            if state.loss_scale < self.scaling.floor:
                state.optimizer.zero_grad()
                raise FloatingPointError(
                    f"{_where(state)}: the gradients are not finite at a loss scale of "
                    f"{state.loss_scale * 2}; no update made"
                )
        elif state.clean_steps == self.scaling.patience:
            state.loss_scale *= 2
            state.clean_steps = 0


def with_ema(update: Update, decay: float = 0.999) -> Update:
    """Return the update, followed by an exponential moving average of the weights in `state.ema`.

    ema = d * ema + (1 - d) * weights, where d after update number t (from 1) is min(decay, t / (t +
    9)), so that the initial weights lose their influence quickly. Floating-point buffers
    (batch-norm statistics) are averaged too, others (counts) are copied.
    """
    if not 0 <= decay < 1:
        raise UserError(f"decay is {decay}; allowed is 0 <= decay < 1")

    def update_with_ema(state: State, batch: Batch) -> Tensor:
        if state.ema is None:
            state.ema = start_ema(state.task)
        loss = update(state, batch)
        count = state.step + 1
        _average(state.ema, state.task, 1 - min(decay, count / (count + 9)))
        return loss

    return update_with_ema


@torch.no_grad()
def _average(ema: nn.Module, module: nn.Module, weight: float) -> None:
    pairs = [*zip(ema.parameters(), module.parameters()), *zip(ema.buffers(), module.buffers())]
    floating = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], weight)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)


def _backward(
    state: State, batches: Sequence[Batch], scale: float, reducer: DistributedReducer | None
) -> Tensor:
    """Return the loss of the whole batch, and add its gradients (times scale) to the
    parameters'."""
    count = sum(len(batch) for batch in batches)
    total: Tensor | float = 0.0
    scalars: dict[str, Tensor] = {}
    for batch in batches:
        if reducer is None:
            weight = len(batch) / count
            loss = state.task(batch)
        else:
            weight = reducer.weight(state.step, len(batch))
            loss = reducer.loss(batch, last=batch is batches[-1])
        (loss * (weight * scale)).backward()
        total = loss.detach() * weight + total
        for key, value in state.task.scalars.items():
            weighted = value * weight
            scalars[key] = weighted + scalars[key] if key in scalars else weighted
    assert isinstance(total, Tensor)
    if reducer is not None:
        total, scalars = reducer.mean(total, scalars)
    state.task.scalars = scalars
    return total


def _gradients(state: State) -> list[Tensor]:
    return [p.grad for p in trained_parameters(state.optimizer) if p.grad is not None]


def _where(state: State) -> str:
    return f"step {state.step + 1}, rate {state.optimizer.param_groups[0]['lr']}"
