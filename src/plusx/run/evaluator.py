"""The figures of a task on images in their order and as they are, by one process or several."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.run.distributed import DistributedContext
from plusx.tasks.task import Task, compute
from plusx.train.loop import evaluate, evaluating


class Interrupted(Exception):
    """A signal came while images were looked at."""


class Evaluator:
    """Evaluates tasks on a source, time after time; its workers live until the `with` block ends.

    Each process takes whole batches, the first one the first, and rank 0 puts the records of their
    meters in order: a batch is what it is with one process, and so are the metrics, to the bit.
    """

    def __init__(
        self,
        source: Dataset,
        batch_size: int,
        world: DistributedContext,
        make: Callable[[Dataset], Loader],
    ) -> None:
        batch_size = source.modality.most_at_a_time or batch_size
        self.source, self.batch_size, self.world = source, batch_size, world
        self.loader: Loader | None = None
        if world.size == 1:
            self.loader = make(source)
            return
        own = torch.arange(len(source)).split(batch_size)
        mine = [indices for number, indices in enumerate(own) if number % world.size == world.rank]
        if mine:
            self.loader = make(source.subset(torch.cat(mine)))

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *error: object) -> None:
        if self.loader is not None:
            self.loader.close()

    def metrics(self, task: Task) -> dict[str, Any]:
        """What evaluate tells, on every rank. Interrupted: a signal came."""
        if self.world.size == 1:
            return evaluate(task, self._watched())
        self.world.level(task)
        meters = task.meters()
        batches = iter(()) if self.loader is None else self.loader.epoch(0)
        with evaluating(task), torch.inference_mode():
            for _ in range(0, len(self.source), self.batch_size * self.world.size):
                self.world.tick()
                self.world.wait()
                self._refuse_signal()
                batch = next(batches, None)
                if batch is not None:
                    batch = batch.to(task.device)
                    prediction = task.predict(batch)
                    for meter in meters:
                        meter.update(prediction, batch)
        for meter in meters:
            meter.merge(self.world.gather(meter.records))
        metrics = compute(task, meters) if self.world.first else None
        shared: dict[str, Any] = self.world.told(metrics)
        return shared

    def _watched(self) -> Iterator[Batch]:
        assert self.loader is not None
        for batch in self.loader.epoch(0):
            self._refuse_signal()
            yield batch

    def _refuse_signal(self) -> None:
        if self.world.stopping is not None:
            raise Interrupted
