"""Losses of embeddings of two views of each image, written as in the papers.

Embeddings of views are interleaved: rows 2 i and 2 i + 1 are those of image i, the order of a batch
of the sampler "views". Losses are computed in float32 at least.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from plusx.errors import UserError
from plusx.tasks.classify import at_least_float32


Views = Float[Tensor, "n d"]


def nt_xent(z: Views, temperature: float = 0.5) -> Float[Tensor, ""]:
    """Return the normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1): for
    every view, which of the 2 n - 1 others is that of the same image?

    For embeddings that are all orthogonal it is log(2 n - 1), whatever the temperature. Raises
    UserError for fewer than two images.
    """
    similarities = _similarities(z, temperature)
    others = torch.arange(len(z), device=z.device) ^ 1
    return F.cross_entropy(similarities, others)


def supervised_contrastive(
    z: Views, labels: Int64[Tensor, "n"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Return the loss of Khosla et al. 2020, equation 2: as `nt_xent`, with all views of the same
    class as positives, the mean of whose log-probabilities is taken. With a class of its own for
    each image it equals `nt_xent`."""
    similarities = _similarities(z, temperature)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & ~itself
    log_probabilities = similarities.log_softmax(1).masked_fill(~positive, 0.0)
    return -(log_probabilities.sum(1) / positive.sum(1)).mean()


def info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    queue: Float[Tensor, "k d"],
    temperature: float = 0.2,
) -> Float[Tensor, ""]:
    """Return the loss of He et al. 2020, equation 1: for every query, which of its own key and the
    keys of the queue is that of the same image?"""
    with torch.autocast(queries.device.type, enabled=False):
        unit, positive, negative = (_unit(vectors) for vectors in (queries, keys, queue))
        cosines = (unit * positive).sum(1, keepdim=True)
        logits = torch.cat([cosines, unit @ negative.T], 1) / temperature
        return F.cross_entropy(
            logits, torch.zeros(len(logits), dtype=torch.int64, device=unit.device)
        )


def squared_distance(
    predictions: Float[Tensor, "n d"], targets: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Return the mean squared distance of normalised vectors, 2 - 2 cos (Grill et al. 2020,
    equation 2): from 0 to 4."""
    return 2 + 2 * negative_cosine(predictions, targets)


def negative_cosine(
    predictions: Float[Tensor, "n d"], targets: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Return the mean negative cosine similarity (Chen and He 2021, equation 1): from -1 to 1."""
    return -(_unit(predictions) * _unit(targets)).sum(1).mean()


def redundancy(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], weight: float = 0.005
) -> Float[Tensor, ""]:
    """Return the loss of Zbontar et al. 2021, equation 1: the cross-correlation matrix of two views
    over the batch should be the identity. Off-diagonal elements count `weight`.

    Raises UserError for fewer than two images.
    """
    _require_two(len(first))
    with torch.autocast(first.device.type, enabled=False):
        correlations = _standardised(first).T @ _standardised(second) / len(first)
        diagonal = correlations.diagonal()
        off_diagonal = correlations.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + weight * off_diagonal


def spread(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the standard deviation of normalised vectors, the mean over their elements: 1 /
    sqrt(d) if they are spread evenly, 0 if they have collapsed to one (Chen and He 2021, figure
    2)."""
    return _unit(z.detach()).std(0, unbiased=False).mean()


def swapped(z: Views) -> Views:
    """Return the views with those of each image exchanged."""
    return z.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _unit(z: Tensor) -> Tensor:
    return F.normalize(at_least_float32(z), dim=1)


def _similarities(z: Tensor, temperature: float) -> Float[Tensor, "n n"]:
    """Return cosines over the temperature; -inf, a probability of 0, for a view and itself."""
    _require_two(len(z) // 2)
    with torch.autocast(z.device.type, enabled=False):
        unit = _unit(z)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        return (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)


def _standardised(z: Tensor) -> Tensor:
    """Return z with mean 0 and deviation 1 over the batch; `eps` is that of batch norm."""
    z = at_least_float32(z)
    return (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()


def _require_two(images: int) -> None:
    if images < 2:
        raise UserError(f"a batch of {images} image: the loss compares images and needs two")
