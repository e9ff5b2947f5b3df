"""The confusion matrix as a table: rows are what an image is, columns what it was taken for."""

from collections.abc import Sequence
from html import escape

from plusx.report.page import Cell, Column, note, table


MOST_CLASSES = 20  # that a matrix can be read with; beyond, the commonest confusions are listed
MOST_PAIRS = 20


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], of: str = "image") -> str:
    """The matrix, or for many classes the pairs that are confused most. Of anything but images
    there are too many to be counted: shares of a row are shown, in per cent."""
    if len(classes) > MOST_CLASSES:
        return _pairs(counts, classes, of)
    short = all(len(name) <= 4 for name in classes)
    heads = [name if short else str(number) for number, name in enumerate(classes, 1)]
    head = "".join(
        f'<th scope="col"><abbr title="{escape(name)}">{escape(shown)}</abbr></th>'
        for shown, name in zip(heads, classes, strict=True)
    )
    rows = []
    for index, (name, row) in enumerate(zip(classes, counts, strict=True)):
        total = sum(row)
        cells = "".join(
            _cell(value, total, index == column, of != "image") for column, value in enumerate(row)
        )
        shown = name if short else f"{name} ({heads[index]})"
        rows.append(f'<tr><th scope="row">{escape(shown)}</th>{cells}</tr>\n')
    article = "an" if of == "image" else "a"
    label = (
        f"Confusion matrix: a row for what {article} {of} is, a column for what it was taken for"
    )
    what = f"Row: what {article} {of} is. Column: what it was taken for."
    return (
        f'<div class="table" role="region" aria-label="{label}" tabindex="0">'
        f'<table class="confusion"><caption>{label}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table></div>\n"
        + note(f"{what} {'Shades are' if of == 'image' else 'In per cent,'} shares of a row.")
    )


def _cell(value: int, total: int, right: bool, percent: bool) -> str:
    share = value / total if total else 0.0
    kinds = [
        *(["none"] if not value else []),
        *(["wrong"] if value and not right else []),
        *(["dark"] if share > 0.55 else []),
    ]
    # A single mistake in a large row would not be seen without a floor.
    shade = f' style="--share:{max(share, 0.12):.2f}"' if value else ""
    shown = f"{100 * share:.0f}" if percent and value else value or "·"
    return f'<td class="{" ".join(kinds)}"{shade}><span>{shown}</span></td>'


def _pairs(counts: Sequence[Sequence[int]], classes: Sequence[str], of: str) -> str:
    pairs = sorted(
        (
            (value, true, taken)
            for true, row in enumerate(counts)
            for taken, value in enumerate(row)
            if value and true != taken
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )[:MOST_PAIRS]
    if not pairs:
        return note(f"No {of} was taken for another class.")
    columns = [
        Column("Is", number=False),
        Column("Taken for", number=False),
        Column(f"{of.capitalize()}s"),
        Column("Of the class", "%"),
    ]
    rows = [
        [
            Cell(classes[true]),
            Cell(classes[taken]),
            Cell(f"{value:,}", value),
            Cell(f"{100 * value / sum(counts[true]):.1f}", value / sum(counts[true])),
        ]
        for value, true, taken in pairs
    ]
    return table(columns, rows, caption="The classes that were confused most")
