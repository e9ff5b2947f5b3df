"""Experience replay: samples of earlier tasks in every batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from plusx.continual.buffer import balanced, reservoir, with_replay
from plusx.continual.method import Memory, Method, Trained, check_buffer
from plusx.data.dataset import Dataset


POLICIES = {"reservoir": reservoir, "balanced": balanced}


@dataclass(frozen=True)
class Replay(Method):
    """Batches of half new and half replayed samples (Chaudhry et al. 2019).

    buffer: samples of earlier tasks, of all together
    policy: how they are chosen, of POLICIES
    """

    buffer: int
    policy: str

    def check(self, parts: Sequence[Dataset]) -> None:
        check_buffer(self.buffer, parts)

    def training_set(self, parts: Sequence[Dataset], memory: Memory, seed: int) -> Dataset:
        return with_replay(parts, memory.buffer)

    def finish(self, trained: Trained) -> Memory:
        seed = trained.position.seed
        return Memory(buffer=POLICIES[self.policy](trained.parts, self.buffer, seed))
