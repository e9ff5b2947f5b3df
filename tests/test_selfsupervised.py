"""Self-supervised learning: losses of the papers, views, teachers, resuming, probes, bad input."""

import inspect
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import plusx
from plusx import cli, store
from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.errors import UserError
from plusx.grammar.spec import Block, Net, Stage
from plusx.recipe import load_recipe
from plusx.run import load_run
from plusx.run.task_factory import make_training_task
from plusx.selfsupervised import METHODS, losses
from plusx.selfsupervised.method import SelfSupervised, Teacher, TwoViews
from plusx.selfsupervised.moco import MoCo
from plusx.selfsupervised.simsiam import SimSiam
from plusx.tasks.represent import Represent
from plusx.train.loop import evaluate, fit
from plusx.train.optim import make_optimizer
from plusx.train.state import State


MODALITY = ImageModality((8, 8), 1, (0.4,), (0.3,))
SPEC = Net(
    stem="conv3 norm act",
    stem_width=8,
    size=8,
    in_channels=1,
    num_classes=0,
    stages=(Stage(block=Block(body="conv3s norm act drop.1 conv3 norm + act"), depth=1, width=8),),
)
SMALL = {"hidden": 16, "width": 8}
EVERY_METHOD = pytest.mark.parametrize("kind", METHODS)


def method(kind: str, seed: int = 0, **fields: object) -> SelfSupervised:
    torch.manual_seed(seed)
    cls = METHODS[kind]
    small = {k: v for k, v in SMALL.items() if k in cls.__init__.__annotations__}
    small |= {"queue": 12} if kind == "moco" else {}
    return cls(Represent(plusx.nn.build.build(SPEC)), MODALITY, **{**small, **fields})


