"""The goals of attacks on classifiers, and the losses that they maximise."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F


# pixels (n, c, *s) from 0 to 1 -> logits (n, k)
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Goal:
    """The goal of an attack for n samples.

    labels: the true classes
    loss: (logits, goal) -> the loss of each sample, which the attack maximises
    targets: the target classes of a targeted loss
    targeted: whether only a prediction of `targets` reaches the goal, not any wrong prediction
    """

    labels: Int64[Tensor, "n"]
    loss: "Loss"
    targets: Int64[Tensor, "n"] | None = None
    targeted: bool = False

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, "n"]:
        """Return whether the logits of each sample reach the goal."""
        predicted = logits.argmax(1)
        if self.targeted:
            assert self.targets is not None
            return predicted == self.targets
        return predicted != self.labels

    def of(self, rows: Tensor) -> "Goal":
        """Return the goal of these samples."""
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, labels=self.labels[rows], targets=targets)


Loss = Callable[[Tensor, Goal], Tensor]


def cross_entropy(logits: Float[Tensor, "n k"], goal: Goal) -> Float[Tensor, "n"]:
    """Return the cross-entropy with the true class; with a targeted goal minus that with the
    target."""
    if goal.targeted:
        assert goal.targets is not None
        return -F.cross_entropy(logits, goal.targets, reduction="none")
    return F.cross_entropy(logits, goal.labels, reduction="none")


def margin(logits: Float[Tensor, "n k"], goal: Goal) -> Float[Tensor, "n"]:
    """Return the largest logit of another class minus that of the true one: above 0 where the
    prediction is wrong. With a targeted goal the other way round, for the target."""
    classes = goal.targets if goal.targeted else goal.labels
    assert classes is not None
    correct = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], -torch.inf).amax(1)
    difference = others - correct[:, 0]
    return -difference if goal.targeted else difference


def targeted_dlr(logits: Float[Tensor, "n k"], goal: Goal) -> Float[Tensor, "n"]:
    """Return the targeted difference-of-logits ratio (Croce and Hein 2020, equation 7):
    -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), with logits sorted from the largest. It does not change
    with the scale of the logits."""
    assert goal.targets is not None
    ordered = logits.topk(4, 1).values
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    rise = logits.gather(1, goal.targets[:, None]) - logits.gather(1, goal.labels[:, None])
    return rise[:, 0] / (scale + 1e-12)


def ascent(
    logits_of: Logits, pixels: Float[Tensor, "n ..."], goal: Goal
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n"], Float[Tensor, "n ..."]]:
    """Return the logits, the loss of each sample and its gradient with respect to its pixels.

    Gradients of parameters are neither computed nor changed.
    """
    with torch.enable_grad():
        variable = pixels.detach().requires_grad_()
        logits = logits_of(variable)
        values = goal.loss(logits, goal)
        (gradient,) = torch.autograd.grad(values.sum(), variable)
    return logits.detach(), values.detach(), gradient
