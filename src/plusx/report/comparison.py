"""The page of a comparison: the sentence, the figures, the table, and what was run."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from plusx.report import page
from plusx.report.colours import colours, family
from plusx.report.figures import Dots, Line, curves, dots
from plusx.report.page import Cell, Column
from plusx.report.setting import moment, setting


def comparison_page(result: Mapping[str, Any]) -> str:
    """The page of a comparison's result.json; ``recipe`` in it is the text of the recipe."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    names = [row["name"] for row in rows]
    seeds = len(rows[0]["seeds"])
    split, count = result["split"], result["count"]
    body = (
        '<div class="figures">\n'
        + "".join(_figures(result, names, seeds))
        + "</div>\n"
        + page.section("Results", _table(result, rows, seeds))
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
        colours=colours(names),
    )


def _figures(result: Mapping[str, Any], names: Sequence[str], seeds: int) -> list[str]:
    band = " Line: mean over the seeds; band: lowest to highest." if seeds > 1 else ""
    threshold = result["threshold"]
    drawn: list[tuple[str, str, Literal["share", "log"], float | None, str]] = [
        (
            "accuracy",
            "Validation accuracy",
            "share",
            threshold,
            f"After each epoch.{band} Dotted: the threshold of {_share(threshold)} %.",
        ),
        (
            "train_error",
            "Training error",
            "share",
            None,
            f"Share of wrong answers, measured while the epoch trains.{band}",
        ),
        ("train_loss", "Training loss", "log", None, f"Cross-entropy, logarithmic scale.{band}"),
    ]
    figures = []
    for key, title, scale, level, caption in drawn:
        lines = [
            line
            for index, curve in enumerate(result["curves"])
            if (line := _line(curve, key, index))
        ]
        if lines:
            drawing = curves(lines, key=f"f-{key}", scale=scale, level=level)
            figures.append(
                page.figure(
                    drawing,
                    title=title,
                    caption=caption,
                    alternative=_alternative(title, lines, scale),
                )
            )
    figures.append(_seeds_figure(result, names))
    return figures


def _line(curve: Mapping[str, Any], key: str, colour: int) -> Line | None:
    """The line of a curve over the epochs for which the value is known."""
    known = [index for index, value in enumerate(curve[key]["mean"]) if value is not None]
    if not known:
        return None
    pick = {
        part: tuple(curve[key][part][index] for index in known) for part in ("mean", "low", "high")
    }
    epochs = tuple(float(curve["epochs"][index]) for index in known)
    return Line(
        curve["name"],
        colour,
        epochs,
        pick["mean"],
        pick["low"],
        pick["high"],
        dashed=family(curve["name"]) == "plain",
    )


def _seeds_figure(result: Mapping[str, Any], names: Sequence[str]) -> str:
    groups = [
        Dots(
            row["name"],
            index,
            tuple(row["accuracy"]["seeds"]),
            row["accuracy"]["mean"],
            tuple(row["interval"]) if row["interval"] else None,
        )
        for index, row in enumerate(result["rows"])
    ]
    values = [value for group in groups for value in (*group.values, *(group.interval or ()))]
    low = min(values)
    limits = (0.0 if low < 0.5 else max(0.0, low - 0.02), 1.0)
    said = "; ".join(
        f"{group.name} {', '.join(_share(value) for value in group.values)} %" for group in groups
    )
    bars = " Bar: 95 % interval over seeds and images." if any(g.interval for g in groups) else ""
    return page.figure(
        dots(groups, key="f-seeds", limits=limits),
        title=f"{result['split'].capitalize()} accuracy at the end, every seed",
        caption=f"Dot: one seed; line: their mean.{bars}",
        alternative=f"Accuracy at the end for every seed: {said}.",
    )


def _alternative(title: str, lines: Sequence[Line], scale: str) -> str:
    def said(value: float) -> str:
        return f"{_share(value)} %" if scale == "share" else f"{value:.3g}"

    parts = [
        f"{line.name} {said(line.mean[0])} after epoch {line.x[0]:.0f}, "
        f"{said(line.mean[-1])} after epoch {line.x[-1]:.0f}"
        for line in lines
    ]
    return f"{title}, mean over the seeds: {'; '.join(parts)}."


def _table(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    columns = [
        Column("Network", number=False), Column("Parameters"), Column("Multiply-adds"),
        Column("Accuracy", "%"), Column("Precision", "%"), Column("Recall", "%"), Column("F1", "%"),
        Column("Train error", "%"), Column("Seconds", "an epoch"),
        Column("Epochs", f"to {_share(result['threshold'])} %"),
    ]  # fmt: skip
    cells = [
        [
            Cell(row["name"], row["name"], colour=index),
            Cell(f"{row['parameters']:,}", row["parameters"]),
            Cell(f"{row['multiply_adds']:,}", row["multiply_adds"]),
            *(
                _spread(row[key])
                for key in ("accuracy", "precision", "recall", "f1", "train_error")
            ),
            Cell(f"{row['seconds_per_epoch']['mean']:.2f}", row["seconds_per_epoch"]["mean"]),
            _epochs(row["epochs_to_threshold"]),
        ]
        for index, row in enumerate(rows)
    ]
    spread = f"± is the standard deviation over the {seeds} seeds (n - 1). " if seeds > 1 else ""
    notes = (
        f"{spread}Precision, recall and F1 are {result['averaging']} averages over the classes. "
        "Train error is that of the trained network on its training images. "
        f"Seconds are of training alone, with {result['jobs']} at a time."
    )
    drawn = page.table(columns, cells, caption="Results of every network")
    return drawn + page.note(notes) + _numbers(result)


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


def _numbers(result: Mapping[str, Any]) -> str:
    """The curves as a table: validation accuracy of every epoch, mean over the seeds."""
    drawn = result["curves"]
    epochs = sorted({epoch for curve in drawn for epoch in curve["epochs"]})
    known = [
        {
            epoch: value
            for epoch, value in zip(curve["epochs"], curve["accuracy"]["mean"], strict=True)
            if value is not None
        }
        for curve in drawn
    ]
    columns = [Column("Epoch"), *(Column(curve["name"], "%") for curve in drawn)]
    rows = [
        [Cell(str(epoch), epoch)]
        + [
            Cell(f"{100 * values[epoch]:.1f}", values[epoch]) if epoch in values else Cell("")
            for values in known
        ]
        for epoch in epochs
    ]
    table = page.table(columns, rows, caption="Validation accuracy after every epoch")
    return page.folded("Validation accuracy after every epoch, as numbers", table)


def _share(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0")
