"""What every task keeps to: it learns, it resumes bit for bit, its network stands alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.models import create_model
from plusx.store import load_checkpoint, save_checkpoint
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.train.loop import evaluate, fit
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant
from plusx.train.state import State
from plusx.train.update import GradientStep, Update, with_ema


class Small(nn.Module):
    """All that has a state or a draw: convolutions, batch norm, dropout, a skip, a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (x + self.dropout(self.bn2(self.conv2(x)))).relu()
        return self.fc(x.mean((2, 3)))


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def draw(step: int, multilabel: bool = False) -> Batch:
    """A batch whose classes lie in different corners of the image."""
    generator = torch.Generator().manual_seed(step)
    targets = torch.randint(4, (16,), generator=generator)
    images = 0.3 * torch.randn(16, 1, 8, 8, generator=generator)
    for image, target in zip(images, targets):
        row, column = divmod(int(target), 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0 + float(target)
    return Batch(images, nn.functional.one_hot(targets, 4).float() if multilabel else targets)


def bfloat16(net: nn.Module) -> Task:
    return prepare(Classify(net), device="cpu", precision="bfloat16")


# name: how the task is made around a network, and whether its targets are rows
TASKS: dict[str, tuple[Callable[[nn.Module], Task], bool]] = {
    "classify": (Classify, False),
    "classify, smoothed and weighted": (
        lambda net: Classify(net, label_smoothing=0.1, class_weights=[1.0, 2.0, 1.0, 0.5]),
        False,
    ),
    "classify, several labels": (lambda net: Classify(net, multilabel=True), True),
    "classify, bfloat16": (bfloat16, False),
}
each_task = pytest.mark.parametrize(("make", "rows"), TASKS.values(), ids=TASKS.keys())


def first_state(make: Callable[[nn.Module], Task], seed: int = 0) -> State:
    task = make(small(seed))
    return State(task, make_optimizer(task, "sgd", lr=0.05, nesterov=True), seed=7)


def train(state: State, until: int, rows: bool, update: Update | None = None) -> list[float]:
    batches = (draw(step, rows) for step in range(state.step, until))
    return [report.loss for report in fit(state, batches, constant(0.05), update)]


def bits(state: State) -> dict[str, bytes]:
    tensors, values = state.state_dict()
    content = {
        f"{group}/{name}": tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }
    return {**content, "values": repr(values).encode()}


@each_task
def test_the_loss_is_finite_and_falls_within_30_steps(make, rows):
    losses = train(first_state(make), 30, rows)
    assert torch.tensor(losses).isfinite().all()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@each_task
@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars", "lamb"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(make, rows, kind, tmp_path):
    def fresh(seed):
        task = make(small(seed))
        return State(task, make_optimizer(task, kind, decay_norms=False), seed=7)

    update = with_ema(GradientStep(clip=1.0))
    whole = fresh(0)
    losses = train(whole, 8, rows, update)

    first = fresh(0)
    train(first, 3, rows, update)
    save_checkpoint(tmp_path, first.step, *first.state_dict())
    train(first, 5, rows, update)  # what came after the checkpoint is lost

    torch.manual_seed(123)  # the generators of the new process are elsewhere
    second = fresh(99)
    checkpoint = load_checkpoint(tmp_path)
    second.load_state_dict(checkpoint.tensors, checkpoint.values)
    assert train(second, 8, rows, update) == losses[3:]
    assert bits(second) == bits(whole)


@each_task
def test_the_network_saved_alone_loads_alone(make, rows):
    state = first_state(make)
    train(state, 3, rows)
    alone = small(5)
    alone.load_state_dict(state.task.net.state_dict(), strict=True)
    images = draw(50).inputs
    assert torch.equal(alone.eval()(images), state.task.net.eval()(images))


@each_task
def test_predictions_are_probabilities_and_evaluation_leaves_no_trace(make, rows):
    state = first_state(make)
    train(state, 3, rows)
    state.task.net.bn1.eval()  # a frozen norm stays frozen
    before = {name: value.clone() for name, value in state.task.state_dict().items()}
    modes = [module.training for module in state.task.modules()]

    figures = evaluate(state.task, [draw(100, rows), draw(101, rows)])

    assert figures["count"] == 32
    assert [module.training for module in state.task.modules()] == modes
    assert all(torch.equal(before[n], v) for n, v in state.task.state_dict().items())
    predictions = state.task.eval().predict(draw(100)).tensors()["probabilities"]
    assert predictions.shape == (16, 4)
    assert predictions.is_floating_point()
    assert ((predictions >= 0) & (predictions <= 1)).all()
    if not rows:
        torch.testing.assert_close(predictions.sum(1), torch.ones(16))


def test_a_network_of_the_zoo_trains_and_resumes():
    def fresh(seed):
        task = Classify(create_model("resnet20", num_classes=4, in_channels=1, seed=seed))
        return State(task, make_optimizer(task), seed=7)

    whole, first, second = fresh(0), fresh(0), fresh(1)
    losses = train(whole, 4, rows=False)
    train(first, 2, rows=False)
    second.load_state_dict(*first.state_dict())
    assert train(second, 4, rows=False) == losses[2:]
    assert bits(second) == bits(whole)
    # The same seed gives the same network, and so the same losses.
    assert train(fresh(0), 4, rows=False) == losses
