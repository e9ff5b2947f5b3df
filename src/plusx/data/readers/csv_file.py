"""The rows of a CSV, TSV or JSONL file, and its columns path and split.

Rows count from 1 with the header, as in a spreadsheet; of JSONL they are the lines. Columns of a
CSV are separated by commas, semicolons or tabs; in a TSV (.tsv) quotation marks are ordinary
characters. Text is UTF-8, or UTF-16 with a byte order mark. Paths are relative to the file's folder
and must stay inside it.
"""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from plusx.data.image_file import read_regular
from plusx.data.readers.text_file import decoded
from plusx.data.splits import split_of
from plusx.errors import UserError, did_you_mean, printable


_LIMIT = 2**31  # bytes
_HEADER = 2**16  # bytes that are read for the columns alone
_SEPARATORS = ",;\t"
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", *JSON_LINES)


class Row(NamedTuple):
    """A non-empty row: its number, its name in messages, its cells by column."""

    number: int
    where: str
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """Return a cell without surrounding blanks. Raises UserError if it is not UTF-8."""
        text = self.cells[column].strip()
        _refuse_other_encoding(text, self.where, column)
        return text

    @property
    def split(self) -> str:
        """Return train, validation, test, or "" without a column split. Raises UserError."""
        if "split" not in self.cells:
            return ""
        split = split_of(self.cells["split"])
        if not split:
            raise UserError(
                f"{self.where}: split {printable(self.cells['split'].strip())!r}, allowed are "
                "train, validation (or val), test"
            )
        return split

    def path(self, root: str) -> str:
        """Return the path below root. Raises UserError if it is missing or outside of root.

        Surrounding blanks and backslashes are part of it only if there is such a file.
        """
        text = self.cells["path"]
        if not text.strip() or "\0" in text:
            raise UserError(f"{self.where}: no path")
        spellings = dict.fromkeys((text, text.strip(), text.strip().replace("\\", "/")))
        paths = [os.path.normpath(os.path.join(root, spelling)) for spelling in spellings]
        path = next((path for path in paths if os.path.lexists(path)), paths[0])
        if not path.startswith(os.path.join(root, "")):
            raise UserError(
                f"{self.where}: the path {printable(text)!r} leaves the folder of the CSV"
            )
        if not os.path.lexists(path):
            _refuse_other_encoding(text, self.where, "path")
        return path


def columns_of(path: str | Path) -> list[str]:
    """Return the columns of a CSV; [] if the path is not a .csv file."""
    return _columns_of(path) if os.fspath(path).lower().endswith(".csv") else []


def columns_of_table(path: str | Path) -> list[str]:
    """Return the columns of a CSV, TSV or JSONL file; [] if the path is none of these."""
    return _columns_of(path) if os.fspath(path).lower().endswith(TABLES) else []


def _columns_of(path: str | Path) -> list[str]:
    if not os.path.isfile(path):
        return []
    with open(path, "rb") as file:
        head = file.read(_HEADER)
    try:
        header = decoded(head).splitlines()[:1]
        if os.fspath(path).lower().endswith(JSON_LINES):
            first = json.loads("".join(header) or "{}")
            return list(first) if isinstance(first, dict) else []
        reader = csv.reader(header, delimiter=_separator(header))
        return [name.strip() for name in next(reader, [])]
    except (csv.Error, ValueError):
        return []


def read_rows(path: str | Path, shown: str) -> tuple[list[str], list[Row]]:
    """Return the columns and rows. Raises UserError for an invalid file or row."""
    if os.fspath(path).lower().endswith(JSON_LINES):
        return _read_json_lines(path, shown)
    is_tsv = os.fspath(path).lower().endswith(".tsv")
    quoting: Literal[0, 3] = csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL
    lines: list[list[str]] = []
    try:
        text = decoded(read_regular(path, _LIMIT))
        separator = _separator(text[:_HEADER].splitlines()[:1])
        file = io.StringIO(text, newline="")
        lines.extend(csv.reader(file, delimiter=separator, strict=True, quoting=quoting))
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not text: {error}") from None
    except csv.Error as error:
        raise UserError(f"{shown}, row {len(lines) + 1}: {error}") from None
    if "\0" in text:
        number = next(n for n, fields in enumerate(lines, 1) if "\0" in "".join(fields))
        raise UserError(
            f"{shown}, row {number} has a NUL character: it is not text, or neither UTF-8 nor "
            "UTF-16"
        )
    columns = [name.strip() for name in lines[0]] if lines else []
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{shown} has the column {printable(twice)!r} more than once")
    rows = []
    for number, fields in enumerate(lines[1:], 2):
        if any(field.strip() for field in fields):
            where = f"{shown}, row {number}"
            if len(fields) != len(columns):
                count = f"{len(fields)} field{'s' * (len(fields) != 1)}"
                raise UserError(f"{where}: {count} for {len(columns)} columns")
            rows.append(Row(number, where, dict(zip(columns, fields))))
    return columns, rows


def rows_with(
    path: str | Path, shown: str, columns: Mapping[str, str]
) -> tuple[list[str], list[Row]]:
    """Return the columns and rows of a table that has certain columns.

    columns: names of columns by their key in [data]
    Raises UserError if a column is missing or repeated, or there are no rows.
    """
    if not os.path.isfile(path):
        is_there = os.path.lexists(path)
        problem = (
            "is not a regular file" if is_there else "is missing: there is no such file or folder"
        )
        raise UserError(f"{shown} {problem}")
    header, rows = read_rows(path, shown)
    missing = [column for column in columns.values() if header.count(column) != 1]
    if missing:
        keys = " and ".join(f"data.{key}=COLUMN" for key in columns)
        which = f"{missing[0]!r} is not one of them{did_you_mean(missing[0], header)}"
        if len(missing) > 1:
            which = f"{' and '.join(map(repr, missing))} are not among them"
        raise UserError(
            f"{shown} has the columns {', '.join(map(printable, header)) or 'none'}, and "
            f"{which}: name the columns with {keys}"
        )
    if not rows:
        raise UserError(f"{shown} has no rows below its header")
    return header, rows


def _read_json_lines(path: str | Path, shown: str) -> tuple[list[str], list[Row]]:
    columns: list[str] = []
    rows = []
    try:
        lines = decoded(read_regular(path, _LIMIT)).split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{shown}, line {number}"
        try:
            values = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f'{where} is not an object such as {{"text": "..."}}')
        columns = columns or list(values)
        if set(values) != set(columns):
            raise UserError(
                f"{where} has the keys {', '.join(map(printable, values))}, and the first line has "
                f"{', '.join(map(printable, columns))}"
            )
        rows.append(Row(number, where, {key: _cell(values[key], where) for key in columns}))
    return columns, rows


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _cell(value: object, where: str) -> str:
    """Return a value of JSON as a cell."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool | int | float):
        return str(value)
    raise UserError(f"{where}: {printable(str(value))[:60]} is neither text nor a number")


def _separator(header: list[str]) -> str:
    """Return the separator of the columns in the first line."""
    return max(_SEPARATORS, key="".join(header).count)


def _refuse_other_encoding(text: str, where: str, column: str) -> None:
    """Raise UserError for text with bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the {column} '{printable(text)}' is not UTF-8: save the file as UTF-8 (in "
            'a spreadsheet as "CSV UTF-8")'
        ) from None
