"""The set of allowed perturbations: a ball of a norm, inside the range of pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from plusx.errors import UserError, did_you_mean


_TINY = 1e-12  # divisor of a direction that is zero


@dataclass(frozen=True)
class Norm:
    """How a norm measures and limits perturbations; all functions are per sample.

    size: perturbations (n, ...) -> norms (n,)
    shrink: (perturbations, eps) -> the closest ones of norm eps at most
    direction: gradients -> steps of norm 1 along which the loss rises most
    random: (like, generator) -> perturbations of norm 1 at most, uniform in the ball
    """

    size: Callable[[Tensor], Tensor]
    shrink: Callable[[Tensor, float], Tensor]
    direction: Callable[[Tensor], Tensor]
    random: Callable[[Tensor, Generator | None], Tensor]


def per_sample(values: Shaped[Tensor, "n"], like: Tensor) -> Tensor:
    """Return one value per sample, broadcast against `like` (n, ...)."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def _l2(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _unit_l2(x: Tensor) -> Tensor:
    # scaled first, so that the square of a small gradient is not rounded to 0
    x = x / per_sample(x.flatten(1).abs().amax(1).clamp(min=torch.finfo(x.dtype).tiny), x)
    return x / per_sample(_l2(x).clamp(min=_TINY), x)


def _shrink_l2(x: Tensor, eps: float) -> Tensor:
    return x * per_sample((eps / _l2(x).clamp(min=_TINY)).clamp(max=1), x)


def _random_linf(like: Tensor, rng: Generator | None) -> Tensor:
    return 2 * torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=rng) - 1


def _random_l2(like: Tensor, rng: Generator | None) -> Tensor:
    normal = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=rng)
    uniform = torch.rand(len(like), dtype=like.dtype, device=like.device, generator=rng)
    radius = uniform ** (1 / max(1, like[0].numel()))
    return _unit_l2(normal) * per_sample(radius, like)


NORMS: dict[str, Norm] = {
    "linf": Norm(
        size=lambda x: x.flatten(1).abs().amax(1),
        shrink=lambda x, eps: x.clamp(-eps, eps),
        direction=torch.sign,
        random=_random_linf,
    ),
    "l2": Norm(size=_l2, shrink=_shrink_l2, direction=_unit_l2, random=_random_l2),
}


@dataclass(frozen=True)
class Ball:
    """Perturbations of norm `eps` at most whose pixels stay in the valid range, 0 to 1.

    Pixels that are outside this range without a perturbation, as bands can be, may keep their
    value. Raises UserError for an unknown norm or an eps below 0.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(
                f"norm = {self.norm!r}: allowed are {' and '.join(NORMS)}"
                f"{did_you_mean(self.norm, NORMS)}"
            )
        if not 0 <= self.eps < float("inf"):
            raise UserError(f"eps = {self.eps}: a number of 0 or above, such as 8/255")

    def project(self, pixels: Float[Tensor, "n ..."], clean: Float[Tensor, "n ..."]) -> Tensor:
        """Return the allowed pixels that are close to these: shrunk to the ball, then clamped."""
        perturbed = clean + NORMS[self.norm].shrink(pixels - clean, self.eps)
        return perturbed.clamp(min=clean.clamp(max=0), max=clean.clamp(min=1))

    def direction(self, gradient: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return the step of norm 1 along which the loss rises most."""
        return NORMS[self.norm].direction(gradient)

    def random(self, clean: Float[Tensor, "n ..."], rng: Generator | None = None) -> Tensor:
        """Return random allowed pixels; before clamping they are uniform in the ball."""
        start = clean + self.eps * NORMS[self.norm].random(clean, rng)
        return self.project(start, clean)
