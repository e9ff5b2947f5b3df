"""The benchmarks run, and what they time on both sides is the same work."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from plusx import store


FOLDER = Path(__file__).parents[1] / "benchmarks"
RECORDED = sorted((FOLDER.parent / "results").glob("benchmark_*.json"))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """benchmarks/ is where a script of it runs; threads are as they were afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def timing() -> ModuleType:
    return importlib.import_module("timing")


@pytest.fixture
def training_step() -> ModuleType:
    return importlib.import_module("training_step")


@pytest.fixture
def startup() -> ModuleType:
    return importlib.import_module("startup")


def test_every_contender_runs_once_a_round_in_rotating_order(timing: ModuleType) -> None:
    calls: list[str] = []
    times = timing.in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, 3)
    assert "".join(calls) == "abcbcacab"
    assert {name: len(measured.wall) for name, measured in times.items()} == {
        "a": 3,
        "b": 3,
        "c": 3,
    }


def test_an_interval_keeps_the_pairs_of_a_round(timing: ModuleType) -> None:
    # noise that meets both sides of a round alike leaves nothing of itself in their ratio
    noise = np.random.default_rng(1).lognormal(size=15)
    same = timing.ratio(2 * noise, noise)
    assert (same.value, same.low, same.high) == pytest.approx((2, 2, 2))
    other = timing.ratio(2 * noise, noise[::-1])
    assert other.low < 2 < other.high
    assert timing.median(np.full(10, 0.25)) == timing.Estimate(0.25, 0.25, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "resnet20_b"])
def test_both_training_steps_compute_the_same_weights(
    training_step: ModuleType, model: str
) -> None:
    (case,) = (candidate for candidate in training_step.CASES if candidate.model == model)
    for peer in case.peers:
        pytest.importorskip(peer)
    steps = training_step.contenders(replace(case, size=32, batch_size=8), torch.float64)
    assert set(steps) == {
        "ours",
        *(f"{peer} {way}" for peer in case.peers for way in ("default", "channels_last")),
    }
    apart, seconds = training_step.check_equal(steps, 3)
    assert apart <= 1e-7
    assert set(seconds) == set(steps)


def test_training_steps_with_other_results_are_not_timed(training_step: ModuleType) -> None:
    case = replace(training_step.CASES[0], size=32, batch_size=4, classes=10)
    batches = training_step.training_data(case, torch.float32)
    batches = [replace(batch, inputs=batch.inputs.flatten(1)[:, :12]) for batch in batches]
    steps = {
        "peer": training_step.plain_loop(torch.nn.Linear(12, 10), batches),
        "ours": training_step.plain_loop(torch.nn.Linear(12, 10), batches),
    }
    with pytest.raises(ValueError, match="ours is another network than peer"):
        training_step.check_equal(steps, 2)


