"""Elastic weight consolidation: a penalty by the Fisher information of the weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plusx.continual.method import Memory, Method, Position, Trained
from plusx.continual.penalty import WithPenalty
from plusx.data.batch import Batch
from plusx.data.rng import permutation
from plusx.tasks.task import Task, run_net


_PURPOSE = 1 << 39  # of the choice of samples


@dataclass(frozen=True)
class Ewc(Method):
    """A penalty for each task so far (Kirkpatrick et al. 2017, equation 3): half of `strength`
    times its Fisher information, times the squared distance to the weights after it.

    samples: of a task, from which the Fisher information is estimated
    """

    strength: float
    samples: int

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        terms = [
            (memory.tensors_of(f"fisher.{number}."), memory.tensors_of(f"anchor.{number}."))
            for number in range(position.task)
        ]
        return WithPenalty(task, self.strength, terms) if terms else task

    def finish(self, trained: Trained) -> Memory:
        number = trained.position.task
        fisher = fisher_of(trained, self.samples)
        added = {f"fisher.{number}.{name}": value for name, value in fisher.items()}
        added |= {
            f"anchor.{number}.{name}": value for name, value in _weights(trained.task).items()
        }
        return Memory(tensors={**trained.memory.tensors, **added})


@dataclass(frozen=True)
class OnlineEwc(Method):
    """One penalty for all tasks so far, by the distance to the latest weights and a running sum of
    the Fisher informations: every task multiplies the earlier sum by `decay` (Schwarz et al. 2018,
    section 3)."""

    strength: float
    samples: int
    decay: float

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        if not memory.tensors:
            return task
        terms = [(memory.tensors_of("fisher."), memory.tensors_of("anchor."))]
        return WithPenalty(task, self.strength, terms)

    def finish(self, trained: Trained) -> Memory:
        before = trained.memory.tensors_of("fisher.")
        fisher = {
            name: value + self.decay * before[name] if name in before else value
            for name, value in fisher_of(trained, self.samples).items()
        }
        tensors = {f"fisher.{name}": value for name, value in fisher.items()}
        tensors |= {f"anchor.{name}": value for name, value in _weights(trained.task).items()}
        return Memory(tensors=tensors)


def fisher_of(trained: Trained, count: int) -> dict[str, Tensor]:
    """Return the Fisher information of `count` samples of the task, chosen by the seed."""
    part, position = trained.parts[-1], trained.position
    order = permutation(len(part), position.seed ^ _PURPOSE, position.task)
    chosen = part.subset(sorted(order[:count].tolist()))
    classes = position.current if position.scenario == "task" else None
    rng = torch.Generator().manual_seed((position.seed << 16) + position.task)
    return fisher_information(trained.task, trained.batches(chosen), rng, classes)


def fisher_information(
    task: Task,
    batches: Iterable[Batch],
    rng: torch.Generator,
    classes: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information matrix of the weights, by name: the mean over
    samples of the squared gradient of the log-probability of a class, which is drawn from the
    network's prediction (Kirkpatrick et al. 2017; Martens 2020, section 5). The task predicts in
    its current mode.

    classes: of which one is predicted; None: all
    """
    weights = {name: p for name, p in task.net.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    count = 0
    for sample in (sample for batch in batches for sample in batch.split(len(batch))):
        logits = run_net(task.net, sample).float()
        logs = (logits if classes is None else logits[:, list(classes)]).log_softmax(1)[0]
        label = int(torch.multinomial(logs.detach().exp().cpu(), 1, generator=rng))
        gradients = torch.autograd.grad(logs[label], list(weights.values()), allow_unused=True)
        for sums, gradient in zip(total.values(), gradients):
            if gradient is not None:
                sums += gradient**2
        count += 1
    return {name: sums / max(count, 1) for name, sums in total.items()}


def _weights(task: Task) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in task.net.named_parameters() if p.requires_grad}
