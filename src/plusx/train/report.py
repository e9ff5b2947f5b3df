"""What one step of training tells."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """One update, told after it was made.

    step: how many updates were made, this one included; `state.step` says the same.
    lr: the learning rate of this update.
    loss: the mean over the batch before the update, in the task's own unit.
    seen: what else the task saw on the way; a classifier tells its "error", a share of the batch.
    """

    step: int
    lr: float
    loss: float
    seen: dict[str, float]
