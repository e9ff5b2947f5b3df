"""Trained weights of others, on the real test set: they score what they are known to score."""

import os
import runpy
from pathlib import Path

import pytest

from plusx import store


BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "published_weights.py"))
ITEMS = {Path(item.file).name: item for item in BENCHMARK["PUBLISHED"]}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ITEMS)
def test_the_accuracy_is_exactly_the_known_one(name: str) -> None:
    data = os.environ.get("PLUSX_DATA")
    if data is None:
        pytest.skip("PLUSX_DATA is not set")
    if not (Path(data) / "weights" / ITEMS[name].file).exists():
        pytest.skip(f"weights/{ITEMS[name].file} is not under PLUSX_DATA")
    row = BENCHMARK["measure"](ITEMS[name], Path(data))
    assert (row["right"], row["count"]) == (ITEMS[name].right, 10_000)


def test_the_recorded_result_is_the_expected_one() -> None:
    recorded = store.read_json(BENCHMARK["RESULT"])
    assert recorded["value"] == {name: item.right / 10_000 for name, item in ITEMS.items()}
    assert recorded["machine"]["processor_flags"]
    assert recorded["versions"]["torch"]
