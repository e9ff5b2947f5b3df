"""Trained weights of others, on the real test set: they score what they are known to score."""

import os
import runpy
from pathlib import Path

import pytest

from plusx import store
from plusx.recipe import load_recipe
from plusx.run import train
from plusx.weights import convert


BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "published_weights.py"))
ITEMS = {Path(item.file).name: item for item in BENCHMARK["NAMED_SETS"]}
# the depths between have the same layers; the benchmark measures them all
TESTED = [name for name in ITEMS if not name.startswith(("resnet32", "resnet44"))]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_the_accuracy_is_exactly_the_known_one(name: str) -> None:
    data = os.environ.get("PLUSX_DATA")
    if data is None:
        pytest.skip("PLUSX_DATA is not set")
    if not (Path(data) / "weights" / ITEMS[name].file).exists():
        pytest.skip(f"weights/{ITEMS[name].file} is not under PLUSX_DATA")
    row = BENCHMARK["measure"](ITEMS[name], Path(data))
    assert (row["right"], row["count"]) == (ITEMS[name].right, 10_000)
    assert (row["exact"]["right"], row["exact"]["count"]) == (ITEMS[name].right_exact, 9_980)


def test_the_recorded_result_is_the_expected_one() -> None:
    recorded = store.read_json(BENCHMARK["RESULT"])
    assert recorded["value"] == {name: item.right / 10_000 for name, item in ITEMS.items()}
    exact = {row["file"]: row["exact"] for row in recorded["rows"]}
    assert {name: part["right"] for name, part in exact.items()} == {
        name: item.right_exact for name, item in ITEMS.items()
    }
    assert {part["count"] for part in exact.values()} == {9_980}
    assert len(set(recorded["reencoded"])) == 20
    assert recorded["machine"]["processor_flags"]
    assert recorded["versions"]["torch"]


@pytest.mark.data
@pytest.mark.slow
def test_a_run_starts_from_weights_of_another_library(tmp_path: Path) -> None:
    """Its shortcuts pad on both sides, those of the zoo's network of that name do not."""
    data = os.environ.get("PLUSX_DATA")
    files = sorted((Path(data or "none") / "weights" / "akamaster_cifar10").glob("resnet20*"))
    if not files:
        pytest.skip("the weights are not under PLUSX_DATA")
    file = tmp_path / "resnet20.safetensors"
    convert(files[0], "resnet20", "akamaster", file)
    overrides = [f"net.weights={file}", "net.base=resnet20", "steps=2", "optim.lr=1e-6"]
    overrides += ["data.kind=cifar10", "data.train=64", "data.augment="]
    recipe = load_recipe("cifar10-resnet20-quick", overrides)
    with pytest.warns(UserWarning, match="weights of akamaster were trained on all training"):
        result = train(recipe, tmp_path / "run", progress=False)
    assert result["train"]["count"] == 64
    assert result["validation"]["accuracy"] > 0.9  # its own training images
