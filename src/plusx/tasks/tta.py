"""Test-time augmentation: predictions averaged over views of an input."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.tasks.task import Task, Wrapped


Tta = Literal["none", "flip", "flip-shift"]


class TestTimeAugmented(Wrapped):
    """A task whose prediction is the mean over views of each input.

    "flip": the input and its mirror image; "flip-shift": both, also shifted by a pixel, with the
    six views and the weights of Jordan 2024, section 3.5. Raises UserError if predictions of the
    task cannot be averaged over these views.
    """

    __test__ = False  # not a test class of pytest

    def __init__(self, task: Task, views: Tta) -> None:
        super().__init__(task)
        if views not in task.tta:
            raise UserError(
                f"tta = {views!r}: predictions of this task cannot be averaged over these views; "
                f"allowed is {' or '.join(task.tta)}"
            )
        self.views = views

    def predict(self, batch: Batch) -> Prediction:
        if self.views == "none":
            return self.task.predict(batch)
        centre = self._with_mirror(batch)
        if self.views == "flip":
            return centre
        inputs = batch.inputs
        padded = F.pad(inputs, [1] * 2 * (inputs.ndim - 2), mode="reflect")
        dims = inputs.ndim - 2
        up_left, down_right = (
            self._with_mirror(replace(batch, inputs=padded[(..., *(shift,) * dims)]))
            for shift in (slice(None, -2), slice(2, None))
        )
        return centre.average([centre, up_left, down_right], [0.5, 0.25, 0.25])

    def _with_mirror(self, batch: Batch) -> Prediction:
        prediction = self.task.predict(batch)
        mirror = self.task.predict(replace(batch, inputs=batch.inputs.flip(-1)))
        return prediction.average([prediction, mirror.mirrored()], [0.5, 0.5])

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        if self.views == "none":
            yield from self.task.predict_slabs(batch)
        elif self.views == "flip" and batch.inputs.ndim > 3:  # mirroring does not move slabs
            mirror = replace(batch, inputs=batch.inputs.flip(-1))
            pairs = zip(self.task.predict_slabs(batch), self.task.predict_slabs(mirror))
            for slab, mirrored in pairs:
                yield slab.average([slab, mirrored.mirrored()], [0.5, 0.5])
        else:
            yield self.predict(batch)
