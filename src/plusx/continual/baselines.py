"""What methods are compared with: no measure against forgetting, and all data at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from plusx.continual.method import Memory, Method
from plusx.data.concat import concat
from plusx.data.dataset import Dataset


@dataclass(frozen=True)
class Naive(Method):
    """Training on one task after another: the lower reference."""


@dataclass(frozen=True)
class Joint(Method):
    """Training on the samples of all tasks so far: the upper reference."""

    def training_set(self, parts: Sequence[Dataset], memory: Memory, seed: int) -> Dataset:
        return concat(parts)
