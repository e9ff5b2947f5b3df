"""Test claims: PASS, MISS, IN PART or INCONCLUSIVE, with the distance.

Results are written to DIR/claims.json, which `plusx claims` and docs/evidence.md read.
"""

import math
import operator
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.errors import UserError, counted
from plusx.evidence import (
    arithmetic,
    bookkeeping,
    directions,
    errata,
    properties,
    recorded,
    training,
)
from plusx.evidence.claim import (
    CLAIMS,
    SEEDED,
    Claim,
    cost_of,
    default_seeds,
    erratum_word,
    find_claim,
    hours,
    members,
)
from plusx.evidence.ledger import FILE, RESULTS, read_results
from plusx.evidence.power import MOST_SEEDS, Chances, chances, study_of
from plusx.evidence.verdict import Check, Decision, Options, Outcome, decide, verdict_of_members
from plusx.report.metrics import METRICS
from plusx.run.environment import environment
from plusx.run.folder import now
from plusx.study.experiment import finite
from plusx.study.results import recorded_environment


WORK = Path("runs/claims")
# fields of a record that are written; the ledger has the others under the claim's id
FIELDS = ("statement", "verdict", "members", "value", "spread", "interval", "distance", "power",
          "sequential", "claimed", "seeds", "values", "shown", "smaller", "unsettled", "command",
          "recipe", "date", "seconds", "versions", "machine")  # fmt: skip
OF_MEMBERS = ("id", "verdict", "erratum_verdict", "value", "claimed", "side", "tolerance",
              "metric", "unit", "shown", "unsettled")  # fmt: skip
_WAIT = 30.0  # seconds to wait while another process writes its result

# by the `check` of a claim
CHECKS: dict[str, Check] = {
    "parameters": arithmetic.parameters,
    "multiply-adds": arithmetic.multiply_adds,
    "parameters-with-auxiliary-heads": arithmetic.auxiliary_heads,
    "twins": arithmetic.twins,
    "option-b-minus-a": arithmetic.option_b_minus_a,
    "networks-with-more": arithmetic.networks_with_more,
    "parameters-difference": arithmetic.compare_two("parameters", operator.sub),
    "multiply-adds-difference": arithmetic.compare_two("multiply_adds", operator.sub),
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
    "balanced-recall": bookkeeping.balanced_recall,
    "macro-f1": bookkeeping.macro_f1,
    "resume": bookkeeping.resume,
    "warm-up": bookkeeping.warm_up_rate,
    "recorded": recorded.recorded,
    "layers": arithmetic.layers,
    "bottleneck-blocks": arithmetic.blocks_of((1, 3, 1)),
    "stored-ratio": arithmetic.stored_ratio,
    "every-block-has-gradient": errata.blocks_without_gradient,
    "latency": errata.latency,
    "cited": bookkeeping.cited,
    "cited-difference": bookkeeping.cited_difference,
    "nested-functions": properties.nested_functions,
    "gradient-ratio": errata.gradient_ratios,
    "gradient-at-first-block": errata.first_gradient,
    "seconds-ratio": errata.seconds_ratio,
    "top5-difference": errata.top5_difference,
    "cheaper-networks": errata.cheaper_networks,
    "additions": arithmetic.additions,
    "bottleneck-order": arithmetic.blocks_of((3, 1, 3)),
    "depth-difference": arithmetic.compare_two("depth", operator.sub),
    "multiply-adds-ratio": arithmetic.compare_two("multiply_adds", operator.truediv),
    "tables-error": errata.tables_about("error"),
    "tables-recall": errata.tables_about("recall", "f1"),
    "tables-total_time": errata.tables_about("total_time", "epoch_time"),
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
    seeds: int | None = None,
    decide: bool = False,
    budget: float | None = None,
    out: Path = RESULTS,
    work: Path = WORK,
    command: str = "",
    progress: Any = lambda line: None,
) -> dict[str, Any]:
    """Test one claim, write the result to OUT/claims.json and return its record.

    Training runs are stored in `work`, and other claims reuse them. `quick` runs a smaller version,
    which the record describes; for a claim about training it is always INCONCLUSIVE, and it never
    replaces a full result. `seeds` (2 or more) is the number of seeds (None: 5 if they take an hour
    of one core or less, else 3). `decide` adds seeds until the claim is decided, `budget` hours
    are used, or there are 30 seeds. Exact claims have no seeds.
    The results of member claims are written too.
    Raises UserError if the claim is unknown or not yet runnable, its data is missing, or the
    options contradict each other or have no meaning for it, and RuntimeError if a built network
    differs from its arithmetic.
    """
    options = make_options(quick, seeds, decide, budget, work, progress)
    options = replace(options, results=out)
    claim = find_claim(name)
    if (seeds is not None or decide) and not has_seeds(claim):
        raise UserError(f"{name} has no seeds to choose: leave out --seeds, --decide and --budget")
    read_results(out)  # an unreadable file must raise before the work, not after it
    record = run_claim(claim, options, command)
    write_record(record, out)
    return record


