"""Where and how a task computes: its device, its precision, its memory format."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.tasks.precision import quicker_precision
from plusx.tasks.task import Task, Wrapped, require_task


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def prepare(
    task: Task,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    channels_last: bool = True,
    compile: bool = False,  # noqa: A002
) -> Task:
    """Move the task in place, and return it ready to train or to predict.

    device: "auto" is the first of CUDA, MPS and the CPU that is there.
    precision: "auto" is bfloat16 where it is quicker on this device (`plusx.tasks.precision`), else
        float32. With "bfloat16" and "float16" the returned task is a wrapper that computes under
        autocast; the parameters stay float32. Training in float16 needs a scaled loss:
        `GradientStep(scaling=Scaling())`.
    channels_last: keep the weights of convolutions with the channels innermost, which is faster in
        training with usual batches (docs/benchmarks.md); a few small images can be slower. It
        changes no result but for rounding.
    compile: let torch.compile build the network at the first batch (tens of seconds on a CPU).
    UserError: a device that is not there, or a precision that is not known.
    """
    require_task(task)
    if precision not in ("auto", "float32", *HALVES):
        raise UserError(
            f"precision is {precision!r}; allowed are 'auto', 'float32', 'bfloat16' and 'float16'"
        )
    task.to(find_device(device))
    if precision == "auto":
        precision = quicker_precision(task.device)
    if channels_last:
        _channels_last(task.net)
    if compile:
        task.net.compile()
    return task if precision == "float32" else Autocast(task, precision)


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name; UserError where this machine has none."""
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if name == "auto":
        return torch.device(there[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in there:
        raise UserError(f"device {str(name)!r} is not there; this machine has {', '.join(there)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {str(name)!r} is not there; CUDA devices are counted from 0 and there are "
            f"{torch.cuda.device_count()}"
        )
    return device


class Autocast(Wrapped):
    """Another task, computed in a half-precision format where torch holds that to be safe.

    Parameters, gradients, losses and predictions stay float32 (Micikevicius et al. 2018).
    """

    def __init__(self, task: Task, precision: str) -> None:
        super().__init__(task)
        self.precision = precision

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        with torch.autocast(self.device.type, HALVES[self.precision]):
            loss: Tensor = self.task(batch)
        return loss

    def predict(self, batch: Batch) -> Prediction:
        with torch.autocast(self.device.type, HALVES[self.precision]):
            return self.task.predict(batch)

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        with torch.autocast(self.device.type, HALVES[self.precision]):
            yield from self.task.predict_slabs(batch)


def _channels_last(net: nn.Module) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim in formats:
            tensor.data = tensor.data.contiguous(memory_format=formats[tensor.ndim])