def make_batch(step: int, images: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(3, (images,), generator=generator).repeat_interleave(2)
    return Batch(torch.randn(2 * images, 1, 8, 8, generator=generator), labels)


def state(kind: str, seed: int = 0, lr: float = 0.01) -> State:
    task = method(kind, seed)
    return State(task, make_optimizer(task, "sgd", lr=lr), seed=7)


def run(of: State, until: int) -> list[float]:
    return [report.loss for report in fit(of, map(make_batch, range(of.step, until)))]


# losses


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
def test_orthogonal_embeddings_have_the_loss_of_chance(temperature: float) -> None:
    z = torch.eye(10)
    assert float(losses.nt_xent(z, temperature)) == pytest.approx(math.log(9), rel=1e-6)
    keys, queue = torch.eye(30)[5:10], torch.eye(30)[10:]
    loss = losses.info_nce(torch.eye(30)[:5], keys, queue, temperature)
    assert float(loss) == pytest.approx(math.log(21), rel=1e-6)


def by_hand(z: Tensor, labels: list[int], temperature: float) -> float:
    """Equation 2 of Khosla et al. 2020, term by term."""
    unit = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        denominator = sum(math.exp(float(unit[i] @ unit[a]) / temperature) for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        logs = [float(unit[i] @ unit[p]) / temperature - math.log(denominator) for p in positives]
        total -= sum(logs) / len(positives)
    return total / len(z)


def test_contrastive_losses_are_those_of_the_papers() -> None:
    z = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    each_image = [0, 0, 1, 1, 2, 2, 3, 3]
    assert float(losses.nt_xent(z, 0.3)) == pytest.approx(by_hand(z, each_image, 0.3), rel=1e-9)
    classes = [0, 0, 1, 1, 0, 0, 1, 1]
    loss = losses.supervised_contrastive(z, torch.tensor(classes), 0.3)
    assert float(loss) == pytest.approx(by_hand(z, classes, 0.3), rel=1e-9)
    same = losses.supervised_contrastive(z, torch.tensor(each_image), 0.3)
    assert float(same) == pytest.approx(float(losses.nt_xent(z, 0.3)), rel=1e-9)


def test_regression_losses_have_their_known_values() -> None:
    z = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert float(losses.negative_cosine(z, 5 * z)) == -1
    assert float(losses.squared_distance(z, 5 * z)) == 0
    assert float(losses.squared_distance(z, -z)) == 4
    assert float(losses.squared_distance(z, z.flip(0))) == 2
    first, second = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(1))
    expected = (F.normalize(first) - F.normalize(second)).square().sum(1).mean()
    assert float(losses.squared_distance(first, second)) == pytest.approx(float(expected))
    assert losses.swapped(torch.arange(6.0)[:, None]).flatten().tolist() == [1, 0, 3, 2, 5, 4]


def test_barlow_is_zero_for_an_identity_and_its_sum_otherwise() -> None:
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]], dtype=torch.float64).T
    columns = signs[:, 1:]  # uncorrelated, of mean 0
    assert float(losses.redundancy(columns, 3 * columns + 1)) == pytest.approx(0, abs=1e-8)
    z, y = torch.randn(2, 50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    correlations = np.corrcoef(z.T, y.T)[:6, 6:]
    diagonal = ((1 - np.diag(correlations)) ** 2).sum()
    rest = (correlations**2).sum() - (np.diag(correlations) ** 2).sum()
    assert float(losses.redundancy(z, y, 0.1)) == pytest.approx(diagonal + 0.1 * rest, rel=1e-3)


def test_spread_is_that_of_the_dimension_and_zero_for_one_vector() -> None:
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert float(losses.spread(z)) == pytest.approx(1 / 8, rel=0.02)
    assert float(losses.spread(torch.ones(10, 64))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [losses.nt_xent, lambda z: losses.redundancy(z[::2], z[1::2])])
def test_a_contrastive_loss_needs_two_images(loss) -> None:
    with pytest.raises(UserError, match="a batch of 1 image"):
        loss(torch.randn(2, 4))


# methods


def test_no_gradient_passes_the_stopped_targets() -> None:
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    for stop, expected in ((True, 0), (False, 1)):
        task = SimSiam(Represent(plusx.nn.build.build(SPEC)), MODALITY, **SMALL, stop_gradient=stop)
        task.project = lambda inputs: leaf  # noqa: B023
        task.predictor = torch.nn.Identity()
        leaf = z.clone().requires_grad_()
        task(make_batch(0, 3)).backward()
        constant = z.clone().requires_grad_()
        losses.negative_cosine(constant, losses.swapped(z)).backward()
        ratio = float((leaf.grad.norm() / constant.grad.norm() - 1).round())
        assert ratio == expected  # both sides of the symmetric loss have the same gradient


@pytest.mark.parametrize("kind", [kind for kind, cls in METHODS.items() if cls.has_teacher])
def test_a_teacher_moves_by_its_momentum_alone(kind: str) -> None:
    of = state(kind)
    task = of.task
    task.train()
    task(make_batch(0)).backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert not any(p.requires_grad for p in task.teacher.parameters())
    before = [p.clone() for p in task.teacher.parameters()]
    run(of, 1)
    originals = [*task.net.parameters(), *task.projector.parameters()]
    moved = 0.0
    for old, new, original in zip(before, task.teacher.parameters(), originals, strict=True):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * original)
        moved += float((new - old).abs().sum())
    assert moved > 0


def test_the_queue_has_the_newest_keys() -> None:
    task = method("moco")
    assert isinstance(task, MoCo)
    task.train()
    start = task.queue.clone()
    sizes = [5, 5, 5]
    keys = []
    for number, images in enumerate(sizes):
        task(make_batch(number, images))
        keys.append(task.keys)
        task.after_step()
    every_key = torch.cat(keys)
    torch.testing.assert_close(task.queue, torch.cat([every_key[12:], every_key[3:12]]))
    assert int(task.position) == 3
    assert not torch.equal(start, task.queue)


@EVERY_METHOD
def test_it_resumes_to_the_bit_and_its_weights_load_without_it(kind: str, tmp_path: Path) -> None:
    whole, first, second = state(kind), state(kind), state(kind, seed=5)
    expected = run(whole, 5)
    run(first, 2)
    store.save_checkpoint(tmp_path, first.step, *first.state_dict())
    torch.manual_seed(123)
    saved = store.load_checkpoint(tmp_path)
    assert saved is not None
    second.load_state_dict(saved.tensors, saved.values)
    assert run(second, 5) == expected[2:]
    resumed = second.task.state_dict()
    for name, value in whole.task.state_dict().items():
        assert torch.equal(value, resumed[name]), name
    alone = plusx.nn.build.build(SPEC)
    alone.load_state_dict(whole.task.net.state_dict(), strict=True)
    inputs = make_batch(9).inputs
    vectors = whole.task.eval().predict(Batch(inputs)).vectors
    torch.testing.assert_close(vectors, F.normalize(alone.eval().embed(inputs), dim=1))


