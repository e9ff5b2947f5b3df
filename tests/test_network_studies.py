"""The studies that look into networks, made small through the command line."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plusx import cli
from plusx.recipe import load_recipe
from plusx.report.figures import band
from plusx.study.catalogue import EXPERIMENTS
from plusx.study.experiment import some_batches
from plusx.study.runner import study
from plusx.study.surface import fraction_curved_down
from plusx.study.trial import Measurement


SMALL = ["epochs=1", "data.train=128", "study.seeds=[0,1]"]
STEPS = ["steps=2", "data.train=128", "study.seeds=[0]", "checkpoint.every_steps=1"]


def run_study(kind: str, out: Path, *overrides: str) -> dict[str, Any]:
    with (out.parent / "said").open("w") as stream:
        result = study(load_recipe(kind, overrides), out, jobs=1, progress=stream)
    assert json.loads((out / "result.json").read_text(encoding="utf-8")) == result
    keys = {column["key"] for column in result["columns"]}
    assert all(keys <= set(row) for row in result["rows"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= len(result["figures"]) > 0
    for figure in result["figures"]:
        assert re.search(rf'aria-label="{re.escape(html.escape(figure["title"]))}: [^"]*\d', page)
        for line in figure.get("lines", []):
            lengths = {len(line[key]) for key in ("x", "mean", "low", "high")}
            assert len(lengths) == 1
            assert all(low <= high for low, high in zip(line["low"], line["high"]))
    return result


@pytest.mark.slow
def test_the_finding_names_vanishing_and_exploding_gradients(tmp_path: Path) -> None:
    networks = "study.networks=[plain20,preact_resnet20]"
    overrides = ["study.rules=[he,normal0.01]", "study.acts=[relu]"]
    result = run_study("gradients", tmp_path / "out", *STEPS, networks, *overrides)
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == 2 * 2 * 2
    for row in rows.values():
        has_identity = row["network"] == "preact_resnet20"
        assert (row["identity"] is not None) == has_identity
        assert not has_identity or row["identity"] < 1e-12
    assert rows["preact_resnet20 he relu"]["at_start"] == "steady"
    assert rows["plain20 no norm normal0.01 relu"]["at_start"] == "vanish"
    assert rows["plain20 he relu"]["ratio_start"] > 1
    assert "plain20: gradients" in result["finding"]
    assert "Equation 5 of He 2016 holds within" in result["finding"]
    assert [figure["kind"] for figure in result["figures"]] == ["lines", "lines", "dots", "lines"]
    folder = tmp_path / "out" / "runs" / "plain20-no-norm-he-relu-seed0"
    assert "clip = 1" in (folder / "recipe.toml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_responses_have_a_line_for_each_network(tmp_path: Path) -> None:
    networks = "study.networks=[plain20,preact_resnet20]"
    result = run_study("responses", tmp_path / "out", *SMALL, networks)
    for row in result["rows"]:
        assert row["layers"] == 19
        assert 0 < row["smallest"]["mean"] < row["response"]["mean"] < row["largest"]["mean"]
    ordered = result["figures"][1]["lines"][0]["mean"]
    assert ordered == sorted(ordered, reverse=True)


@pytest.mark.slow
def test_lesions_list_blocks_that_cannot_be_deleted(tmp_path: Path) -> None:
    overrides = ["study.networks=[plain20,resnet20]", "study.counts=[1,3,8]", "study.draws=2"]
    out = tmp_path / "out"
    result = run_study("lesion", out, *SMALL, *overrides, "study.split=test", "study.images=60")
    plain, residual = result["rows"]
    assert (plain["deleted"], plain["kept"], plain["images"]) == (7, 2, 60)
    assert (residual["deleted"], residual["kept"]) == (9, 0)
    assert plain["blocks"][3]["errors"] == [None, None]
    assert "16 channels" in plain["blocks"][3]["why"]
    assert result["split"] == "test"
    alone, several = result["figures"]
    assert [len(line["x"]) for line in alone["lines"]] == [7, 9]
    assert "plain20 without layer2.0 and layer3.0" in alone["caption"]
    assert [line["x"] for line in several["lines"]] == [[0, 1, 3], [0, 1, 3, 8]]
    uses = out / "runs" / "resnet20-seed0" / "test_uses.jsonl"
    assert [json.loads(line)["for"] for line in uses.read_text().splitlines()] == ["lesion"]


@pytest.mark.slow
def test_lesions_of_given_weights_are_beside_trained_networks(tmp_path: Path) -> None:
    assert cli.run(["train", "digits-resnet20", "epochs=2", "--out", str(tmp_path / "run")]) == 0
    weights = f"net.weights={tmp_path / 'run' / 'model.safetensors'}"
    overrides = ["net.base=resnet20", weights, "study.networks=[plain20]", "study.counts=[]"]
    result = run_study("lesion", tmp_path / "out", *SMALL, *overrides)
    given, plain = result["rows"]
    assert (given["name"], given["seeds"]) == ("resnet20, given weights", [0])
    assert given["error"]["mean"] < 0.5 < plain["median"]["mean"]
    assert len(result["figures"]) == 1
    assert "validation images" in result["notes"][-1]
    recipe = (tmp_path / "out" / "runs" / "plain20-seed0" / "recipe.toml").read_text()
    assert "safetensors" not in recipe


@pytest.mark.slow
def test_paths_are_binomial_and_weighted(tmp_path: Path) -> None:
    overrides = ["study.networks=[resnet20]", "study.samples=3"]
    result = run_study("paths", tmp_path / "out", *SMALL, *overrides)
    (row,) = result["rows"]
    assert (row["blocks"], row["usual"]) == (9, 4.5)
    assert 0 <= row["shortest"]["mean"] <= row["length"]["mean"] <= row["longest"]["mean"] <= 9
    gradient, paths = result["figures"][0]["lines"]
    assert sum(gradient["mean"]) == pytest.approx(1)
    assert sum(paths["mean"]) == pytest.approx(1)
    assert paths["dashed"]
    # another number of samples is another look: the trained runs are kept, the answers are not
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/log.jsonl")}
    fewer = run_study("paths", tmp_path / "out", *SMALL, overrides[0], "study.samples=2")
    assert fewer["rows"] != result["rows"]
    assert {path: path.stat().st_mtime_ns for path in logs} == logs


@pytest.mark.slow
def test_every_network_has_a_loss_surface(tmp_path: Path) -> None:
    overrides = ["study.networks=[plain20,resnet20]", "study.points=5", "study.span=0.5"]
    result = run_study("surface", tmp_path / "out", *SMALL, *overrides)
    line, *maps = result["figures"]
    assert line["lines"][0]["x"] == [-0.5, -0.25, 0, 0.25, 0.5]
    assert [figure["kind"] for figure in maps] == ["map", "map"]
    for row, figure in zip(result["rows"], maps):
        assert figure["values"][2][2] == pytest.approx(row["loss"]["seeds"][0], rel=1e-5)
        assert row["highest"]["mean"] >= row["near"]["mean"]
        assert 0 <= row["bent"]["mean"] <= 1


@pytest.mark.slow
def test_a_step_of_deep_networks_is_reported_block_by_block(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plusx", "study", "thousand", "--json"]
    command += ["study.networks=[preact_resnet164,plain110]", "--out", str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    result = json.loads(process.stdout)
    residual, plain = result["rows"]
    assert (residual["depth"], residual["blocks"], residual["reached"]) == (164, 54, 54)
    assert plain["ratio"] > 1e5
    assert residual["ratio"] < plain["ratio"] / 100
    assert "a finite gradient other than 0 in each of its 54 blocks" in result["finding"]


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("gradients", ["study.networks=[alexnet]"], "alexnet is an external module"),
        ("gradients", ["study.acts=[rleu]"], "relu"),
        ("responses", ["study.networks=[resnet21]"], "unknown network 'resnet21'"),
        ("lesion", ["study.networks=[googlenet]"], "googlenet is an external module"),
        ("lesion", ["study.split=train"], "must be validation or test"),
        ("paths", ["study.networks=[plain20]"], r"plain20 has blocks that are not x \+ F\(x\)"),
        ("paths", ["study.networks=[densenet40_12]"], "densenet40_12 has blocks that are not"),
        ("surface", ["study.networks=[]"], "networks"),
        ("surface", ["study.span=0"], "span"),
        ("thousand", ["study.networks=[alexnet]"], "alexnet is an external module"),
    ],
)
def test_a_network_that_a_study_does_not_support_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    overrides: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert cli.run(["study", recipe, *overrides, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err), captured.err
    assert not out.exists()


def test_study_settings_round_trip() -> None:
    for name, settings in (
        ("surface", (25, 0.5)),
        ("lesion", ("test", 1000, 5, 1, 2)),
        ("gradients", ()),
    ):
        measurement = Measurement(name, settings)
        assert Measurement.parse(str(measurement)) == measurement
    assert str(Measurement("surface", (25, 0.5))) == "surface(25,0.5)"
    assert set(EXPERIMENTS) >= {"gradients", "responses", "lesion", "paths", "surface", "thousand"}


def test_negative_curvature_of_a_surface_is_counted() -> None:
    steps = [float(step) for step in np.linspace(-1, 1, 9)]
    x, y = np.meshgrid(steps, steps)
    assert fraction_curved_down(steps, (x**2 + 3 * y**2).tolist()) == 0
    assert fraction_curved_down(steps, (x**2 - y**2).tolist()) == 1
    assert fraction_curved_down(steps, (x * y).tolist()) == 1
    assert fraction_curved_down(steps, (1 - x**2 - y**2).tolist()) == 1
    assert fraction_curved_down(steps, (x + y).tolist()) == 0
    half = np.where(x < 0, x**2 + y**2, x**2 - y**2)
    assert fraction_curved_down(steps, half.tolist()) == pytest.approx(0.5, abs=0.2)
    unknown = [[None] * 9 for _ in steps]
    assert fraction_curved_down(steps, unknown) is None
    assert fraction_curved_down(steps[:2], [[0, 1], [1, 2]]) is None


def test_a_line_leaves_out_values_missing_in_a_seed() -> None:
    line = band("a", [0, 1, 2], [[1, None, 4], [3.0, 5, 2]])
    assert (line["x"], line["mean"]) == ([0, 2], [2, 3])
    assert (line["low"], line["high"]) == ([1, 2], [3, 4])


def test_the_same_images_are_used_every_time() -> None:
    from plusx.run import build

    source = build.open_split(load_recipe("digits-resnet20"), "train")
    first, repeated = (some_batches(source, 20, 8) for _ in range(2))
    assert [len(batch) for batch in first] == [8, 8, 4]
    assert all(bool((a.inputs == b.inputs).all()) for a, b in zip(first, repeated))
    assert sum(len(batch) for batch in some_batches(source, 10**6)) == len(source)
