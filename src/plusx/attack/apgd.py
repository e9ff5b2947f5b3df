"""APGD, projected gradient descent that chooses its own step size (Croce and Hein 2020)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from plusx.attack.attack import Attack
from plusx.attack.ball import per_sample
from plusx.attack.goal import Goal, Logits, ascent, targeted_dlr


MOMENTUM = 0.75  # alpha of equation 3
RISES = 0.75  # rho of condition 1: the fraction of steps that have to raise the loss
TARGETS = 9  # classes that APGD-T tries, the most likely ones


def checkpoints(steps: int) -> list[int]:
    """Return the iterations at which the step size is reconsidered (section 3.1, equation 4)."""
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    return sorted({-(-steps * value // 100) for value in percent[1:-1]})


@dataclass(frozen=True, kw_only=True)
class Apgd(Attack):
    """Auto-PGD on the cross-entropy: steps with momentum, first of length 2 eps; the length is
    halved, and the search returns to the best iterate, when the loss stops rising (Croce and Hein
    2020, algorithm 1). A sample's search ends at the first iterate that is predicted wrongly."""

    steps: int = 100

    title: ClassVar[str] = "APGD-CE"
    source: ClassVar[str] = "Croce and Hein 2020"
    default_steps: ClassVar[int] = 100

    def search(
        self, logits_of: Logits, clean: Float[Tensor, "n ..."], goal: Goal, rng: Generator | None
    ) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, "n"]]:
        ball, n = self.ball, len(clean)
        pixels = ball.random(clean, rng)
        logits, values, gradient = ascent(logits_of, pixels, goal)
        is_reached = goal.reached(logits)
        result = pixels.clone()
        track = _Track(
            rows=torch.arange(n, device=clean.device),
            clean=clean,
            pixels=pixels,
            previous=pixels,
            gradient=gradient,
            values=values,
            best=pixels,
            best_gradient=gradient,
            best_values=values,
            length=torch.full_like(values, 2 * ball.eps),
            rises=torch.zeros_like(values),
            earlier_best=values,
            was_halved=torch.zeros_like(is_reached),
        ).of(~is_reached)
        goal = goal.of(~is_reached)
        due, last_checkpoint = checkpoints(self.steps), 0
        for step in range(self.steps):
            if not len(track.rows):
                break
            moved = track.pixels - track.previous
            ahead = track.pixels + per_sample(track.length, moved) * ball.direction(track.gradient)
            ahead = ball.project(ahead, track.clean)
            if step:  # equation 3
                ahead = track.pixels + MOMENTUM * (ahead - track.pixels) + (1 - MOMENTUM) * moved
                ahead = ball.project(ahead, track.clean)
            track.previous, track.pixels = track.pixels, ahead
            if step == self.steps - 1:
                with torch.no_grad():
                    logits = logits_of(track.pixels)
                    values = goal.loss(logits, goal)
            else:
                logits, values, track.gradient = ascent(logits_of, track.pixels, goal)
            track.observe(values)
            reached = goal.reached(logits)
            if bool(reached.any()):
                rows = track.rows[reached]
                result[rows], is_reached[rows] = track.pixels[reached], True
                track, goal = track.of(~reached), goal.of(~reached)
            if step + 1 in due:
                track.adapt(step + 1 - last_checkpoint)
                last_checkpoint = step + 1
        result[track.rows] = track.best
        return result, is_reached


@dataclass(frozen=True, kw_only=True)
class ApgdTargeted(Apgd):
    """APGD on the targeted difference-of-logits ratio, towards each of the nine most likely other
    classes; any wrong prediction counts (Croce and Hein 2020, section 4.2)."""

    title: ClassVar[str] = "APGD-T"
    min_classes: ClassVar[int] = 4

    def goals(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, "n"]) -> list[Goal]:
        others = logits.scatter(1, labels[:, None], -torch.inf)
        likely = others.topk(min(TARGETS, logits.shape[1] - 1), 1).indices
        return [Goal(labels, targeted_dlr, targets) for targets in likely.T]


@dataclass
class _Track:
    """The state of the searches that have not reached their goal; all tensors are per sample.

    rises: steps since the last checkpoint that raised the loss; earlier_best: the best loss at the
    last checkpoint; was_halved: whether the step was halved there
    """

    rows: Tensor
    clean: Tensor
    pixels: Tensor
    previous: Tensor
    gradient: Tensor
    values: Tensor
    best: Tensor
    best_gradient: Tensor
    best_values: Tensor
    length: Tensor
    rises: Tensor
    earlier_best: Tensor
    was_halved: Tensor

    def of(self, mask: Bool[Tensor, "n"]) -> "_Track":
        """Return the state of these samples."""
        return _Track(**{name: tensor[mask] for name, tensor in vars(self).items()})

    def observe(self, values: Float[Tensor, "n"]) -> None:
        """Record the losses of the new iterates, and the best iterates."""
        self.rises = self.rises + (values > self.values)
        self.values = values
        better = values > self.best_values
        select = per_sample(better, self.best)
        self.best = torch.where(select, self.pixels, self.best)
        self.best_gradient = torch.where(select, self.gradient, self.best_gradient)
        self.best_values = torch.where(better, values, self.best_values)

    def adapt(self, period: int) -> None:
        """Halve the step by conditions 1 and 2 of section 3.1, and return to the best iterate."""
        is_slow = self.rises < RISES * period
        is_stuck = ~self.was_halved & (self.best_values <= self.earlier_best)
        halved = is_slow | is_stuck
        self.length = torch.where(halved, self.length / 2, self.length)
        select = per_sample(halved, self.best)
        self.pixels = torch.where(select, self.best, self.pixels)
        self.gradient = torch.where(select, self.best_gradient, self.gradient)
        self.values = torch.where(halved, self.best_values, self.values)
        self.rises = torch.zeros_like(self.rises)
        self.earlier_best, self.was_halved = self.best_values, halved
