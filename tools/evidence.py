"""The tables of docs/evidence.md: the ledger of claims with their results.

python tools/evidence.py [summary|arithmetic|property|training|errata|scope]        Markdown
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx.errors import counted
from plusx.evidence.claim import CLAIMS, RATE, TEXTS, hours
from plusx.evidence.ledger import FILE, ledger, read_results


RESULTS = Path(__file__).parents[1] / "results"
STATES = ("PASS", "MISS", "IN PART", "INCONCLUSIVE", "not run", "not yet runnable")
WORDS = ("WRONG", "IN PART", "UNSUPPORTED", "SLIP", "HOLDS", "INCONCLUSIVE", "not run")


def summary() -> str:
    """The number of claims of each kind in each state."""
    rows = [row for row in ledger(results=RESULTS) if not _is_about_texts(row)]
    lines = [f"| claims | {' | '.join(STATES)} | total |", f"|---|{'---:|' * (len(STATES) + 1)}"]
    lines += [
        _counts(kind, [row for row in rows if row["kind"] == kind])
        for kind in ("arithmetic", "property", "training")
    ]
    words = Counter(row["erratum_verdict"] for row in _errata())
    counts = ", ".join(f"{words[word]} {word}" for word in WORDS if words[word])
    errata = f"Errata of the texts, which are not in this table: {counts}."
    return "\n".join([*lines, "", errata, "", *_where()])


def arithmetic() -> str:
    """Claims about counts, which are exact."""
    return _table("arithmetic", ("claim", "statement", "claimed", "measured", "state", "source"))


def properties() -> str:
    """Claims about definitions; most are exact, and have no seeds."""
    return _table("property", ("claim", "statement", *VALUES, "source"))


def training() -> str:
    """Claims about training, with their cost."""
    caption = (
        f"Hours at an assumed {RATE:.0e} multiply-adds a second; claims without them read the "
        "result of another command."
    )
    table = _table("training", ("claim", *VALUES, "MACs", "core-hours", "source"))
    return f"{table}\n\n{caption}"


def errata() -> str:
    """Statements of the texts, the measured values, and the correct statements."""
    lines = [
        "| | where | claim | found | verdict | correct statement |",
        "|---:|---|---|---|---|---|",
    ]
    for row in _errata():
        quote = f'"{row["quote"]}": ' if row["quote"] else ""
        lines.append(
            f"| {row['erratum']} | {row['source']} | {quote}{row['statement']} | {_found(row)} "
            f"| {row['erratum_verdict']} | {row['truth']} |"
        )
    texts = [f"{name.capitalize()} is {source}." for name, source in TEXTS.items()]
    return "\n".join([*lines, "", " ".join(texts)])


def _errata() -> list[dict[str, Any]]:
    rows = [row for row in ledger(results=RESULTS) if row["erratum"] is not None]
    return sorted(rows, key=lambda row: row["erratum"])


def _is_about_texts(row: Mapping[str, Any]) -> bool:
    """Whether a claim is one of the errata, or a part of one."""
    return row["erratum"] is not None or row["part_of"] is not None


def _found(row: Mapping[str, Any]) -> str:
    """The metric with its claimed and measured values, or each part with its own verdict."""
    record = read_results(RESULTS).get(row["id"])
    if record is None:
        return ""
    if not record["members"]:
        return f"{row['metric']}: {_measured(row)}, claimed {_claimed(row)}"
    return "; ".join(
        f"{member['erratum_verdict'] or member['verdict']}: {CLAIMS[member['id']].statement}"
        for member in record["members"]
    )


def scope() -> str:
    """Every row of the texts' claims, and the studies or commands that test it."""
    lines = ["| row | claim of the texts | tests | state |", "|---|---|---|---|"]
    for row in ledger("scope-*", results=RESULTS):
        run = [f"`{name}`" for name in (*row["runs"], *row["commands"])]
        tests = ", ".join(run) if run else f"nothing yet: {', '.join(row['missing'])}"
        lines.append(
            f"| {row['id'].removeprefix('scope-').upper()} | {row['statement']} | {tests} "
            f"| {_state(row)} |"
        )
    return "\n".join(lines)


