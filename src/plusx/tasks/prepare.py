"""The device, precision and memory format of a task."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.tasks.precision import faster_precision
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
    """Move the task to a device in place, and return it ready to train or to predict.

    device: "auto" selects the first available of CUDA, MPS and CPU.
    precision: "auto" selects bfloat16 if it is faster on this device (`plusx.tasks.precision`),
        else float32. With "bfloat16" and "float16" the returned task is a wrapper that uses
        autocast; the parameters stay float32. Training in float16 needs a scaled loss:
        `GradientStep(scaling=Scaling())`.
    channels_last: store convolution weights with the channels innermost, which is faster for
        typical batches (docs/benchmarks.md) and can be slower for a few small images. Results are
        equal up to rounding.
    compile: compile the network with torch.compile at the first batch (tens of seconds on a CPU).

    Raises UserError for a missing device or an unknown precision.
    """
    require_task(task)
    if precision not in ("auto", "float32", *HALVES):
        raise UserError(
            f"precision is {precision!r}; allowed are 'auto', 'float32', 'bfloat16' and 'float16'"
        )
    task.to(find_device(device))
    if precision == "auto":
        precision = faster_precision(task.device)
    if channels_last:
        _channels_last(task)
    if compile:
        task.net.compile()
    return task if precision == "float32" else Autocast(task, precision)


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of that name. Raises UserError if this machine does not have it."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in available:
        raise UserError(
            f"device {str(name)!r} is not available; this machine has {', '.join(available)}"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {str(name)!r} is not available; CUDA devices are counted from 0 and there are "
            f"{torch.cuda.device_count()}"
        )
    return device


class Autocast(Wrapped):
    """A task computed in half precision where torch considers it safe. Parameters, gradients,
    losses and predictions stay float32 (Micikevicius et al. 2018)."""

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


def _channels_last(module: nn.Module) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim in formats:
            tensor.data = tensor.data.contiguous(memory_format=formats[tensor.ndim])
