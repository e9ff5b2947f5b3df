"""The fast gradient sign method and projected gradient descent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from plusx.attack.attack import Attack
from plusx.attack.ball import Ball
from plusx.attack.goal import Goal, Logits, ascent


STEP = 2.5  # a step of PGD is this times eps / steps (Madry et al. 2018, appendix)


@dataclass(frozen=True, kw_only=True)
class Fgsm(Attack):
    """One step of length eps along the gradient's direction, for Linf its sign (Goodfellow et al.
    2015, section 4). More steps and restarts have no effect."""

    steps: int = 1

    title: ClassVar[str] = "FGSM"
    source: ClassVar[str] = "Goodfellow et al. 2015"
    default_steps: ClassVar[int] = 1

    def search(
        self, logits_of: Logits, clean: Float[Tensor, "n ..."], goal: Goal, rng: Generator | None
    ) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, "n"]]:
        _, _, gradient = ascent(logits_of, clean, goal)
        ball = self.ball
        pixels = ball.project(clean + ball.eps * ball.direction(gradient), clean)
        with torch.no_grad():
            return pixels, goal.reached(logits_of(pixels))


@dataclass(frozen=True, kw_only=True)
class Pgd(Attack):
    """Projected gradient descent from a random start (Madry et al. 2018, equation 4).

    A sample's search ends at the first iterate that is predicted wrongly.
    step_size: length of a step; None: 2.5 eps / steps
    """

    step_size: float | None = None

    title: ClassVar[str] = "PGD"
    source: ClassVar[str] = "Madry et al. 2018"

    def search(
        self, logits_of: Logits, clean: Float[Tensor, "n ..."], goal: Goal, rng: Generator | None
    ) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, "n"]]:
        ball = self.ball
        length = step_length(ball, self.steps, self.step_size)
        pixels = ball.random(clean, rng)
        result = pixels.clone()
        is_reached = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        rows = torch.arange(len(clean), device=clean.device)
        for _ in range(self.steps):
            logits, _, gradient = ascent(logits_of, pixels, goal.of(rows))
            reached = goal.of(rows).reached(logits)
            result[rows], is_reached[rows] = pixels, reached
            if bool(reached.any()):
                rows, pixels, gradient = rows[~reached], pixels[~reached], gradient[~reached]
                if not len(rows):
                    return result, is_reached
            pixels = ball.project(pixels + length * ball.direction(gradient), clean[rows])
        with torch.no_grad():
            result[rows], is_reached[rows] = pixels, goal.of(rows).reached(logits_of(pixels))
        return result, is_reached


def step_length(ball: Ball, steps: int, step_size: float | None) -> float:
    """Return the length of a step: `step_size`, or by default 2.5 eps / steps."""
    return STEP * ball.eps / steps if step_size is None else step_size


def ascend(
    loss_of: Callable[[Tensor], Tensor],
    clean: Float[Tensor, "n ..."],
    start: Float[Tensor, "n ..."],
    ball: Ball,
    steps: int,
    step_size: float,
) -> Float[Tensor, "n ..."]:
    """Return the pixels after this number of steps of ascent of any loss of a batch.

    All samples take all steps, as in adversarial training. loss_of: pixels -> a number, the sum or
    the mean over independent samples. Gradients of parameters are neither computed nor changed.
    """
    pixels = start
    for _ in range(steps):
        with torch.enable_grad():
            variable = pixels.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_of(variable), variable)
        pixels = ball.project(pixels + step_size * ball.direction(gradient), clean)
    return pixels.detach()
