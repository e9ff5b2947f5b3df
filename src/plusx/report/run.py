"""The report page of one run: its metrics, learning curves, confusion matrix and settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx import statistics
from plusx.errors import counted
from plusx.report import page
from plusx.report.charts import charts
from plusx.report.figures import LOG, line, lines_figure
from plusx.report.history import EpochPoint
from plusx.report.metrics import METRICS, OF_CLASSES, capital, class_rows, with_measures
from plusx.report.page import Cell, Column, Table


MAX_MATRIX_CLASSES = 20  # with more classes, the most frequent confusions are listed instead
MAX_PAIRS = 20
_ENOUGH_PEOPLE = 10


def run_page(
    result: Mapping[str, Any],
    points: Sequence[EpochPoint],
    *,
    classes: Sequence[str],
    recipe: str,
    environment: Mapping[str, Any],
    test_uses: int,
    examples: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the HTML page of a finished run; `examples` are those of `read_examples`."""
    metrics = result["validation"]
    key = result.get("metrics", OF_CLASSES)[0]
    several = metrics is not None and _is_multilabel(metrics)
    confusion = metrics is not None and not several and metrics.get("confusion")
    noun = result.get("noun", "image")
    of = "position" if metrics is not None and "positions" in metrics else noun
    small = len(classes) <= MAX_MATRIX_CLASSES
    return page.render(
        "run.html",
        {
            "result": result,
            "finding": finding(result),
            "charts": charts(_figures(points, key, noun)),
            "of": of,
            "of_samples": of == noun,
            "matrix": _matrix(confusion, classes, of == noun) if confusion and small else None,
            "pairs": _pairs(confusion, classes, of) if confusion and not small else None,
            "listed": bool(confusion),
            "classes": _per_class(class_rows(metrics), noun)
            if metrics is not None and metrics.get("per_class")
            else None,
            "intervals": metrics is not None
            and any("_interval" in name for row in class_rows(metrics) for name in row),
            "examples": examples,
            "pictures": bool(examples),
            "trained": _trained(result, key, noun),
            "test_uses": test_uses,
            "environment": [
                ("Test set", _times(test_uses)),
                *page.environment_facts(environment),
            ],
            "recipe_text": recipe,
        },
    )


def finding(result: Mapping[str, Any]) -> str:
    """Return a sentence about a run: its accuracy with the 95 % Wilson interval, or other metrics.

    If the epoch was chosen on the validation split, its accuracy is optimistic and is given without
    an interval.
    """
    name, metrics, noun = result["name"], result["validation"], result.get("noun", "image")
    if metrics is None:
        return (
            f"{name} was trained on all training {noun}s of {result['data']}; none were held out "
            "to evaluate it."
        )
    key = result.get("metrics", OF_CLASSES)[0]
    if key != "accuracy":
        shown = ", ".join(
            f"{METRICS[name_of_metric].title} {_with_interval(metrics, name_of_metric)}"
            for name_of_metric in with_measures(metrics, result["metrics"])
            if metrics.get(name_of_metric) is not None
        )
        samples = f"the {counted(int(metrics['count']), f'validation {noun}')}"
        if not shown:
            return f"{name} cannot be evaluated: {samples} have no annotation."
        return f"{name} reaches {shown} on {samples}.{_few_people(metrics)}"
    accuracy, count = float(metrics["accuracy"]), int(metrics["count"])
    right = "with every label right" if _is_multilabel(metrics) else "correctly"
    share = f"{100 * accuracy:.1f} %"
    remark = certainty(accuracy, count, noun, chosen=bool(result.get("best_epoch")))
    samples = counted(count, f"validation {noun}")
    return f"{name} predicts {share} of the {samples} {right} ({remark})."


def certainty(accuracy: float, count: int, noun: str, *, chosen: bool) -> str:
    """Return Wilson's 95 % interval of an accuracy on `count` samples as text, or, if the epoch was
    chosen by it, that it is optimistic."""
    if chosen:
        return f"optimistic: the epoch was chosen on the same {noun}s"
    low, high = statistics.wilson(accuracy, count)
    return f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"


def _few_people(metrics: Mapping[str, Any]) -> str:
    """Return a caution if there are few people, whose pairs are not independent."""
    people = metrics.get("people", _ENOUGH_PEOPLE)
    if people >= _ENOUGH_PEOPLE:
        return ""
    return f" They show {people} people only, which says little about others."


def _with_interval(metrics: Mapping[str, Any], key: str) -> str:
    """Format a metric with its 95 % interval, if it has one."""
    metric, ends = METRICS[key], metrics.get(f"{key}_interval")
    text = metric.text(metrics[key])
    if not ends:
        return text
    return f"{text} (95 % interval {' to '.join(map(metric.shown, ends))} {metric.unit})"


def _trained(result: Mapping[str, Any], key: str, noun: str) -> str:
    """Return the metric on the training set as the end of a sentence."""
    if result["train_error"] is not None:
        wrong = 100 * result["train_error"]
        of = "a label of " if key == "auroc" else ""  # several labels a sample
        return f"; it is wrong about {of}{wrong:.1f} % of its training {noun}s"
    value = result["train"].get(key)
    if value is None:
        return ""
    return f"; on its training {noun}s {METRICS[key].title} is {METRICS[key].text(value)}"