def has_seeds(claim: Claim) -> bool:
    """Return whether a claim, or one of its members, is tested with a number of seeds."""
    return claim.check in SEEDED or any(map(has_seeds, members(claim)))


def reproduce_all(
    names: Sequence[str],
    *,
    quick: bool = False,
    seeds: int | None = None,
    decide: bool = False,
    budget: float | None = None,
    out: Path = RESULTS,
    work: Path = WORK,
    progress: Any = lambda line: None,
) -> dict[str, Any]:
    """Test several claims in turn: {claims: [record], failed, skipped: [{id, reason}]}.

    Each result is written at once. A claim that cannot be tested does not stop the others:
    `skipped` are those not yet runnable, `failed` those with an error. The budget is that of each
    claim.
    """
    make_options(quick, seeds, decide, budget, work, progress)
    read_results(out)
    options = [
        *(["--quick"] if quick else []),
        *([] if seeds is None else ["--seeds", str(seeds)]),
        *(["--decide"] if decide else []),
        *([] if budget is None else ["--budget", f"{budget:g}"]),
    ]
    results: dict[str, Any] = {"claims": [], "failed": [], "skipped": []}
    for number, name in enumerate(names, 1):
        claim = find_claim(name)
        if claim.missing:
            reason = ", ".join(claim.missing)
            results["skipped"].append({"id": name, "reason": reason})
            progress(f"{number} of {len(names)}: {name}: not yet runnable; missing: {reason}")
            continue
        chosen: dict[str, Any] = {"seeds": seeds, "decide": decide, "budget": budget}
        words = options
        if (seeds is not None or decide) and not has_seeds(claim):
            progress(f"{name}: it has no seeds: --seeds, --decide and --budget are left out")
            chosen, words = {}, []
        try:
            record = reproduce(
                name,
                quick=quick,
                **chosen,
                out=out,
                work=work,
                command=shlex.join(["plusx", "reproduce", name, *words]),
                progress=progress,
            )
        except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
            if getattr(error, "signal_number", None) is not None:
                raise
            results["failed"].append({"id": name, "reason": str(error)})
            progress(f"{number} of {len(names)}: {name}: {error}")
            continue
        results["claims"].append(record)
        progress(f"{number} of {len(names)}: {name}: {_word(record)}")
    return results


def make_options(
    quick: bool,
    seeds: int | None,
    decide: bool,
    budget: float | None,
    work: Path,
    progress: Any,
) -> Options:
    """Return the options of a check. Raises UserError if they contradict each other."""
    if seeds is not None and seeds < 2:
        raise UserError(f"--seeds {seeds}: a mean and its interval need 2 seeds or more")
    if seeds is not None and decide:
        raise UserError("--seeds fixes the number of seeds and --decide does not: give one of them")
    if quick and (decide or seeds is not None):
        raise UserError("--quick trains one seed: leave out --seeds and --decide")
    if budget is not None and not decide:
        raise UserError("--budget is the time that --decide may take: give both")
    if budget is not None and not (budget > 0 and math.isfinite(budget)):
        raise UserError(f"--budget {budget:g}: a number of hours above 0 is needed")
    return Options(
        quick=quick,
        work=work,
        progress=progress,
        seeds=seeds,
        decide=decide,
        budget=math.inf if budget is None else budget,
    )


def run_claim(claim: Claim, options: Options, command: str = "") -> dict[str, Any]:
    """Test one claim and return the record without writing it."""
    if claim.missing:
        raise UserError(f"{claim.id} is not yet runnable; missing: {', '.join(claim.missing)}")
    started = time.monotonic()
    expected = _expected(claim, options)
    outcome, decision = _decided(claim, options)
    keys = ("id", "statement", "tolerance", "side", "metric", "unit", "erratum", "source")
    return {
        **{key: getattr(claim, key) for key in keys},
        "claimed": claim.value,
        "quote": claim.quote or None,
        "truth": claim.truth or None,
        "verdict": decision.verdict,
        "erratum_verdict": erratum_word(claim, decision.verdict) or None,
        "value": finite(decision.value),
        "spread": decision.spread,
        "interval": None if decision.interval is None else list(decision.interval),
        "distance": decision.distance,
        "power": None if expected is None else expected.passed,
        "sequential": (options.decide and claim.check in SEEDED) or None,
        "seeds": list(outcome.seeds),
        "values": list(map(finite, outcome.values)),
        "shown": list(outcome.shown),
        "members": list(outcome.members),
        "smaller": outcome.smaller or None,
        "unsettled": outcome.unsettled or None,
        "command": command,
        "recipe": outcome.recipe,
        "date": now(),
        "seconds": round(time.monotonic() - started, 1),
        **(outcome.environment or recorded_environment(environment(torch.device("cpu")))),
    }


