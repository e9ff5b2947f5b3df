"""iCaRL: exemplars by herding, distillation, and prediction by the nearest mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from plusx.continual.buffer import Buffer, replayed
from plusx.continual.distillation import WithOldNetwork
from plusx.continual.method import Memory, Method, Position, Trained, check_buffer
from plusx.data.batch import Batch
from plusx.data.concat import concat
from plusx.data.dataset import Dataset
from plusx.data.prediction import ClassProbabilities, Prediction
from plusx.errors import UserError
from plusx.tasks.classify import at_least_float32
from plusx.tasks.task import Task, Wrapped, forward_pass


class BinaryDistilled(WithOldNetwork):
    """A task whose loss is, for every class so far, the binary cross-entropy of its sigmoid: with
    the label for a class of the current task, with the sigmoid of the old network for an earlier
    one (Rebuffi et al. 2017, algorithm 3). The mean over samples, the sum over classes.

    The loss of the wrapped task is replaced; the inputs of the network are those of that task.
    """

    def __init__(self, task: Task, current: Sequence[int], earlier: Sequence[int]) -> None:
        super().__init__(task)
        self.current, self.earlier = list(current), list(earlier)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        _, inputs, logits = forward_pass(self.task, batch)
        logits, targets = logits.float(), batch.known_targets
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        loss = _binary(logits[:, self.current], targets[:, self.current].float())
        if self.earlier:
            old = self.old_logits(batch, inputs)[:, self.earlier].sigmoid()
            loss = loss + _binary(logits[:, self.earlier], old)
        return loss


def _binary(logits: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


class NearestMean(Wrapped):
    """A task that predicts the class whose mean feature vector is the nearest (Rebuffi et al. 2017,
    algorithm 1). Probabilities are the softmax of minus the squared distances; classes without a
    mean have 0."""

    means: Tensor
    has_mean: Tensor

    def __init__(self, task: Task, means: Float[Tensor, "k w"]) -> None:
        super().__init__(task)
        device = task.device
        self.register_buffer("means", means.to(device), persistent=False)
        self.register_buffer("has_mean", means.to(device).norm(dim=1) > 0, persistent=False)

    def predict(self, batch: Batch) -> Prediction:
        distances = torch.cdist(features(self.task, batch), self.means) ** 2
        return ClassProbabilities((-distances).masked_fill(~self.has_mean, -torch.inf).softmax(1))


@dataclass(frozen=True)
class Icarl(Method):
    """Exemplars of every class so far, `buffer` in all (Rebuffi et al. 2017): they are added to the
    data of a task, their mean features predict, and the old network's outputs are distilled."""

    buffer: int

    scenarios = ("class", "task")
    why = "its exemplars are those of new classes"

    def check(self, parts: Sequence[Dataset]) -> None:
        check_buffer(self.buffer, parts)
        if self.buffer < len(parts[0].classes):
            raise UserError(
                f"[method] buffer = {self.buffer}: at least one exemplar is needed for each of "
                f"{len(parts[0].classes)} classes"
            )

    def training_set(self, parts: Sequence[Dataset], memory: Memory, seed: int) -> Dataset:
        if not any(memory.buffer):
            return parts[-1]
        return concat([parts[-1], replayed(parts, memory.buffer)])

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        return BinaryDistilled(task, position.current, position.earlier)

    def finish(self, trained: Trained) -> Memory:
        position, parts = trained.position, trained.parts
        size = self.buffer // len(position.so_far)
        new: list[int] = []
        labels = parts[-1].labels.cpu()
        for number in position.current:
            members = (labels == number).nonzero().flatten()
            vectors = _all_features(trained, parts[-1].subset(members))
            new += members[herding(vectors, size).cpu()].tolist()
        earlier = [
            _first_of_each_class(part, numbers, size)
            for part, numbers in zip(parts, trained.memory.buffer)
        ]
        buffer: Buffer = (*earlier, tuple(new))
        exemplars = replayed(parts, buffer)
        vectors = _all_features(trained, exemplars)
        labels = exemplars.labels.to(vectors.device)
        means = vectors.new_zeros(len(parts[-1].classes), vectors.shape[1])
        for number in position.so_far:
            means[number] = F.normalize(vectors[labels == number].mean(0), dim=0)
        return Memory(buffer=buffer, tensors={"means": means})

    def predictor(self, task: Task, memory: Memory, position: Position, number: int) -> Task:
        means = memory.tensors["means"].clone()
        if position.scenario == "task":
            others = [c for c in range(len(means)) if c not in position.classes[number]]
            means[others] = 0
        if not means.any():  # of a later task: there are no exemplars yet
            return task
        return NearestMean(task, means)


def herding(vectors: Float[Tensor, "n w"], count: int) -> Int64[Tensor, "m"]:
    """Return `count` samples in an order in which the mean of the first m is, for every m, as near
    as possible to the mean of all (Rebuffi et al. 2017, algorithm 4)."""
    mean, total = vectors.mean(0), torch.zeros_like(vectors[0])
    available = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)
    chosen: list[int] = []
    for step in range(1, min(count, len(vectors)) + 1):
        distances = (mean - (vectors + total) / step).norm(dim=1)
        best = int(distances.masked_fill(~available, torch.inf).argmin())
        chosen.append(best)
        available[best] = False
        total = total + vectors[best]
    return torch.tensor(chosen, dtype=torch.int64)


@torch.no_grad()
def features(task: Task, batch: Batch) -> Float[Tensor, "n w"]:
    """Return the normalised inputs of the network's linear head."""
    captured: list[Tensor] = []
    head = task.net.get_submodule("fc")
    with head.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0])):
        task.predict(batch)
    return F.normalize(at_least_float32(captured[-1]).flatten(1), dim=1)


def _all_features(trained: Trained, dataset: Dataset) -> Float[Tensor, "n w"]:
    return torch.cat([features(trained.task, batch) for batch in trained.batches(dataset)])


def _first_of_each_class(part: Dataset, numbers: Sequence[int], size: int) -> tuple[int, ...]:
    """Return the first `size` of the numbers of every class, in order."""
    counts: dict[int, int] = {}
    chosen = []
    for number in numbers:
        label = part.label(number)
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= size:
            chosen.append(number)
    return tuple(chosen)
