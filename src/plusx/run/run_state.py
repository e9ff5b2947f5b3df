"""What a run keeps of itself between two starts, besides its state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from plusx import store
from plusx.run.distributed import DistributedContext
from plusx.train.report import Report


@dataclass
class EpochSums:
    """The training figures of an epoch so far, exact in JSON; error None: the task knows none."""

    images: int = 0
    loss: float = 0.0
    error: float | None = 0.0

    def add(self, report: Report, images: int) -> None:
        """Take in a step that saw so many images."""
        self.images += images
        self.loss += report.loss * images
        wrong = report.scalars.get("error")
        self.error = None if wrong is None or self.error is None else self.error + wrong * images

    @property
    def means(self) -> dict[str, float]:
        """What an epoch's line in the log says."""
        images = max(self.images, 1)
        told = {"train_loss": self.loss / images}
        return told if self.error is None else {**told, "train_error": self.error / images}


@runtime_checkable
class Lines(Protocol):
    """A store.Log, or nothing at all."""

    def append(self, record: Mapping[str, Any]) -> None: ...

    def sync(self) -> int: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...


class NoLog:
    """The log of a process that writes none, because another one of its run does."""

    def append(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def sync(self) -> int:
        """Nothing was written."""
        return 0

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """An update can spoil the weights while its loss is still finite; that is never saved.

    FloatingPointError: a weight is not finite, `where` it was found.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FloatingPointError(
                f"{where}: {name} is not finite after the update; the last checkpoint stays"
            )


def checkpoint_state(
    saved: store.Checkpoint | None, world: DistributedContext
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The tensors and values of a checkpoint that rank 0 has read, on every rank."""
    if world.size == 1:
        return None if saved is None else (saved.tensors, saved.values)
    values = world.told(None if saved is None else saved.values)
    if values is None:
        return None
    return world.tensors_told({} if saved is None else saved.tensors), values


def identity(data: dict[str, Any]) -> list[Any]:
    """What of a data.json says which images it was; a warning or a new name is no other data."""
    prints = [data[part] and data[part]["fingerprint"] for part in ("train", "validation")]
    return [*prints, data["classes"], data["preprocessing"]]
