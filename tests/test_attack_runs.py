"""`plusx attack`: rows with intervals, checks, masked gradients, masks and boxes, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import small_run
from page_reader import Page
from plusx import cli
from plusx.attack import ATTACKS
from plusx.attack.ascent import Ascent, content
from plusx.attack.ball import NORMS, Ball
from plusx.attack.checks import run_checks
from plusx.attack.pgd import Pgd
from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.grammar.heads import FasterRcnn, Fcos, UNet
from plusx.models import create_model
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import parse_recipe
from plusx.run import attacking, load_run, train
from plusx.tasks.classify import Classify
from plusx.tasks.detect import Detect
from plusx.tasks.segment import Segment
from plusx.tasks.task import Task
from plusx.train.loop import evaluating


CHECKS = {
    "zero_eps_is_clean",
    "pgd_not_weaker_than_fgsm",
    "unbounded_reaches_zero",
    "white_box_not_weaker_than_transfer",
    "more_steps_not_weaker",
    "no_gradient_masking",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits."""
    folder = tmp_path_factory.mktemp("attack") / "run"
    text = small_run.recipe(120, 64).replace("pad1 crop flip", "").replace("drop.2 ", "")
    text = text.replace("every_steps = 1", "every_steps = 0")
    train(parse_recipe(text), folder, progress=False)
    return folder


def attack(*words: object, capsys: pytest.CaptureFixture[str]) -> dict:
    assert cli.run(["attack", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_checks_and_page(run, capsys, tmp_path):
    out = tmp_path / "out"
    result = attack(
        run, "--attack", "fgsm,pgd", "--eps", "0,0.02,0.1", "--steps", 8, "--images", 100,
        "--checked", 60, "--out", out, capsys=capsys,
    )  # fmt: skip
    rows = {(row["attack"], row["eps"]): row for row in result["rows"]}
    assert {name for name, _ in rows} == {"fgsm", "pgd", "worst"}
    for row in result["rows"]:
        assert row["norm"] == "linf"
        assert 0 <= row["low"] < row["high"] <= 1
        assert row["low"] <= row["accuracy"] <= row["high"]
    assert rows["pgd", 0.1]["steps"] == 8
    clean = result["clean"]["accuracy"]
    assert rows["fgsm", 0]["accuracy"] == rows["pgd", 0]["accuracy"] == clean > 0.6
    assert rows["pgd", 0.1]["accuracy"] < rows["pgd", 0.02]["accuracy"] <= clean
    for eps in (0, 0.02, 0.1):
        accuracies = [rows[name, eps]["accuracy"] for name in ("fgsm", "pgd")]
        assert rows["worst", eps]["accuracy"] <= min(accuracies)
    assert {check["name"] for check in result["checks"]} == CHECKS
    assert all(check["passed"] for check in result["checks"]), result["checks"]
    assert json.loads((out / "attack.json").read_text())["rows"] == result["rows"]
    text = (out / "attack.html").read_text()
    assert len(Page(text).attributes("src")) % 3 == 0  # input, perturbation, perturbed input
    assert "the perturbation, scaled to the full range" in text
    second = attack(
        run, "--attack", "pgd", "--eps", "0.1", "--steps", 8, "--images", 100, "--checked", 0,
        "--out", out, capsys=capsys,
    )  # fmt: skip
    assert second["rows"] == [rows["pgd", 0.1]]
    assert second["checks"] == []


def test_the_promised_command(run, capsys, tmp_path):
    result = attack(
        run, "--attack", "pgd", "--eps", "8/255", "--steps", "5", "--images", "40",
        "--checked", "20", "--out", tmp_path, capsys=capsys,
    )  # fmt: skip
    (row,) = result["rows"]
    assert (row["attack"], row["norm"], row["eps"], row["steps"]) == ("pgd", "linf", 8 / 255, 5)
    assert cli.run(["attack", str(run), "--attack", "square", "--eps", "0.2", "--steps", "20",
                    "--images", "20", "--checked", "0", "--out", str(tmp_path)]) == 0  # fmt: skip
    assert "square" in capsys.readouterr().out


def test_an_onnx_file_is_attacked_by_square_alone(run, capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = tmp_path / "digits.onnx"
    assert cli.run(["export", str(run), "--out", str(onnx)]) == 0
    capsys.readouterr()
    words = ["--data", "digits", "--eps", "0.3", "--steps", 30, "--images", 30, "--out", tmp_path]
    result = attack(onnx, *words, capsys=capsys)
    (row,) = result["rows"]
    assert row["attack"] == "square"
    assert row["accuracy"] < result["clean"]["accuracy"]
    assert any("only Square" in warning for warning in result["warnings"])
    assert [check["name"] for check in result["checks"]] == ["zero_eps_is_clean"]
    assert cli.run(["attack", str(onnx), "--attack", "pgd", "--data", "digits"]) == 2
    assert "'pgd' needs gradients" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "-1/255"], "--eps -1/255: must be a number of 0 or above"),
        (["--eps", "8/0"], "--eps 8/0: must be"),
        (["--eps", "much"], "--eps much: must be"),
        (["--steps", "-3"], "steps = -3: at least 1"),
        (["--steps", "0"], "steps = 0: at least 1"),
        (["--norm", "l1"], "norm = 'l1': allowed are linf and l2"),
        (["--attack", "pdg"], "attack 'pdg': allowed are fgsm, pgd"),
        (["--attack", "square", "--norm", "l2"], "Square is for linf"),
        (["--restarts", "0"], "restarts = 0"),
        (["--images", "0"], "images = 0"),
    ],
)
def test_bad_values_are_named(run, capsys, words, message):
    assert cli.run(["attack", str(run), *words]) == 2
    assert message in capsys.readouterr().err