def _expected(claim: Claim, options: Options) -> Chances | None:
    """Return the chances of an exact reproduction with these options, and report them with the
    cost; None if they are not known or there are no seeds."""
    if claim.check not in SEEDED or options.quick:
        return None
    one_seed = hours(cost_of(claim, 1), os.cpu_count() or 1)
    seeds = options.seeds or default_seeds(claim)
    if options.decide:
        affordable = options.budget / one_seed if one_seed else math.inf
        seeds = max(int(min(affordable, MOST_SEEDS)), 1)
    study = study_of(claim)
    expected = None
    if study is not None:
        expected = chances(study, max(seeds, 2), sequential=options.decide)
    options.progress(f"{claim.id}: {_prospect(claim, options, expected, seeds, one_seed)}")
    return expected


def _prospect(
    claim: Claim, options: Options, expected: Chances | None, seeds: int, one_seed: float
) -> str:
    """Return the number of seeds, the chance of PASS and the hours as a sentence."""
    cost = ""
    if one_seed:
        total = seeds * one_seed
        cost = f" (about {_hours(one_seed)} hours a seed on the CPU here, {_hours(total)} for all)"
    plan = f"{'up to ' if options.decide else ''}{counted(seeds, 'seed')}"
    if expected is None:
        reason = "a limit is claimed, or no spread is known"
        return f"{plan}{cost}; the chance that it passes is not known: {reason}"
    spread = 100 * (claim.spread or claim.assumed_spread or 0.0)
    source = "published" if claim.spread else "assumed"
    text = (
        f"{plan}{cost}; an exact reproduction passes with a chance of "
        f"{100 * expected.passed:.0f} % ({source} spread {spread:.2f} points)"
    )
    if not options.decide:
        return text
    needed = expected.mean_seeds
    expected_cost = f", about {_hours(needed * one_seed)} hours" if one_seed else ""
    return (
        f"{text}, after {needed:.1f} seeds in the mean{expected_cost}, and after at most "
        f"{expected.most_seeds} in 95 % of cases"
    )


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _decided(claim: Claim, options: Options) -> tuple[Outcome, Decision]:
    """Run the check; with `decide`, with one seed more until it decides or the budget ends."""
    check = CHECKS[claim.check]
    if not options.decide or claim.check not in SEEDED:
        outcome = check(claim, options)
        return outcome, decide_outcome(claim, outcome, options.quick)
    started, longest = time.monotonic(), 0.0
    for seeds in range(1, MOST_SEEDS + 1):
        before = time.monotonic()
        outcome = check(claim, replace(options, seeds=seeds))
        decision = decide_outcome(claim, outcome, quick=False, sequential=True)
        count = f"{len(outcome.seeds)} seed{'' if len(outcome.seeds) == 1 else 's'}"
        mean = _number(decision.value, claim.unit)
        options.progress(f"{claim.id}: {count}, mean {mean}: {decision.verdict}")
        ended = time.monotonic()
        longest = max(longest, ended - before)
        if decision.verdict != "INCONCLUSIVE":
            break
        if ended - started + longest > 3600 * options.budget:
            options.progress(f"{claim.id}: the budget ends after {counted(seeds, 'seed')}")
            break
    return outcome, decision


def decide_outcome(
    claim: Claim, outcome: Outcome, quick: bool, sequential: bool = False
) -> Decision:
    """Return the decision on an outcome; a smaller training run decides no claim."""
    # of a value, and of a difference between two; an error rate can exceed 1
    metric = None if claim.recorded is None else METRICS.get(claim.recorded.key)
    largest = 1.0 if claim.unit == "share" else math.inf
    largest = largest if metric is None else metric.maximum
    decision = decide(
        outcome.values,
        claim.value,
        claim.tolerance,
        claim.side,
        exact=outcome.exact,
        sequential=sequential,
        spread=claim.spread,
        bounds=(-largest, largest),
        comparisons=1 if claim.recorded is None else claim.recorded.comparisons,
        compared=outcome.compared,
    )
    if outcome.unsettled or (quick and claim.kind == "training"):
        return replace(decision, verdict="INCONCLUSIVE")
    if outcome.verdict is not None:
        return replace(decision, verdict=outcome.verdict)
    return decision


