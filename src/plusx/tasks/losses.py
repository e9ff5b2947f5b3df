"""Losses of a class for every position: one number a sample, of what is judged.

They are taken of a sample, not of a batch, so that parts of a batch add up to it.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from plusx.errors import UserError


AUXILIARY = 0.5  # the weight of an auxiliary head, as in torchvision's reference training
GAMMA = 2.0  # of the focal loss (Lin et al. 2017, section 4.1)
# of false positives and false negatives in Tversky's index (Salehi et al. 2017, table 2)
ALPHA, BETA = 0.3, 0.7
_LEAST = 1e-6


@dataclass(frozen=True, eq=False)
class Told:
    """What a network told of n samples with s positions, and what is right of them.

    Where a position is not judged, `right` is 0 and counts nowhere.
    """

    log_probabilities: Float[Tensor, "n k s"]
    right: Int[Tensor, "n s"]
    judged: Bool[Tensor, "n s"]
    weights: Float[Tensor, "k"] | None

    @property
    def of_right(self) -> Float[Tensor, "n s"]:
        """Log-probabilities of the right classes."""
        return self.log_probabilities.gather(1, self.right[:, None])[:, 0]

    def mean(self, values: Float[Tensor, "n s"]) -> Float[Tensor, "n"]:
        """The mean of a sample's judged positions, each times the weight of its class; 0 of none.

        It is divided by their number, not by the sum of their weights.
        """
        if self.weights is not None:
            values = values * self.weights[self.right]
        count = self.judged.sum(1).clamp(min=1)
        return torch.where(self.judged, values, 0).sum(1) / count

    def shares(self) -> tuple[Tensor, Tensor, Tensor]:
        """For every sample and class: hits, what was told and what is right, as sums (n, k)."""
        told = torch.where(self.judged[:, None], self.log_probabilities.exp(), 0)
        k = told.shape[1]
        of_right = torch.where(self.judged, told.gather(1, self.right[:, None])[:, 0], 0)
        hits = told.new_zeros(len(told), k).scatter_add(1, self.right, of_right)
        actual = told.new_zeros(len(told), k).scatter_add(1, self.right, self.judged.to(told.dtype))
        return hits, told.sum(2), actual


def cross_entropy(told: Told) -> Float[Tensor, "n"]:
    """The mean negative log-likelihood of the positions."""
    return told.mean(-told.of_right)


def focal(told: Told) -> Float[Tensor, "n"]:
    """Focal loss (Lin et al. 2017, eq. 4): positions that are told surely count little."""
    return told.mean(-((1 - told.of_right.exp()) ** GAMMA) * told.of_right)


def dice(told: Told) -> Float[Tensor, "n"]:
    """1 - Dice of probabilities (Milletari et al. 2016 without their squares), the mean over the
    classes that occur in the sample."""
    hits, predicted, actual = told.shares()
    return _missing(2 * hits / (predicted + actual).clamp(min=_LEAST), actual)


def tversky(told: Told) -> Float[Tensor, "n"]:
    """1 - Tversky's index (Salehi et al. 2017, eq. 4): what is missed weighs more than what is told
    too much."""
    hits, predicted, actual = told.shares()
    wrong = ALPHA * (predicted - hits) + BETA * (actual - hits)
    return _missing(hits / (hits + wrong).clamp(min=_LEAST), actual)


def lovasz(told: Told) -> Float[Tensor, "n"]:
    """Lovasz-softmax (Berman et al. 2018): the convex closure of 1 - IoU, the mean over the classes
    that occur in the sample."""
    n, k, _ = told.log_probabilities.shape
    losses = []
    for sample in range(n):
        judged = told.judged[sample]
        right = told.right[sample][judged]
        told_here = told.log_probabilities[sample][:, judged].exp()
        here = F.one_hot(right, k).T.to(told_here.dtype)
        present = here.any(1)
        here, told_here = here[present], told_here[present]
        errors, order = (here - told_here).abs().sort(dim=1, descending=True)
        losses.append(
            (errors * _lovasz_weights(here.gather(1, order))).sum(1).sum() / max(1, len(here))
        )
    return torch.stack(losses)


LOSSES: dict[str, Callable[[Told], Tensor]] = {
    "cross-entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "tversky": tversky,
    "lovasz": lovasz,
}


def parse_losses(text: str) -> tuple[str, ...]:
    """The words of a sum of losses, as "cross-entropy dice". UserError for any other word."""
    words = tuple(text.split())
    if not words:
        raise UserError(f"loss is empty; allowed are {', '.join(LOSSES)}, and several of them")
    for word in words:
        if word not in LOSSES:
            near = difflib.get_close_matches(word, LOSSES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(LOSSES)}"
            raise UserError(f"loss {text!r}: no loss is called {word!r}; {hint}")
    if len(set(words)) < len(words):
        raise UserError(f"loss {text!r}: each loss once")
    return words


def _missing(index: Float[Tensor, "n k"], actual: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """1 - the mean index of the classes that occur; 0 where none does."""
    occurs = (actual > 0).to(index.dtype)
    return ((1 - index) * occurs).sum(1) / occurs.sum(1).clamp(min=1)


def _lovasz_weights(right: Float[Tensor, "k s"]) -> Float[Tensor, "k s"]:
    """The gradient of the extension, of positions sorted by their errors (their algorithm 1)."""
    missed = right.sum(1, keepdim=True)
    jaccard = 1 - (missed - right.cumsum(1)) / (missed + (1 - right).cumsum(1))
    return torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
