"""Test claims: PASS, MISS or INCONCLUSIVE, with the distance.

Results are written to DIR/claims.json, which `plusx claims` and docs/evidence.md read.
"""

import math
import operator
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.errors import UserError
from plusx.evidence import arithmetic, bookkeeping, directions, errata, properties, training
from plusx.evidence.claim import CLAIMS, Claim, find_claim, members
from plusx.evidence.ledger import FILE, RESULTS, read_results
from plusx.evidence.verdict import Check, Decision, Options, Outcome, decide
from plusx.run.environment import environment
from plusx.run.folder import now
from plusx.study.experiment import finite
from plusx.study.results import recorded_environment


WORK = Path("runs/claims")
# fields of a record that are written; the ledger has the others under the claim's id
FIELDS = ("verdict", "value", "spread", "interval", "distance", "claimed", "seeds", "values",
          "shown", "smaller", "unsettled", "command", "recipe", "date", "seconds", "versions",
          "machine")  # fmt: skip
_WAIT = 30.0  # seconds to wait while another process writes its result

# by the `check` of a claim
CHECKS: dict[str, Check] = {
    "parameters": arithmetic.parameters,
    "multiply-adds": arithmetic.multiply_adds,
    "parameters-with-auxiliary-heads": arithmetic.auxiliary_heads,
    "twins": arithmetic.twins,
    "option-b-minus-a": arithmetic.option_b_minus_a,
    "parameters-of-two": arithmetic.compare_two("parameters", operator.add),
    "networks-with-more": arithmetic.networks_with_more,
    "parameters-difference": arithmetic.compare_two("parameters", operator.sub),
    "parameters-ratio": arithmetic.compare_two("parameters", lambda a, b: abs(a - b) / b),
    "multiply-adds-difference": arithmetic.compare_two("multiply_adds", operator.sub),
    "identity-shortcut-cost": arithmetic.identity_shortcut_cost,
    "bottleneck": arithmetic.bottleneck,
    "merges": arithmetic.merges,
    "convolutions-a-block": arithmetic.convolutions_per_block,
    "dilated-shortcuts": arithmetic.dilated_shortcuts,
    "zero-residual-identity": properties.zero_residual,
    "unrolling": properties.unrolling,
    "gradient-identity": properties.gradient_identity,
    "gradient-equal": properties.gradient_equal,
    "gradient-scaled": properties.gradient_scaled,
    "expected-depth": properties.expected_depth,
    "skipped-blocks": properties.skipped_blocks,
    "survival-in-evaluation": properties.survival_in_evaluation,
    "option-a": properties.option_a,
    "grad-cam": properties.grad_cam_identity,
    "identity-branch": properties.identity_branch,
    "projection": properties.projection,
    "balanced-recall": bookkeeping.balanced_recall,
    "macro-f1": bookkeeping.macro_f1,
    "resume": bookkeeping.resume,
    "warm-up": bookkeeping.warm_up_rate,
    "cited": bookkeeping.cited,
    "cited-difference": bookkeeping.cited_difference,
    "plain-gradients": errata.plain_gradients,
    "vgg19": errata.vgg19,
    "tables-error": errata.tables_about("error"),
    "tables-recall": errata.tables_about("recall"),
    "tables-total_time": errata.tables_about("total_time"),
    "tables-rows": errata.tables_about("rows"),
    "forgetting": directions.forgetting,
    "fooled": directions.fooled,
    "without-labels": directions.without_labels,
    "tuned": directions.tuned,
    "train": training.train,
    "weights": training.published,
    "members": lambda claim, options: _members(claim, options),
}


