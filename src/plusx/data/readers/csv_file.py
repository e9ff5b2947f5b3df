"""The rows of a CSV, and what its columns path and split mean.

Rows count from 1 with the header, as a spreadsheet shows them. Paths are relative to the CSV's
folder and stay inside it.
"""

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

from plusx.data.image_file import printable, read_regular
from plusx.data.splits import SPLIT_NAMES
from plusx.errors import UserError


_LIMIT = 2**31  # bytes
_HEADER = 2**16  # characters that are read for the columns alone


class Row(NamedTuple):
    """A row that is not empty: its number, what to call it in a message, its cells by column."""

    number: int
    where: str
    cells: dict[str, str]

    @property
    def split(self) -> str:
        """train, validation, test, or "" without a column split. UserError: an unknown name."""
        name = self.cells.get("split", "").strip()
        if "split" in self.cells and name not in SPLIT_NAMES:
            raise UserError(
                f"{self.where}: split {printable(name)!r}, allowed are train, validation (or val), "
                "test"
            )
        return SPLIT_NAMES.get(name, "")

    def path(self, root: str) -> str:
        """The path below root. UserError: there is none, or it leaves root."""
        text = self.cells["path"]
        if not text.strip() or "\0" in text:
            raise UserError(f"{self.where}: no path")
        path = os.path.normpath(os.path.join(root, text))
        if not path.startswith(os.path.join(root, "")):
            raise UserError(
                f"{self.where}: the path {printable(text)!r} leaves the folder of the CSV"
            )
        return path


def columns_of(path: str | Path) -> list[str]:
    """The columns of a CSV; none where the path is no file of that ending."""
    if not (os.fspath(path).lower().endswith(".csv") and os.path.isfile(path)):
        return []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.read(_HEADER).splitlines()[:1]
    try:
        return [name.strip() for name in next(csv.reader(header), [])]
    except csv.Error:
        return []


def read_rows(path: str | Path, shown: str) -> tuple[list[str], list[Row]]:
    """The columns and the rows. UserError: it is no CSV, or rows differ in length."""
    # paths need not be UTF-8, and neither does the rest
    text = read_regular(path, _LIMIT).decode("utf-8-sig", "surrogateescape")
    lines: list[list[str]] = []
    try:
        lines.extend(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{shown}, row {len(lines) + 1}: {error}") from None
    columns = [name.strip() for name in lines[0]] if lines else []
    rows = []
    for number, fields in enumerate(lines[1:], 2):
        if any(field.strip() for field in fields):
            where = f"{shown}, row {number}"
            if len(fields) != len(columns):
                raise UserError(f"{where}: {len(fields)} fields under {len(columns)} columns")
            rows.append(Row(number, where, dict(zip(columns, fields))))
    return columns, rows