class Masked(nn.Module):
    """A network that hides its gradients."""

    def __init__(self, run: Path, how: str) -> None:
        super().__init__()
        opened = load_run(run)
        self.net, self.modality, self.how = opened.net.eval(), opened.preprocessing, how

    def forward(self, pixels: Tensor) -> Tensor:
        if self.how == "quantised":
            pixels = (pixels * 16).round() / 16
        if self.how == "random":
            pixels = pixels + 0.02 * torch.randn_like(pixels)
        logits = self.net(self.modality.from_pixels(pixels))
        if self.how == "scaled down":
            return logits * 1e-6
        if self.how == "saturated":
            return logits * 1e4
        return logits.softmax(1) if self.how == "probabilities" else logits


@pytest.mark.parametrize(
    ("how", "sign"),
    [
        ("nothing", ""),
        ("quantised", "the gradient is 0 for 100%"),
        ("scaled down", "nearly equal"),
        ("saturated", "the gradient is 0"),
        ("random", "predictions are random"),
        ("probabilities", "probabilities, not logits"),
    ],
)
def test_masked_gradients_raise_the_flag(run, how, sign):
    net = Masked(run, how)
    with Loader("digits", split="validation", batch_size=60) as loader:
        batch = next(iter(loader.epoch(0)))
    pixels = loader.dataset.modality.to_pixels(batch.inputs)
    with torch.no_grad():
        predicted = net(pixels).argmax(1)
    checks = run_checks(net, pixels, batch.known_targets, predicted, Ball("linf", 0.1), steps=10)
    by_name = {check.name: check for check in checks}
    assert set(by_name) == CHECKS
    assert by_name["no_gradient_masking"].passed == (not sign)
    assert sign in by_name["no_gradient_masking"].detail
    if how == "quantised":
        assert not by_name["unbounded_reaches_zero"].passed


