"""The text and the HTML page of a stream."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.charts import HUES, charts
from plusx.report.figures import line, lines_figure
from plusx.report.page import Cell, Column, Table


METRICS = {
    "average_accuracy": "Average accuracy",
    "forgetting": "Forgetting",
    "backward_transfer": "Backward transfer",
    "forward_transfer": "Forward transfer",
}
_MAX_NAMES = 4  # of the classes of a task
_FEW_SEEDS = {
    1: "One seed: the spread over seeds is unknown.",
    2: "Two seeds: intervals of two values are very wide.",
}


def stream_text(result: Mapping[str, Any]) -> str:
    """Return the matrix and the metrics for a terminal."""
    names, matrix = task_names(result), result["matrix"]
    width = max(12, *(len(name) for name in names))
    heads = "".join(f"{number:>8}" for number in range(1, len(matrix) + 1))
    lines = [f"{'after task':<{width}}{heads}   (accuracy on each task, %)"]
    for name, row in zip(names, matrix):
        cells = "".join(f"{100 * value:>8.1f}" for value in row)
        lines.append(f"{name:<{width}}{cells}")
    lines.append("")
    lines += [f"{title.lower():<18} {metric_text(result[key])}" for key, title in METRICS.items()]
    count = len(result["seed_numbers"])
    seeds = _FEW_SEEDS.get(count, f"{count} seeds")
    lines.append(f"{result['method']}, {result['data']} {result['split']}. {seeds}")
    return "\n".join(lines)


def task_names(result: Mapping[str, Any]) -> list[str]:
    """Return a name for every task: its number, and its classes unless all tasks have the same."""
    tasks: Sequence[Sequence[str]] = result["tasks"]
    if result["scenario"] == "domain":
        return [str(number) for number in range(1, len(tasks) + 1)]
    names = []
    for number, classes in enumerate(tasks, 1):
        more = ", ..." if len(classes) > _MAX_NAMES else ""
        names.append(f"{number}: {', '.join(classes[:_MAX_NAMES])}{more}")
    return names


def metric_text(value: Mapping[str, Any]) -> str:
    """Return a metric in per cent, with its interval of 95 %."""
    text = f"{100 * value['mean']:.1f} %"
    if value["interval"] is None:
        return text
    low, high = value["interval"]
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def stream_page(result: Mapping[str, Any]) -> str:
    """Return the page of a result of `plusx stream`."""
    count = len(result["seed_numbers"])
    average = metric_text(result["average_accuracy"])
    forgotten = metric_text(result["forgetting"])
    return page.render(
        "stream.html",
        {
            "result": result,
            "finding": f"{average} average accuracy over {len(result['tasks'])} tasks, "
            f"{forgotten} forgetting.",
            "more": _FEW_SEEDS.get(count, ""),
            "matrix": _matrix(result),
            "charts": charts([_over_tasks(result)]),
            "metrics": _metrics(result),
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def _matrix(result: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of the matrix: the task, and text, spread and shade of every cell."""
    spreads = result["matrix_std"]
    rows = []
    for i, (name, values) in enumerate(zip(task_names(result), result["matrix"])):
        cells = [
            {
                "text": f"{100 * value:.1f}",
                "spread": "" if spreads[i][j] is None else f"± {100 * spreads[i][j]:.1f}",
                "shade": round(value, 3),
                "later": j > i,
            }
            for j, value in enumerate(values)
        ]
        rows.append((name, cells))
    return rows


def _over_tasks(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line for every task: its accuracy after each task from its own on."""
    matrix = result["matrix"]
    lines = []
    for j, name in enumerate(task_names(result)):
        after = range(j, len(matrix))
        means = [matrix[i][j] for i in after]
        # the hues repeat
        dashed = j // len(HUES) % 2 == 1
        lines.append(line(f"task {name}", [i + 1 for i in after], means, dashed=dashed))
    return lines_figure(
        "Accuracy on every task while later tasks are trained",
        "A line falls where a task is forgotten.",
        lines,
        x={"title": "trained tasks", "scale": "linear"},
        y={"title": "accuracy", "scale": "share"},
    )


def _metrics(result: Mapping[str, Any]) -> Table:
    columns = [Column("Metric", number=False), Column("Mean", "%"), Column("95 % interval", "%"),
               Column("Seeds", "%", number=False)]  # fmt: skip
    rows = []
    for key, title in METRICS.items():
        value = result[key]
        interval = value["interval"]
        bounds = "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
        seeds = ", ".join(f"{100 * number:.1f}" for number in value["seeds"])
        rows.append(
            [Cell(title), Cell(f"{100 * value['mean']:.1f}", value["mean"]), Cell(bounds),
             Cell(seeds)]
        )  # fmt: skip
    return Table("Metrics over the seeds", columns, rows)