@pytest.mark.slow
def test_a_training_step_is_measured_and_recorded(
    training_step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytorchcv")
    out = tmp_path / "result.json"
    command = ["--tiny", "--models", "resnet20_b", "--threads", "1", "--out", str(out)]
    assert training_step.main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    result = store.read_json(out)
    (row,) = result["rows"]
    assert set(row["targets"]) == {"default / ours", "channels_last / ours"}
    assert row["machine_at_best"]["convolution_flops"] > 0
    assert set(result["value"]) == set(result["spread"])
    for name, (low, high) in result["spread"].items():
        assert 0 < low <= result["value"][name] <= high


@pytest.mark.parametrize("command", [["--help"], ["models"], ["describe", "resnet50"]])
def test_quick_commands_import_no_slow_library(startup: ModuleType, command: list[str]) -> None:
    names = startup.loaded(command)
    assert {"plusx", "cyclopts"} <= set(names)
    assert not startup.HEAVY & set(names)


def test_a_missed_limit_is_reported(startup: ModuleType) -> None:
    row = {"name": "plusx models", "limit": 0.3, "seconds": {"value": 0.2}, "loaded": ["rich"]}
    assert startup.missed(row) == ""
    assert "limit is 0.3" in startup.missed(row | {"seconds": {"value": 0.31}})
    assert "loads torch" in startup.missed(row | {"loaded": ["rich", "torch"]})


@pytest.mark.slow
def test_startup_times_are_measured_and_recorded(startup: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert startup.main(["--rounds", "1", "--out", str(out)]) in (
        0,
        1,
    )  # how fast is not asked here
    rows = {row["name"]: row for row in store.read_json(out)["rows"]}
    assert (
        rows["import plusx, over torch"]["seconds"]["value"]
        < rows["import torch"]["seconds"]["value"]
    )
    assert rows["plusx --help"]["seconds"]["value"] > rows["python"]["seconds"]["value"]


@pytest.mark.slow
def test_both_loaders_yield_the_same_pixels() -> None:
    loader = importlib.import_module("loader")
    source, _ = loader.images()
    source = source.subset(range(2048))
    ours = loader.Loader(source, split="train", augment="pad4 crop flip", batch_size=loader.BATCH)
    torch.manual_seed(0)
    for kind in ("PIL", "tensors"):
        loader.check_same(source, ours, loader.peer_loader(source, kind, 1024))


@pytest.mark.slow
def test_loaders_with_other_pixels_are_not_timed() -> None:
    loader = importlib.import_module("loader")
    source, _ = loader.images()
    source = source.subset(range(512))
    other = loader.Loader(source, split="train", augment="pad4 crop", batch_size=loader.BATCH)
    with pytest.raises(AssertionError):
        loader.check_same(source, other, loader.peer_loader(source))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loader", "folders"])
def test_loading_times_are_measured_and_recorded(name: str, tmp_path: Path) -> None:
    benchmark, out = importlib.import_module(name), tmp_path / "result.json"
    if name == "folders":
        pytest.importorskip("simplejpeg")
    assert benchmark.main(["--tiny", "--out", str(out)]) == 0
    result = store.read_json(out)
    assert set(result["value"]) == set(result["spread"])
    assert all(row["ratios"] and row["images_per_second"] for row in result["rows"])
    for target in result["rows"][0]["targets"] if name == "folders" else []:
        assert target["met"] == (target["reached"]["low"] >= target["target"])


def test_a_folder_of_other_pixels_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = importlib.import_module("folders")
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    folders.make_folder(tmp_path / "a", 1)
    source = replace(folders.open_data(tmp_path / "a", split="all"), split="train")
    wrong = replace(source, modality=replace(source.modality, mean=(0.4, 0.4, 0.4)))
    with pytest.raises(ValueError, match="pillow: pixels differ"):
        folders.check_same(wrong, source, source)


@pytest.mark.slow
def test_latency_is_measured_and_recorded(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    inference = importlib.import_module("inference")
    out = tmp_path / "result.json"
    assert inference.main(["--tiny", "--threads", "1", "--out", str(out)]) == 0
    (row,) = store.read_json(out)["rows"]
    assert row["difference"] <= 1
    assert set(row["ratios"]) == {"eager", "channels_last", "ort", "ort still", "openvino"}
    slow = {name: ratio | {"value": 0.5} for name, ratio in row["ratios"].items()}
    assert len(inference.missed(row | {"ratios": slow})) == 2


@pytest.mark.slow
def test_int8_latency_is_measured_and_recorded(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    int8 = importlib.import_module("int8")
    out = tmp_path / "result.json"
    assert int8.main(["--tiny", "--threads", "1", "--out", str(out)]) == 0
    (row,) = store.read_json(out)["rows"]
    assert set(row["speed"]["1"]["1"]) == {"ours", "default", "s8s8"}
    speed = {"1": {"1": {"ours": {"value": 1.5}}}}
    poor = {"ours": {"lost": {"value": 0.004}, "agreement": 0.98}}
    assert len(int8.missed(row | {"speed": speed, "quality": poor})) == 3
    same = int8.share(torch.tensor([1, -1, 0, 0]))
    assert (same.value, same.low < 0 < same.high) == (0, True)


@pytest.mark.slow
def test_memory_is_measured_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = importlib.import_module("memory")
    out = tmp_path / "result.json"
    assert memory.main(["--tiny", "--threads", "1", "--out", str(out)]) == 0
    assert "ours segments" in capsys.readouterr().out
    result = store.read_json(out)
    rows = {(row["model"], row["name"]): row for row in result["rows"]}
    assert rows["resnet50", "ours"]["saved_share"] == pytest.approx(1, abs=1e-3)
    assert rows["resnet50", "ours recompute"]["saved_share"] < 0.6
    assert rows["densenet121", "torchvision memory_efficient"]["live_share"] < 0.9
    assert result["recipe"]["gradients_apart"]["resnet50"]["ours segments"] < 1e-7


class Multiples(torch.nn.Conv2d):
    """A network that takes images whose sides are multiples of 32 only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not any(side % 32 for side in x.shape[-2:])
        return super().forward(x)


def test_segmentation_is_compared_in_equal_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segmentation = importlib.import_module("segmentation")
    net = segmentation.Padded(Multiples(3, 11, 1))
    assert net(torch.zeros(2, 3, 40, 33)).shape == (2, 11, 40, 33)
    monkeypatch.setattr(segmentation, "peer", lambda recipe, num_classes: net)
    monkeypatch.setattr(segmentation, "version", lambda name: "0")
    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for folder, shape in ((split, (40, 48, 3)), (f"{split}annot", (40, 48))):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(draw.integers(11, size=shape, dtype=np.uint8))
                image.save(tmp_path / "camvid" / folder / f"{split}{number}.png")
    out = tmp_path / "result.json"
    arguments = [f"data.path={tmp_path / 'camvid'}", "data.size=[40, 48]", "epochs=1",
                 "batch_size=4", "device.precision=float32", "--seeds", "0", "1", "--threads", "1",
                 "--cells", str(tmp_path / "cells"), "--out", str(out)]  # fmt: skip
    assert segmentation.main(arguments) == 0
    ours, theirs = store.read_json(out)["rows"]
    assert (ours["seeds"], ours["epochs"], ours["count"]) == ([0, 1], 1, 2)
    # the peer is a single layer: it has time for more epochs
    assert theirs["epochs"] > 1
    assert "camvid-segment minus the peer" in capsys.readouterr().out
    modified = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*")}
    assert len(modified) == 5
    assert segmentation.main(arguments) == 0
    assert modified == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*")}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_result_has_command_versions_and_machine(path: Path) -> None:
    result = store.read_json(path)
    assert set(result) - {"figures"} == {
        *("value", "spread", "seeds", "command", "recipe", "versions", "machine", "date", "rows")
    }
    assert result["command"].startswith("python benchmarks/")
    assert result["machine"]["processor_flags"]
    assert "tiny" not in result["command"]
