"""Embeddings of a network without a head, which a method of self-supervised learning trains."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import Embeddings
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.metrics.neighbours import NeighbourMeter
from plusx.metrics.verification import VerificationMeter
from plusx.tasks.classify import at_least_float32
from plusx.tasks.task import Task


class Represent(Task):
    """The embedding of every input: the output of a network without a head.

    It has no loss; a method of `plusx.selfsupervised` wraps it and adds one. `predict` returns
    normalised embeddings, as `Embeddings`. Targets are class numbers, int64 (n,); only the metrics
    need them.

    reference: batches of the training set, whose embeddings vote for the class of an input
        (`neighbour_accuracy`); every evaluation embeds them again. Without it, metrics are those of
        verification, which compare pairs of inputs.
    num_classes: of the reference

    Raises UserError for a network with a head.
    """

    tta = ("none", "flip", "flip-shift")
    has_labels = False

    def __init__(
        self,
        net: nn.Module,
        *,
        reference: Callable[[], Iterable[Batch]] | None = None,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if getattr(net, "num_classes", 0):
            raise UserError(
                "embeddings are those of a network without a head: num_classes = 0 in [net] or "
                "create_model"
            )
        self.net = net
        self.reference, self.num_classes = reference, num_classes

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.reference is None:
            return ("equal_error_rate", "true_accept_rate", "auroc")
        return ("neighbour_accuracy",)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        raise UserError(
            "embeddings have no loss of their own: a method of self-supervised learning adds one, "
            'such as [method] kind = "simclr", or a head for classes, in a recipe with net.weights'
        )

    def predict(self, batch: Batch) -> Embeddings:
        return Embeddings(F.normalize(at_least_float32(self.net(batch.inputs)), dim=1))

    def meters(self) -> list[Meter]:
        if self.reference is None:
            return [VerificationMeter()]
        return [NeighbourMeter(self._stored, self.num_classes)]

    def _stored(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the reference, in the current mode, and their classes."""
        assert self.reference is not None
        vectors, labels = [], []
        for batch in self.reference():
            batch = batch.to(self.device)
            vectors.append(self.predict(batch).vectors)
            labels.append(batch.known_targets)
        return torch.cat(vectors), torch.cat(labels)
