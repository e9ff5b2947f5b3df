"""The ledger of claims, with the results of those that were tested. No torch.

DIR/claims.json has the newest result of every tested claim by id, and is always rewritten as a
whole. A result of --quick never replaces a full one.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from plusx import __version__, store
from plusx.errors import UserError, did_you_mean
from plusx.evidence.claim import (
    CLAIMS,
    PROTOCOLS,
    RATE,
    TEXTS,
    Claim,
    Kind,
    Verdict,
    claim_names,
    cost_of,
    default_seeds,
    erratum_word,
    hours,
)


FILE = "claims.json"
RESULTS = Path("results")
NOT_RUN, NOT_YET = "not run", "not yet runnable"


def ledger(
    pattern: str = "*", kind: str | None = None, results: Path = RESULTS
) -> list[dict[str, Any]]:
    """Return a row for every claim whose id matches the shell pattern, with its state.

    `state` is PASS, MISS, IN PART or INCONCLUSIVE if it was tested, else "not run", or "not yet
    runnable" with what is needed in `missing`. `erratum_verdict` is that on a statement of the
    texts in words, such as WRONG for a MISS. `marks` are reasons why this version might give
    another result. Raises UserError if no claim matches, the kind is unknown, a folder of results
    other than the default is missing, or the results file is unreadable.
    """
    if kind is not None:
        _check_kind(kind)
    if results != RESULTS and not results.exists():
        raise UserError(f"{results}: there is no such folder of results")
    records = read_results(results)
    claims = [CLAIMS[name] for name in claim_names(pattern)]
    return [_row(claim, records.get(claim.id)) for claim in claims if kind in (None, claim.kind)]


def select_claims(pattern: str, kind: str | None = None) -> tuple[list[str], bool]:
    """Return the ids of the claims to run, and whether a pattern was given. Raises UserError if
    none matches."""
    is_pattern = any(sign in pattern for sign in "*?[")
    names = claim_names(pattern)
    if kind is not None:
        _check_kind(kind)
        names = [name for name in names if CLAIMS[name].kind == kind]
        if not names:
            raise UserError(f"{pattern!r} matches no claim of the kind {kind}")
    return names, is_pattern


def ledger_table(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """Return the rows as text, cut to the `width` of a terminal if given."""
    id_width = max((len(row["id"]) for row in rows), default=2)
    lines = [f"{'claim':{id_width}}  {'kind':10}  {'state':16}  {'hours':>9}  what is claimed"]
    for row in rows:
        hours = row["cost"]["hours"]
        cost = "" if not row["cost"]["multiply_adds"] else f"{hours:,.2f}"
        mark = " *" if row["marks"] else ""
        lines.append(
            f"{row['id']:{id_width}}  {row['kind']:10}  "
            f"{(row['erratum_verdict'] or row['state']) + mark:16}  {cost:>9}  "
            f"{row['statement']} ({row['source']})"
        )
    if width is not None:
        lines = [line if len(line) <= width else f"{line[: width - 3]}..." for line in lines]
    footnotes = [f"* {row['id']}: {'; '.join(row['marks'])}" for row in rows if row["marks"]]
    rate = rows[0]["cost"]["assumed"] if rows else ""
    states = Counter(row["erratum_verdict"] or row["state"] for row in rows)
    noun = "claim" if len(rows) == 1 else "claims"
    state_counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    summary = [f"{len(rows)} {noun}: {state_counts}"]
    if any(row["source"].startswith("text") for row in rows):
        summary = [*(f"{name}: {description}" for name, description in TEXTS.items()), *summary]
    if any(row["cost"]["multiply_adds"] for row in rows):
        summary.append(f"hours at {rate}")
    return "\n".join([*lines, *footnotes, "", *summary])


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        kinds = get_args(Kind)
        hint = did_you_mean(kind, kinds)
        raise UserError(f"no kind of claim {kind!r}{hint} (there are {', '.join(kinds)})")


def read_results(results: Path) -> dict[str, dict[str, Any]]:
    """Return the results of claims by id; empty without a file. Raises UserError if it is
    unreadable, or a field of a result has a value that `plusx reproduce` does not write."""
    path = results / FILE
    if results.exists() and not results.is_dir():
        raise UserError(f"{results} is a file; results need a folder")
    if not os.path.lexists(path):
        return {}
    if not path.is_file():
        raise UserError(f"{path} is not a file: move it away, or name another folder")
    try:
        content = store.read_json(path)
        environments = content["environments"]
        for name, record in content["claims"].items():
            _check_record(name, record)
        return {
            name: {**record, **environments[record["environment"]]}
            for name, record in content["claims"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        is_named = isinstance(error, ValueError)
        reason = error if is_named else "an entry is missing, or of another type"
        raise UserError(
            f"{path} was not written by `plusx reproduce`: {reason}; move it away, or name another "
            "folder"
        ) from None


def _check_record(name: str, record: Mapping[str, Any]) -> None:
    """Raise ValueError, with the claim and the field, if a field has a value of the wrong type."""
    allowed: dict[str, Callable[[Any], bool]] = {
        "verdict": lambda value: value in get_args(Verdict),
        "statement": lambda value: isinstance(value, str),
        "date": lambda value: isinstance(value, str),
        "claimed": _is_number,
        **dict.fromkeys(
            ("value", "spread", "distance", "power"),
            lambda value: value is None or _is_number(value),
        ),
        "values": lambda value: isinstance(value, list) and all(map(_is_number, value)),
        "interval": lambda value: (
            value is None
            or (len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1])
        ),
        "seeds": lambda value: isinstance(value, list) and all(type(seed) is int for seed in value),
        "environment": lambda value: type(value) is int and value >= 0,
    }
    for key, is_allowed in allowed.items():
        if key in record and not is_allowed(record[key]):
            raise ValueError(f"{name}: {key} = {record[key]!r}")
    if record.get("seeds") and len(record["seeds"]) != len(record["values"]):
        raise ValueError(f"{name}: {len(record['seeds'])} seeds, {len(record['values'])} values")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cost(claim: Claim) -> dict[str, Any]:
    """Return the MACs of a claim, and the hours they take here at an assumed rate."""
    cores, multiply_adds = os.cpu_count() or 1, cost_of(claim)
    return {
        "multiply_adds": multiply_adds,
        "hours": round(hours(multiply_adds, cores), 4),
        "assumed": f"{RATE:,.0f} multiply-adds a second on each of {cores} cores",
    }


def describe_protocol(claim: Claim) -> str:
    """Return how a claim is trained and evaluated, in words."""
    if not claim.protocol:
        return ""
    protocol = PROTOCOLS[claim.protocol]
    numbers = map(str, range(default_seeds(claim)))
    seeds = f"; seeds {', '.join(numbers)}" if protocol.images else ""
    changed = "".join(f"; {override}" for override in claim.overrides)
    changed += "".join(f"; {claim.network}: {override}" for override in claim.network_overrides)
    return f"{claim.protocol}: {protocol.description}{changed}{seeds}"


def marks(record: Mapping[str, Any], claim: Claim) -> list[str]:
    """Return the reasons why this version of plusx might give another result for the claim."""
    reasons = []
    if (version := record["versions"].get("plusx")) != __version__:
        reasons.append(f"plusx {version}, not {__version__}")
    if record["claimed"] != claim.value:
        reasons.append(f"for another claimed value ({record['claimed']:g}, not {claim.value:g})")
    if record.get("smaller"):
        reasons.append(f"--quick: {record['smaller']}")
    return reasons


def _row(claim: Claim, record: Mapping[str, Any] | None) -> dict[str, Any]:
    if record and record.get("statement", claim.statement) != claim.statement:
        record = None  # a result for another statement is none for this one
    result = record or {}
    state = result.get("verdict", NOT_YET if claim.missing else NOT_RUN)
    keys = ("id", "kind", "statement", "source", "metric", "unit", "side", "tolerance", "spread",
              "erratum")  # fmt: skip
    return {
        **{key: getattr(claim, key) for key in keys},
        **{key: getattr(claim, key) or None for key in ("network", "data", "quote", "truth")},
        "part_of": claim.part_of,
        "missing": list(claim.missing),
        "state": state,
        "erratum_verdict": erratum_word(claim, state) or None,
        "protocol": describe_protocol(claim) or None,
        "claimed": claim.value,
        "others": [{"who": who, "value": value} for who, value in claim.others],
        "runs": list(claim.runs),
        "commands": list(claim.commands),
        "cost": cost(claim),
        **{
            key: result.get(key)
            for key in ("value", "interval", "distance", "seeds", "sequential", "date")
        },
        "marks": marks(record, claim) if record else [],
    }
