"""The base class of meters, which compute metrics from predictions and targets."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError


class Meter(ABC):
    """Accumulates batches and computes metrics, as plain numbers and lists.

    A subclass implements `record`, the data stored for a batch, and `compute`. Records are
    dictionaries of arrays and plain values, so that processes can exchange them.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Add the prediction for a batch with targets."""
        self.records.append(self.record(prediction, batch))

    def merge(self, records: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Replace the records by those of all processes, in the order of the batches. Process r of
        w must have had the batches r, r + w, r + 2 w, ..."""
        rounds = zip_longest(*records)
        self.records = [record for ranks in rounds for record in ranks if record is not None]

    @abstractmethod
    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        """Return the data stored for a batch. Raises UserError if the targets are of another
        kind."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Return the metrics of all batches. Raises UserError if there are none, or they are
        invalid."""

    def require_records(self) -> None:
        """Raise UserError if there was no batch."""
        if not self.records:
            raise UserError("there are no predictions to evaluate: there was no batch")