def _is_multilabel(metrics: Mapping[str, Any]) -> bool:
    """Whether a sample can have several labels, so that there is no confusion matrix."""
    return "label_accuracy" in metrics


def _figures(points: Sequence[EpochPoint], key: str, noun: str) -> list[dict[str, Any]]:
    """Return charts over the epochs: the error (or the first metric), the loss, and the spread of
    projections, if there are any."""
    epochs = [point.epoch for point in points]
    scores = [point.score for point in points]
    wrong = [None if score is None else 1 - score for score in scores]
    train_error = line("training", epochs, [point.train_error for point in points], dashed=True)
    main = (
        (
            "Error",
            "Fraction of wrong predictions.",
            [line("validation", epochs, wrong), train_error],
        )
        if METRICS[key].of_samples
        else (
            capital(METRICS[key].title),
            f"Of validation {noun}s.",
            [line("validation", epochs, scores)],
        )
    )
    losses = [
        line("validation", epochs, [point.loss for point in points]),
        line("training", epochs, [point.train_loss for point in points], dashed=True),
    ]
    spread = [line("training", epochs, [point.projection_std for point in points])]
    even = "Of the normalised projections, 1 / sqrt(width) if they are spread evenly."
    deviation = METRICS["projection_std"]
    figures = []
    for (title, caption, lines), y in (
        (main, METRICS[key].axis),
        (("Loss", "Mean over the epoch, logarithmic scale.", losses), LOG),
        ((capital(deviation.title), even, spread), deviation.axis),
    ):
        drawn = [drawn_line for drawn_line in lines if drawn_line["x"]]
        moving = " Training is measured while the weights change." if len(drawn) > 1 else ""
        if drawn:
            figures.append(lines_figure(title, caption + moving, drawn, y=y))
    return figures


def _matrix(
    counts: Sequence[Sequence[int]], classes: Sequence[str], of_samples: bool
) -> tuple[list[tuple[str, str]], list[tuple[str, list[dict[str, Any]]]]]:
    """Return headers (full name, shown name) and rows (name, cells) of the confusion matrix.

    Cells are numbers of samples; of positions they are per cent of the row.
    """
    short = all(len(name) <= 4 for name in classes)
    heads = [(name, name if short else str(n)) for n, name in enumerate(classes, 1)]
    rows = []
    for index, (name, row) in enumerate(zip(classes, counts, strict=True)):
        total = sum(row)
        cells = []
        for column, value in enumerate(row):
            share = value / total if total else 0.0
            shown = f"{100 * share:.0f}" if value and not of_samples else value or "·"
            kind = "none" if not value else "" if index == column else "wrong"
            cells.append(
                {
                    "shown": shown,
                    "kind": f"{kind} dark".strip() if share > 0.55 else kind,
                    # a minimum, so that a single mistake in a large row is visible
                    "share": f"{max(share, 0.12):.2f}" if value else None,
                }
            )
        rows.append((name if short else f"{name} ({index + 1})", cells))
    return heads, rows


def _pairs(counts: Sequence[Sequence[int]], classes: Sequence[str], of: str) -> Table | None:
    """Return the most frequent confusions; None if there are none."""
    pairs = sorted(
        (
            (value, true, predicted)
            for true, row in enumerate(counts)
            for predicted, value in enumerate(row)
            if value and true != predicted
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )[:MAX_PAIRS]
    if not pairs:
        return None
    columns = [Column("True class", number=False), Column("Predicted", number=False),
               Column(f"{of.capitalize()}s"), Column("Of the true class", "%")]  # fmt: skip
    rows = [
        [
            Cell(classes[true]),
            Cell(classes[predicted]),
            Cell(f"{value:,}", value),
            Cell(f"{100 * value / sum(counts[true]):.1f}", value / sum(counts[true])),
        ]
        for value, true, predicted in pairs
    ]
    return Table("Most frequent confusions", columns, rows)


def _per_class(rows: Sequence[Mapping[str, Any]], noun: str) -> Table:
    """Return a row for each class with the metrics and counts of the task."""
    keys = [key for key in rows[0] if key != "label"]
    shares = [key for key in keys if any(isinstance(row[key], float) for row in rows)]
    counts = [k for k in keys if k not in shares and all(isinstance(r[k], int) for r in rows)]
    columns = [
        Column("Class", number=False),
        *(Column(capital(METRICS[key].title), METRICS[key].unit) for key in shares),
        *(Column(capital(f"{noun}s" if key == "count" else key)) for key in counts),
    ]
    cells = [
        [
            Cell(str(row["label"]), str(row["label"])),
            *(_class_cell(row, key) for key in shares),
            *(Cell(f"{row[key]:,}", row[key]) for key in counts),
        ]
        for row in rows
    ]
    titles = [METRICS[key].title for key in shares] or counts
    caption = " and ".join([", ".join(titles[:-1]), titles[-1]] if titles[1:] else titles)
    return Table(f"{capital(caption)} per class", columns, cells)


def _class_cell(row: Mapping[str, Any], key: str) -> Cell:
    """Format a metric of a class with its 95 % interval, if it has one."""
    if row[key] is None:
        return Cell("none")
    shown, ends = METRICS[key].shown, row.get(f"{key}_interval")
    return Cell(
        shown(row[key]), row[key], note="" if ends is None else " to ".join(map(shown, ends))
    )


def _times(uses: int) -> str:
    return "not used" if not uses else "used once" if uses == 1 else f"used {uses} times"
