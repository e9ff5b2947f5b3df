"""Batches, weights and predictions of every kind of data are what they were (golden_walk.py)."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from golden_walk import CASES, GOLDEN, PREDICTED, batches_of, make_data, run_of


KNOWN = json.loads(GOLDEN.read_text())
# trained in every test run; the others with the slow tests
QUICK = ("folder", "voc")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("walk")
    before, threads = os.environ.get("PLUSX_CACHE"), torch.get_num_threads()
    os.environ["PLUSX_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    make_data(folder)
    yield folder
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["PLUSX_CACHE"]
    else:
        os.environ["PLUSX_CACHE"] = before


def check(actual: Any, expected: Any, where: str, tolerance: float = 1e-4) -> None:
    if isinstance(expected, dict):
        assert set(actual) == set(expected), where
        for key, value in expected.items():
            check(actual[key], value, f"{where}.{key}", tolerance)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            check(one, other, f"{where}[{index}]", tolerance)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert actual == expected, where


@pytest.mark.parametrize("name", CASES)
def test_batches_equal_the_recorded_ones(name: str, root: Path) -> None:
    check(batches_of(name, root), KNOWN[name]["batches"], name)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PREDICTED],
)
def test_weights_and_predictions_equal_the_recorded_ones(name: str, root: Path) -> None:
    actual = run_of(name, root)
    check(actual["weights"], KNOWN[name]["weights"], name)
    check(actual["rows"], KNOWN[name]["rows"], name, 0.02)
