"""Three tables made from runs: consistent, printed alike everywhere, refused where they are not."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from page_reader import Page
from plusx.recipe import Recipe, load_recipe
from plusx.report.text_table import rows_table, study_tables
from plusx.study import three_tables
from plusx.study.consistency import check
from plusx.study.experiment import TrialResult, grouped
from plusx.study.printed import read_tables
from plusx.study.runner import study
from plusx.study.trial import Trial
from study_results import run


FILES = ("tables.md", "table1.csv", "table2.csv", "table3.csv", "tables.toml")


def _recipe(*overrides: str) -> Recipe:
    fields = ["study.networks=[resnet20,vgg16_cifar]", "study.seeds=[0,1]", *overrides]
    return load_recipe("tables", fields)


def _trials(
    folder: Path, recipe: Recipe, counts: tuple[int, ...] = (30, 30), **changed: Any
) -> list[TrialResult]:
    """Runs that were never made, with the files that the tables read."""
    trials = []
    for name, accuracies in {"resnet20": (0.97, 0.98), "plain resnet20": (0.9, 0.3)}.items():
        for seed, accuracy in enumerate(accuracies):
            run_folder = folder / f"{name}-{seed}"
            run_folder.mkdir(parents=True)
            data = {"classes": [str(n) for n in range(10)],
                    "preprocessing": {"size": [32, 32], "channels": 1}}  # fmt: skip
            scores = {"per_class": [{"count": count} for count in counts]}
            (run_folder / "data.json").write_text(json.dumps(data))
            (run_folder / "result.json").write_text(json.dumps({"validation": scores}))
            trial = Trial(name=name, seed=seed, recipe=recipe, factors={"threshold": 0.8})
            summary = replace(run(name, seed, accuracy), seconds_per_epoch=50.0 + seed, **changed)
            trials.append(TrialResult(trial=trial, folder=run_folder, run=summary, values={}))
    return trials


def test_the_tables_have_units_and_no_contradictions(tmp_path: Path) -> None:
    recipe = _recipe("study.threshold=0.8")
    trials = _trials(tmp_path, recipe)
    rows = three_tables.TABLES.rows(grouped(trials))
    quality, time, size = three_tables.tables(recipe.study, grouped(trials), rows)
    assert "macro averages" in quality["note"]
    assert "at least 80 %" in time["note"]
    assert "validation images of digits" in size["note"]
    text = three_tables.markdown(time)
    # Of resnet20 epochs 5 and 5; of its twin one seed comes to 80 %, after 6 epochs of 50 s.
    assert "| resnet20 | 5.0 ± 0.0 | 50.5 ± 0.7 | 4.2 ± 0.1 |" in text
    assert "Time, s an epoch | Total time, min |" in text
    assert "6.0 in 1 of 2" in text
    assert "| 269,434 |" in three_tables.markdown(size)
    printed = three_tables.as_printed([quality, time, size], grouped(trials))
    assert printed.networks == {"resnet20": "resnet20", "plain resnet20": "plain(resnet20)"}
    assert (printed.balanced, printed.averaging, printed.channels) == (True, "macro", 1)
    assert check(printed) == []


def test_the_time_of_an_epoch_and_its_number_make_the_total(tmp_path: Path) -> None:
    trials = _trials(tmp_path, _recipe("study.threshold=0.8"))
    for row in three_tables.TABLES.rows(grouped(trials)):
        product = row["epochs"]["mean"] * row["epoch_time"]["mean"]
        assert product == pytest.approx(row["total_time"]["mean"])


def test_thresholds_that_no_seed_reaches_are_not_reached(tmp_path: Path) -> None:
    recipe = _recipe("study.threshold=0.99")
    trials = [
        replace(trial, trial=replace(trial.trial, factors={"threshold": 0.99}))
        for trial in _trials(tmp_path, recipe)
    ]
    rows = three_tables.TABLES.rows(grouped(trials))
    time = three_tables.tables(recipe.study, grouped(trials), rows)[1]
    assert three_tables.markdown(time).count("not reached") == 2
    assert rows_table(time["columns"], time["rows"]).count("not reached") == 2
    text = three_tables.finding(rows)
    assert "none reaches the threshold" in text
    # The twins have as many parameters: neither is the smallest alone.
    assert re.search(
        r"; resnet20 \(.* %\) and plain resnet20 \(.* %\) are the smallest, with", text
    )


@pytest.mark.parametrize(
    ("changed", "counts", "message"),
    [
        ({"parameters": 269435}, (30, 30), "but resnet20 has 269,434"),
        (
            {"metrics": {"accuracy": 0.9, "precision": 0.9, "recall": 0.8, "f1": 0.85}},
            (30, 30),
            "averaged recall is accuracy",
        ),
        (
            {"metrics": {"accuracy": 0.9, "precision": 0.5, "recall": 0.5, "f1": 0.85}},
            (30, 31),
            "cannot be the mean F1",
        ),
    ],
)
def test_contradictory_tables_are_not_printed(
    tmp_path: Path, changed: dict[str, Any], counts: tuple[int, ...], message: str
) -> None:
    recipe = _recipe()
    trials = _trials(tmp_path, recipe, counts, **changed)
    with pytest.raises(RuntimeError, match=r"the tables are not written") as refused:
        three_tables.tables(
            recipe.study, grouped(trials), three_tables.TABLES.rows(grouped(trials))
        )
    assert message in str(refused.value)


def test_times_are_in_a_unit_that_can_be_read() -> None:
    assert [three_tables._unit([seconds]) for seconds in (0.1, 299.0, 301.0, 17999.0, 18001.0)] == [
        "s", "s", "min", "min", "h"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_study_writes_its_tables_and_none_where_a_run_is_not_what_it_was(tmp_path: Path) -> None:
    recipe = load_recipe(
        "tables",
        ["study.networks=[resnet20]", "study.seeds=[0,1]", "study.threshold=0.2", "epochs=1",
         "data.size=8"],
    )  # fmt: skip
    out = tmp_path / "tables"
    result = study(recipe, out, jobs=1)
    assert [row["name"] for row in result["rows"]] == ["resnet20", "plain resnet20"]
    assert all((out / name).is_file() for name in FILES)
    assert check(read_tables(out / "tables.toml")) == []
    markdown = (out / "tables.md").read_text(encoding="utf-8")
    terminal = study_tables(result, 100)
    page = Page((out / "report.html").read_text(encoding="utf-8")).text
    for number in (1, 2, 3):
        with (out / f"table{number}.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["network"] for line in lines] == ["resnet20", "plain resnet20"]
    accuracy = f"{100 * result['rows'][0]['accuracy']['mean']:.1f} ± "
    for text in (markdown, terminal, page):
        assert "Table 2: time to convergence" in text
        assert accuracy in text
        assert "269,434" in text

    # A run's result that was changed by hand: the tables are refused, and what was there is kept.
    before = {name: (out / name).read_bytes() for name in (*FILES, "result.json")}
    file = out / "runs" / "resnet20-seed0" / "result.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "parameters": 270000}))
    with pytest.raises(RuntimeError, match="but resnet20 has 269,434"):
        study(recipe, out, jobs=1)
    assert {name: (out / name).read_bytes() for name in (*FILES, "result.json")} == before
    shutil.rmtree(out)
