"""The checker of tables: what is true passes, and what cannot be true is found."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from plusx import evidence
from plusx.cli import run
from plusx.study import consistency, printed
from plusx.study.consistency import Complaint, check, confirm, f1_bounds, network_count
from plusx.study.printed import QUANTITIES, Interval, Table, Tables, interval, read_tables


TEXT1 = Path(evidence.__file__).parent / "text1.toml"
NETWORKS = ("resnet20", "plain20", "resnet110", "resnet18_cifar", "wrn16_4", "vgg16_cifar")
PARAMETERS = {name: network_count(name, "parameters") for name in NETWORKS}
SCORES = ("accuracy", "precision", "recall", "f1")


@st.composite
def confusions(draw: st.DrawFn, balanced: bool = True) -> np.ndarray[Any, Any]:
    """Counts of images by what they are and what they were taken for."""
    classes, size = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    confusion = np.zeros((classes, classes), dtype=int)
    for row in range(classes):
        total = size if balanced else draw(st.integers(1, 40))
        for _ in range(total):
            # Mostly right, so that figures are like those of networks.
            column = draw(st.integers(0, 3 * classes))
            confusion[row, column if column < classes else row] += 1
    return confusion


def scores(confusion: np.ndarray[Any, Any], averaging: str) -> dict[str, Fraction]:
    """Exact scores. No prediction of a class: its precision is 0, as scikit-learn can be told."""
    right = [int(value) for value in np.diag(confusion)]
    sizes, predicted = ([int(value) for value in confusion.sum(axis=axis)] for axis in (1, 0))
    total = sum(sizes)
    accuracy = Fraction(sum(right), total)
    if averaging == "micro":
        return dict.fromkeys(SCORES, accuracy)
    weights = [
        Fraction(size, total) if averaging == "weighted" else Fraction(1, len(sizes))
        for size in sizes
    ]
    values = {
        "precision": [Fraction(r, t) if t else Fraction(0) for r, t in zip(right, predicted)],
        "recall": [Fraction(r, s) for r, s in zip(right, sizes)],
        "f1": [Fraction(2 * r, s + t) for r, s, t in zip(right, sizes, predicted)],
    }
    means = {
        key: sum((w * v for w, v in zip(weights, several)), Fraction(0))
        for key, several in values.items()
    }
    return {"accuracy": accuracy, **means}


def text(value: Fraction | int, decimals: int) -> str:
    return f"{float(value):,.{decimals}f}"


@st.composite
def true_plans(draw: st.DrawFn) -> dict[str, Any]:
    """The content of `tables_of`: figures of runs that could have been, as they are printed."""
    rows = draw(st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=4, unique=True))
    averaging = draw(st.sampled_from(["macro", "weighted", "micro"]))
    balanced = draw(st.booleans())
    decimals = draw(st.integers(0, 3))
    unit, of_total = (draw(st.sampled_from(["s", "min", "h"])) for _ in range(2))
    first: dict[str, dict[str, str]] = {}
    second: dict[str, dict[str, str]] = {}
    third: dict[str, dict[str, str]] = {}
    for row in rows:
        metrics = scores(draw(confusions(balanced)), averaging)
        first[row] = {key: text(100 * value, decimals) for key, value in metrics.items()}
        epochs = draw(st.integers(1, 300))
        seconds = draw(st.integers(1, 10**7)) / Fraction(1000)
        sizes = QUANTITIES["epoch_time"]
        second[row] = {
            "epochs": str(epochs),
            "epoch_time": text(seconds / sizes[unit], decimals),
            "total_time": text(epochs * seconds / sizes[of_total], decimals),
            "error": text(100 * (1 - metrics["accuracy"]), decimals),
        }
        millions = Fraction(PARAMETERS[row], 10**6)
        third[row] = {
            "parameters": text(millions, decimals),
            "error": text(100 * (1 - metrics["accuracy"]), 1),
        }
    times = {"epochs": "", "epoch_time": unit, "total_time": of_total, "error": "%"}
    return {
        "tables": [
            ("scores", dict.fromkeys(SCORES, "%"), first),
            ("time", times, second),
            ("size", {"parameters": "M", "error": "%"}, third),
        ],
        "networks": {row: row for row in rows},
        "balanced": balanced,
        "averaging": averaging,
    }


def tables_of(plan: dict[str, Any]) -> Tables:
    return Tables(**{**plan, "tables": tuple(Table(*table) for table in plan["tables"])})


def changed(tables: Tables, table: int, row: str, column: str, new: str | None) -> Tables:
    """The tables with another text in one place; None: without it."""
    old = tables.tables[table]
    texts = {key: value for key, value in old.rows[row].items() if key != column or new is not None}
    if new is not None:
        texts[column] = new
    other = replace(old, rows={**old.rows, row: texts})
    several = [other if n == table else unchanged for n, unchanged in enumerate(tables.tables)]
    return replace(tables, tables=tuple(several))


@given(st.fractions(0, 10**6), st.integers(0, 6))
def test_a_printed_number_stands_for_all_values_that_round_to_it(
    value: Fraction, decimals: int
) -> None:
    bounds = interval(f"{float(value):,.{decimals}f}")
    assert bounds.low <= Fraction(float(value)) <= bounds.high
    assert bounds.high - bounds.low <= Fraction(1, 10**decimals)


@pytest.mark.parametrize("averaging", ["macro", "weighted", "micro"])
@given(confusion=confusions(balanced=False))
@settings(max_examples=10)
def test_metrics_equal_those_of_scikit_learn(
    averaging: str, confusion: np.ndarray[Any, Any]
) -> None:
    """The laws below are tested on these scores: they have to be the usual ones."""
    true = np.repeat(np.arange(len(confusion)), confusion.sum(axis=1))
    predicted = np.concatenate([np.repeat(np.arange(len(confusion)), row) for row in confusion])
    theirs = precision_recall_fscore_support(
        true, predicted, average=averaging, zero_division=0, labels=np.arange(len(confusion))
    )[:3]
    ours = scores(confusion, averaging)
    assert [float(ours[key]) for key in SCORES[1:]] == pytest.approx(list(theirs))


@given(confusions(balanced=False), st.sampled_from(["macro", "weighted", "micro"]))
@settings(max_examples=60)
def test_f1_lies_within_its_bounds_for_any_confusion(
    confusion: np.ndarray[Any, Any], averaging: str
) -> None:
    metrics = scores(confusion, averaging)
    exact = {key: Interval(value, value) for key, value in metrics.items()}
    bounds = f1_bounds(exact["precision"], exact["recall"])
    assert bounds.low <= metrics["f1"] <= bounds.high


def test_f1_is_not_the_harmonic_mean_of_the_averages_and_its_bounds_are_sharp() -> None:
    # One class is always found and one never is, in favour of a third.
    skew = scores(np.array([[9, 0, 0], [0, 0, 9], [0, 0, 9]]), "macro")
    precision, recall = skew["precision"], skew["recall"]
    assert skew["f1"] < 2 * precision * recall / (precision + recall)
    even = scores(np.array([[8, 2], [2, 8]]), "macro")
    bounds = f1_bounds(*(Interval(even[key], even[key]) for key in ("precision", "recall")))
    assert even["f1"] == bounds.high


@given(true_plans())
@settings(max_examples=25)
def test_correct_tables_pass(plan: dict[str, Any]) -> None:
    assert check(tables_of(plan)) == []


@pytest.mark.slow
@given(true_plans(), st.data())
@settings(max_examples=40)
def test_a_planted_error_is_found(plan: dict[str, Any], data: st.DataObject) -> None:
    """Larger than rounding, in any figure that the others or arithmetic determine."""
    tables = tables_of(plan)
    determined = [(2, "parameters"), (2, "error"), (1, "error"), (1, "epochs"), (1, "epoch_time"),
                  (1, "total_time")]  # fmt: skip
    if tables.balanced or tables.averaging in ("weighted", "micro"):
        determined += [(0, "recall"), (0, "accuracy")]
    number, column = data.draw(st.sampled_from(determined))
    row = data.draw(st.sampled_from(sorted(tables.networks)))
    table = tables.tables[number]
    old = interval(table.rows[row][column])
    if column in ("epochs", "epoch_time", "total_time"):
        times = [interval(table.rows[row][complaint]) for complaint in ("epoch_time", "total_time")]
        # A time that is printed as little more than its rounding determines nothing.
        assume(all(time.low > 0 and time.high / time.low < Fraction(3, 2) for time in times))
        new = old.high * data.draw(st.integers(3, 50)) + 1
    elif column == "parameters":
        new = old.high + data.draw(st.integers(2, 40))
    else:
        shift = data.draw(st.integers(3, 40))
        new = old.high + shift if old.high + shift <= 100 else old.low - shift
    decimals = len(table.rows[row][column].partition(".")[2])
    planted = changed(tables, number, row, column, text(new, decimals))
    complaints = check(planted)
    assert complaints
    assert row in {complaint.row for complaint in complaints}


def test_an_impossible_f1_and_an_impossible_share_are_found() -> None:
    def complaints(**texts: str) -> list[Complaint]:
        table = Table("t", dict.fromkeys(SCORES, "%"), {"net": texts})
        return check(Tables((table,), {}, averaging="macro"))

    assert complaints(precision="90.0", recall="80.0", f1="84.7") == []
    assert complaints(precision="90.0", recall="80.0", f1="80.0") == []  # classes may differ
    (high,) = complaints(precision="90.0", recall="80.0", f1="84.9")
    assert (high.column, high.unit) == ("f1", "%")
    assert high.allowed == pytest.approx((69.9, 84.7554), abs=1e-3)
    (low,) = complaints(precision="90.0", recall="80.0", f1="69.8")
    assert "cannot be the mean F1" in low.what
    (over,) = complaints(accuracy="100.2")
    assert "not a fraction" in over.what


def test_macro_recall_need_not_be_accuracy_where_classes_differ_in_size() -> None:
    table = Table("t", dict.fromkeys(SCORES, "%"), {"net": {"accuracy": "90.0", "recall": "80.0"}})
    assert check(Tables((table,), {}, averaging="macro")) == []
    assert len(check(Tables((table,), {}, averaging="macro", balanced=True))) == 1
    assert len(check(Tables((table,), {}, averaging="weighted"))) == 1


def test_another_unit_is_tried_where_a_total_does_not_fit() -> None:
    def complaints(*rows: tuple[str, str, str]) -> list[Complaint]:
        columns = {"epochs": "", "epoch_time": "s", "total_time": "h"}
        texts = {f"net{n}": dict(zip(columns, row)) for n, row in enumerate(rows)}
        return check(Tables((Table("t", columns, texts),), {}))

    (complaint,) = complaints(("40", "3.0", "2.0"))
    assert "40 epochs of 3.0 s are 2 min" in complaint.what
    assert "it would fit" in complaint.what
    assert "with the total in min" in complaint.what
    assert "with an epoch in min" in complaint.what
    _, wrong = complaints(("40", "3.0", "2.0"), ("30", "3.0", "2.5"))
    assert "would fit" not in wrong.what
    assert "it is 1.5 min" in wrong.what or "it is 1.5 h" in wrong.what
    assert complaints(("40", "180.0", "2.0")) == []


def test_a_wrong_count_names_the_network_that_it_fits() -> None:
    def complaints(rows: dict[str, str], **options: Any) -> list[Complaint]:
        table = Table("t", {"parameters": "M"}, {row: {"parameters": t} for row, t in rows.items()})
        return check(Tables((table,), {row: row for row in rows}, **options))

    assert complaints({"resnet20": "0.27", "resnet110": "1.73"}) == []
    assert complaints({"resnet20": "0.28"}, classes=100) == []
    (complaint,) = complaints({"resnet20": "1.73", "resnet110": "1.73"})
    assert complaint.row == "resnet20"
    assert "269,434" not in (complaint.what.partition(";")[2])
    assert "1.73 M is resnet110 (1,727,962)" in complaint.what
    assert complaint.allowed == pytest.approx((0.269434, 0.269434), rel=0.05)


def test_a_network_has_one_value_and_a_row_in_every_table() -> None:
    one = Table("one", {"error": "%"}, {"a": {"error": "5.2"}, "b": {}})
    two = Table("two", {"error": "%"}, {"a": {"error": "5.4"}})
    complaints = check(Tables((one, two), {}, named=("c",)))
    assert [(complaint.table, complaint.row) for complaint in complaints] == [
        ("one", "c"), ("two", "a"), ("two", "b"), ("two", "c"),
    ]  # fmt: skip
    assert "5.2 % in one" in complaints[1].what
    assert "is named and has no row here" in complaints[3].what


def test_a_statement_about_the_largest_value_is_checked() -> None:
    table = Table("t", {"epochs": ""}, {"a": {"epochs": "5"}, "b": {"epochs": "7"}})
    assert check(Tables((table,), {}, most={"epochs": "b"})) == []
    (complaint,) = check(Tables((table,), {}, most={"epochs": "a"}))
    assert "b have more; it has the least" in complaint.what


def test_contradictions_of_text_1_are_found() -> None:
    """Every contradiction between its own cells, and every implausible time."""
    contradictions = {
        (complaint.table, complaint.row, complaint.column): complaint.what
        for complaint in check(read_tables(TEXT1))
    }
    recalls = {("Table 1", f"ResNet-{depth}", "recall") for depth in (18, 34, 50, 110)}
    counts = {("Table 3", f"ResNet-{depth}", "parameters") for depth in (18, 34, 50)}
    times = {
        ("Table 2", f"ResNet-{depth}", column)
        for depth in (18, 34, 50)
        for column in ("epoch_time", "total_time")
    }
    missing = {
        *((f"Table {number}", "VGG-16", "") for number in (1, 2, 3)),
        *((f"Table {number}", "ResNet-110", "") for number in (2, 3)),
    }
    assert set(contradictions) == {
        *recalls, *counts, *missing, *times,
        ("Table 3", "ResNet-34", "error"),
        ("", "ResNet-110", "parameters"),
    }  # fmt: skip
    assert "is resnet110 (1,727,962)" in contradictions["Table 3", "ResNet-18", "parameters"]
    assert "is resnet34 (21,797,672)" in contradictions["Table 3", "ResNet-34", "parameters"]
    assert "is resnet50 (25,557,032)" in contradictions["Table 3", "ResNet-50", "parameters"]
    assert "it would fit with" in contradictions["Table 2", "ResNet-18", "total_time"]
    assert "it is 1.75 min" in contradictions["Table 2", "ResNet-34", "total_time"]
    assert "it would fit with" in contradictions["Table 2", "ResNet-50", "total_time"]
    assert "are 139 TFLOP/s" in contradictions["Table 2", "ResNet-18", "epoch_time"]
    assert "it has the least" in contradictions["", "ResNet-110", "parameters"]


def test_consistent_numbers_of_text_1_are_confirmed() -> None:
    confirmed = {(cell.table, cell.row, cell.column) for cell in confirm(read_tables(TEXT1))}
    assert confirmed == {
        *(("Table 1", f"ResNet-{depth}", "f1") for depth in (18, 34, 50, 110)),
        ("Table 3", "ResNet-18", "error"),
        ("Table 3", "ResNet-50", "error"),
    }


def test_the_tables_of_text_1_are_complete() -> None:
    sizes = [(len(table.columns), len(table.rows)) for table in read_tables(TEXT1).tables]
    assert sizes == [(4, 4), (3, 3), (2, 3)]
    for table in read_tables(TEXT1).tables:
        assert all(set(texts) == set(table.columns) for texts in table.rows.values())


@given(st.integers(1, 10**6), st.integers(1, 500))
@settings(max_examples=30)
def test_a_time_is_plausible_from_the_time_of_its_work_on(images: int, teraflops: int) -> None:
    least = 6 * network_count("resnet20", "multiply_adds") * images / (teraflops * 1e12)

    def complaints(seconds: float) -> list[Complaint]:
        table = Table("t", {"epoch_time": "s"}, {"a": {"epoch_time": f"{seconds:.9f}"}})
        return check(Tables((table,), {"a": "resnet20"}, images=images, teraflops=float(teraflops)))

    assert complaints(1.01 * least + 1e-8) == []
    assume(least > 1e-7)
    (complaint,) = complaints(0.9 * least)
    assert "is not plausible" in complaint.what
    assert "or more" in str(complaint)
    assert complaint.allowed is not None
    assert complaint.allowed[0] == pytest.approx(least)


def test_the_code_contains_no_number_of_the_texts() -> None:
    code = "".join(
        Path(module.__file__).read_text(encoding="utf-8") for module in (consistency, printed)
    )
    numbers = set(re.findall(r"\d+\.\d+", code))
    for table in read_tables(TEXT1).tables:
        for row, texts in table.rows.items():
            assert row not in code
            assert not numbers & set(texts.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tables = 3", "tables: 3 is not a list"),
        ("", "no [[tables]]"),
        ("x =", "Invalid"),
        ("balance = true", "did you mean balanced?"),
        ('averaging = "mean"', "macro, weighted, micro, not 'mean'"),
        ('[[tables]]\ncolumns = {acuracy = "%"}', "did you mean accuracy?"),
        ('[[tables]]\ncolumns = {accuracy = "s"}', "the unit is one of '', '%', not 's'"),
        (
            '[[tables]]\ncolumns = {accuracy = "%"}\nrows = {a = {recall = "1"}}',
            "table 1, a: the table has no column 'recall' (it has accuracy)",
        ),
        (
            '[[tables]]\ncolumns = {accuracy = "%"}\nrows = {a = {accuracy = 95.10}}',
            "in quotes as printed",
        ),
        (
            '[[tables]]\ncolumns = {accuracy = "%"}\nrows = {a = {accuracy = "high"}}',
            "'high' is not a number such as 71.3",
        ),
        (
            'networks.a = "resnet2O"\ntables = [{columns.epochs = "", rows.a = {epochs = "1"}}]',
            "networks, a: unknown network 'resnet2O'",
        ),
        ("[[tables]]\nname = 'x'", 'x: has no columns, such as columns = { accuracy = "%" }'),
        ('[[tables]]\nname = "x"\ncolumns = {error = "%"}', "x: has no rows"),
        ('[[tables]]\nname = "x"\ncolumns = {error = "%"}\nrows = {}', "x: has no rows"),
        ("tables = []", "no [[tables]]"),
        (
            (
                '[[tables]]\nname = "x"\ncolumns = {error = "%", epochs = ""}\n'
                'rows = {a = {error = "1"}}'
            ),
            "x, epochs: no row has this column",
        ),
        (
            (
                '[[tables]]\nname = "x"\ncolumns = {epoch_time = "days"}\n'
                'rows = {a = {epoch_time = "1"}}'
            ),
            "x, epoch_time: the unit is one of 's', 'min', 'h', not 'days'",
        ),
        (
            '[[tables]]\ncolumns = {accuracy = "%"}\nrows = {a = {accuracy = "71,3"}}',
            "table 1, a, accuracy: '71,3' is not a number",
        ),
        (
            '[[tables]]\ncolumns = {accuracy = "%"}\nrows = {a = {accuracy = "71.3 ± nan"}}',
            "the spread is not a number",
        ),
        (
            'most.epochs = "B"\ntables = [{columns.epochs = "", rows.a = {epochs = "1"}}]',
            "most: no table has a number of epochs for 'B'",
        ),
        (
            "tables = ["
            + ", ".join(2 * ['{name = "x", columns.epochs = "", rows.a = {epochs = "1"}}'])
            + "]",
            "2 tables have the name 'x'",
        ),
        ("x = " + "[" * 100_000, "not TOML"),
        ("teraflops = true", "teraflops: True is not a number"),
        ("images = 0", "images: 0 is not a number above 0"),
    ],
)
def test_a_file_without_tables_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    file = tmp_path / "tables.toml"
    file.write_text(content)
    assert run(["check-tables", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"plusx: {file}: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_command_lists_contradictions_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check-tables", str(TEXT1)]) == 1
    captured = capsys.readouterr()
    assert "Table 1, ResNet-34, recall: 94.6 %" in captured.out
    assert "contradiction" in captured.err
    assert run(["check-tables", str(TEXT1), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert len(result["complaints"]) == 20
    assert len(result["consistent"]) == 6
    good = tmp_path / "good.toml"
    good.write_text('[[tables]]\ncolumns = {error = "%"}\nrows = {a = {error = "5 ± 1"}}')
    assert run(["check-tables", str(good)]) == 0
    assert "no contradictions" in capsys.readouterr().out
    assert run(["check-tables", str(tmp_path / "none.toml")]) == 2


def test_the_checker_needs_no_torch() -> None:
    code = (
        "import sys; from plusx.study.consistency import check; "
        "from plusx.study.printed import read_tables; "
        f"print(len(check(read_tables({str(TEXT1)!r}))), 'torch' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert process.stdout.split() == ["20", "False"]
