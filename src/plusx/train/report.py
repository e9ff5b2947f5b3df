"""The report of one training step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """One update, reported after it.

    step: the number of updates so far, including this one, as `state.step`.
    lr: the learning rate of this update.
    loss: the mean over the batch before the update.
    scalars: other values of the task; a classifier has its "error", a fraction of the batch.
    """

    step: int
    lr: float
    loss: float
    scalars: dict[str, float]
