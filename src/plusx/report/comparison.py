"""The page of a comparison: the sentence, the figures, the table, and what was run."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.colours import Palette, family
from plusx.report.figures import alternative, figure
from plusx.report.page import Cell, Column
from plusx.report.scores import OF_CLASSES, capital, score
from plusx.report.setting import moment, setting
from plusx.report.values import percent


def comparison_page(result: Mapping[str, Any]) -> str:
    """The page of a comparison's result.json; ``recipe`` in it is the text of the recipe."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    names = [row["name"] for row in rows]
    seeds = len(rows[0]["seeds"])
    split, count = result["split"], result["count"]
    palette = Palette(names)
    drawn = [figure(told, palette, f"f{n}") for n, told in enumerate(_figures(result, seeds))]
    body = (
        f'<div class="figures">\n{"".join(drawn)}</div>\n'
        + page.section("Results", _table(result, rows, seeds))
        + "".join(page.note(text) for text in result.get("notes", ()))
        + page.section("What was run", _what_was_run(result))
    )
    each = f"{seeds} seeds each" if seeds > 1 else "one seed each"
    return page.document(
        title=f"plusx: {', '.join(names)} on {result['data']}",
        kicker=f"plusx compare · {result['data']}",
        finding=result["finding"],
        context=(
            f"{', '.join(names)}, {each}, trained for {result['length']} and evaluated on the "
            f"{count:,} {split} images of {result['data']}"
            + ("; the test set was not used." if split == "validation" else ".")
        ),
        body=body,
        colours=palette.colours,
    )


def _figures(result: Mapping[str, Any], seeds: int) -> list[dict[str, Any]]:
    """The figures of a comparison, as report.figures has them."""
    band = " Line: mean over the seeds; band: lowest to highest." if seeds > 1 else ""
    threshold = result["threshold"]
    first = result.get("scores", OF_CLASSES)[0]
    drawn: list[tuple[str, str, str, float | None, str]] = [
        (
            first,
            f"Validation {score(first).title}",
            "share",
            threshold,
            f"At every evaluation.{band} Dotted: the threshold of {percent(threshold)} %.",
        ),
        (
            "train_error",
            "Training error",
            "share",
            None,
            f"Share of wrong answers, measured while the epoch trains.{band}",
        ),
        ("train_loss", "Training loss", "log", None, f"Logarithmic scale.{band}"),
    ]
    figures = []
    for key, title, scale, level, caption in drawn:
        lines = [line for curve in result["curves"] if (line := _line(curve, key))]
        if lines:
            told = {
                "kind": "lines",
                "title": title,
                "caption": caption,
                "x": {"title": "epoch", "scale": "linear"},
                "y": {"title": "", "scale": scale},
                "lines": lines,
                "level": level,
            }
            figures.append({**told, "alternative": alternative(told)})
    return [*figures, _seeds_figure(result)]


def _line(curve: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The line of a curve over the epochs for which the value is known."""
    known = [index for index, value in enumerate(curve[key]["mean"]) if value is not None]
    if not known:
        return None
    return {
        "name": curve["name"],
        "x": [curve["epochs"][index] for index in known],
        **{part: [curve[key][part][index] for index in known] for part in ("mean", "low", "high")},
        "dashed": family(curve["name"]) == "plain",
    }


def _seeds_figure(result: Mapping[str, Any]) -> dict[str, Any]:
    rows, first = result["rows"], result.get("scores", OF_CLASSES)[0]
    of = "seeds and images" if score(first).of_images else "seeds"
    bars = f" Bar: 95 % interval over {of}." if any(r["interval"] for r in rows) else ""
    told = {
        "kind": "dots",
        "title": f"{result['split'].capitalize()} {score(first).title} at the end, every seed",
        "caption": f"Dot: one seed; line: their mean.{bars}",
        "x": {"title": score(first).title, "scale": "share"},
        "groups": [
            {
                "name": row["name"],
                "values": row[first]["seeds"],
                "mean": row[first]["mean"],
                "interval": row["interval"],
            }
            for row in rows
        ],
    }
    return {**told, "alternative": alternative(told)}


def _table(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    scores = list(result.get("scores", OF_CLASSES))
    shares = [*scores, *(["train_error"] if "train_error" in rows[0] else [])]
    titles = [score(key).title for key in shares]
    columns = [
        Column("Network", number=False), Column("Parameters"), Column("Multiply-adds"),
        *(Column(capital(title), "%") for title in titles),
        Column("Seconds", "an epoch"), Column("Epochs", f"to {percent(result['threshold'])} %"),
    ]  # fmt: skip
    cells = [
        [
            Cell(row["name"], row["name"], colour=index),
            Cell(f"{row['parameters']:,}", row["parameters"]),
            Cell(f"{row['multiply_adds']:,}", row["multiply_adds"]),
            *(_spread(row[key]) for key in shares),
            Cell(f"{row['seconds_per_epoch']['mean']:.2f}", row["seconds_per_epoch"]["mean"]),
            _epochs(row["epochs_to_threshold"]),
        ]
        for index, row in enumerate(rows)
    ]
    spread = f"± is the standard deviation over the {seeds} seeds (n - 1). " if seeds > 1 else ""
    averages = f"Precision, recall and F1 are {result['averaging']} averages over the classes. "
    wrong = "Train error is that of the trained network on its training images. "
    notes = (
        spread
        + (averages if result["averaging"] else "")
        + (wrong if "train_error" in shares else "")
        + f"Seconds are of training alone, with {result['jobs']} at a time."
    )
    drawn = page.table(columns, cells, caption="Results of every network")
    return drawn + page.note(notes) + _marked(result.get("marked") or ())


def _marked(marked: Sequence[Mapping[str, Any]]) -> str:
    """Runs that are in no mean, and why."""
    if not marked:
        return ""
    columns = [Column("Network", number=False), Column("Seed"), Column("Why", number=False)]
    cells = [
        [Cell(each["name"], each["name"]), Cell(str(each["seed"]), each["seed"]), Cell(each["why"])]
        for each in marked
    ]
    caption = "Runs that are marked and in no mean"
    return page.heading("Marked: in no mean above") + page.table(columns, cells, caption=caption)


def _spread(value: Mapping[str, Any]) -> Cell:
    aside = "" if value["std"] is None else f"± {100 * value['std']:.1f}"
    return Cell(f"{100 * value['mean']:.1f}", value["mean"], note=aside)


def _epochs(value: Mapping[str, Any]) -> Cell:
    seeds, reached = len(value["seeds"]), value["reached"]
    if not reached:
        return Cell("not reached", "inf")
    aside = "" if reached == seeds else f"in {reached} of {seeds}"
    return Cell(f"{value['mean']:.1f}".removesuffix(".0"), value["mean"], note=aside)


def _what_was_run(result: Mapping[str, Any]) -> str:
    seconds = result["seconds"]
    pairs = [
        ("Command", result["command"]),
        ("Data", f"{result['data']}, split {result['split']}, {result['count']:,} images"),
        ("Seeds", ", ".join(map(str, result["seeds"]))),
        ("Finished", moment(result["date"])),
        ("Time", f"{seconds:.0f} s for {len(result['rows']) * len(result['seeds'])} runs, "
                 f"{result['jobs']} at a time" if seconds else ""),
        *setting({**result["machine"], **result["versions"]}),
    ]  # fmt: skip
    return page.facts(pairs) + page.folded("The recipe", page.source(result["recipe"]))
