"""The HTML page of an evaluation under adversarial attacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plusx.report import page
from plusx.report.charts import charts
from plusx.report.figures import lines_figure
from plusx.report.page import Cell, Column, Table


MAX_EXAMPLES = 24  # examples on the page
MEANINGS = {
    "zero_eps_is_clean": "at eps 0 no prediction changes",
    "pgd_not_weaker_than_fgsm": "PGD is not weaker than FGSM",
    "unbounded_reaches_zero": "PGD without a bound reaches 0",
    "white_box_not_weaker_than_transfer": "PGD is not weaker than transfer",
    "more_steps_not_weaker": "twice the steps are not weaker",
    "no_gradient_masking": "no sign of hidden gradients",
}


@dataclass(frozen=True)
class Example:
    """A sample that an attack fools: predictions before and after, its label, and PNGs of the
    input, the perturbation scaled to the full range, and the perturbed input."""

    before: str
    after: str
    label: str
    images: tuple[bytes, bytes, bytes]


def attack_page(result: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """Return the page of a result of `plusx attack`."""
    failed = [check for check in result["checks"] if not check["passed"]]
    return page.render(
        "attack.html",
        {
            "result": result,
            "finding": result["finding"],
            "more": f"Checks that did not pass: {len(failed)}." if failed else "",
            "pictures": bool(examples),
            "charts": charts([_figure(result)])
            if len({row["eps"] for row in result["rows"]}) > 1
            else [],
            "accuracies": _accuracies(result),
            "checks": _checks(result["checks"]) if result["checks"] else None,
            "examples": [
                (example, [page.data_uri(png) for png in example.images]) for example in examples
            ],
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def eps_text(eps: float) -> str:
    """Return an eps as it is usually written: 8/255, or a number."""
    levels = round(eps * 255)
    if 0 < levels < 255 and abs(levels / 255 - eps) < 1e-9:
        return f"{levels}/255"
    return f"{eps:g}"


def _figure(result: Mapping[str, Any]) -> dict[str, Any]:
    metric = result["metric"].replace("_", " ")
    by_attack: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        by_attack.setdefault(row["attack"], []).append(row)
    lines = []
    for name, unsorted in by_attack.items():
        rows = sorted(unsorted, key=lambda row: float(row["eps"]))
        lines.append(
            {
                "name": name,
                "x": [255 * row["eps"] if result["norm"] == "linf" else row["eps"] for row in rows],
                "mean": [row["value"] for row in rows],
                "low": [row.get("low") for row in rows],
                "high": [row.get("high") for row in rows],
                "dashed": name == "worst",
            }
        )
    unit = "1/255" if result["norm"] == "linf" else "L2 norm"
    return lines_figure(
        f"{metric.capitalize()} under attack",
        f"{result['count']:,} {result['noun']}s of {result['data']} {result['split']}; areas are "
        "intervals of 95 % (Wilson).",
        lines,
        x={"title": f"eps, {unit}", "scale": "linear"},
        y={"title": metric, "scale": "share"},
    )


def _accuracies(result: Mapping[str, Any]) -> Table:
    columns = [
        Column("Attack", number=False),
        Column("eps"),
        Column("Steps"),
        Column(result["metric"].replace("_", " ").capitalize(), "%"),
    ]
    rows = []
    for row in result["rows"]:
        value = row["value"]
        note = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}" if "low" in row else ""
        rows.append(
            [
                Cell(row["attack"]),
                Cell(eps_text(row["eps"]), row["eps"]),
                Cell("" if row["steps"] is None else f"{row['steps']:,}", row["steps"] or 0),
                Cell("undefined" if value is None else f"{100 * value:.1f}", value or 0, note=note),
            ]
        )
    return Table("Under attack", columns, rows)


def _checks(checks: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("Check", number=False), Column("Passed", number=False),
               Column("Measured", number=False)]  # fmt: skip
    rows = [
        [
            Cell(MEANINGS[check["name"]]),
            Cell("passed" if check["passed"] else "not passed"),
            Cell(check["detail"]),
        ]
        for check in checks
    ]
    return Table("Checks of the attack and of the network", columns, rows)
