"""`Attack`: the base class of attacks on classifiers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from plusx.attack.ball import Ball
from plusx.attack.goal import Goal, Logits, cross_entropy
from plusx.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A search for perturbed inputs that a classifier predicts wrongly.

    The network is a function from pixels (n, c, *s), from 0 to 1, to logits (n, k); the caller puts
    it in evaluation mode. All random numbers come from the generator that is passed to a call.

    norm, eps: the ball of allowed perturbations, in units of pixels
    steps: iterations, or for attacks without gradients queries
    restarts: searches from different starts, for samples that were not fooled before
    A new attack is a class that implements `search`, and a line in ATTACKS.
    Raises UserError for an unknown norm, and numbers out of range.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    steps: int = 50
    restarts: int = 1

    title: ClassVar[str]
    source: ClassVar[str]
    needs_gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 50
    min_classes: ClassVar[int] = 2
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("restarts", self.restarts)):
            if value < 1:
                raise UserError(f"{name} = {value}: at least 1")
        if self.ball.norm not in self.norms:
            raise UserError(f"norm = {self.norm!r}: {self.title} is for {' and '.join(self.norms)}")

    @property
    def ball(self) -> Ball:
        """The allowed perturbations."""
        return Ball(self.norm, self.eps)

    @abstractmethod
    def search(
        self, logits_of: Logits, clean: Float[Tensor, "n ..."], goal: Goal, rng: Generator | None
    ) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, "n"]]:
        """Return allowed pixels for each sample, and whether they reach the goal."""

    def goals(self, logits: Float[Tensor, "n k"], labels: Int64[Tensor, "n"]) -> list[Goal]:
        """Return the goals that are tried one after the other, given the clean logits."""
        return [Goal(labels, cross_entropy)]

    def __call__(
        self,
        logits_of: Logits,
        clean: Float[Tensor, "n ..."],
        labels: Int64[Tensor, "n"],
        rng: Generator | None = None,
        targets: Int64[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Return the perturbed pixels.

        A sample that is already predicted wrongly is not changed. One that the attack cannot fool
        has the pixels of its last search.
        targets: the classes to be predicted, for a targeted attack
        Raises UserError if the network has too few classes.
        """
        with torch.no_grad():
            logits = logits_of(clean)
        if logits.shape[1] < self.min_classes:
            raise UserError(
                f"{self.title} needs at least {self.min_classes} classes; the network has "
                f"{logits.shape[1]}"
            )
        goals = self.goals(logits, labels)
        if targets is not None:
            goals = [Goal(labels, cross_entropy, targets, targeted=True)]
        perturbed = clean.clone()
        remaining = (~goals[0].reached(logits)).nonzero()[:, 0]
        for goal in [goal for goal in goals for _ in range(self.restarts)]:
            if not len(remaining):
                break
            pixels, reached = self.search(logits_of, clean[remaining], goal.of(remaining), rng)
            perturbed[remaining] = pixels
            remaining = remaining[~reached]
        return perturbed
