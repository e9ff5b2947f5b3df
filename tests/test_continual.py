"""Methods of continual learning: their losses and importances against values computed by hand."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import small_run
from plusx import store
from plusx.continual import METHODS
from plusx.continual.adapters import Adapted, Adapters, adapted_weights, centre
from plusx.continual.distillation import distillation_loss
from plusx.continual.er_ace import Asymmetric
from plusx.continual.ewc import Ewc, OnlineEwc, fisher_information
from plusx.continual.icarl import BinaryDistilled, NearestMean, herding
from plusx.continual.lwf import Distilled
from plusx.continual.method import Memory, Position, Trained, buffer_name
from plusx.continual.penalty import WithPenalty
from plusx.continual.restricted import OfTask
from plusx.continual.si import PathIntegral, Si
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, MemoryItems
from plusx.data.modality import ImageModality
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.models import create_model
from plusx.recipe import parse_recipe
from plusx.run import load_run
from plusx.run.folder import load_run as open_run
from plusx.run.sequence import stream
from plusx.tasks.classify import Classify
from plusx.tasks.task import Task, forward_pass
from plusx.train.loop import fit
from plusx.train.optim import make_optimizer
from plusx.train.state import State
from plusx.train.update import GradientStep


POSITION = Position(scenario="class", classes=((0, 1), (2, 3)), task=1, seed=0)


class Linear(nn.Module):
    """Logits W x, with the head that features are taken before."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        values = torch.tensor(weight)
        self.fc = nn.Linear(values.shape[1], values.shape[0], bias=False)
        self.fc.weight = nn.Parameter(values)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Quadratic(Task):
    """The loss half of a (w - c)^2, summed over the weights."""

    def __init__(self, weights: list[float], a: list[float], c: list[float]) -> None:
        super().__init__()
        self.net = nn.Linear(1, len(weights), bias=False)
        self.net.weight = nn.Parameter(torch.tensor(weights)[:, None])
        self.a, self.c = torch.tensor(a)[:, None], torch.tensor(c)[:, None]

    def forward(self, batch: Batch) -> Tensor:
        return (self.a * (self.net.weight - self.c) ** 2).sum() / 2

    def predict(self, batch: Batch) -> Prediction:
        raise NotImplementedError

    def meters(self) -> list[Meter]:
        return []


def batch_of(x: list[list[float]], y: list[int]) -> Batch:
    return Batch(torch.tensor(x), torch.tensor(y))


def test_the_fisher_information_of_softmax_regression():
    # the variance of a class's indicator is p (1 - p), that of the gradient p (1 - p) x^2
    net = Linear([[0.5, -1.0], [0.2, 0.3], [-0.4, 0.8]])
    task, x = Classify(net).eval(), torch.tensor([[1.0, 2.0]])
    batches, rng = [Batch(x.expand(800, 2), None)], torch.Generator().manual_seed(0)
    fisher = fisher_information(task, batches, rng)["fc.weight"]
    p = net(x)[0].softmax(0).detach()
    expected = (p * (1 - p))[:, None] * x**2
    torch.testing.assert_close(fisher, expected, rtol=0.1, atol=0.0)
    fisher = fisher_information(task, batches, rng, classes=(0, 2))["fc.weight"]
    p = net(x)[0, [0, 2]].softmax(0).detach()
    two = (p * (1 - p))[:, None] * x**2
    torch.testing.assert_close(fisher[[0, 2]], two, rtol=0.15, atol=0.0)
    assert not fisher[1].any()


def test_the_penalty_is_half_the_strength_times_the_weighted_squares():
    task = Quadratic([1.0, 3.0], a=[0.0, 0.0], c=[0.0, 0.0])
    terms = [
        ({"weight": torch.tensor([[2.0], [0.5]])}, {"weight": torch.tensor([[0.0], [1.0]])}),
        ({"weight": torch.tensor([[1.0], [0.0]])}, {"weight": torch.tensor([[2.0], [0.0]])}),
    ]
    wrapped = WithPenalty(task, 10.0, terms)
    loss = wrapped(batch_of([[0.0]], [0]))
    # 2 (1 - 0)^2 + 0.5 (3 - 1)^2 + 1 (1 - 2)^2 = 5
    assert float(loss.detach()) == pytest.approx(25.0)
    assert float(wrapped.scalars["penalty"]) == pytest.approx(25.0)
    loss.backward()
    gradient = wrapped.penalty_gradient("weight", task.net.weight.detach())
    torch.testing.assert_close(gradient, task.net.weight.grad)
    assert set(wrapped.state_dict()) == {"net.weight"}