def verdicts(result: Mapping[str, Any]) -> str:
    """How often the rules of a verdict decide simulated claims, and how often wrongly."""
    edge, far = (100 * result["recipe"][key] for key in ("edge", "far"))
    head = "| rule | exact reproductions that PASS | seeds | wrong, exact reproductions "
    head += f"| wrong, {edge:g} points within the limit | wrong, {edge:g} points beyond it "
    lines = [f"{head}| MISS, {far:g} points beyond it |", f"|---|{'---:|' * 6}"]
    for row in result["rows"]:
        wrong = [f"{100 * row[truth]['wrong']:.1f} %" for truth in ("exact", "within", "beyond")]
        lines.append(
            f"| {row['rule']} | {100 * row['exact']['passed']:.1f} % "
            f"| {row['exact']['mean_seeds']:.1f} | {' | '.join(wrong)} "
            f"| {100 * row['far']['missed']:.1f} % |"
        )
    caption = (
        f"{result['claims']:,} simulated claims in each cell; --decide with at most "
        f"{result['rows'][-1]['most_seeds']} seeds; seeds are the mean of exact reproductions."
    )
    return "\n".join([*lines, "", caption])


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "arithmetic": arithmetic,
    "property": properties,
    "training": training,
    "errata": errata,
    "scope": scope,
}


def _table(kind: str, columns: Sequence[str]) -> str:
    """The claims of a kind that are not about the texts, with these columns of COLUMNS."""
    rows = [
        row
        for row in ledger(kind=kind, results=RESULTS)
        if not _is_about_texts(row) and not row["id"].startswith("scope-")
    ]
    lines = [
        f"| {' | '.join(columns)} |",
        f"|{'|'.join('---:' if column in NUMBERS else '---' for column in columns)}|",
        *(f"| {' | '.join(COLUMNS[column](row) for column in columns)} |" for row in rows),
    ]
    return "\n".join(lines)


def _counts(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    states = Counter(row["state"] for row in rows)
    counts = " | ".join(str(states[state]) for state in STATES)
    return f"| {name} | {counts} | {len(rows)} |"


def _where() -> list[str]:
    """The machines and versions of the results."""
    if not read_results(RESULTS):
        return ["Nothing is run yet: `plusx reproduce '*' --kind arithmetic`."]
    results = json.loads((RESULTS / FILE).read_text(encoding="utf-8"))
    lines = [
        f"{environment['machine']['device_name']}, "
        f"{counted(environment['machine']['cores'], 'core')}, torch "
        f"{environment['versions']['torch']}, plusx {environment['versions']['plusx']}."
        for environment in results["environments"]
    ]
    return list(dict.fromkeys(lines))  # environments may differ in other values


def _state(row: Mapping[str, Any]) -> str:
    marks = f" ({'; '.join(row['marks'])})" if row["marks"] else ""
    return row["state"] + marks


def _claimed(row: Mapping[str, Any]) -> str:
    bound = {"equal": "", "most": "≤ ", "least": "≥ "}[row["side"]]
    tolerance = row["tolerance"]
    sign = {"equal": "±", "most": "+", "least": "-"}[row["side"]]
    tolerance_text = f" {sign} {_figure(tolerance, row['unit'])}" if tolerance else ""
    return f"{bound}{_figure(row['claimed'], row['unit'])}{tolerance_text}"


def _measured(row: Mapping[str, Any]) -> str:
    if row["date"] is None:
        return ""
    if row["value"] is None:
        return "no finite number"
    return _figure(row["value"], row["unit"])


def _interval(row: Mapping[str, Any]) -> str:
    """The interval of 95 % of a mean over seeds."""
    if row["interval"] is not None:
        return " to ".join(_figure(end, row["unit"]) for end in row["interval"])
    return "equal values" if len(row["seeds"] or ()) > 1 else ""


def _seeds(row: Mapping[str, Any]) -> str:
    """The number of seeds, and whether they were added until the claim was decided."""
    count = len(row["seeds"] or ())
    if count < 2:
        return "one seed" if count else ""
    return f"{count}, added until decided" if row["sequential"] else f"{count}, fixed"


def _figure(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.4g} %"
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


if __name__ == "__main__":
    tables = sys.argv[1:] or ["summary"]
    if len(tables) > 1 or tables[0] not in TABLES:
        sys.exit(f"usage: python tools/evidence.py [{'|'.join(TABLES)}]")
    print(TABLES[tables[0]]())


def _cost(row: Mapping[str, Any], text: Callable[[int], str]) -> str:
    amount = row["cost"]["multiply_adds"]
    return text(amount) if amount else ""


VALUES = ("claimed", "measured", "95 %", "seeds", "state")
NUMBERS = {"claimed", "measured", "95 %", "MACs", "core-hours"}
COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "claim": lambda row: f"`{row['id']}`",
    "statement": lambda row: str(row["statement"]),
    "claimed": _claimed,
    "measured": _measured,
    "95 %": _interval,
    "seeds": _seeds,
    "state": _state,
    "MACs": lambda row: _cost(row, lambda amount: f"{amount:.1e}"),
    "core-hours": lambda row: _cost(row, lambda amount: f"{hours(amount, 1):,.1f}"),
    "source": lambda row: str(row["source"]),
}
