"""Accuracy of the nearest neighbours of embeddings (Wu et al. 2018, section 3.4)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import Embeddings, Prediction
from plusx.metrics.meter import Meter


NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the votes


def neighbour_votes(
    stored: Float[Tensor, "n width"],
    targets: Num[Tensor, "n k"],
    vectors: Float[Tensor, "m width"],
    count: int = NEIGHBOURS,
) -> Float[Tensor, "m k"]:
    """Return the fractions of the classes among the `count` nearest stored vectors by cosine, each
    weighted with exp(cosine / 0.07).

    targets: class probabilities of the stored vectors, such as rows of zeros and a one
    """
    stored = F.normalize(stored, dim=1)
    votes = []
    for chunk in vectors.split(512):
        cosines, indices = (F.normalize(chunk, dim=1) @ stored.T).topk(min(count, len(stored)), 1)
        weights = (cosines.double() / TEMPERATURE).softmax(1)
        votes.append(torch.einsum("mc,mck->mk", weights, targets[indices].double()))
    return torch.cat(votes)


class NeighbourMeter(Meter):
    """Metrics of the nearest neighbours among embeddings of the training set.

    `compute` returns count and neighbour_accuracy, the fraction of inputs whose class gets most of
    the votes of the `neighbours` nearest stored vectors.

    reference: returns the stored vectors (n, width) and their class numbers (n,). It is called at
        the first record, when the network is in evaluation mode
    """

    def __init__(
        self,
        reference: Callable[[], tuple[Tensor, Tensor]],
        num_classes: int,
        neighbours: int = NEIGHBOURS,
    ) -> None:
        super().__init__()
        self.reference, self.num_classes, self.neighbours = reference, num_classes, neighbours
        self.stored: tuple[Tensor, Tensor] | None = None

    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        assert isinstance(prediction, Embeddings)
        if self.stored is None:
            vectors, labels = self.reference()
            self.stored = vectors, F.one_hot(labels, self.num_classes)
        votes = neighbour_votes(*self.stored, prediction.vectors, self.neighbours)
        correct = votes.argmax(1) == batch.known_targets
        return {"count": len(batch), "correct": int(correct.sum())}

    def compute(self) -> dict[str, Any]:
        self.require_records()
        count = sum(record["count"] for record in self.records)
        correct = sum(record["correct"] for record in self.records)
        return {"count": count, "neighbour_accuracy": correct / count}
