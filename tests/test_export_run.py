"""From a run to an ONNX file through the commands, and the same answers from both."""

import csv
import json
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import plusx
from plusx import run, zoo
from plusx.cli import run as command
from plusx.weights import save_network
from test_export import stirred
from zoo_shrunken import shrunken


pytest.importorskip("onnxruntime")

TRAINED = ["digits-resnet20", "steps=30", "batch_size=32", "device.threads=1", "net.base=resnet20"]


@pytest.fixture(autouse=True)
def threads() -> None:
    torch.set_num_threads(1)


def json_of(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    """What a command printed with --json, or its standard error where it has to fail."""
    capsys.readouterr()
    texts = [str(argument) for argument in arguments]
    assert command([*texts, "--json"]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out) if code == 0 else captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the digits."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert command(["train", *TRAINED, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(3)
    for number in range(9):
        pixels = draws.integers(0, 256, (8 + number, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def probabilities(predictions: dict[str, Any]) -> np.ndarray:
    return np.array([row["probabilities"] for row in predictions["predictions"]])


@pytest.mark.slow
def test_a_run_its_safetensors_and_its_onnx_file_predict_alike(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = tmp_path / "files" / "digits.onnx"  # the folder is made
    exported = json_of(capsys, "export", trained, "--out", onnx)
    assert 0 < exported["error"] <= exported["allowed"]
    assert exported["bytes"] == onnx.stat().st_size
    assert (exported["model"], exported["input"], exported["warnings"]) == (
        "resnet20",
        [1, 8, 8],
        [],
    )
    assert os.listdir(onnx.parent) == ["digits.onnx"]
    answers = [
        json_of(capsys, "predict", each, images)
        for each in (trained, trained / "model.safetensors", onnx)
    ]
    assert len({json.dumps(each["classes"]) for each in answers}) == 1
    first, *others = map(probabilities, answers)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)  # sums in another order
    labels = [[row["label"] for row in each["predictions"]] for each in answers]
    assert labels[0] == labels[1] == labels[2]
    figures = [
        json_of(capsys, "evaluate", each, "--data", "digits", "--tta", "flip")
        for each in (trained / "model.safetensors", onnx)
    ]
    assert figures[1]["confusion"] == figures[0]["confusion"]
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-4)
    assert json_of(capsys, "predict", onnx, images, "--out", tmp_path / "out")["failed"] == []
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 10


@pytest.mark.slow
def test_int8_export_of_a_run_reports_its_cost(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = tmp_path / "digits-int8.onnx"
    exported = json_of(capsys, "export", trained, "--int8", "--out", onnx)
    int8 = exported["int8"]
    assert (int8["images"], int8["held"]) == (256, 150)  # 300 digits are kept to validate
    assert int8["count"] == 150
    assert 0.9 < int8["agreement"] <= 1
    assert abs(int8["accuracy"] - int8["accuracy_float32"]) <= 1 - int8["agreement"] + 1e-9
    assert int8["bytes"] < 0.4 * int8["bytes_float32"]
    assert int8["speed"] > 0
    assert {trial["calibration"] for trial in int8["trials"]} >= {int8["calibration"]}
    assert os.listdir(tmp_path) == ["digits-int8.onnx"]
    assert not (trained / "test_uses.jsonl").exists()
    exact, rounded = (probabilities(json_of(capsys, "predict", p, images)) for p in (trained, onnx))
    assert 0 < np.abs(exact - rounded).max() < 0.5
    assert command(["export", str(trained), "--int8", "--out", str(onnx)]) == 0
    output = capsys.readouterr().out
    assert f"{int8['images']} images for training" in output
    assert "have the same class" in output


@pytest.mark.slow
def test_unsupported_options_of_a_file_are_named(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = tmp_path / "digits.onnx"
    json_of(capsys, "export", trained, "--out", onnx)
    error = json_of(capsys, "explain", onnx, images, "--out", tmp_path / "why", code=2)
    assert "without gradients" in error
    assert "already an ONNX file" in json_of(
        capsys, "export", onnx, "--out", tmp_path / "x.onnx", code=2
    )
    assert "give the data with --data" in json_of(capsys, "evaluate", onnx, code=2)
    whole = onnx.read_bytes()
    onnx.write_bytes(whole[: len(whole) // 2])
    assert "is corrupt" in json_of(capsys, "predict", onnx, images, code=2)
    before = [*tmp_path.iterdir()]
    for arguments, reason in (
        (["--out", tmp_path / "x.pt"], "must end with .onnx"),
        (["--out", tmp_path / "x.onnx", "--data", "digits"], "only with --int8"),
    ):
        assert reason in json_of(capsys, "export", trained, *arguments, code=2)
    assert [*tmp_path.iterdir()] == before


@pytest.mark.slow
def test_too_few_calibration_images_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = replace(shrunken(zoo.find("resnet20"), width=8, depth=1), num_classes=2)
    net = stirred(plusx.create_model(spec, seed=0))
    preprocessing = {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    weights = tmp_path / "net.safetensors"
    save_network(net, weights, preprocessing=preprocessing, classes=["a", "b"])
    photos = plant(tmp_path / "photos", range(16))
    arguments = ["export", weights, "--int8", "--data", photos, "--out", tmp_path / "net.onnx"]
    assert "13 inputs for calibration: at least 16" in json_of(capsys, *arguments, code=2)
    assert not (tmp_path / "net.onnx").exists()
    plant(photos, range(16, 40))
    exported = json_of(capsys, *arguments)
    assert exported["int8"]["images"] == 32
    assert any("only 32 images for calibration" in warning for warning in exported["warnings"])


def plant(root: Path, numbers: Sequence[int]) -> Path:
    draws = np.random.default_rng(list(numbers))
    for number in numbers:
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return root


@pytest.mark.slow
def test_a_file_that_fails_its_check_is_not_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plusx.export import graph
    from plusx.run.exporting import export_onnx

    onnx = tmp_path / "digits.onnx"
    onnx.write_bytes(b"an older one")
    right = torch.onnx.export

    def wrong(net: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        changed = deepcopy(net)
        with torch.no_grad():
            changed.fc.weight.mul_(1.01)
        return right(changed, *arguments, **options)

    monkeypatch.setattr(graph.torch.onnx, "export", wrong)
    with pytest.raises(RuntimeError, match="outputs of the file differ from the network"):
        export_onnx(trained, onnx)
    assert onnx.read_bytes() == b"an older one"
    assert os.listdir(tmp_path) == ["digits.onnx"]


@pytest.mark.slow
def test_networks_of_other_inputs_are_exported_but_refuse_images(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = shrunken(zoo.find("vdcnn9"), width=8, depth=1)
    weights, onnx = tmp_path / "text.safetensors", tmp_path / "text.onnx"
    save_network(stirred(plusx.create_model(spec, seed=0)), weights, classes=list("abcd"))
    exported = json_of(capsys, "export", weights, "--out", onnx)
    assert exported["input"] == [1024]
    assert "does not state its preprocessing" in json_of(capsys, "predict", onnx, images, code=2)
    error = json_of(capsys, "export", weights, "--int8", "--out", onnx, code=2)
    assert "needs a network that states its preprocessing" in error


@pytest.mark.slow
def test_the_python_function_returns_what_the_command_prints(trained: Path, tmp_path: Path) -> None:
    exported = run.export_onnx(trained, tmp_path / "digits.onnx")
    opened = run.load_run(tmp_path / "digits.onnx")
    assert list(opened.classes) == exported["classes"]
    assert opened.preprocessing == run.load_run(trained).preprocessing