def trained(task: Task, memory: Memory, position: Position, **state: Tensor) -> Trained:
    part = Dataset(
        name="two",
        split="train",
        classes=("a", "b"),
        labels=torch.tensor([0, 1]),
        modality=ImageModality((1, 1), 1, (0.5,), (0.5,)),
        items=MemoryItems(torch.zeros(2, 1, 1, 1, dtype=torch.uint8)),
    )
    return Trained(
        task=task,
        parts=[part],
        memory=memory,
        position=position,
        state=state,
        batches=lambda part: [batch_of([[1.0, 2.0], [0.5, 1.0]], [0, 1])],
    )


def test_ewc_keeps_a_term_for_each_task_and_online_ewc_one():
    task = Classify(Linear([[0.5, -1.0], [0.2, 0.3]])).eval()
    first = replace(POSITION, task=0)
    memory = Ewc(1.0, 200).finish(trained(task, Memory(), first))
    fisher = memory.tensors["fisher.0.fc.weight"]
    memory = Ewc(1.0, 200).finish(trained(task, memory, POSITION))
    assert len(memory.tensors) == 4
    second = memory.tensors["fisher.1.fc.weight"]
    wrapped = Ewc(1.0, 200).wrap(task, memory, replace(POSITION, task=2))
    assert isinstance(wrapped, WithPenalty)
    assert len(wrapped.terms("fc.weight")) == 2
    online = OnlineEwc(1.0, 200, decay=0.5)
    memory = online.finish(trained(task, Memory(), first))
    memory = online.finish(trained(task, memory, POSITION))
    torch.testing.assert_close(memory.tensors["fisher.fc.weight"], second + 0.5 * fisher)
    wrapped = online.wrap(task, memory, POSITION)
    assert isinstance(wrapped, WithPenalty)
    assert len(wrapped.terms("fc.weight")) == 1


def test_the_path_integral_is_the_decrease_of_the_loss():
    a, c = [1.0, 4.0], [2.0, -1.0]
    task = Quadratic([0.0, 0.0], a=a, c=c)
    strong = {"weight": torch.tensor([[0.5], [0.0]])}, {"weight": torch.tensor([[0.0], [0.0]])}
    wrapped = PathIntegral(task, 3.0, [strong])
    optimizer = make_optimizer(wrapped, "sgd", lr=1e-3, momentum=0.0, weight_decay=0.0)
    clipped = GradientStep(clip=3.0)  # which the path integral does not depend on
    for _ in fit(State(wrapped, optimizer), [batch_of([[0.0]], [0])] * 200, 1e-3, clipped):
        pass
    end = task.net.weight.detach().flatten()
    decrease = [0.5 * a[i] * (c[i] ** 2 - (float(end[i]) - c[i]) ** 2) for i in range(2)]
    path = wrapped.state_dict()[buffer_name("path", "net.weight".removeprefix("net."))].flatten()
    assert path.tolist() == pytest.approx(decrease, rel=5e-3)
    state = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    before = Memory(tensors={"importance.weight": torch.tensor([[0.5], [0.0]])})
    memory = Si(3.0, 0.1).finish(trained(task, before, POSITION, **state))
    expected = path / (end**2 + 0.1) + torch.tensor([0.5, 0.0])
    torch.testing.assert_close(memory.tensors["importance.weight"].flatten(), expected)
    torch.testing.assert_close(memory.tensors["anchor.weight"].flatten(), end)


