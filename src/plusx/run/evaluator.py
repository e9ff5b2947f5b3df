"""Evaluation of a task on a data set, by one or several processes."""

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
    """An evaluation was interrupted by a signal."""


class Evaluator:
    """Evaluates tasks on a data set repeatedly; its workers run until the `with` block ends.

    Batches are distributed round-robin over the processes, and rank 0 merges the records of the
    meters in order, so that the metrics are bit-identical to those of one process.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        world: DistributedContext,
        make_loader: Callable[[Dataset], Loader],
    ) -> None:
        batch_size = dataset.modality.evaluation_batch_size or batch_size
        self.world = world
        self.rounds = -(-len(dataset) // (batch_size * world.size))
        batches = torch.arange(len(dataset)).split(batch_size)[world.rank :: world.size]
        self.loader: Loader | None = None
        if world.size == 1:
            self.loader = make_loader(dataset)
            self.rounds = len(self.loader)
        elif batches:
            self.loader = make_loader(dataset.subset(torch.cat(batches)))

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *error: object) -> None:
        if self.loader is not None:
            self.loader.close()

    def metrics(self, task: Task) -> dict[str, Any]:
        """Return the task's metrics on every rank. Raises Interrupted on a signal."""
        if self.world.size == 1:
            return evaluate(task, self._batches())
        self.world.broadcast_buffers(task)
        meters = task.meters()
        with evaluating(task), torch.inference_mode():
            for batch in self._batches():
                batch = batch.to(task.device)
                prediction = task.predict(batch)
                for meter in meters:
                    meter.update(prediction, batch)
        for meter in meters:
            meter.merge(self.world.gather(meter.records))
        metrics: dict[str, Any] = self.world.broadcast(
            compute(task, meters) if self.world.first else None
        )
        return metrics

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches of this process, with a barrier before each of them."""
        batches = iter(()) if self.loader is None else self.loader.epoch(0)
        for _ in range(self.rounds):
            self.world.barrier()
            if self.world.stopping is not None:
                raise Interrupted
            if (batch := next(batches, None)) is not None:
                yield batch
