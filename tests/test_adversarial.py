"""Adversarial training: the loss of perturbed inputs, to the bit after a crash, inside wrappers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import small_run
from plusx import store
from plusx.attack.ascent import Ascent
from plusx.attack.ball import NORMS, Ball
from plusx.attack.pgd import Pgd
from plusx.attack.training import (
    Adversarial,
    AttackMeter,
    FastTraining,
    PgdTraining,
    TradesTraining,
)
from plusx.data.batch import Batch
from plusx.data.modality import ImageModality
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.recipe import load_recipe, parse_recipe, to_toml
from plusx.run import load_run, train
from plusx.run.adversarial import ADVERSARIAL
from plusx.run.distributed import join_processes
from plusx.run.progress import Display
from plusx.run.training import make_trainer
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import Autocast
from plusx.tasks.segment import Segment
from plusx.tasks.task import Task
from plusx.train.loop import evaluate, fit
from plusx.train.optim import make_optimizer
from plusx.train.state import State


MODALITY = ImageModality((8, 8), 1, (0.4,), (0.3,))
BALL = Ball("linf", 0.1)
ASCENT = Ascent(ball=BALL, steps=3, step_size=0.05)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.norm(self.conv(x)).relu()).amax((2, 3)))


def make_batch(step: int, n: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(step)
    values = torch.randint(256, (n, 1, 8, 8), generator=generator)
    return Batch(MODALITY.normalise(values), torch.randint(4, (n,), generator=generator))


def pgd(task: Task) -> Adversarial:
    return PgdTraining(task, MODALITY, ASCENT)


def fast(task: Task) -> Adversarial:
    return FastTraining(task, MODALITY, replace(ASCENT, steps=1))


def trades(task: Task) -> Adversarial:
    return TradesTraining(task, MODALITY, ASCENT)


WRAPPERS: dict[str, Callable[[Task], Task]] = {
    "pgd": pgd,
    "fast": fast,
    "trades": trades,
    "pgd in bfloat16": lambda task: Autocast(pgd(task), "bfloat16"),
    "trades around pgd": lambda task: trades(pgd(task)),
}
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def state(wrap: Callable[[Task], Task], seed: int = 0) -> State:
    torch.manual_seed(seed)
    task = wrap(Classify(Small()))
    return State(task, make_optimizer(task, "sgd", lr=0.05), seed=7)


def run(of: State, until: int) -> list[float]:
    return [report.loss for report in fit(of, map(make_batch, range(of.step, until)))]


def values(of: State) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in of.task.state_dict().items()}


@each_wrapper
def test_it_resumes_to_the_bit_and_its_weights_load_without_wrappers(wrap, tmp_path):
    whole, first, second = state(wrap), state(wrap), state(wrap, seed=5)
    losses = run(whole, 5)
    run(first, 2)
    store.save_checkpoint(tmp_path, first.step, *first.state_dict())
    torch.manual_seed(123)
    saved = store.load_checkpoint(tmp_path)
    second.load_state_dict(saved.tensors, saved.values)
    assert run(second, 5) == losses[2:]
    for name, value in values(whole).items():
        assert torch.equal(value, values(second)[name])
    plain = Classify(Small())
    plain.load_state_dict(whole.task.state_dict(), strict=True)
    alone = Small()
    alone.load_state_dict(whole.task.net.state_dict(), strict=True)


@pytest.mark.parametrize("wrap", [pgd, fast], ids=["pgd", "fast"])
def test_the_loss_is_that_of_the_perturbed_batch_and_the_statistics_too(wrap):
    batch = make_batch(0)
    torch.manual_seed(1)
    task = wrap(Classify(net := Small()))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    task.task.scalars = {"error": torch.tensor(0.5)}
    torch.manual_seed(9)
    perturbed = task.perturbed(batch)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())
    assert task.scalars == {"error": torch.tensor(0.5)}
    change = MODALITY.to_pixels(perturbed.inputs) - MODALITY.to_pixels(batch.inputs)
    assert 0.05 < float(change.abs().max()) <= 0.1 + 1e-6

    after_attack = torch.get_rng_state()
    expected = task.task(perturbed)
    statistics = net.norm.running_mean.clone()
    net.load_state_dict(before)
    torch.manual_seed(9)
    loss = task(batch)
    assert torch.equal(loss, expected)
    assert torch.equal(net.norm.running_mean, statistics)
    assert not torch.equal(torch.get_rng_state(), after_attack)  # dropout drew after the attack
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_trades_is_the_clean_loss_and_the_divergence():
    batch = make_batch(0)
    torch.manual_seed(1)
    net = Small().eval()
    task = trades(Classify(net)).eval()
    torch.manual_seed(2)
    perturbed = task.perturbed(batch)
    clean, other = net(batch.inputs), net(perturbed.inputs)
    probabilities = clean.softmax(1)
    divergence = (probabilities * (clean.log_softmax(1) - other.log_softmax(1))).sum(1).mean()
    torch.manual_seed(2)
    loss = task(batch)
    expected = F.cross_entropy(clean, batch.known_targets) + 6 * divergence
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(task.scalars["divergence"], divergence.detach())
    assert divergence.item() > 0
    moved = MODALITY.to_pixels(perturbed.inputs) - MODALITY.to_pixels(batch.inputs)
    assert (NORMS["linf"].size(moved) <= 0.1 + 1e-6).all()


def test_validation_has_the_accuracy_under_pgd():
    of = state(fast)
    run(of, 10)
    batches = [make_batch(100 + i, 16) for i in range(2)]
    metrics = evaluate(of.task, batches)
    assert list(metrics)[:3] == ["accuracy", "robust_accuracy", "fgsm_accuracy"]
    net = of.task.net.eval()
    correct = 0
    for batch in batches:
        pixels = MODALITY.to_pixels(batch.inputs)
        rng = torch.Generator().manual_seed(0)

        def logits_of(x: Tensor) -> Tensor:
            return net(MODALITY.from_pixels(x))

        attacked = Pgd(eps=0.1, steps=10)(logits_of, pixels, batch.known_targets, rng)
        correct += int((logits_of(attacked).argmax(1) == batch.known_targets).sum())
    assert metrics["robust_accuracy"] == correct / 32 <= metrics["accuracy"]
    off = PgdTraining(Classify(net), MODALITY, ASCENT, evaluate_steps=0)
    assert "robust_accuracy" not in evaluate(off, batches)


def test_catastrophic_overfitting_is_named():
    meter: Meter = AttackMeter(task := fast(Classify(Small())), task.attacks)
    meter.records = [{"count": 10, "robust_accuracy": 5, "fgsm_accuracy": 8}]
    assert meter.compute() == {"robust_accuracy": 0.5, "fgsm_accuracy": 0.8}
    meter.records = [{"count": 10, "robust_accuracy": 1, "fgsm_accuracy": 8}]
    with pytest.warns(UserWarning, match=r"catastrophic overfitting: the accuracy is 80.0% under"):
        meter.compute()


def test_masks_are_trained_with_pgd_and_trades_is_refused():
    net = nn.Conv2d(1, 2, 3, padding=1)
    task = pgd(Segment(net))
    batch = replace(make_batch(0), targets=torch.randint(2, (8, 8, 8)).to(torch.uint8))
    task(batch).backward()
    assert net.weight.grad is not None
    assert task.metrics == Segment(net).metrics
    with pytest.raises(UserError, match="TRADES compares class probabilities"):
        trades(Segment(net))


RECIPE = small_run.recipe(6, 64, data="train = 256").replace(
    "[data]", '[adversarial]\nkind = "{kind}"\neps = "20/255"\nevaluate_steps = 2\n\n[data]'
)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_a_stopped_run_resumes_to_the_bit(kind, tmp_path):
    recipe = parse_recipe(RECIPE.replace("{kind}", kind))
    assert recipe.adversarial.eps == 20 / 255
    assert parse_recipe(to_toml(recipe)) == recipe
    train(recipe, tmp_path / "whole", progress=False)
    (tmp_path / "parts").mkdir()
    with join_processes("cpu", 60) as world:
        trainer = make_trainer(recipe, tmp_path / "parts", world)
        trainer.begin(exact=False, allow_data_change=False)
        with trainer.open_resources():
            trainer.advance(Display(quiet=True), 3)
            trainer.save()
    result = train(recipe, tmp_path / "parts", progress=False)
    assert result["steps"] == 6
    for name in ("log.jsonl", "result.json", "model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert 0 <= result["validation"]["robust_accuracy"] <= result["validation"]["accuracy"]
    assert load_run(tmp_path / "whole").classifies


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"20/255"', '"-1/255"', "\\[adversarial\\] eps"),
        ('"20/255"', "-0.1", "a number of 0 or above"),
        ("evaluate_steps = 2", "steps = 0", "steps = 0: must be at least 1"),
        ("evaluate_steps = 2", 'step_size = "0/255"', "step_size"),
        ("evaluate_steps = 2", 'norm = "l1"', "norm = .l1.: must be linf or l2"),
        ('kind = "pgd"', 'kind = "pdg"', "adversarial"),
        ("evaluate_steps = 2", "beta = 3.0", "beta"),
    ],
)
def test_bad_values_are_named(old, new, message):
    text = RECIPE.replace("{kind}", "pgd")
    assert old in text
    with pytest.raises(UserError, match=message):
        parse_recipe(text.replace(old, new), where="mine.toml")


def test_inputs_without_pixels_are_refused(tmp_path):
    rows = "".join(f"text {i % 7} {i % 3},{'ab'[i % 2]}\n" for i in range(40))
    file: Path = tmp_path / "texts.csv"
    file.write_text("text,label\n" + rows)
    words = [f"data.path={file}", "device.threads=1"]
    recipe = load_recipe("text", words)
    adversarial = parse_recipe(RECIPE.replace("{kind}", "fast")).adversarial
    with pytest.raises(UserError, match=r'\[adversarial\] kind = "fast": .*texts'):
        train(replace(recipe, adversarial=adversarial), tmp_path / "run", progress=False)
