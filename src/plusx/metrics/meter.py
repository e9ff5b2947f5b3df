"""What turns predictions into metrics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError


class Meter(ABC):
    """Takes in batch after batch and computes metrics, as plain numbers and lists.

    A new meter fills in `record`, what it keeps of a batch, and `compute`. Records are dictionaries
    of arrays and plain values, so that processes can send each other theirs.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Take in the prediction for a batch whose targets are known."""
        self.records.append(self.record(prediction, batch))

    def merge(self, records: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Replace the records by those of all processes, where process r of w has had the batches
        r, r + w, r + 2 w, ...; they stand in the order of the batches afterwards.
        """
        rounds = zip_longest(*records)
        self.records = [record for one in rounds for record in one if record is not None]

    @abstractmethod
    def record(self, prediction: Prediction, batch: Batch) -> dict[str, Any]:
        """What is kept of a batch. UserError: targets of another kind than it needs."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The metrics of all batches. UserError: there was none, or they cannot be evaluated."""

    def refuse_none(self) -> None:
        """UserError where no batch was seen."""
        if not self.records:
            raise UserError("there are no predictions to evaluate: not one batch was seen")