MODALITY = ImageModality((32, 32), 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
BOXES = torch.tensor([[[2.0, 3, 20, 22, 1, 0]], [[4.0, 4, 30, 16, 0, 0]]])


def dense_task(kind: str) -> tuple[Task, Tensor]:
    torch.manual_seed(0)
    backbone = create_model("resnet20", num_classes=10, seed=0)
    heads = {"unet": UNet(width=8), "fcos": Fcos(width=16), "faster-rcnn": FasterRcnn(width=16)}
    net = NetworkWithHead(backbone, heads[kind], 2)
    if kind == "unet":
        return Segment(net), torch.randint(2, (2, 32, 32)).to(torch.uint8)
    return Detect(net), BOXES


@pytest.mark.parametrize("kind", ["unet", "fcos", "faster-rcnn"])
def test_masks_and_boxes_are_attacked_by_ascent_of_the_loss(kind):
    task, targets = dense_task(kind)
    values = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    extras = {"content_size": torch.tensor([[32, 32], [20, 28]])}
    batch = Batch(MODALITY.normalise(values), targets, None, extras)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    modes = [module.training for module in task.modules()]

    def loss(of: Batch) -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return float(task(of))

    with evaluating(task):
        ascent = Ascent.of(Pgd(eps=16 / 255, steps=5))
        perturbed = ascent(task, batch, MODALITY, torch.Generator().manual_seed(0))
        assert loss(perturbed) > loss(batch)
        still = replace(ascent, ball=Ball("linf", 0.0))(task, batch, MODALITY)
    assert torch.equal(still.inputs, batch.inputs)
    change = MODALITY.to_pixels(perturbed.inputs) - MODALITY.to_pixels(batch.inputs)
    assert (NORMS["linf"].size(change) <= 16 / 255 + 1e-6).all()
    padding = ~content(batch).expand_as(batch.inputs)
    assert padding.any()
    assert torch.equal(perturbed.inputs[padding], batch.inputs[padding])
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert [module.training for module in task.modules()] == modes
    assert all(parameter.grad is None for parameter in task.parameters())


def test_a_segmenter_gets_rows_of_its_metric_and_checks():
    task, targets = dense_task("unet")
    values = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    batch = Batch(MODALITY.normalise(values), targets)
    threat = attacking.Threat(kinds=("fgsm", "pgd"), norm="linf", eps=(0.0, 0.1), steps=5)
    attacked = attacking._Ascended(task.eval(), MODALITY, threat, checked=2)
    list(attacked.add(0, batch))
    rows = {(row["attack"], row["eps"]): row["value"] for row in attacked.rows()}
    assert attacked.metric == "mean_iou"
    assert rows["pgd", 0.0] == rows["fgsm", 0.0] == attacked.clean()["value"]
    assert rows["pgd", 0.1] < rows["pgd", 0.0]
    assert all(check.passed for check in attacked.checks())


def test_the_accuracy_of_pyautoattack_is_the_same(run):
    """An independent implementation, on the same images: within 2 of 60."""
    pyautoattack = pytest.importorskip("pyautoattack")
    net = Masked(run, "nothing").eval()
    with Loader("digits", split="validation", batch_size=60) as loader:
        batch = next(iter(loader.epoch(0)))
    pixels, labels = loader.dataset.modality.to_pixels(batch.inputs), batch.known_targets
    for name in ("apgd-ce", "apgd-t"):
        attack = ATTACKS[name](eps=0.06, steps=20)
        ours = attack(net, pixels, labels, torch.Generator().manual_seed(0))
        other = pyautoattack.AutoAttack(
            net, attacks=[name], version="custom", eps=0.06, norm="Linf", seed=0
        )
        other.verbose = False
        for part in (other.apgd, other.apgd_targeted):
            part.n_iter, part.n_restarts = 20, 1
        other.apgd_targeted.n_target_classes = 9
        theirs = other.run_standard_evaluation(pixels, labels, batch_size=60)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        with torch.no_grad():
            right = [int((net(x).argmax(1) == labels).sum()) for x in (ours, theirs)]
        assert 0 < right[0] < 60, right
        assert abs(right[0] - right[1]) <= 2


def test_a_task_of_several_labels_is_attacked_through_its_loss():
    task = Classify(create_model("resnet20", num_classes=3, seed=0), multilabel=True).eval()
    values = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    batch = Batch(MODALITY.normalise(values), torch.eye(4, 3))
    ascent = Ascent.of(Pgd(eps=8 / 255, steps=3))
    perturbed = ascent(task, batch, MODALITY, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(task(perturbed)) > float(task(batch))
