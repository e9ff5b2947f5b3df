"""What one step of training reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """One update, reported after it was made.

    step: the number of updates so far, this one included, as `state.step`.
    lr: the learning rate of this update.
    loss: the mean over the batch before the update, in the task's own unit.
    scalars: what else the task measured; a classifier has its "error", a fraction of the batch.
    """

    step: int
    lr: float
    loss: float
    scalars: dict[str, float]