def test_a_path_integral_continues_from_its_state():
    def run(steps: int, state: tuple[Any, Any] | None = None) -> State:
        task = PathIntegral(Quadratic([0.0, 0.0], a=[1.0, 4.0], c=[2.0, -1.0]), 0.0, [])
        result = State(task, make_optimizer(task, "sgd", lr=0.1))
        if state is not None:
            result.load_state_dict(*state)
        for _ in fit(result, [batch_of([[0.0]], [0])] * steps, 0.1):
            pass
        return result

    whole, half = run(6), run(3)
    tensors, values = half.state_dict()
    resumed = run(
        3, ({g: {n: t.clone() for n, t in ts.items()} for g, ts in tensors.items()}, values)
    )
    for name, tensor in whole.task.state_dict().items():
        assert torch.equal(tensor, resumed.task.state_dict()[name]), name


def test_the_distillation_loss_at_a_temperature():
    # softmax([0, 2 ln 3] / 2) = [1/4, 3/4] against [1/2, 1/2]
    logits = torch.tensor([[0.0, 2 * math.log(3), 7.0]])
    old = torch.tensor([[1.0, 1.0, -3.0]])
    expected = -(math.log(0.25) + math.log(0.75)) / 2
    assert float(distillation_loss(logits, old, 2.0, [(0, 1)])) == pytest.approx(expected)
    # a group of one class has nothing to distil; groups are added
    assert float(distillation_loss(logits, old, 2.0, [(0, 1), (2,)])) == pytest.approx(expected)
    assert float(distillation_loss(logits, old, 2.0, [(0, 1), (0, 1)])) == pytest.approx(
        2 * expected
    )


def test_lwf_adds_the_distillation_of_the_network_before_it():
    net = Linear([[0.5, -1.0], [0.2, 0.3], [-0.4, 0.8]])
    task = Distilled(Classify(net), 3.0, 2.0, [(0, 1)])
    batch = batch_of([[1.0, 2.0], [-0.5, 0.25]], [2, 2])
    old = net(batch.inputs).detach()
    with torch.no_grad():
        net.fc.weight += torch.tensor([[0.1, 0.0], [0.0, -0.2], [0.3, 0.3]])
    loss = task(batch)
    logits = net(batch.inputs)
    expected = F.cross_entropy(logits, torch.tensor([2, 2])) + 3 * distillation_loss(
        logits, old, 2.0, [(0, 1)]
    )
    torch.testing.assert_close(loss, expected)
    assert set(task.state_dict()) == {"net.fc.weight"}


def test_herding_is_that_of_a_direct_search():
    vectors = torch.from_numpy(np.random.default_rng(1).normal(size=(30, 5))).float()
    mean, chosen = vectors.mean(0), []
    for _ in range(8):
        rest = [i for i in range(30) if i not in chosen]
        chosen.append(min(rest, key=lambda i: float((mean - vectors[[*chosen, i]].mean(0)).norm())))
    assert herding(vectors, 8).tolist() == chosen
    assert sorted(herding(vectors[:4], 9).tolist()) == [0, 1, 2, 3]


def test_the_loss_of_icarl():
    net = Linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    task = BinaryDistilled(Classify(net), current=[2], earlier=[0, 1])
    with torch.no_grad():
        net.fc.weight[0] = torch.tensor([0.0, 0.0])
    loss = task(batch_of([[1.0, 2.0]], [2]))
    logits, old = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([1.0, 2.0]).sigmoid()
    expected = F.binary_cross_entropy_with_logits(
        logits, torch.tensor([*old, 1.0]), reduction="sum"
    )
    assert float(loss.detach()) == pytest.approx(float(expected))


def test_the_nearest_mean_predicts():
    task = Classify(Linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).eval()
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    prediction: Any = NearestMean(task, means).predict(batch_of([[5.0, 1.0], [1.0, 3.0]], [0, 0]))
    assert prediction.probabilities.argmax(1).tolist() == [0, 1]
    assert prediction.probabilities[:, 2].tolist() == [0, 0]
    x = F.normalize(torch.tensor([5.0, 1.0]), dim=0)
    distances = torch.stack([(x - means[i]).square().sum() for i in (0, 1)])
    torch.testing.assert_close(prediction.probabilities[0, :2], (-distances).softmax(0))


