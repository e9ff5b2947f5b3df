"""The page of a study: every kind of figure, whatever its values are, and a table of all rows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from page_reader import Page
from plusx.report import values, write_report
from plusx.report.charts import Chart, chart, charts, colours, names
from plusx.report.result import result_page
from plusx.report.text_table import rows_table
from study_pages import FigureData, axis, columns, line, lines, rows, spread, study, surface


EVIL = '<script>alert("1")</script>&\'"$x^2$\x00\n'
PAGE = result_page(study())


def chart_of(data: FigureData) -> Chart:
    return chart(data, colours(names(data)), "f0")


def texts(data: FigureData) -> str:
    """All that is written in the drawing of a figure."""
    return Page(chart_of(data).svg).text


def dots(groups: dict[str, list[float | None]], scale: str = "share") -> FigureData:
    groups_of_dots = [
        {
            "name": name,
            "values": values,
            "mean": next((v for v in values if v is not None), None),
            "interval": None,
        }
        for name, values in groups.items()
    ]
    return {"kind": "dots", "title": "Dots", "caption": "", "x": axis("error", scale),
            "groups": groups_of_dots}  # fmt: skip


def several(chart_of: list[FigureData], x: str = "linear", y: str = "linear") -> FigureData:
    return lines("Lines", axis("depth", x), axis("norm", y), chart_of)


def grid(heights: list[list[Any]], scale: str = "linear") -> FigureData:
    data = surface(2)
    return {
        **data,
        "xs": list(range(len(heights[0]) if heights else 0)),
        "ys": list(range(len(heights))),
        "values": heights,
        "value": axis("loss", scale),
    }


def test_a_page_is_valid_loads_no_resource_and_describes_every_figure() -> None:
    read = Page(PAGE)
    identities = read.attributes("id")
    assert len(identities) == len(set(identities))
    for target in [value for value in read.attributes("href") if value.startswith("#")]:
        assert target[1:] in identities
    assert all(value.startswith("#") for value in read.attributes("href"))
    assert not re.search(r"url\((?!#)", PAGE)
    assert [tag for tag, _ in read.elements].count("script") == 1
    images = [attrs for _, attrs in read.elements if attrs.get("role") == "img"]
    assert len(images) == [tag for tag, _ in read.elements].count("svg") == 5
    assert all(re.search(r"\d", attrs["aria-label"] or "") for attrs in images)
    assert result_page(study()) == PAGE  # the same result gives the same bytes


def test_a_page_has_question_finding_results_and_settings() -> None:
    shown = Page(PAGE).text
    for text in (
        "plain56 ends with 13.7 % training error",
        "what holds it back is not a vanishing gradient",
        "Do plain networks train worse",
        "Three seeds each",
        "869,434",
        "11.0 ± 0.3",
        "3,000,000 ± 12",
        "Train error is that of the trained network",
        "plusx study degradation --out degradation",
        "2 h 5 min",
        "torch 2.11.0",
        "epochs = 60",
    ):
        assert text in shown
    assert "Never measured" not in shown  # a column without a value is none


def test_excluded_rows_are_listed_with_their_reason() -> None:
    shown = Page(result_page(study(figures=[]))).text
    results, marked = shown.split("Runs excluded from the means", 1)
    assert "plain110" not in results.split("Results")[-1]
    row = marked.split("plain110")[1].split("What was run")[0]
    assert "another machine: NVIDIA H200" in row
    assert "31.0 ± 2.0" in row
    assert "excluded" not in Page(result_page(study(marked=[], figures=[]))).text


def test_a_study_without_rows_figures_or_seeds_has_a_page() -> None:
    empty = study(rows=[], figures=[], columns=[], marked=[], seeds=[], split=None, seconds=None)
    shown = Page(result_page(empty)).text
    assert "no run has finished" in shown


@pytest.mark.parametrize("field", ["finding", "title", "question", "data", "command", "recipe"])
def test_foreign_text_is_escaped(field: str) -> None:
    read = Page(result_page(study(figures=[], **{field: EVIL})))
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert '<script>alert("1")</script>&\'"$x^2$' in read.text


@pytest.mark.parametrize(
    "data",
    [
        several([line(EVIL, [1, 2], [0.5, 0.25])]),
        dots({EVIL: [0.5], "\U0001f600 学習": [0.4]}),
        {**grid([[1, 2], [3, 4]]), "title": EVIL, "x": axis(EVIL), "value": axis(EVIL)},
    ],
    ids=["lines", "dots", "map"],
)
def test_names_in_a_figure_are_escaped(data: FigureData) -> None:
    read = Page(chart_of(data).svg)
    assert "script" not in [tag for tag, _ in read.elements]
    assert '<script>alert("1")' in read.text
    page = Page(result_page(study(figures=[data])))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert '<script>alert("1")</script>&\'"$x^2$' in page.text


def test_names_in_a_table_are_escaped() -> None:
    row = {"name": EVIL, "seeds": [0], "kind": EVIL}
    page = result_page(study(rows=[row], marked=[{**row, "why": EVIL}], figures=[]))
    read = Page(page)
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert read.text.count('alert("1")') == 5


HARD = {
    "no lines": several([]),
    "an empty line": several([line("a", [], [])]),
    "one point": several([line("a", [3], [0.5])]),
    "all the same": several([line("a", [1, 2, 3], [2, 2, 2])]),
    "gaps": several([line("a", [1, 2, 3, 4], [1.0, None, 3.0, None])]),
    "nothing known": several([line("a", [1, 2], [None, None])], y="log"),
    "zeros on a logarithm": several([line("a", [1, 2, 3], [0, 0, 0])], y="log"),
    "negative on a logarithm": several([line("a", [1, 2], [-1, 1])], y="log"),
    "large and small": several([line("a", [1, 10, 1000], [1e-30, 1.0, 1e30])], "log", "log"),
    "long names": several([line("a name without end " * 9 + str(n), [1], [n]) for n in (1, 2)]),
    "no dots": dots({}),
    "unknown dots": dots({"a": [None], "b": []}),
    "one dot": dots({"a": [0.5]}),
    "an empty grid": grid([]),
    "one place": grid([[1.0]]),
    "one row": grid([[1.0, 2.0, 3.0]]),
    "a flat surface": grid([[1.0, 1.0], [1.0, 1.0]]),
    "an unknown surface": grid([[None, None], [None, None]]),
    "holes": grid([[1.0, None, 2.0], [3.0, 4.0, None], [1.0, 2.0, 3.0]]),
    "zeros in a surface": grid([[0.0, 1.0], [10.0, 1e5]], "log"),
    "shares in a surface": grid([[0.0, 1.0], [0.5, 0.1]], "share"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("data", HARD.values(), ids=HARD.keys())
def test_a_figure_can_have_any_values(data: FigureData) -> None:
    svg = chart_of(data).svg
    assert [tag for tag, _ in Page(svg).elements].count("svg") == 1
    drawn_paths = re.findall(r' d="([^"]*)"', svg)
    assert not any("nan" in path or "inf" in path for path in drawn_paths)


@pytest.mark.parametrize(
    "data",
    [
        several([line("a", [1, 2], [0.5, 0.2])]),
        dots({"a": [0.1, 0.2]}),
        grid([[1.0, 2.0], [3.0, 4.0]]),
    ],
    ids=lambda data: str(data["kind"]),
)
def test_an_axis_without_a_title_has_none(data: FigureData) -> None:
    bare = {key: {**data[key], "title": ""} for key in ("x", "y", "value") if key in data}
    assert "no name" not in texts({**data, **bare})


def test_a_logarithmic_axis_shows_zero_below_all_else() -> None:
    """Gradients that are exactly zero are what a figure of them is about."""
    shown = texts(several([line("a", [1, 2, 3], [0.0, 1e-3, 1.0])], y="log"))
    assert " 0 " in f" {shown} "
    assert "0.001" in shown
    without = texts(several([line("a", [1, 2], [1e-3, 1.0])], y="log"))
    assert " 0 " not in f" {without} "


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        ("share", [0.9, 0.085], ["90.0", "8.5"]),
        ("share", [0.0004, 0.5], ["0.04", "50.00"]),
        ("share", [spread(0.0661, 0.0012), None], ["6.6 ± 0.1", "–"]),
        ("count", [1727962, 10], ["1,727,962", "10"]),
        ("count", [spread(12.5, 0.7)], ["12.5 ± 0.7"]),
        ("number", [0.5, 2.25], ["0.50", "2.25"]),
        ("number", [2.7, 3e7], ["2.7", "3 × 10⁷"]),
        ("number", [1.25e-7, 0.0], ["1.25 × 10⁻⁷", "0"]),
        ("number", [-3.0, 1500.0], ["−3", "1,500"]),
        ("text", ["explode", None], ["explode", "–"]),
        ("text", [True, 3], ["yes", "3"]),
        (
            "count",
            [{"mean": 6.0, "std": 0.0, "seeds": [6, None, 6]}],
            ["6 ± 0 in 2 of 3"],
        ),
        ("count", [{"mean": None, "std": None, "seeds": [None, None]}], ["–"]),
    ],
)
def test_values_are_formatted(kind: str, numbers: list[Any], expected: list[str]) -> None:
    assert [str(value) for value in values.format_values(kind, numbers)] == expected


@given(st.floats(1e-300, 1e300))
@settings(max_examples=200)
def test_printed_numbers_are_close_to_their_values(value: float) -> None:
    written = values.number(value).replace(",", "")
    if "10" in written and any(sign in written for sign in "⁰¹²³⁴⁵⁶⁷⁸⁹"):
        factor, _, power = written.rpartition("10")
        digits = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        read = float(f"{factor.strip(' ×') or 1}e{digits}")
    else:
        read = float(written)
    assert read == pytest.approx(value, rel=0.0051)


def test_every_line_is_named_in_the_legend() -> None:
    for count in (8, 40):
        shown = texts(several([line(f"net {n}", [1, 2, 3], [n, n + 1.0, n]) for n in range(count)]))
        assert all(f"net {n} " in f"{shown} " for n in range(count))


def test_the_numbers_of_a_figure_are_below_it() -> None:
    long = several([line("a", list(range(1000)), [float(n) for n in range(1000)])])
    shown = Page(result_page(study(figures=[long]))).text
    assert "Every 5th row is given here" in shown
    assert "999" in shown
    shown = Page(result_page(study(figures=[dots({"a": [0.5, 0.25]})]))).text
    assert "50.00 50.00 25.00" in shown


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**several([]), "kind": "pie"}, "lines, dots, points, bars, map, not 'pie'"),
        (several([], y="cubic"), "linear, log, share, not 'cubic'"),
        (several([{**line("a", [1, 2], [1, 2]), "low": [1]}]), "2 positions and 1 values"),
        ({**grid([[1, 2]]), "ys": [1, 2, 3]}, "3 ys and 1 rows"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(data: FigureData, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        charts([data])


def test_a_name_keeps_its_colour_from_figure_to_figure() -> None:
    """Where hues do not suffice for a page, each figure has colours of its own."""
    two = [several([line(name, [1, 2], [1.0, 2.0])]) for name in ("plain20", "plain56")]
    both = several([line(name, [1, 2], [1.0, 2.0]) for name in ("plain20", "plain56")])
    shades = colours(["plain20", "plain56"])
    for drawn_chart, name in zip(charts([*two, both]), ("plain20", "plain56")):
        assert shades[name] in drawn_chart.svg
    many = [
        several([line(f"{sign} net", [1, 2], [1.0, 2.0]) for sign in signs])
        for signs in ("abcdefgh", "ijkl")
    ]
    for figure in many:
        (drawn_chart,) = charts([figure])
        assert drawn_chart.svg == charts([*many[:1], figure])[1].svg.replace("f1-", "f0-")


def test_a_report_is_written_into_the_folder_of_a_study(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(study(figures=[])), encoding="utf-8")
    written = write_report(tmp_path).read_text(encoding="utf-8")
    assert written == result_page(study(figures=[]))


@pytest.mark.parametrize("width", [None, 200, 80, 40, 10])
def test_a_table_for_a_terminal_has_every_value_within_the_width(width: int | None) -> None:
    shown = rows_table(columns(), rows(), width)
    for text in ("plain56", "preact_resnet56", "869,434", "11.0 ± 0.3", "explode", "–"):
        assert text in shown
    assert "Never" not in shown
    if width is not None and width >= 80:
        assert max(map(len, shown.splitlines())) <= width


def test_a_table_is_turned_where_that_fits() -> None:
    head, *_ = rows_table(columns(), rows()[:3], 80).splitlines()
    assert head.split() == ["name", "plain20", "plain32", "plain44"]
    assert rows_table(columns(), [], 80).startswith("name")


def test_ten_kinds_have_ten_colours() -> None:
    kinds = ["none", "tanh", "orthogonal", "batch-norm", "skips", "fixup", "rezero", "skipinit",
             "tanh-orthogonal", "skips-batch-norm"]  # fmt: skip
    assert len(set(colours(kinds).values())) == 10
    assert len(set(colours(["plain56", "resnet56", *kinds[:8]]).values())) == 10


def test_no_colour_is_used_twice_however_many_names_there_are() -> None:
    names = ["plain20", "plain56", *(f"kind {letter}" for letter in "abcdefghijklmnopqrstuvwx")]
    assert len(set(colours(names).values())) == 26


@pytest.mark.parametrize(("count", "marked"), [(8, True), (9, False)])
def test_a_table_has_the_colours_of_its_figures_or_none(count: int, marked: bool) -> None:
    """With more families than hues, each figure has colours of its own."""
    names = [f"kind {letter}" for letter in "abcdefghi"[:count]]
    halves = [
        several([line(name, [1, 2], [0.1, 0.2]) for name in half])
        for half in (names[:4], names[4:])
    ]
    table = [{**row, "name": name} for row, name in zip(rows(), names)]
    page = result_page(study(rows=table, marked=[], tables=[], figures=halves))
    for name in names:
        (row,) = re.findall(rf'<th scope="row"[^>]*>([^/]*</i>)?{name}', page)
        assert bool(row) == marked
