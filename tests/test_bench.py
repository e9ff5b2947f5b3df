"""What networks cost on this machine: every figure there, whole rounds kept, bad input refused."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from page_reader import Page
from plusx import cli, store
from plusx.bench import bench as module
from plusx.bench.accuracies import known_accuracies
from plusx.bench.bench import Stopped, bench, saved_bytes
from plusx.data.batch import Batch
from plusx.nn.network import Network
from plusx.statistics import median_interval
from plusx.tasks.classify import Classify
from plusx.zoo.cifar import CIFAR


TIMES = {"one": 0.001, "batch": 0.004, "step": 0.01}


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture
def clockless(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is run or timed; who was measured, in turn."""
    names: list[str] = []

    def taken(contender: Any) -> dict[str, float]:
        names.append(contender.name)
        return dict(TIMES)

    monkeypatch.setattr(module, "_round_seconds", taken)
    return names


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60))
def test_median_and_interval_ends_are_measured_values(values: list[float]) -> None:
    interval = median_interval(values)
    assert min(values) <= interval.low <= interval.median <= interval.high <= max(values)
    assert interval.low in values
    assert interval.high in values


def test_the_ranks_of_an_interval_are_those_of_the_binomial_distribution() -> None:
    # published tables of the distribution-free interval (Conover 1999): 2 to 9 of 10, 6 to 15 of 20
    assert median_interval([float(n) for n in range(1, 11)]) == (5.5, 2.0, 9.0, True)
    assert median_interval([float(n) for n in range(1, 21)]) == (10.5, 6.0, 15.0, True)
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, False)


def test_memory_of_the_backward_pass_is_counted_to_the_byte() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 5), torch.nn.Tanh())
    task, batch = Classify(net), Batch(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))
    # the linear layer keeps its input, tanh its output; the loss its logarithms, classes and weight
    size = saved_bytes(task, batch)
    assert size >= 4 * (4 * 6 + 4 * 5 + 4 * 5)
    doubled = Batch(torch.randn(8, 6), torch.zeros(8, dtype=torch.int64))
    assert saved_bytes(task, doubled) == pytest.approx(2 * size, abs=16)
    assert all(parameter.grad is None for parameter in task.parameters())


def test_known_accuracies_have_their_source(tmp_path: Path) -> None:
    accuracies = known_accuracies("resnet20", tmp_path / "none")
    assert accuracies["published"] == {
        "accuracy": 0.9125, "data": "cifar10 test", "source": "He 2015, table 6",
    }  # fmt: skip
    assert accuracies["measured"] is None
    record = {
        "name": "quick",
        "network": "resnet20",
        "metric": "validation accuracy",
        "value": 0.75,
    }
    store.write_json(tmp_path / "quick.json", record)
    (tmp_path / "broken.json").write_text("{")
    assert known_accuracies("resnet20", tmp_path)["measured"] == {
        "accuracy": 0.75, "data": "quick validation", "source": "quick.json",
    }  # fmt: skip
    assert known_accuracies("vdcnn9", tmp_path)["measured"] is None


@pytest.mark.slow
def test_every_round_has_every_network_in_rotating_order(clockless: list[str]) -> None:
    result = bench(["resnet20", "resnet32"], size=8, batch=2, seconds=1e-9, progress=quiet)
    assert result["rounds"] == module.MIN_ROUNDS
    # the first round warms up and is not counted
    assert clockless[:4] == ["resnet20", "resnet32", "resnet32", "resnet20"]
    assert len(clockless) == 2 * (module.MIN_ROUNDS + 1)
    row = result["rows"][1]
    assert row["images_per_second"]["median"] == 2 / TIMES["batch"]
    assert row["input"] == [3, 8, 8]
    assert row["saved_bytes"] > 0


@pytest.mark.slow
def test_a_signal_keeps_complete_rounds(
    tmp_path: Path, clockless: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    round_seconds, count = module._round_seconds, 0

    def interrupted(contender: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == 6:  # the second network of the third round, of which the first warmed up
            signal.raise_signal(signal.SIGINT)
        return round_seconds(contender)

    monkeypatch.setattr(module, "_round_seconds", interrupted)
    result = bench(["resnet20", "resnet32"], tmp_path, size=8, batch=2, seconds=1e6, progress=quiet)
    assert (result["rounds"], result["stopped_by"]) == (1, signal.SIGINT)
    assert store.read_json(tmp_path / "bench.json")["rounds"] == 1
    assert "A signal ended it early" in Page((tmp_path / "bench.html").read_text()).text


@pytest.mark.slow
def test_a_signal_before_the_first_round_writes_nothing(
    tmp_path: Path, clockless: list[str]
) -> None:
    def tell(line: str) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM; no result"):
        bench(["resnet20"], tmp_path / "out", size=8, batch=2, progress=tell)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["resnet21"], {}, "did you mean .*resnet20"),
        (["alexnet"], {"size": 64}, "external module"),
        (["resnet20"], {"batch": 1}, "batch = 1: it must be at least 2"),
        (["resnet20"], {"seconds": 0}, "above 0"),
        (["resnet20"], {"threads": -1}, "threads"),
        (["vgg11"], {"size": 8}, "size = 8: vgg11"),
    ],
)
def test_invalid_arguments_are_refused_before_the_measurement(
    names: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bench(names, progress=quiet, **options)


def test_a_batch_that_does_not_fit_into_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Network, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(Network, "forward", full)
    with pytest.raises(
        RuntimeError, match=r"resnet20: a batch of 64 does not fit.*--batch-size 32"
    ):
        bench(["resnet20"], size=8, batch=64, progress=quiet)


@pytest.mark.slow
def test_the_command_writes_json_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "bench",
        "resnet20",
        "resnet32",
        "--size",
        "8",
        "--batch-size",
        "2",
        "--seconds",
        "0.01",
    ]
    assert cli.run([*arguments, "--threads", "1", "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    saved = store.read_json(tmp_path / "bench.json")
    assert result["rows"] == saved["rows"]
    for row in saved["rows"]:
        for key in ("latency_seconds", "images_per_second", "step_seconds"):
            assert 0 < row[key]["low"] <= row[key]["median"] <= row[key]["high"]
    page = Page((tmp_path / "bench.html").read_text())
    assert "resnet32" in page.text
    # nothing is known of an accuracy on images of another size
    assert "He 2015, table 6" not in page.text
    without_page = ["bench", "resnet20", "--batch-size", "2", "--seconds", "0.01", "--threads", "1"]
    assert cli.run([*without_page, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Saved for backward" in out
    assert "Accuracy published: cifar10 test, He 2015, table 6 (resnet20)." in out


def test_the_default_family_is_of_the_zoo() -> None:
    assert set(module.FAMILY) <= set(CIFAR)
