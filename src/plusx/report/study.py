"""The page of a study: what was found, the figures, the table, and what was run."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page, values
from plusx.report.colours import Palette
from plusx.report.figures import alternative, figure, names
from plusx.report.page import Cell, Column
from plusx.report.setting import moment, setting


LONGEST = 180  # signs of a finding that are set large; the sentences after them stand beneath


def study_page(result: Mapping[str, Any]) -> str:
    """The page of a study's result.json; ``recipe`` in it is the text of the recipe."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    figures: Sequence[Mapping[str, Any]] = result["figures"]
    named = [name for told in figures for name in names(told)]
    palette = Palette([*named, *(row["name"] for row in rows if row["name"] in set(named))])
    drawn = "".join(
        figure(
            {
                **told,
                "alternative": told["alternative"] or alternative(told),
                "reach": _reach(told, figures),
            },
            palette,
            f"f{n}",
        )
        for n, told in enumerate(figures)
    )
    head, rest = _parted(result["finding"])
    body = (
        (f'<div class="figures">\n{drawn}</div>\n' if drawn else "")
        + page.section("Results", _results(result, rows, palette))
        + page.section("What was run", _what_was_run(result))
    )
    split = f" · {result['split']} split" if result["split"] else ""
    return page.document(
        title=f"plusx: {result['title']}",
        kicker=f"plusx study {result['study']} · {result['title']} · {result['data']}{split}",
        finding=head,
        more=rest,
        context=f"{result['question']} {_setup(result, rows)}".strip(),
        body=body,
        colours=palette.colours,
    )


def _reach(told: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> list[float]:
    """The lowest and highest value of all surfaces that show what this one does."""
    if told["kind"] != "map":
        return []
    alike = [each for each in figures if each["kind"] == "map" and each["value"] == told["value"]]
    known = [v for each in alike for row in each["values"] for v in row if v is not None]
    return [min(known), max(known)] if known else []


def _parted(finding: str) -> tuple[str, str]:
    """The sentence that is set large, and those that do not fit beside it."""
    sentences = re.split(r"(?<=[.!?])\s+", finding)
    head = sentences[0]
    count = 1
    while count < len(sentences) and len(head) + len(sentences[count]) < LONGEST:
        head = f"{head} {sentences[count]}"
        count += 1
    return head, " ".join(sentences[count:])


def _setup(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    seeds = len(result["seeds"])
    if not rows or not seeds:
        return ""
    length = f", trained for {result['length']}" if result.get("length") else ""
    if seeds == 1:
        return f"One seed each{length}: how far seeds differ is not known."
    words = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}
    return f"{words.get(seeds, seeds)} seeds each{length}."


def _results(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], palette: Palette) -> str:
    if not rows:
        drawn = page.note("There are no rows: nothing was finished.")
    else:
        one = {"title": "", "note": "", "columns": result["columns"], "rows": rows}
        coloured = {name for told in result["figures"] for name in names(told)}
        # Marks only where they tell of a line or a bar that has the name, for every row.
        shared = palette.shared and all(row["name"] in coloured for row in rows)
        drawn = "".join(
            _table(told, result["title"], palette if shared else None)
            for told in result.get("tables") or [one]
        )
    notes = ["± is the standard deviation over the seeds (n - 1)."] if _spread(rows) else []
    drawn += "".join(page.note(text) for text in [*notes, *result["notes"]])
    return drawn + (_marked(result["columns"], result["marked"]) if result["marked"] else "")


def _table(told: Mapping[str, Any], title: str, palette: Palette | None) -> str:
    """One table with its title and note; in the colours of the figures, if it is told them."""
    rows = told["rows"]
    indices = palette.of([row["name"] for row in rows]) if palette else [None] * len(rows)
    heads, texts = _filled(told["columns"], rows)
    cells = [
        [Cell(str(row["name"]), str(row["name"]), colour=index), *own]
        for row, index, own in zip(rows, indices, texts, strict=True)
    ]
    caption = f"Results: {told['title'] or title}"
    drawn = page.table([Column("Name", number=False), *heads], cells, caption=caption)
    above = page.heading(told["title"]) if told["title"] else ""
    return above + drawn + (page.note(told["note"]) if told["note"] else "")


def _spread(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        isinstance(value, Mapping) and value.get("std") is not None
        for row in rows
        for value in row.values()
    )


def _marked(columns: Sequence[Mapping[str, Any]], marked: Sequence[Mapping[str, Any]]) -> str:
    heads, texts = _filled(columns, marked)
    cells = [
        [Cell(str(row["name"]), str(row["name"])), Cell(str(row["why"])), *told]
        for row, told in zip(marked, texts, strict=True)
    ]
    heads = [Column("Name", number=False), Column("Why", number=False), *heads]
    return (
        page.heading("Marked: in no mean above")
        + page.note(
            "Each says why: training that came to nothing, or another version, machine or other "
            "images than those of the other runs."
        )
        + page.table(heads, cells, caption="Rows that are marked and in no mean")
    )


def _filled(
    columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Column], list[list[Cell]]]:
    """The columns in which some row has a value, or that have a word for none; and the cells."""
    heads: list[Column] = []
    texts: list[list[Cell]] = [[] for _ in rows]
    for column in columns:
        if "absent" not in column and all(row.get(column["key"]) is None for row in rows):
            continue
        title, unit = values.heading(column)
        heads.append(Column(title, unit, number=column["kind"] != "text"))
        for told, each in zip(texts, values.told(column, rows), strict=True):
            order = "" if each.order is None else each.order
            told.append(Cell(each.text, order, note=each.aside))
    return heads, texts


def _what_was_run(result: Mapping[str, Any]) -> str:
    seconds = result["seconds"]
    pairs = [
        ("Command", result["command"]),
        ("Data", str(result["data"]) + (f", split {result['split']}" if result["split"] else "")),
        ("Seeds", ", ".join(map(str, result["seeds"]))),
        ("Finished", moment(result["date"])),
        ("Time", f"{_duration(seconds)}, {result['jobs']} at a time" if seconds else ""),
        *setting({**result["machine"], **result["versions"]}),
    ]
    return page.facts(pairs) + page.folded("The recipe", page.source(result["recipe"]))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