def test_new_samples_compete_among_the_new_classes_only():
    net = Linear([[0.5, -1.0], [0.2, 0.3], [-0.4, 0.8], [1.0, 0.1]])
    position = replace(POSITION, classes=((0, 1), (2,), (3,)))
    task = Asymmetric(Classify(net), position)
    x = [[1.0, 2.0], [-0.5, 0.25]]
    loss = task(batch_of(x, [2, 0]))
    logits = net(torch.tensor(x))
    # the new sample has one class to choose from; the replayed one has three, without class 3
    expected = F.cross_entropy(logits[1:, :3], torch.tensor([0])) / 2
    torch.testing.assert_close(loss, expected)
    # two replayed samples of two classes: one of the new samples is like a replayed one
    more = batch_of([x[1], x[0], x[0], x[1]], [0, 2, 2, 1])
    rows, labels = net(more.inputs)[[0, 1, 3], :3], torch.tensor([0, 2, 1])
    torch.testing.assert_close(task(more), F.cross_entropy(rows, labels) * 3 / 4)
    loss.backward()
    assert not net.fc.weight.grad[3].any()


def test_with_the_task_given_decisions_are_among_its_classes():
    net = Linear([[0.5, -1.0], [0.2, 0.3], [-0.4, 0.8], [1.0, 0.1]])
    task = OfTask(Classify(net), replace(POSITION, scenario="task"))
    x = torch.tensor([[1.0, 2.0], [-0.5, 0.25]])
    loss = task(Batch(x, torch.tensor([3, 0])))
    logits = net(x)
    expected = [
        F.cross_entropy(logits[:1, 2:], torch.tensor([1])),
        F.cross_entropy(logits[1:, :2], torch.tensor([0])),
    ]
    torch.testing.assert_close(loss, sum(expected) / 2)
    for number, classes in enumerate(POSITION.classes):
        of_task = OfTask(Classify(net), POSITION, number)
        prediction: Any = of_task.predict(Batch(x, None))
        torch.testing.assert_close(
            prediction.probabilities[:, list(classes)], logits[:, list(classes)].softmax(1)
        )
    with pytest.raises(UserError, match="label_smoothing"):
        OfTask(Classify(net, label_smoothing=0.1), POSITION)


def small_net(seed: int = 0) -> nn.Module:
    return create_model("resnet20", num_classes=4, in_channels=1, seed=seed)


def test_an_adapter_is_a_parallel_convolution_and_nothing_else_changes():
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    task = Adapted(Classify(net))
    optimizer = make_optimizer(task, "sgd", lr=0.1, weight_decay=0.1)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [Batch(x, torch.arange(8) % 4)] * 3
    for _ in fit(State(task, optimizer), batches, 0.1):
        pass
    adapted = adapted_weights(net)
    assert len(adapted) == 9  # one in each block
    for name, tensor in net.state_dict().items():
        if name in adapted:
            difference = tensor - before[name]
            assert centre(difference).any()
            centre(difference).zero_()
            assert not difference.any(), name
        elif "bn" not in name and "norm" not in name and not name.startswith("fc"):
            assert torch.equal(tensor, before[name]), name
    conv = net.get_submodule(adapted[0].removesuffix(".weight"))
    maps = torch.randn(2, conv.in_channels, 8, 8)
    old = F.conv2d(maps, before[adapted[0]], padding=1)
    adapter = (centre(conv.weight) - centre(before[adapted[0]]))[..., None, None]
    parallel = old + F.conv2d(maps, adapter)
    torch.testing.assert_close(conv(maps), parallel, rtol=1e-4, atol=1e-5)


