"""The figures of a result: each drawn, captioned, told in words, and given as numbers.

A figure is a mapping with "kind", "title", "caption" and "alternative" (its text alternative):

    lines  x, y, lines: name, x, mean, low, high, dashed; level (a dotted rule) or None
    dots   x, groups: name, values, mean, interval or None
    bars   x, y, groups: name, labels, values
    map    x, y, value, xs, ys, values (rows of ys); reach (lowest and highest) if it is shared

An axis is a mapping with "title" and "scale": linear, log or share.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.errors import UserError
from plusx.report import page, values
from plusx.report.bars import Bars, draw_bars
from plusx.report.colours import Palette
from plusx.report.page import Cell, Column
from plusx.report.plots import Dots, Drawn, Line, draw_dots, draw_lines
from plusx.report.scales import Axis
from plusx.report.surface import Surface, draw_surface


TALL = 450.0  # units, from which a drawing stands beside two others
MOST_NUMBERS = 200  # rows of the table beneath a figure; of more, every second, third, ...

Told = Mapping[str, Any]


def figure(told: Told, palette: Palette, key: str) -> str:
    """One figure as an element of a page. `key` makes the names in its drawing unique there.

    UserError: its kind or the scale of an axis is none of those above.
    """
    kinds = {"lines": _lines, "dots": _dots, "bars": _bars, "map": _map}
    if told["kind"] not in kinds:
        raise UserError(f"the kind of a figure is one of {', '.join(kinds)}, not {told['kind']!r}")
    drawn, numbers = kinds[told["kind"]](told, palette.of(names(told)), key)
    return page.figure(
        drawn.svg,
        title=told["title"],
        caption=told["caption"],
        alternative=told["alternative"],
        legend=[(each.name, each.colour, each.dashed) for each in drawn.legend],
        numbers=numbers,
        tall=drawn.height > TALL,
    )


def names(told: Told) -> list[str]:
    """The names that a figure gives a colour to."""
    return [str(each["name"]) for each in (*told.get("lines", ()), *told.get("groups", ()))]


def alternative(told: Told) -> str:
    """What a figure shows, in words: where its lines begin and end, what its values are."""
    parts = []
    if told["kind"] == "lines":
        x, y = Axis.read(told["x"]), Axis.read(told["y"])
        for each in told["lines"]:
            pairs = zip(each["x"], each["mean"], strict=True)
            known = [(place, mean) for place, mean in pairs if mean is not None]
            if known:
                ends = [known[0], known[-1]] if len(known) > 1 else known
                at = ", ".join(f"{y.said(up)} at {x.title} {x.said(on)}" for on, up in ends)
                parts.append(f"{each['name']} {at}")
    elif told["kind"] == "dots":
        x = Axis.read(told["x"])
        parts = [
            f"{each['name']} {', '.join(x.said(v) for v in each['values'] if v is not None)}"
            for each in told["groups"]
        ]
    elif told["kind"] == "bars":
        y = Axis.read(told["y"])
        for each in told["groups"]:
            pairs = zip(each["labels"], each["values"], strict=True)
            said = [f"{label} {y.said(value)}" for label, value in pairs if value is not None]
            parts.append(f"{each['name']}: {', '.join(said)}")
    else:
        value = Axis.read(told["value"])
        heights = [v for row in told["values"] for v in row if v is not None]
        if heights:
            between = f"{value.said(min(heights))} and {value.said(max(heights))}"
            parts = [f"{value.title} between {between}"]
    return f"{told['title']}: {'; '.join(parts) or 'no values'}."


def _lines(told: Told, colours: Sequence[int], key: str) -> tuple[Drawn, str]:
    x, y = Axis.read(told["x"]), Axis.read(told["y"])
    lines = [
        Line(
            str(each["name"]),
            colour,
            tuple(map(float, each["x"])),
            _floats(each["mean"], len(each["x"])),
            _floats(each["low"], len(each["x"])),
            _floats(each["high"], len(each["x"])),
            bool(each["dashed"]),
        )
        for each, colour in zip(told["lines"], colours, strict=True)
    ]
    drawn = draw_lines(lines, x, y, key=key, level=_float(told["level"]))
    places = sorted({place for line in lines for place in line.x})
    known = [dict(zip(line.x, line.mean, strict=True)) for line in lines]
    columns = [[each.get(place) for place in places] for each in known]
    return drawn, _numbers(told, x, y, places, [line.name for line in lines], columns)


def _dots(told: Told, colours: Sequence[int], key: str) -> tuple[Drawn, str]:
    x = Axis.read(told["x"])
    groups = [
        Dots(
            str(each["name"]),
            colour,
            _floats(each["values"]),
            _float(each["mean"]),
            None if each["interval"] is None else _pair(each["interval"]),
        )
        for each, colour in zip(told["groups"], colours, strict=True)
    ]
    drawn = draw_dots(groups, x, key=key)
    unit = "%" if x.kind == "share" else ""
    most = max((len(each.values) for each in groups), default=0)
    wide = any(each.interval for each in groups)
    heads = [Column("", number=False), Column("mean", unit)]
    heads += [Column("from", unit), Column("to", unit)] if wide else []
    heads += [Column(f"value {number}", unit) for number in range(1, most + 1)]
    cells = []
    for each in groups:
        ends = list(each.interval or (None, None)) if wide else []
        row = [each.mean, *ends, *each.values, *([None] * (most - len(each.values)))]
        cells.append([Cell(each.name, each.name), *(_cell(value, x) for value in row)])
    return drawn, page.table(heads, cells, caption=told["title"], cards=False)


def _bars(told: Told, colours: Sequence[int], key: str) -> tuple[Drawn, str]:
    x, y = Axis.read(told["x"]), Axis.read(told["y"])
    groups = [
        Bars(
            str(each["name"]),
            colour,
            tuple(map(str, each["labels"])),
            _floats(each["values"], len(each["labels"])),
        )
        for each, colour in zip(told["groups"], colours, strict=True)
    ]
    drawn = draw_bars(groups, x, y, key=key)
    labels = list(dict.fromkeys(label for group in groups for label in group.labels))
    known = [dict(zip(group.labels, group.values, strict=True)) for group in groups]
    columns = [[each.get(label) for label in labels] for each in known]
    return drawn, _numbers(told, x, y, labels, [group.name for group in groups], columns)


def _map(told: Told, colours: Sequence[int], key: str) -> tuple[Drawn, str]:
    x, y, value = (Axis.read(told[part]) for part in ("x", "y", "value"))
    xs, ys = tuple(map(float, told["xs"])), tuple(map(float, told["ys"]))
    rows = tuple(_floats(row, len(xs)) for row in told["values"])
    if len(rows) != len(ys):
        raise UserError(f"{told['title']}: {len(ys)} ys and {len(rows)} rows of values")
    surface = Surface(xs, ys, rows)
    reach = tuple(map(float, told.get("reach") or ()))
    drawn = draw_surface(surface, x, y, value, key=key, reach=reach)
    corner = Column(f"{y.title} \\ {x.title}")
    heads = [corner, *(Column(values.number(place)) for place in xs)]
    cells = [
        [Cell(values.number(place), place), *(_cell(each, value) for each in row)]
        for place, row in zip(ys, rows, strict=True)
    ]
    return drawn, page.table(heads, cells, caption=told["title"], cards=False)


def _numbers(
    told: Told,
    x: Axis,
    y: Axis,
    places: Sequence[float | str],
    columns: Sequence[str],
    known: Sequence[Sequence[float | None]],
) -> str:
    """A column for each line or group, a row for each place along x."""
    unit = "%" if y.kind == "share" else ""
    step = -(-len(places) // MOST_NUMBERS) or 1
    kept = list(range(0, len(places), step))
    if kept and kept[-1] != len(places) - 1:
        kept.append(len(places) - 1)
    cells = []
    for index in kept:
        place = places[index]
        head = Cell(place, place) if isinstance(place, str) else Cell(_said(place, x), place)
        cells.append([head, *(_cell(column[index], y) for column in known)])
    heads = [
        Column(x.title, number=not any(isinstance(place, str) for place in places)),
        *(Column(name, unit) for name in columns),
    ]
    table = page.table(heads, cells, caption=told["title"], cards=False)
    words = {1: "", 2: " second", 3: " third"}.get(step, f" {step}th")
    return table + (page.note(f"Every{words} row is given here.") if step > 1 else "")


def _said(value: float, axis: Axis) -> str:
    if axis.kind == "share":
        return axis.said(value)
    return f"{value:,.0f}" if value == int(value) else values.number(value)


def _cell(value: float | None, axis: Axis) -> Cell:
    if value is None:
        return Cell(values.ABSENT, "")
    text = f"{100 * value:.2f}" if axis.kind == "share" else values.number(value)
    return Cell(text, value)


def _floats(several: Sequence[Any], count: int | None = None) -> tuple[float | None, ...]:
    if count is not None and len(several) != count:
        raise UserError(f"a figure has {count} places and {len(several)} values")
    return tuple(_float(value) for value in several)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _pair(ends: Sequence[Any]) -> tuple[float, float]:
    low, high = ends
    return float(low), float(high)
