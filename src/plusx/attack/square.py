"""Square: an attack that needs only the logits, by random search (Andriushchenko et al. 2020)."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from plusx.attack.attack import Attack
from plusx.attack.ball import per_sample
from plusx.attack.goal import Goal, Logits, margin


FRACTION = 0.8  # of the positions that the first window covers
# the fraction is halved after these of 10,000 queries (section 3.1)
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def window_fraction(step: int, steps: int) -> float:
    """Return the fraction of positions that a window covers at query `step` of `steps`."""
    scaled = int(step / steps * 10_000)
    return float(FRACTION * 0.5 ** sum(scaled > query for query in HALVED))


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search with windows whose pixels all move by eps, up or down in each channel
    (Andriushchenko et al. 2020, algorithms 1 and 2). It needs no gradient, and so detects networks
    that only hide it. `steps` is the number of queries; AutoAttack takes 5,000."""

    steps: int = 1000

    title: ClassVar[str] = "Square"
    source: ClassVar[str] = "Andriushchenko et al. 2020"
    needs_gradient: ClassVar[bool] = False
    default_steps: ClassVar[int] = 1000
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def goals(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, "n"]) -> list[Goal]:
        return [Goal(labels, margin)]

    @torch.no_grad()
    def search(
        self, logits_of: Logits, clean: Float[Tensor, "n ..."], goal: Goal, rng: Generator | None
    ) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, "n"]]:
        ball, sides = self.ball, clean.shape[2:]
        # vertical stripes
        stripes = clean.new_ones(*clean.shape[:2], *(1,) * (len(sides) - 1), *sides[-1:])
        pixels = ball.project(clean + ball.eps * _signs(stripes, rng), clean)
        logits = logits_of(pixels)
        best, is_reached, result = margin(logits, goal), goal.reached(logits), pixels
        rows = (~is_reached).nonzero()[:, 0]
        for step in range(self.steps - 1):
            if not len(rows):
                break
            side = round((window_fraction(step, self.steps) * prod(sides)) ** (1 / len(sides)))
            window = _windows(clean[rows], max(1, side), rng)
            change = 2 * ball.eps * _signs(clean.new_ones(len(rows), clean.shape[1]), rng)
            change = change.view(*change.shape, *(1,) * len(sides))
            trial = ball.project(result[rows] + window * change, clean[rows])
            logits = logits_of(trial)
            part = goal.of(rows)
            values, reached = margin(logits, part), part.reached(logits)
            accepted = (values > best[rows]) | reached
            result[rows] = torch.where(per_sample(accepted, trial), trial, result[rows])
            best[rows] = torch.where(accepted, values, best[rows])
            is_reached[rows] = reached
            rows = rows[~reached]
        return result, is_reached


def _signs(like: Tensor, rng: Generator | None) -> Tensor:
    """Return random numbers of -1 and 1."""
    bits = torch.randint(2, like.shape, generator=rng, device=like.device)
    return (2 * bits - 1).to(like.dtype)


def _windows(like: Tensor, side: int, rng: Generator | None) -> Tensor:
    """Return for each sample 1 inside a random window of this side, and 0 outside: (n, 1, *s)."""
    n, sides = len(like), like.shape[2:]
    inside = like.new_ones(n, 1, *(1,) * len(sides))
    for axis, length in enumerate(sides):
        width = min(side, length)
        first = torch.randint(length - width + 1, (n, 1), generator=rng, device=like.device)
        position = torch.arange(length, device=like.device)
        covered = (position >= first) & (position < first + width)
        shape = [n, 1, *(1,) * len(sides)]
        shape[2 + axis] = length
        inside = inside * covered.view(shape)
    return inside