def test_adapters_forget_nothing_to_the_bit():
    net, method = small_net(), Adapters()
    memory, logits = Memory(), {}
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for number in range(2):
        position = replace(POSITION, scenario="task", task=number)
        task = method.wrap(Classify(net), memory, position)
        optimizer = make_optimizer(task, "sgd", lr=0.1)
        targets = torch.tensor(POSITION.classes[number])[torch.arange(8) % 2]
        for _ in fit(State(task, optimizer), [Batch(x, targets)] * 2, 0.1):
            pass
        logits[number] = net.eval()(x).detach()
        net.requires_grad_(True)
        memory = method.finish(trained(Classify(net), memory, position))
        memory = Memory(tensors={name: t.clone() for name, t in memory.tensors.items()})
    assert not torch.equal(logits[0], logits[1])
    other = small_net(seed=5)
    for number, classes in enumerate(POSITION.classes):
        task = method.predictor(Classify(other).eval(), memory, position, number)
        rows = list(classes)
        assert torch.equal(task.net(x)[:, rows], logits[number][:, rows])
    added = sum(t.numel() for name, t in memory.tensors.items() if name.startswith("task.1."))
    assert added < 0.1 * sum(p.numel() for p in net.parameters())


def test_adapters_that_would_be_too_large_are_refused():
    net = nn.Sequential()
    net.stem, net.conv, net.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 4)
    with pytest.raises(UserError, match="of the 208 parameters"):
        Adapters().wrap(Classify(net), Memory(), POSITION)


def test_the_loss_comes_with_inputs_and_output_of_the_network():
    net = Linear([[0.5, -1.0], [0.2, 0.3]])
    batch = batch_of([[1.0, 2.0]], [1])
    loss, inputs, output = forward_pass(Classify(net), batch)
    assert inputs[0] is batch.inputs
    torch.testing.assert_close(loss, F.cross_entropy(output, torch.tensor([1])))
    assert not net._forward_hooks


RECIPE = (
    small_run.recipe(4, 24, data='classes = ["0", "1", "2", "3"]\nper_class = 24')
    .replace("num_classes = 10", "num_classes = 4")
    .replace("drop.2 ", "")
)
TABLES = """
[stream]
scenario = "{scenario}"
tasks = 2

[method]
kind = "{kind}"

[evaluate]
every = 0
train_set = false
"""
ADVERSARIAL = '[adversarial]\nkind = "pgd"\neps = 0.1\nsteps = 1\nevaluate_steps = 0\n'


@pytest.mark.slow
def test_icarl_predicts_a_later_task_by_its_network():
    task = Classify(nn.Linear(2, 4))
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    position = replace(POSITION, scenario="task", task=0)
    memory = Memory(tensors={"means": means})
    icarl = METHODS["icarl"](buffer=4)
    assert isinstance(icarl.predictor(task, memory, position, 0), NearestMean)
    assert icarl.predictor(task, memory, position, 1) is task


@pytest.mark.parametrize("kind", ["ewc", "si", "icarl", "adapters"])
def test_methods_around_adversarial_training_resumes_to_the_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kind in METHODS
    scenario = "task" if kind == "adapters" else "class"
    text = RECIPE + ADVERSARIAL + TABLES.format(scenario=scenario, kind=kind)
    if kind == "adapters":
        text = text.replace("width = 8\n", "width = 16\n")
    overrides = ["method.buffer=12"] if kind == "icarl" else []
    recipe = parse_recipe(text, overrides)
    whole = stream(recipe, tmp_path / "whole", seeds=[0])
    save = store.save_checkpoint
    count = 0

    def stop_after_two_steps_of_a_task(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        save(*args, **kwargs)
        count += 1
        if count in (2, 7):
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_checkpoint", stop_after_two_steps_of_a_task)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stream(recipe, tmp_path / "stopped", seeds=[0])
        unfinished = max((tmp_path / "stopped" / "seed-0").glob("task-*"))
        assert not load_run(unfinished).finished
    monkeypatch.undo()
    resumed = stream(recipe, tmp_path / "stopped", seeds=[0])
    assert resumed["matrix"] == whole["matrix"]
    for task in ("task-1", "task-2"):
        for name in ("model.safetensors", "memory.safetensors", "log.jsonl"):
            first, second = (
                tmp_path / out / "seed-0" / task / name for out in ("whole", "stopped")
            )
            assert first.read_bytes() == second.read_bytes(), (task, name)
    run = open_run(tmp_path / "whole" / "seed-0" / "task-2" / "model.safetensors")
    assert type(run.task) is Classify