@EVERY_METHOD
def test_a_recipe_has_the_fields_and_defaults_of_the_method(kind: str) -> None:
    table = load_recipe("digits-simclr", [f"method.kind={kind}"]).method
    fields = {name: value for name, value in asdict(table).items() if name != "kind"}
    arguments = inspect.signature(METHODS[kind]).parameters.values()
    assert fields == {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY}


class Mean(TwoViews):
    """A method from outside: the variance of the projections is to be 1."""

    def __init__(self, task, modality, *, hidden: int = 4, width: int = 4):
        super().__init__(task, modality, torch.nn.Linear(8, width), width)

    def forward(self, batch):
        z = self.project(batch.inputs)
        self.observe(z)
        return (z.var(0) - 1).square().mean()


def test_a_method_from_outside_is_a_class_and_its_line(monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "byol", Mean)
    of = state("byol", lr=0.1)
    reported = run(of, 40)
    assert reported[-1] < reported[0]
    metrics = evaluate(of.task, [make_batch(0)])
    assert {"equal_error_rate", "projection_std"} <= set(metrics)


# views


def test_the_views_of_an_image_are_adjacent_and_differ() -> None:
    data = plusx.Loader("digits", split="validation").dataset.subset(range(12))
    with Loader(data, split="train", augment="pad1 crop", batch_size=4, sampler="views") as loader:
        batches = list(loader.epoch(3))
        later = list(loader.epoch(3, start=1))
    assert [len(batch) for batch in batches] == [8, 8, 8]
    labels = torch.cat([batch.known_targets for batch in batches])
    assert torch.equal(labels[0::2], labels[1::2])
    assert sorted(labels[0::2].tolist()) == sorted(data.labels.tolist())
    inputs = torch.cat([batch.inputs for batch in batches])
    assert not torch.equal(inputs[0::2], inputs[1::2])
    assert torch.equal(later[0].inputs, batches[1].inputs)
    shares = []
    for rank in range(2):
        with Loader(
            data, split="train", augment="pad1 crop", batch_size=4, sampler="views", part=(rank, 2)
        ) as loader:
            shares.append(list(loader.epoch(3)))
    for first, second, whole in zip(*shares, batches, strict=True):
        assert torch.equal(torch.cat([first.inputs, second.inputs]), whole.inputs)
        assert len(first) % 2 == len(second) % 2 == 0


# runs


def small_run(*overrides: str) -> list[str]:
    return ["data.train=60", "batch_size=20", "epochs=2", *overrides]