def reproduce(
    name: str,
    *,
    quick: bool = False,
    out: Path = RESULTS,
    work: Path = WORK,
    command: str = "",
    progress: Any = lambda line: None,
) -> dict[str, Any]:
    """Test one claim, write the result to OUT/claims.json and return its record.

    Training runs are stored in `work`, and other claims reuse them. `quick` runs a smaller version,
    which the record describes; for a claim about training it is always INCONCLUSIVE, and it never
    replaces a full result. Raises UserError if the claim is unknown or not yet runnable, or its
    data is missing, and RuntimeError if a built network differs from its arithmetic.
    """
    claim = find_claim(name)
    read_results(out)  # an unreadable file must raise before the work, not after it
    record = run_claim(claim, Options(quick=quick, work=work, progress=progress), command)
    write_record(record, out)
    return record


def reproduce_all(
    names: Sequence[str],
    *,
    quick: bool = False,
    out: Path = RESULTS,
    work: Path = WORK,
    progress: Any = lambda line: None,
) -> dict[str, Any]:
    """Test several claims in turn: {claims: [record], failed, skipped: [{id, reason}]}.

    Each result is written at once. A claim that cannot be tested does not stop the others:
    `skipped` are those not yet runnable, `failed` those with an error.
    """
    read_results(out)
    results: dict[str, Any] = {"claims": [], "failed": [], "skipped": []}
    for number, name in enumerate(names, 1):
        claim = find_claim(name)
        if claim.missing:
            results["skipped"].append({"id": name, "reason": claim.missing})
            progress(f"{number} of {len(names)}: {name}: not yet runnable: {claim.missing}")
            continue
        try:
            record = reproduce(
                name,
                quick=quick,
                out=out,
                work=work,
                command=shlex.join(["plusx", "reproduce", name, *(["--quick"] if quick else [])]),
                progress=progress,
            )
        except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
            if getattr(error, "signal_number", None) is not None:
                raise
            results["failed"].append({"id": name, "reason": str(error)})
            progress(f"{number} of {len(names)}: {name}: {error}")
            continue
        results["claims"].append(record)
        progress(f"{number} of {len(names)}: {name}: {record['verdict']}")
    return results


def run_claim(claim: Claim, options: Options, command: str = "") -> dict[str, Any]:
    """Test one claim and return the record without writing it."""
    if claim.missing:
        raise UserError(f"{claim.id} is not yet runnable; missing: {claim.missing}")
    started = time.monotonic()
    outcome = CHECKS[claim.check](claim, options)
    decision = decide_outcome(claim, outcome, options.quick)
    keys = ("id", "tolerance", "side", "metric", "unit", "erratum", "source")
    return {
        **{key: getattr(claim, key) for key in keys},
        "claimed": claim.value,
        "truth": claim.truth or None,
        "verdict": decision.verdict,
        "value": finite(decision.value),
        "spread": decision.spread,
        "interval": None if decision.interval is None else list(decision.interval),
        "distance": decision.distance,
        "seeds": list(outcome.seeds),
        "values": list(map(finite, outcome.values)),
        "shown": list(outcome.shown),
        "smaller": outcome.smaller or None,
        "unsettled": outcome.unsettled or None,
        "command": command,
        "recipe": outcome.recipe,
        "date": now(),
        "seconds": round(time.monotonic() - started, 1),
        **(outcome.environment or recorded_environment(environment(torch.device("cpu")))),
    }


def decide_outcome(claim: Claim, outcome: Outcome, quick: bool) -> Decision:
    """Return the decision on an outcome; a smaller training run decides no claim."""
    decision = decide(
        outcome.values,
        claim.value,
        claim.tolerance,
        claim.side,
        exact=outcome.exact,
        spread=claim.spread,
        # of fractions, and of differences between them
        bounds=(-1.0, 1.0) if claim.unit == "share" else (-math.inf, math.inf),
    )
    if outcome.unsettled or (quick and claim.kind == "training"):
        return replace(decision, verdict="INCONCLUSIVE")
    return decision


def write_record(record: Mapping[str, Any], out: Path) -> None:
    """Write a record to OUT/claims.json, which is rewritten as a whole. A quick result does not
    replace a full one. A result equal to the old one keeps its date."""
    started = time.monotonic()
    while True:
        try:
            with store.lock(out):
                _replace_record(record, out)
                return
        except ValueError as error:
            if "in use" not in str(error) or time.monotonic() - started > _WAIT:
                raise
            time.sleep(0.02)


