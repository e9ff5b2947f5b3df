"""Contradictions in tables about networks: relations that must hold between their numbers.

A printed number stands for an interval: 71.3 for all values that are rounded to it, 71.25 to 71.35.
There is a complaint only where no values in the intervals satisfy a relation, so a table of true
numbers has none. Nothing here is about any particular table.

The relations, with k classes, precision P, recall R and F1 of each class, and means over them:

- Recall averaged by the classes' sizes is the accuracy, and so is macro recall where all classes
  are of one size. Micro averages all are.
- F1 of a class, 2 P R / (P + R), is concave in (P, R) and homogeneous. So by Jensen's inequality
  its mean over classes (macro or weighted, and over seeds as well) is at most the harmonic mean of
  the averaged P and R. It is at least max(0, P + R - 1), the convex envelope on the unit square.
  It is not the harmonic mean itself.
- Error is 1 - accuracy; epochs times the time of one are the total; parameters and multiply-adds
  are arithmetic; one network has one figure for one thing; each network that is named has a row.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from plusx.errors import UserError
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.grammar.twins import with_merge
from plusx.study.printed import (
    COUNTS,
    QUANTITIES,
    SHARES,
    TIMES,
    Interval,
    Tables,
    interval,
    refuse_unknown,
)
from plusx.zoo import External, find, names


_PLAIN = re.compile(r"plain\((\w+)\)")
_UNIT = Interval(Fraction(0), Fraction(1))
_POSITIVE = Interval(Fraction(0), Fraction(10**30))


@dataclass(frozen=True)
class Complaint:
    """A contradiction: its place, a description, and the values that would be possible."""

    table: str
    row: str
    column: str
    what: str
    allowed: tuple[float, float] | None  # in the unit of the column
    unit: str = ""

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.table, self.row, self.column)))
        if self.allowed is None:
            return f"{where}: {self.what}"
        low, high = (f"{value:,.6g}" for value in self.allowed)
        between = low if low == high else f"{low} to {high}"
        return f"{where}: {self.what}; possible: {between} {self.unit}".rstrip()


@dataclass(frozen=True)
class _Cell:
    """A number: its place, its text, and the values that it stands for, in the base unit."""

    table: str
    row: str
    column: str
    text: str
    unit: str
    interval: Interval

    @property
    def printed(self) -> str:
        return f"{self.text} {self.unit}".rstrip()

    def complaint(self, what: str, allowed: Interval) -> Complaint:
        factor = QUANTITIES[self.column][self.unit]
        # A value that is printed is possible if its own interval meets that of the true values.
        ends = (float(allowed.low / factor), float(allowed.high / factor))
        return Complaint(self.table, self.row, self.column, what, ends, self.unit)


def check(tables: Tables) -> list[Complaint]:
    """All contradictions in the tables, in their order, by the relations above.

    UserError: a column, unit or figure that cannot be read, or a network that there is not.
    """
    for network in tables.networks.values():
        _network(network)
    cells = _cells(tables)
    rows = list(dict.fromkeys(row for table in tables.tables for row in table.rows))
    complaints: list[Complaint] = []
    for row in rows:
        row_cells = [cell for cell in cells if cell.row == row]
        complaints += _same(row_cells)
        complaints += [
            cell.complaint(f"{cell.printed}{why}", allowed)
            for cell in row_cells
            for allowed, why in _relations(cell, row_cells, tables)
            if not cell.interval.meets(allowed)
        ]
    complaints += _times(cells)
    complaints += _missing(tables, rows)
    complaints += _most(tables, cells)
    order = {table.name: number for number, table in enumerate(tables.tables)}
    return sorted(complaints, key=lambda complaint: order.get(complaint.table, len(order)))


def _cells(tables: Tables) -> list[_Cell]:
    cells = []
    for table in tables.tables:
        where = table.name
        for column, unit in table.columns.items():
            refuse_unknown({column: unit}, set(QUANTITIES), f"{where}, columns: ")
            if unit not in QUANTITIES[column]:
                allowed = ", ".join(repr(allowed_unit) for allowed_unit in QUANTITIES[column])
                raise UserError(f"{where}, {column}: the unit is one of {allowed}, not {unit!r}")
        for row, texts in table.rows.items():
            refuse_unknown(texts, set(table.columns), f"{where}, {row}: ")
            for column, text in texts.items():
                unit = table.columns[column]
                factor = QUANTITIES[column][unit]
                whole = factor == 1 and QUANTITIES[column] not in (SHARES, TIMES)
                try:
                    stands_for = interval(text, factor, whole=whole)
                except ValueError as error:
                    raise UserError(f"{where}, {row}, {column}: {error}") from error
                cells.append(_Cell(where, row, column, text, unit, stands_for))
    return cells


def _of(cells: Sequence[_Cell], column: str, table: str = "") -> _Cell | None:
    """The figure of that column, the one in that table before those in others."""
    candidates = [cell for cell in cells if cell.column == column]
    return next(
        (cell for cell in candidates if cell.table == table), candidates[0] if candidates else None
    )


def _same(row_cells: Sequence[_Cell]) -> Iterator[Complaint]:
    for first, second in itertools.combinations(row_cells, 2):
        if first.column == second.column and not first.interval.meets(second.interval):
            what = f"{second.printed} here, {first.printed} in {first.table}"
            yield second.complaint(what, first.interval)


def _relations(
    cell: _Cell, row_cells: Sequence[_Cell], tables: Tables
) -> Iterator[tuple[Interval, str]]:
    """What a figure can be by each of its relations, and how a complaint about it goes on."""
    column, averaging = cell.column, tables.averaging
    accuracy, precision, recall = (
        _of(row_cells, other, cell.table) for other in ("accuracy", "precision", "recall")
    )
    yield (_UNIT, " is no share") if QUANTITIES[column] is SHARES else (_POSITIVE, " is negative")
    equal, why = (
        (("precision", "recall", "f1"), "micro averages are accuracy")
        if averaging == "micro"
        else (("recall",), "all classes are of one size: averaged recall is accuracy")
        if tables.balanced
        else (("recall",), "weighted recall is accuracy")
        if averaging == "weighted"
        else ((), "")
    )
    if accuracy and column in equal:
        yield accuracy.interval, f", but {why}, {accuracy.printed}"
    if accuracy and column == "error":
        there = "" if accuracy.table == cell.table else f" in {accuracy.table}"
        allowed = Interval(1 - accuracy.interval.high, 1 - accuracy.interval.low)
        yield allowed, f", but the accuracy{there} is {accuracy.printed}"
    if precision and recall and column == "f1":
        yield (
            f1_bounds(precision.interval, recall.interval),
            f" is no mean of F1 with precision {precision.printed} and recall {recall.printed}",
        )
    network = tables.networks.get(cell.row)
    if network is not None and QUANTITIES[column] is COUNTS:
        count = _count(network, column, tables)
        exact = Interval(Fraction(count), Fraction(count))
        if not cell.interval.meets(exact):
            yield exact, f", but {network} has {count:,}{_elsewhere(cell, network, tables)}"


def f1_bounds(precision: Interval, recall: Interval) -> Interval:
    """What the mean of F1 over classes can be for these means of precision and recall.

    At most their harmonic mean, at least max(0, precision + recall - 1).
    """
    high = precision.high + recall.high
    return Interval(
        max(Fraction(0), precision.low + recall.low - 1),
        2 * precision.high * recall.high / high if high > 0 else Fraction(0),
    )


def counted(
    network: str,
    quantity: str,
    *,
    classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
) -> int:
    """Parameters or multiply_adds of a network, by arithmetic; see `Tables` for its name.

    None means as in the zoo. A network without a spec has the counts of the zoo.
    """
    net = _network(network)
    if not isinstance(net, Net):
        return int(getattr(net, quantity))
    fitted = replace(
        net,
        num_classes=net.num_classes if classes is None else classes,
        in_channels=net.in_channels if channels is None else channels,
        size=net.size if size is None else size,
    )
    return int(getattr(measure(fitted), quantity))


def _network(name: str) -> Net | External:
    match = _PLAIN.fullmatch(name)
    if match is None:
        return find(name)
    net = find(match[1])
    if not isinstance(net, Net):
        raise UserError(f"{name}: {match[1]} is an external module and has no twin")
    return with_merge(net, "none")


def _count(network: str, quantity: str, tables: Tables) -> int:
    return counted(
        network, quantity, classes=tables.classes, channels=tables.channels, size=tables.size
    )


def _elsewhere(cell: _Cell, network: str, tables: Tables) -> str:
    """Whose figure it would be: of a network named in the tables, or of a relative in the zoo."""
    others = [network_name for network_name in tables.networks.values() if network_name != network]
    relatives = [name for name in names() if network.startswith(name) and name != network]
    for name in (*relatives, *others):
        # A relative of another size of image has a head of its own.
        in_tables = name in others
        count = _count(name, cell.column, tables) if in_tables else counted(name, cell.column)
        if cell.interval.low <= count <= cell.interval.high:
            return f"; {cell.printed} is {name} ({count:,})"
    return ""


def _times(cells: Sequence[_Cell]) -> Iterator[Complaint]:
    """Epochs times the time of one are the total; where they are not, other units are tried."""
    trios: dict[str, list[tuple[_Cell, _Cell, _Cell]]] = {}
    for total in cells:
        row_cells = [cell for cell in cells if cell.row == total.row]
        epochs, epoch = (_of(row_cells, column, total.table) for column in ("epochs", "epoch_time"))
        if total.column == "total_time" and epochs and epoch:
            trios.setdefault(total.table, []).append((epochs, epoch, total))
    for of_table in trios.values():
        fitting = Counter(units for trio in of_table for units in _fitting_units(*trio))
        for epochs, epoch, total in of_table:
            units = _fitting_units(epochs, epoch, total)
            if (epoch.unit, total.unit) in units:
                continue
            allowed = epochs.interval * epoch.interval
            what = (
                f"{total.printed}, but {epochs.printed} epochs of {epoch.printed} are "
                f"{_time(allowed)}"
            )
            hints = _plainest(units or [u for u in fitting if fitting[u] == max(fitting.values())],
                              epoch, total)  # fmt: skip
            if units:
                what += f"; it would fit {' or '.join(words for _, words in hints)}"
            elif hints:
                (unit, _), words = hints[0]
                other = epochs.interval * _reread(epoch, unit)
                what += f"; {words}, which fits other rows, it is {_time(other)}"
            yield total.complaint(what, allowed)


def _fitting_units(epochs: _Cell, epoch: _Cell, total: _Cell) -> list[tuple[str, str]]:
    """The units of the time of an epoch and of the total in which the product is right."""
    return [
        (a, b)
        for a in TIMES
        for b in TIMES
        if (epochs.interval * _reread(epoch, a)).meets(_reread(total, b))
    ]


def _reread(cell: _Cell, unit: str) -> Interval:
    """What a time stands for if it is in another unit."""
    return cell.interval.scaled(TIMES[unit] / TIMES[cell.unit])


def _plainest(
    units: Sequence[tuple[str, str]], epoch: _Cell, total: _Cell
) -> list[tuple[tuple[str, str], str]]:
    """Those units that change the fewest, with their change in words."""
    changes = {
        (a, b): [f"with an epoch in {a}"] * (a != epoch.unit)
        + [f"with the total in {b}"] * (b != total.unit)
        for a, b in units
    }
    fewest = min(map(len, changes.values()), default=0)
    return [
        (pair, " and ".join(words) or "as printed")
        for pair, words in changes.items()
        if len(words) == fewest
    ]


def _time(spent: Interval) -> str:
    middle = float((spent.low + spent.high) / 2)
    unit = next(unit for unit in ("h", "min", "s") if middle >= float(TIMES[unit]) or unit == "s")
    return f"{middle / float(TIMES[unit]):.3g} {unit}"


def _missing(tables: Tables, rows: Sequence[str]) -> Iterator[Complaint]:
    for row in dict.fromkeys((*rows, *tables.named)):
        there = [table.name for table in tables.tables if row in table.rows]
        for table in tables.tables:
            if table.name not in there:
                mention = f"is in {', '.join(there)}" if there else "is named"
                yield Complaint(table.name, row, "", f"{mention} and has no row here", None)


def _most(tables: Tables, cells: Sequence[_Cell]) -> Iterator[Complaint]:
    for quantity, row in (tables.most or {}).items():
        refuse_unknown({quantity: row}, set(QUANTITIES), "most: ")
        intervals: dict[str, Interval] = {}
        for name in dict.fromkeys((*tables.networks, *(cell.row for cell in cells))):
            cell = _of([other for other in cells if other.row == name], quantity)
            if QUANTITIES[quantity] is COUNTS and name in tables.networks:
                count = Fraction(_count(tables.networks[name], quantity, tables))
                intervals[name] = Interval(count, count)
            elif cell is not None:
                intervals[name] = cell.interval
        more = [
            name
            for name, stated in intervals.items()
            if row in intervals and stated.low > intervals[row].high
        ]
        if more:
            least = "; it has the least" if len(more) == len(intervals) - 1 else ""
            what = f"is claimed to have the most {quantity}: {', '.join(more)} have more{least}"
            yield Complaint("", row, quantity, what, None)