def test_pretrain_then_probe_then_fine_tune(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    overrides = small_run("method.kind=byol")
    assert cli.run(["pretrain", "digits-simclr", *overrides, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"] == ["neighbour_accuracy", "projection_std"]
    assert 0.2 < result["validation"]["neighbour_accuracy"] <= 1
    assert result["validation"]["projection_std"] > 0
    assert "accuracy of nearest neighbours" in (out / "report.html").read_text().lower()
    saved = load_run(out).net.state_dict()
    assert not any(name.startswith(("teacher", "projector", "predictor")) for name in saved)

    assert cli.run(["probe", str(out), "--json"]) == 0
    probed = json.loads(capsys.readouterr().out)
    for probes in (probed, probed["random"]):
        for name in ("linear", "neighbours"):
            assert 0 <= probes[name]["low"] < probes[name]["accuracy"] < probes[name]["high"] <= 1
    for name in ("linear", "neighbours"):
        gain = probed["difference"][name]
        accuracies = probed[name]["accuracy"], probed["random"][name]["accuracy"]
        assert gain["difference"] == pytest.approx(accuracies[0] - accuracies[1])
        assert gain["low"] < gain["difference"] < gain["high"]
    assert probed["clusters"]["clusters"] == 10
    assert probed["split"] == "validation"
    assert not (out / "test_uses.jsonl").exists()

    assert cli.run(["corrupt", str(out), "--images", "5", "--kinds", "fog"]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # before the work: without lines of progress
    assert "pairs of the same and of different classes" in line

    tuned = small_run("task.kind=classify", "method=default", f"net.weights={out}")
    assert cli.run(["train", "digits-simclr", *tuned, "--out", str(tmp_path / "tuned")]) == 0
    assert "accuracy" in json.loads((tmp_path / "tuned" / "result.json").read_text())["validation"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.augment="], "both views of an image are the same"),
        (["data.augment=pad1 centercrop"], "both views of an image are the same"),
        (["batch_size=1"], "it needs two or more at a time"),
        (["optim.accumulation_steps=2"], "not a sum over parts of a batch"),
        (["data.sampler=balanced"], 'needs two views of each image, sampler = "views"'),
        (["task.kind=classify"], 'trains embeddings, not [task] kind = "classify"'),
        (["net.num_classes=10"], "num_classes = 0 in [net]"),
        (["method.kind=simcrl"], "simclr"),
        (["method.kind=nonsense"], "must be simclr, byol"),  # not those of continual learning
        (["method.temperature=0"], "temperature"),
        (["data.mix.kind=mixup"], "not together with [data] mix"),
    ],
)
def test_what_a_method_cannot_have_is_an_error_of_one_line(
    overrides: list[str], message: str, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "run"
    arguments = ["pretrain", "digits-simclr", *overrides, "--out", str(out)]
    assert cli.run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (out / "log.jsonl").exists()


def test_pretrain_refuses_a_recipe_without_a_method(capsys) -> None:
    assert cli.run(["pretrain", "digits"]) == 2
    assert "digits has no [method] of self-supervised learning" in capsys.readouterr().err
    recipe = load_recipe("digits-simclr", ["method=default"])
    with pytest.raises(UserError, match=r"needs a \[method\]"):
        make_training_task(recipe, plusx.nn.build.build(SPEC), Loader("digits").dataset)


def test_methods_name_the_inputs_that_they_cannot_have() -> None:
    oblong = ImageModality((8, 6), 1, (0.4,), (0.3,))
    with pytest.raises(UserError, match="for square images, not images of 8 x 6"):
        METHODS["rotation"](Represent(plusx.nn.build.build(SPEC)), oblong)
    with pytest.raises(UserError, match="embeddings are those of a network without a head"):
        Represent(plusx.create_model("resnet20"))
    unlabelled = Batch(make_batch(0).inputs)
    with pytest.raises(UserError, match="supcon needs one class per input"):
        method("supcon").train()(unlabelled)
    with pytest.raises(UserError, match="embeddings have no loss of their own"):
        Represent(plusx.nn.build.build(SPEC))(make_batch(0))


def test_a_collapse_is_named() -> None:
    task = method("simsiam")
    task.train()
    with torch.no_grad():
        last = [module for module in task.projector if hasattr(module, "bias")][-1]
        last.weight.zero_()
        last.bias.fill_(1.0)
    task(make_batch(0))
    assert float(task.scalars["projection_std"]) == pytest.approx(0, abs=1e-6)
    with pytest.warns(UserWarning, match=r"collapse: .* 0\.35 if they were spread evenly"):
        evaluate(task, [make_batch(0)])


def similar_views(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(32, 1, 8, 8, generator=generator).repeat_interleave(2, 0)
    return Batch(images + 0.3 * torch.randn(images.shape, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize(("stop_gradient", "low", "high"), [(True, 0.9, 1.1), (False, 0.0, 0.5)])
def test_simsiam_collapses_without_its_stopped_gradient(
    stop_gradient: bool, low: float, high: float
) -> None:
    fields = {"hidden": 32, "width": 32, "bottleneck": 8, "stop_gradient": stop_gradient}
    task = method("simsiam", **fields)
    of = State(task, make_optimizer(task, "sgd", lr=0.5, weight_decay=1e-4))
    reports = list(fit(of, map(similar_views, range(60))))
    spreads = [report.scalars["projection_std"] * math.sqrt(32) for report in reports]
    assert spreads[0] > 0.9
    assert low < spreads[-1] < high


def test_teachers_are_separate_from_the_network() -> None:
    net = plusx.nn.build.build(SPEC)
    teacher = Teacher(net, torch.nn.Linear(8, 4), 0.5)
    assert not {id(p) for p in net.parameters()} & {id(p) for p in teacher.parameters()}
