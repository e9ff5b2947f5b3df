"""Precision "auto": chosen by a measurement, remembered, recorded and kept."""

from pathlib import Path

import pytest
import torch

import small_run
from plusx.recipe import load_recipe
from plusx.run import environment, train
from plusx.run import training as run_training
from plusx.run.folder import read_recipe
from plusx.tasks.precision import bfloat16_gain


CPU = torch.device("cpu")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What measurements are to give, and an empty cache folder."""
    answers = ["bfloat16", "float32"]
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "faster_precision", lambda device: answers.pop(0))
    return answers


def test_it_is_measured_once_on_a_machine(measured: list[str]) -> None:
    assert [environment.cached_precision(CPU) for _ in range(3)] == ["bfloat16"] * 3
    assert measured == ["float32"]


@pytest.mark.parametrize("damaged", [b"", b"[1]", b"{", b'{"a": 1}', b"\xff\xfe"])
def test_a_corrupt_cache_is_measured_again(
    measured: list[str], tmp_path: Path, damaged: bytes
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "precision.json").write_bytes(damaged)
    assert environment.cached_precision(CPU) == "bfloat16"
    assert environment.cached_precision(CPU) == "bfloat16"


def test_a_cache_that_is_a_file_is_no_error(measured: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    assert environment.cached_precision(CPU) == "bfloat16"
    assert environment.cached_precision(CPU) == "float32"


def test_a_run_records_its_choice_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small_run.recipe(2, 64, data="train = 300").replace('precision = "float32"\n', "")
    (tmp_path / "tiny.toml").write_text(text)
    recipe = load_recipe(str(tmp_path / "tiny.toml"))
    assert recipe.device.precision == "auto"
    monkeypatch.setattr(run_training, "cached_precision", lambda device: "bfloat16")
    result = train(recipe, tmp_path / "run", progress=False)
    assert read_recipe(tmp_path / "run").device.precision == "bfloat16"
    monkeypatch.setattr(run_training, "cached_precision", lambda device: "float32")
    assert train(recipe, tmp_path / "run", progress=False) == result
    assert read_recipe(tmp_path / "run").device.precision == "bfloat16"


def test_the_gain_is_a_ratio_of_times() -> None:
    assert 0.05 < bfloat16_gain() < 50
