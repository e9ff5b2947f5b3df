"""What embeddings tell by themselves, and labels by patient in a CSV."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plusx import cli
from plusx.data.readers.open import open_data
from plusx.data.readers.table import read_table
from plusx.grammar.spec import Net
from plusx.recipe import load_recipe
from plusx.run import build, load_run, train
from plusx.run.folder import test_uses as uses_of
from plusx.run.probing import probe


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    overrides = ["epochs=2", "net.base=resnet20", "data.train=400", "device.threads=1"]
    train(load_recipe("digits-resnet20", overrides), folder, progress=False)
    return folder


@pytest.mark.slow
def test_embeddings_separate_digits(digits: Path) -> None:
    result = probe(load_run(digits))
    assert result["width"] == 64
    assert (result["count"], result["learned_from"]) == (300, 400)
    for way in ("neighbours", "linear"):
        assert result[way]["accuracy"] > 0.6  # chance is 0.1; as they are 0.9
        assert len(result[way]["per_class"]) == 10
    fewer = probe(load_run(digits), images=30, neighbours=50)
    assert (fewer["learned_from"], fewer["neighbours"]["k"]) == (30, 30)
    assert probe(load_run(digits)) == result  # nothing is drawn


@pytest.mark.slow
def test_the_command_answers_in_json_and_counts_uses_of_the_test(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = uses_of(digits)
    assert cli.run(["probe", str(digits), "--split", "test", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"neighbours", "linear", "random", "width", "split", "count"} <= set(result)
    assert result["test_uses"] == before + 1 == uses_of(digits)
    assert cli.run(["probe", str(digits / "model.safetensors"), "--data", "digits"]) == 0
    assert "logistic regression" in capsys.readouterr().out
    assert uses_of(digits) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train"], "allowed are 'validation' and 'test'"),
        (["--neighbours", "0"], "neighbours = 0"),
        (["--data", "no-such-data"], "no data 'no-such-data'"),
    ],
)
def test_networks_that_cannot_be_probed_are_named(
    digits: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.run(["probe", str(digits), *arguments]) == 2
    assert message in capsys.readouterr().err


def _patients(
    folder: Path, count: int, labels: list[str], columns: str = "path,label,group"
) -> Path:
    """Grey images, three of each patient; a label is a brighter square of its own."""
    folder.mkdir()
    random = np.random.default_rng(0)
    names = sorted({name for label in labels for name in label.split("|") if name})
    rows: list[list[Any]] = [columns.split(",")]
    for number in range(count):
        label = labels[number % len(labels)]
        pixels = random.integers(0, 90, (16, 16)).astype(np.uint8)
        for name in filter(None, label.split("|")):
            index = names.index(name)
            pixels[4 * (index // 4) :, :][:4, 4 * (index % 4) : 4 * (index % 4) + 4] += 150
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append([f"{number}.png", label, f"patient {number // 3}"])
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "images.csv"


def test_images_of_a_patient_stay_together(tmp_path: Path) -> None:
    path = _patients(tmp_path / "chest", 30, ["a", "b"])
    sides = {}
    for split in ("train", "validation"):
        source = open_data(path, split=split, seed=1, size=16)
        assert source.rows is not None
        sides[split] = {(row - 2) // 3 for row in source.rows}
    assert not sides["train"] & sides["validation"]
    assert len(sides["validation"]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["a.png,x,train,p1", "b.png,y,test,p1"],
            "row 3: the group 'p1' is in test here and in tr",
        ),
        (["a.png,x,train,p1", "b.png,y,test,"], "row 3: no group"),
    ],
)
def test_a_patient_on_two_sides_is_named(tmp_path: Path, rows: list[str], message: str) -> None:
    path = tmp_path / "images.csv"
    path.write_text("\n".join(["path,label,split,group", *rows]))
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_a_column_patient_keeps_rows_together_too(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_text("path,label,split,patient\na.png,x,train,7\nb.png,y,test,7")
    with pytest.raises(ValueError, match="row 3: the patient '7' is in test here and in train in"):
        read_table(path)
    path.write_text("path,label,patient\na.png,x,7\nb.png,y,")
    with pytest.raises(ValueError, match="row 3: no patient"):
        read_table(path)


def test_rows_with_at_most_one_label_can_be_multilabel(tmp_path: Path) -> None:
    path = _patients(tmp_path / "chest", 12, ["a", "b", ""])
    overrides = [f"data.path={path}", "data.size=16", "net.weights=", "net.base=resnet20"]
    source = build.open_split(load_recipe("chest-labels", overrides), "train")
    assert source.multilabel
    assert source.classes == ("a", "b")
    with pytest.raises(ValueError, match="row 4: no label"):
        build.open_split(
            load_recipe("chest-labels", [*overrides, "task.multilabel=false"]), "train"
        )


def test_a_missing_image_is_named_with_its_table_and_row(tmp_path: Path) -> None:
    path = _patients(tmp_path / "chest", 6, ["a", "b"])
    (path.parent / "2.png").unlink()
    with pytest.raises(ValueError, match=r"chest/images\.csv: 1 of 6 files .* row 4 \(2\.png\)"):
        open_data(path, split="all", size=16)


def test_densenet121_has_an_output_for_each_of_14_findings() -> None:
    recipe = load_recipe("chest-labels")
    spec = build.spec_of(recipe.net)
    assert isinstance(spec, Net)
    assert recipe.task.multilabel
    assert recipe.net.base == "densenet121"


@pytest.mark.slow
def test_findings_are_learned_by_patient_and_reported_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shape of CheXNet at 16 x 16 pixels: fourteen labels, some images without any."""
    names = [f"finding {number}" for number in range(14)]
    labels = [f"{names[i]}|{names[(i + 3) % 14]}" for i in range(14)] + ["", names[0], "", names[5]]
    path = _patients(tmp_path / "chest", 288, labels)
    overrides = [f"data.path={path}", "data.size=16", "data.augment=resize16 centercrop",
            "net.weights=", "net.base=resnet20", "epochs=6", "batch_size=16", "optim.lr=0.003",
            "device.threads=1", "evaluate.every=0"]  # fmt: skip
    result = train(load_recipe("chest-labels", overrides), tmp_path / "run", progress=False)
    figures = result["validation"]
    assert result["metrics"][0] == "auroc"
    assert figures["auroc"] > 0.7  # the labels are bright squares: 0.99 after a minute
    low, high = figures["auroc_interval"]
    assert low <= figures["auroc"] <= high
    assert [row["label"] for row in figures["per_class"]] == sorted(names)
    assert all(row["auroc_interval"] is None or len(row["auroc_interval"]) == 2
               for row in figures["per_class"])  # fmt: skip
    told = probe(load_run(tmp_path / "run"))
    assert told["linear"]["auroc"] > 0.7
    capsys.readouterr()
    assert cli.run(["train", "chest-labels", *overrides, "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert f"train AUROC    {result['train']['auroc']:.3f}" in output
    assert f"AUROC {figures['auroc']:.3f} ({low:.3f} to {high:.3f})" in output
    out = tmp_path / "out"
    assert cli.run(["predict", str(tmp_path / "run"), str(path.parent), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 288
    several = [n for n, row in enumerate(rows) if "|" in row["labels"]]
    assert several  # an image with two findings, both of which are said
    for name in rows[several[0]]["labels"].split("|"):
        assert f"{name} {float(rows[several[0]][name]):.1%}" in lines[several[0]]
    none = [n for n, row in enumerate(rows) if not row["labels"]]
    assert all("no label" in lines[n] for n in none)