def write_record(record: Mapping[str, Any], out: Path) -> None:
    """Write a record and those of its members to OUT/claims.json, which is rewritten as a whole. A
    quick result does not replace a full one. A result equal to the old one keeps its date."""
    for member in record["members"]:
        write_record({**member, "command": record["command"]}, out)
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
    new["members"] = [{key: member[key] for key in OF_MEMBERS} for member in record["members"]]
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
    """Test every member claim. The value is the number of those that miss."""
    records = []
    for member in members(claim):
        options.progress(f"{claim.id}: {member.id}")
        records.append(run_claim(member, options))
    verdict = verdict_of_members([record["verdict"] for record in records])
    smaller = [record["smaller"] for record in records if record["smaller"]]
    inconclusive = sum(record["verdict"] == "INCONCLUSIVE" for record in records)
    return Outcome(
        values=(float(sum(record["verdict"] == "MISS" for record in records)),),
        shown=tuple(line for record in records for line in _member_lines(record)),
        smaller="; ".join(dict.fromkeys(smaller)),
        unsettled=f"{inconclusive} of {len(records)} member claims are inconclusive"
        if verdict == "INCONCLUSIVE"
        else "",
        verdict=verdict,
        members=tuple(records),
        environment={key: records[-1][key] for key in ("versions", "machine")},
    )


def _member_lines(record: Mapping[str, Any]) -> list[str]:
    """Return a member of a claim as lines of evidence."""
    claim = find_claim(record["id"])
    value = _number(record["value"], record["unit"])
    lines = [f"{_word(record)}: {claim.statement} ({claim.id})"]
    if claim.check != "members":
        lines.append(f"  {claim.metric}: {value}, claimed {_allowed(record)}")
    return [*lines, *(f"  {line}" for line in record["shown"])]


def _word(record: Mapping[str, Any]) -> str:
    """Return the verdict of a record, of an erratum that on the statement of the text."""
    word: str = record["erratum_verdict"] or record["verdict"]
    return word


def record_text(record: Mapping[str, Any]) -> str:
    """Return a record as text for a terminal."""
    claim, unit, distance = find_claim(record["id"]), record["unit"], record["distance"]
    value = _number(record["value"], unit)
    if record["spread"] is not None:
        value += f" ± {_number(record['spread'], unit)}"
    if record["interval"] is not None:
        value += f" (95 %: {' to '.join(_number(end, unit) for end in record['interval'])})"
    measured = [
        ("metric", record["metric"]),
        ("claimed", _allowed(record)),
        ("found", value),
        (
            "distance",
            None if distance is None else f"{distance:+.2f} spreads" if distance else "none",
        ),
        ("seeds", _seeds_text(record)),
        (
            "power",
            None
            if record["power"] is None
            else f"an exact reproduction passes with a chance of {100 * record['power']:.0f} %",
        ),
    ]
    facts = [
        ("claim", f"{claim.statement} ({claim.source})"),
        ("quote", claim.quote and f'"{claim.quote}"'),
        *([] if claim.check == "members" else measured),  # members have their own
        *(("", line) for line in record["shown"]),
        ("smaller", record["smaller"]),
        ("open", record["unsettled"]),
        ("true", record["truth"]),
    ]
    lines = [f"  {name:10} {text}" for name, text in facts if text]
    return "\n".join([f"{_word(record)}  {record['id']}", *lines])


def _allowed(record: Mapping[str, Any]) -> str:
    """Return the allowed values of a claim as text."""
    unit = record["unit"]
    words, sign = {"equal": ("", "±"), "most": ("at most ", "+"), "least": ("at least ", "-")}[
        record["side"]
    ]
    tolerance = f" {sign} {_number(record['tolerance'], unit)}" if record["tolerance"] else ""
    return f"{words}{_number(record['claimed'], unit)}{tolerance}"


def _seeds_text(record: Mapping[str, Any]) -> str:
    if not record["seeds"]:
        rounds = len(record["values"])
        return "none: exact" if rounds == 1 else f"none: {rounds} rounds"
    rule = ", added until the claim was decided" if record["sequential"] else ""
    return f"{len(record['seeds'])}{rule}"


def _number(value: int | float | None, unit: str) -> str:
    if value is None:
        return "no finite number"
    if unit == "share":
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
