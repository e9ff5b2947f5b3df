"""Contradictions in tables about networks: relations that must hold between their numbers.

A printed number denotes an interval: 71.3 is any value from 71.25 to 71.35. A complaint is raised
only if no values in the intervals satisfy a relation, so a table of correct numbers has none.

The relations, with precision P, recall R and F1 of each class, and means over classes:

- Weighted recall equals accuracy; so does macro recall if all classes have the same size. All micro
  averages equal accuracy.
- F1 of a class, 2 P R / (P + R), is concave in (P, R) and homogeneous. By Jensen's inequality its
  mean over classes (macro or weighted, and over seeds too) is at most the harmonic mean of the
  averaged P and R. It is at least max(0, P + R - 1), the convex envelope on the unit square.
- Error is 1 - accuracy; epochs times the time per epoch is the total time; parameters and MACs
  follow from the architecture; a quantity of a network has one value in all tables; every table has
  a row for every network that is named.
- An epoch takes at least the time of its FLOPs on the stated machine: 6 for each MAC of each image.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from plusx.errors import UserError, did_you_mean
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
    check_columns,
    interval,
    refuse_unknown,
)
from plusx.zoo import External, find, names


_PLAIN = re.compile(r"plain\((\w+)\)")
_UNIT = Interval(Fraction(0), Fraction(1))
_POSITIVE = Interval(Fraction(0), Fraction(10**30))
_UNLIMITED = 10**20  # a bound above it, in any unit, is none


@dataclass(frozen=True)
class Complaint:
    """A contradiction: where it is, a description, and the range of possible values."""

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
        possible = f"{between} {self.unit}".rstrip()
        if self.allowed[1] > _UNLIMITED:
            possible = f"{low} {self.unit} or more"
        return f"{where}: {self.what}; possible: {possible}"


@dataclass(frozen=True)
class Confirmation:
    """A printed number that agrees with others: where it is, and with what."""

    table: str
    row: str
    column: str
    what: str

    def __str__(self) -> str:
        return f"{self.table}, {self.row}, {self.column}: {self.what}"


@dataclass(frozen=True)
class _Relation:
    """The values that a cell can have by a relation.

    `against`: what it follows from, for a complaint. `agrees`: the same for a confirmation, empty
    for a range that holds of every number of its kind.
    """

    allowed: Interval
    against: str
    agrees: str = ""


@dataclass(frozen=True)
class _Cell:
    """A printed number: where it is, its text, and its interval in the base unit."""

    table: str
    row: str
    column: str
    text: str
    unit: str
    interval: Interval

    @property
    def printed(self) -> str:
        return f"{self.text} {self.unit}".rstrip()

    def complaint(self, description: str, allowed: Interval) -> Complaint:
        factor = QUANTITIES[self.column][self.unit]
        # a printed value is possible if its interval meets that of the correct values
        ends = (float(allowed.low / factor), float(allowed.high / factor))
        return Complaint(self.table, self.row, self.column, description, ends, self.unit)


def check(tables: Tables) -> list[Complaint]:
    """Return all contradictions in the tables, in the order of the tables. Raises UserError for an
    unknown column, unit or network, or a number that cannot be parsed."""
    for row, network in tables.networks.items():
        try:
            _network(network)
        except UserError as error:
            raise UserError(f"networks, {row}: {error}") from error
    cells = _cells(tables)
    rows = list(dict.fromkeys(row for table in tables.tables for row in table.rows))
    complaints: list[Complaint] = []
    for row_cells in _by_row(cells).values():
        complaints += _check_repeated(row_cells)
        complaints += [
            cell.complaint(f"{cell.printed}{relation.against}", relation.allowed)
            for cell in row_cells
            for relation in _relations(cell, row_cells, tables)
            if not cell.interval.meets(relation.allowed)
        ]
    complaints += _check_times(cells)
    complaints += _check_rows(tables, rows)
    complaints += _check_maxima(tables, cells)
    order = {table.name: number for number, table in enumerate(tables.tables)}
    return sorted(complaints, key=lambda complaint: order.get(complaint.table, len(order)))


def confirm(tables: Tables) -> list[Confirmation]:
    """Return the numbers that agree with others or with arithmetic, in the order of the tables.
    Raises UserError as `check` does."""
    cells = _cells(tables)
    by_row = _by_row(cells)
    confirmations = [
        Confirmation(cell.table, cell.row, cell.column, f"{cell.printed} {relation.agrees}")
        for cell in cells
        for relation in _relations(cell, by_row[cell.row], tables)
        if relation.agrees and cell.interval.meets(relation.allowed)
    ]
    confirmations += [
        Confirmation(
            total.table,
            total.row,
            total.column,
            f"{total.printed} is {epochs.printed} epochs of {epoch.printed}",
        )
        for epochs, epoch, total in _times(cells)
        if (epoch.unit, total.unit) in _fitting_units(epochs, epoch, total)
    ]
    order = {table.name: number for number, table in enumerate(tables.tables)}
    return sorted(confirmations, key=lambda confirmation: order[confirmation.table])


def _cells(tables: Tables) -> list[_Cell]:
    cells = []
    for table in tables.tables:
        where = table.name
        check_columns(where, table.columns)
        for row, texts in table.rows.items():
            refuse_unknown(texts, set(table.columns), f"{where}, {row}: ")
            for column, text in texts.items():
                unit = table.columns[column]
                factor = QUANTITIES[column][unit]
                is_count = factor == 1 and QUANTITIES[column] not in (SHARES, TIMES)
                try:
                    values = interval(text, factor, is_count=is_count)
                except ValueError as error:
                    raise UserError(f"{where}, {row}, {column}: {error}") from error
                cells.append(_Cell(where, row, column, text, unit, values))
    return cells


def _by_row(cells: Iterable[_Cell]) -> dict[str, list[_Cell]]:
    by_row: dict[str, list[_Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, []).append(cell)
    return by_row


def _cell_of(cells: Sequence[_Cell], column: str, table: str = "") -> _Cell | None:
    """Return the cell of this column, from this table if it has one, else from another."""
    candidates = [cell for cell in cells if cell.column == column]
    return next(
        (cell for cell in candidates if cell.table == table), candidates[0] if candidates else None
    )


def _check_repeated(row_cells: Sequence[_Cell]) -> Iterator[Complaint]:
    for first, second in itertools.combinations(row_cells, 2):
        if first.column == second.column and not first.interval.meets(second.interval):
            description = f"{second.printed} here, {first.printed} in {first.table}"
            yield second.complaint(description, first.interval)


def _relations(cell: _Cell, row_cells: Sequence[_Cell], tables: Tables) -> Iterator[_Relation]:
    """Yield the possible values of a cell by each relation."""
    column, averaging = cell.column, tables.averaging
    accuracy, precision, recall = (
        _cell_of(row_cells, other, cell.table) for other in ("accuracy", "precision", "recall")
    )
    yield (
        _Relation(_UNIT, " is not a fraction")
        if QUANTITIES[column] is SHARES
        else _Relation(_POSITIVE, " is negative")
    )
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
        yield _Relation(
            accuracy.interval,
            f", but {why}, {accuracy.printed}",
            f"is the accuracy, {accuracy.printed}",
        )
    if accuracy and column == "error":
        where = "" if accuracy.table == cell.table else f" in {accuracy.table}"
        yield _Relation(
            Interval(1 - accuracy.interval.high, 1 - accuracy.interval.low),
            f", but the accuracy{where} is {accuracy.printed}",
            f"agrees with the accuracy{where}, {accuracy.printed}",
        )
    if precision and recall and column == "f1":
        of_both = f"of precision {precision.printed} and recall {recall.printed}"
        yield _Relation(
            f1_bounds(precision.interval, recall.interval),
            f" cannot be the mean F1 {of_both}",
            f"can be the mean F1 {of_both}",
        )
    network = tables.networks.get(cell.row)
    if network is None:
        return
    if QUANTITIES[column] is COUNTS:
        count = _count(network, column, tables)
        exact = Interval(Fraction(count), Fraction(count))
        match = "" if cell.interval.meets(exact) else _matching_network(cell, network, tables)
        yield _Relation(
            exact, f", but {network} has {count:,}{match}", f"is that of {network}, {count:,}"
        )
    if column == "epoch_time" and tables.images and tables.teraflops:
        yield _speed(cell, network, tables.images, Fraction(tables.teraflops), tables)


def _speed(
    cell: _Cell, network: str, images: int, teraflops: Fraction, tables: Tables
) -> _Relation:
    """Return the possible times of an epoch on a machine of this speed.

    A training step takes three times the FLOPs of a forward pass (the backward pass computes the
    gradients of inputs and of weights), and a MAC is two FLOPs.
    """
    flops = 6 * _count(network, "multiply_adds", tables) * images
    least = Fraction(flops) / (teraflops * 10**12)
    middle = (cell.interval.low + cell.interval.high) / 2
    speed = f"{float(flops / middle) / 1e12:,.3g} TFLOP/s" if middle else "more than any machine's"
    work = f"{images:,} images of {network} ({flops:.3g} FLOP)"
    machine = tables.machine or "the machine"
    peak = f"the peak of {machine}, {float(teraflops):g} TFLOP/s by its data sheet"
    return _Relation(
        Interval(least, _POSITIVE.high),
        f" is not plausible: {work} in it are {speed}, above {peak}",
        f"is plausible for {work} below {peak}",
    )


def f1_bounds(precision: Interval, recall: Interval) -> Interval:
    """Return the possible mean F1 over classes for these means of precision and recall. From max(0,
    precision + recall - 1) to their harmonic mean."""
    total = precision.high + recall.high
    return Interval(
        max(Fraction(0), precision.low + recall.low - 1),
        2 * precision.high * recall.high / total if total > 0 else Fraction(0),
    )


def network_count(
    network: str,
    quantity: str,
    *,
    classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
) -> int:
    """Return `parameters` or `multiply_adds` of a network, computed from its spec. None keeps the
    value of the zoo. A network without a spec has the counts of the zoo."""
    net = _network(network)
    if not isinstance(net, Net):
        return int(getattr(net, quantity))
    adapted = replace(
        net,
        num_classes=net.num_classes if classes is None else classes,
        in_channels=net.in_channels if channels is None else channels,
        size=net.size if size is None else size,
    )
    return int(getattr(measure(adapted), quantity))


def _network(name: str) -> Net | External:
    match = _PLAIN.fullmatch(name)
    if match is None:
        return find(name)
    net = find(match[1])
    if not isinstance(net, Net):
        raise UserError(f"{name}: {match[1]} is an external module and has no twin")
    return with_merge(net, "none")


def _count(network: str, quantity: str, tables: Tables) -> int:
    return network_count(
        network, quantity, classes=tables.classes, channels=tables.channels, size=tables.size
    )


def _matching_network(cell: _Cell, network: str, tables: Tables) -> str:
    """Return a hint if the number fits another network of the tables, or a relative in the zoo."""
    others = [other for other in tables.networks.values() if other != network]
    relatives = [name for name in names() if network.startswith(name) and name != network]
    for name in (*relatives, *others):
        # a relative may be for another image size, with another head: use its counts in the zoo
        in_tables = name in others
        count = _count(name, cell.column, tables) if in_tables else network_count(name, cell.column)
        if cell.interval.low <= count <= cell.interval.high:
            return f"; {cell.printed} is {name} ({count:,})"
    return ""


def _times(cells: Sequence[_Cell]) -> list[tuple[_Cell, _Cell, _Cell]]:
    """Return the epochs, the time of an epoch and the total time of every row that has them."""
    trios = []
    by_row = _by_row(cells)
    for total in (cell for cell in cells if cell.column == "total_time"):
        epochs, epoch = (
            _cell_of(by_row[total.row], column, total.table) for column in ("epochs", "epoch_time")
        )
        if epochs and epoch:
            trios.append((epochs, epoch, total))
    return trios


def _check_times(cells: Sequence[_Cell]) -> Iterator[Complaint]:
    """Check that epochs times the time per epoch is the total time; if not, try other units."""
    by_table: dict[str, list[tuple[_Cell, _Cell, _Cell]]] = {}
    for trio in _times(cells):
        by_table.setdefault(trio[2].table, []).append(trio)
    for trios_of_table in by_table.values():
        fitting = Counter(units for trio in trios_of_table for units in _fitting_units(*trio))
        for epochs, epoch, total in trios_of_table:
            units = _fitting_units(epochs, epoch, total)
            if (epoch.unit, total.unit) in units:
                continue
            allowed = epochs.interval * epoch.interval
            description = (
                f"{total.printed}, but {epochs.printed} epochs of {epoch.printed} are "
                f"{_time(allowed)}"
            )
            common_units = [u for u in fitting if fitting[u] == max(fitting.values())]
            hints = _smallest_changes(units or common_units, epoch, total)
            if units:
                description += f"; it would fit {' or '.join(words for _, words in hints)}"
            elif hints:
                (unit, _), words = hints[0]
                reread = epochs.interval * _in_unit(epoch, unit)
                description += f"; {words}, which fits other rows, it is {_time(reread)}"
            yield total.complaint(description, allowed)


def _fitting_units(epochs: _Cell, epoch: _Cell, total: _Cell) -> list[tuple[str, str]]:
    """Return the units of the epoch time and the total time for which the product is right."""
    return [
        (a, b)
        for a in TIMES
        for b in TIMES
        if (epochs.interval * _in_unit(epoch, a)).meets(_in_unit(total, b))
    ]


def _in_unit(cell: _Cell, unit: str) -> Interval:
    """Return the interval of a time if its number is read in another unit."""
    return cell.interval.scaled(TIMES[unit] / TIMES[cell.unit])


def _smallest_changes(
    units: Sequence[tuple[str, str]], epoch: _Cell, total: _Cell
) -> list[tuple[tuple[str, str], str]]:
    """Return the pairs of units that change the fewest units, with the change in words."""
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


def _time(duration: Interval) -> str:
    middle = float((duration.low + duration.high) / 2)
    unit = next(unit for unit in ("h", "min", "s") if middle >= float(TIMES[unit]) or unit == "s")
    return f"{middle / float(TIMES[unit]):.3g} {unit}"


def _check_rows(tables: Tables, rows: Sequence[str]) -> Iterator[Complaint]:
    for row in dict.fromkeys((*rows, *tables.named)):
        tables_with_row = [table.name for table in tables.tables if row in table.rows]
        for table in tables.tables:
            if table.name not in tables_with_row:
                mention = f"is in {', '.join(tables_with_row)}" if tables_with_row else "is named"
                yield Complaint(table.name, row, "", f"{mention} and has no row here", None)


def _check_maxima(tables: Tables, cells: Sequence[_Cell]) -> Iterator[Complaint]:
    for quantity, row in (tables.most or {}).items():
        refuse_unknown({quantity: row}, set(QUANTITIES), "most: ")
        by_name: dict[str, Interval] = {}
        by_row = _by_row(cells)
        for name in dict.fromkeys((*tables.networks, *by_row)):
            cell = _cell_of(by_row.get(name, ()), quantity)
            if QUANTITIES[quantity] is COUNTS and name in tables.networks:
                count = Fraction(_count(tables.networks[name], quantity, tables))
                by_name[name] = Interval(count, count)
            elif cell is not None:
                by_name[name] = cell.interval
        if row not in by_name:
            hint = did_you_mean(row, by_name)
            raise UserError(f"most: no table has a number of {quantity} for {row!r}{hint}")
        larger = [name for name, interval in by_name.items() if interval.low > by_name[row].high]
        if larger:
            smallest = "; it has the least" if len(larger) == len(by_name) - 1 else ""
            description = (
                f"is claimed to have the most {quantity}: {', '.join(larger)} have more{smallest}"
            )
            yield Complaint("", row, quantity, description, None)