def _replace_record(record: Mapping[str, Any], out: Path) -> None:
    records = read_results(out)
    old, new = records.get(record["id"]), {key: record[key] for key in FIELDS}
    if old is not None:
        if record["smaller"] and not old["smaller"]:
            return
        changing = ("date", "seconds", "command")
        if all(old.get(key) == value for key, value in new.items() if key not in changing):
            return
    records[record["id"]] = new
    environments: list[dict[str, Any]] = []
    claims = {}
    for name in sorted(records.keys() & CLAIMS.keys()):
        entry = records[name]
        environment = {"versions": entry.pop("versions"), "machine": entry.pop("machine")}
        if environment not in environments:
            environments.append(environment)
        claims[name] = entry | {"environment": environments.index(environment)}
    verdicts = [entry["verdict"] for entry in claims.values()]
    store.write_json(
        out / FILE,
        {
            "value": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
            "spread": None,
            "seeds": [],
            "command": record["command"],
            "recipe": None,
            "versions": record["versions"],
            "machine": record["machine"],
            "date": record["date"],
            "environments": environments,
            "claims": claims,
        },
    )


def _members(claim: Claim, options: Options) -> Outcome:
    """Test every member claim. The claim is a MISS if one of them is."""
    shown, verdicts, environment = [], [], {}
    smaller = []
    for member in members(claim):
        options.progress(f"{claim.id}: {member.id}")
        record = run_claim(member, options)
        verdicts.append(record["verdict"])
        shown.append(f"{member.id}: {record['verdict']}")
        smaller += [record["smaller"]] if record["smaller"] else []
        environment = {key: record[key] for key in ("versions", "machine")}
    inconclusive = verdicts.count("INCONCLUSIVE")
    misses = verdicts.count("MISS")
    return Outcome(
        values=(float(misses),),
        shown=tuple(shown),
        smaller="; ".join(dict.fromkeys(smaller)),
        unsettled=f"{inconclusive} of {len(verdicts)} member claims are inconclusive"
        if inconclusive and not misses
        else "",
        environment=environment,
    )


def record_text(record: Mapping[str, Any]) -> str:
    """Return a record as text for a terminal."""
    claim, unit, distance = find_claim(record["id"]), record["unit"], record["distance"]
    value = _number(record["value"], unit)
    if record["spread"] is not None:
        value += f" ± {_number(record['spread'], unit)}"
    if record["interval"] is not None:
        value += f" (95 %: {' to '.join(_number(end, unit) for end in record['interval'])})"
    words, sign = {"equal": ("", "±"), "most": ("at most ", "+"), "least": ("at least ", "-")}[
        record["side"]
    ]
    tolerance = f" {sign} {_number(record['tolerance'], unit)}" if record["tolerance"] else ""
    facts = [
        ("claim", f"{claim.statement} ({claim.source})"),
        ("metric", record["metric"]),
        ("claimed", f"{words}{_number(record['claimed'], unit)}{tolerance}"),
        ("found", value),
        (
            "distance",
            "no spread is known"
            if distance is None
            else f"{distance:+.2f} spreads"
            if distance
            else "none",
        ),
        ("seeds", len(record["seeds"]) or "none: exact"),
        *(("", line) for line in record["shown"]),
        ("smaller", record["smaller"]),
        ("open", record["unsettled"]),
        ("true", record["truth"]),
    ]
    lines = [f"  {name:10} {text}" for name, text in facts if text]
    return "\n".join([f"{record['verdict']}  {record['id']}", *lines])


def _number(value: int | float | None, unit: str) -> str:
    if value is None:
        return "no finite number"
    if unit == "share":
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if unit == "count" and value == int(value) else f"{value:.4g}"
