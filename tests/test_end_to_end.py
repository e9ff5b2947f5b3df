"""The main job through the installed command: a folder of photos is trained on, killed in the
middle, gone on with, evaluated and predicted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plusx.recipe import load_recipe
from plusx.run import load_run, predict, train


PLUSX = Path(sys.executable).with_name("plusx")
OVERRIDES = [
    "net.base=resnet20",
    "net.norm=batch",
    "device.precision=float32",
    "data.size=16",
    "data.augment=resizedcrop flip",
    "epochs=12",
    "batch_size=12",
    "optim.lr=0.05",
    "schedule.warmup=0.2",
    "checkpoint.every_steps=1",
    "device.threads=1",
]


def plusx(*arguments: object, ok: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PLUSX, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        **options,
    )
    assert done.returncode == ok, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 JPEGs of mixed sizes: warm ones, brighter on the left, and cold ones, on the right."""
    root = tmp_path_factory.mktemp("data") / "photos"
    draws = np.random.default_rng(5)
    for number in range(48):
        label = ("warm", "cold")[number % 2]
        height, width = (int(side) for side in draws.integers(20, 90, 2))
        slope = np.linspace(230, 30, width)[:: 1 if label == "warm" else -1]
        pixels = np.repeat(slope[None, :, None], height, 0).repeat(3, 2)
        pixels[:, :, 2 if label == "warm" else 0] *= 0.4
        pixels += draws.normal(0, 12, pixels.shape)
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:02}.jpg", quality=88)
    return root


@pytest.mark.slow
def test_train_kill_resume_evaluate_predict(photos: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    command = ["train", "images", f"data.path={photos}", *OVERRIDES]

    train(load_recipe("images", command[2:]), tmp_path / "whole", progress=False)
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert whole["validation"]["accuracy"] >= 0.9

    out = tmp_path / "run"
    with subprocess.Popen(
        [PLUSX, *command, "--out", out],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob("checkpoints/step-*0000000[5-9]")):
            assert time.monotonic() < deadline, "no checkpoint within a minute"
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (out / "result.json").exists()

    done = plusx(*command, "--out", out, "--json")
    assert json.loads(done.stdout)["validation"] == whole["validation"]
    for name in ("result.json", "log.jsonl", "recipe.toml", "model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    figures = json.loads(plusx("evaluate", out, "--json").stdout)
    assert figures["split"] == "validation"
    assert figures["accuracy"] == whole["validation"]["accuracy"]
    assert [row["label"] for row in figures["per_class"]] == ["cold", "warm"]

    on_unreadable = tmp_path / "=new"
    on_unreadable.mkdir()
    (on_unreadable / "broken.jpg").write_bytes(next(iter(before.values()))[:200])
    some = [photos / "warm" / "00.jpg", photos / "cold" / "01.jpg"]
    done = plusx("predict", "run", *some, "=new", "--out", "said", "--json", ok=0, cwd=tmp_path)
    result = json.loads(done.stdout)
    assert [row["label"] for row in result["predictions"]] == ["warm", "cold"]
    assert all(abs(sum(row["probabilities"]) - 1) < 1e-5 for row in result["predictions"])
    assert "broken.jpg" in done.stderr
    assert [failure["path"] for failure in result["failed"]] == ["=new/broken.jpg"]
    with (tmp_path / "said" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["warm", "cold"]
    assert json.loads((tmp_path / "said" / "predictions.json").read_text()) == result

    with pytest.raises(RuntimeError, match=r"the only file cannot be used: .*broken\.jpg"):
        predict(load_run(out), [on_unreadable])

    from_weights = predict(load_run(out / "model.safetensors"), some)
    assert [row["label"] for row in from_weights["predictions"]] == ["warm", "cold"]

    after = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    assert after == before
