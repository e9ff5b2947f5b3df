"""Losses of segmentation: one number per sample, over the positions that are not ignored.

They are per sample, not per batch, so that losses of parts of a batch add up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from plusx.errors import UserError, did_you_mean


AUXILIARY = 0.5  # the weight of an auxiliary head, as in torchvision's reference training
GAMMA = 2.0  # of the focal loss (Lin et al. 2017, section 4.1)
# weights of false positives and false negatives in the Tversky index (Salehi et al. 2017, table 2)
ALPHA, BETA = 0.3, 0.7
_EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class LossInputs:
    """The inputs of segmentation losses: n samples with s positions each. At ignored positions
    `classes` is 0 and has no effect."""

    log_probabilities: Float[Tensor, "n k s"]
    classes: Int[Tensor, "n s"]
    evaluated: Bool[Tensor, "n s"]
    weights: Float[Tensor, "k"] | None

    @property
    def log_likelihood(self) -> Float[Tensor, "n s"]:
        """Log-probabilities of the true classes."""
        return self.log_probabilities.gather(1, self.classes[:, None])[:, 0]

    def mean(self, values: Float[Tensor, "n s"]) -> Float[Tensor, "n"]:
        """Return the mean over a sample's evaluated positions, weighted by class; 0 without
        positions. The divisor is the number of positions, not the sum of their weights."""
        if self.weights is not None:
            values = values * self.weights[self.classes]
        count = self.evaluated.sum(1).clamp(min=1)
        return torch.where(self.evaluated, values, 0).sum(1) / count

    def overlaps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return true positives, predicted and actual for every sample and class, as sums (n,
        k)."""
        probabilities = torch.where(self.evaluated[:, None], self.log_probabilities.exp(), 0)
        n, k = probabilities.shape[:2]
        likelihood = probabilities.gather(1, self.classes[:, None])[:, 0]
        likelihood = torch.where(self.evaluated, likelihood, 0)
        zeros = probabilities.new_zeros(n, k)
        hits = zeros.scatter_add(1, self.classes, likelihood)
        actual = zeros.scatter_add(1, self.classes, self.evaluated.to(probabilities.dtype))
        return hits, probabilities.sum(2), actual


def cross_entropy(x: LossInputs) -> Float[Tensor, "n"]:
    """Return the mean negative log-likelihood of the positions."""
    return x.mean(-x.log_likelihood)


def focal(x: LossInputs) -> Float[Tensor, "n"]:
    """Return the focal loss (Lin et al. 2017, eq. 4), which down-weights easy positions."""
    return x.mean(-((1 - x.log_likelihood.exp()) ** GAMMA) * x.log_likelihood)


def dice(x: LossInputs) -> Float[Tensor, "n"]:
    """Return 1 - Dice of probabilities (Milletari et al. 2016, without squares), the mean over the
    classes that occur in the sample."""
    hits, predicted, actual = x.overlaps()
    return _one_minus(2 * hits / (predicted + actual).clamp(min=_EPSILON), actual)


def tversky(x: LossInputs) -> Float[Tensor, "n"]:
    """Return 1 - the Tversky index (Salehi et al. 2017, eq. 4): false negatives weigh more than
    false positives."""
    hits, predicted, actual = x.overlaps()
    wrong = ALPHA * (predicted - hits) + BETA * (actual - hits)
    return _one_minus(hits / (hits + wrong).clamp(min=_EPSILON), actual)


def lovasz(x: LossInputs) -> Float[Tensor, "n"]:
    """Return Lovasz-softmax (Berman et al. 2018): the convex closure of 1 - IoU, the mean over the
    classes that occur in the sample."""
    losses = []
    for sample in range(len(x.classes)):
        evaluated = x.evaluated[sample]
        classes = x.classes[sample][evaluated]
        probabilities = x.log_probabilities[sample][:, evaluated].exp()
        actual = F.one_hot(classes, len(probabilities)).T.to(probabilities.dtype)
        present = actual.any(1)
        actual, probabilities = actual[present], probabilities[present]
        errors, order = (actual - probabilities).abs().sort(dim=1, descending=True)
        weights = _lovasz_weights(actual.gather(1, order))
        losses.append((errors * weights).sum(1).sum() / max(1, len(actual)))
    return torch.stack(losses)


LOSSES: dict[str, Callable[[LossInputs], Tensor]] = {
    "cross-entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "tversky": tversky,
    "lovasz": lovasz,
}


def parse_losses(text: str) -> tuple[str, ...]:
    """Return the names in a sum of losses such as "cross-entropy dice". Raises UserError for
    unknown names."""
    words = tuple(text.split())
    if not words:
        raise UserError(f"loss is empty; allowed are {', '.join(LOSSES)}, and several of them")
    for word in words:
        if word not in LOSSES:
            hint = did_you_mean(word, LOSSES) or f"; allowed are {', '.join(LOSSES)}"
            raise UserError(f"loss {text!r}: there is no loss {word!r}{hint}")
    if len(set(words)) < len(words):
        raise UserError(f"loss {text!r}: a loss is listed twice")
    return words


def _one_minus(index: Float[Tensor, "n k"], actual: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Return 1 - the mean index of the classes that occur; 0 if none does."""
    occurs = (actual > 0).to(index.dtype)
    return ((1 - index) * occurs).sum(1) / occurs.sum(1).clamp(min=1)


def _lovasz_weights(actual: Float[Tensor, "k s"]) -> Float[Tensor, "k s"]:
    """Return the gradient of the extension for positions sorted by error (their algorithm 1)."""
    positives = actual.sum(1, keepdim=True)
    jaccard = 1 - (positives - actual.cumsum(1)) / (positives + (1 - actual).cumsum(1))
    return torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
