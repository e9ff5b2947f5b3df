"""How often the rules of `plusx reproduce` decide claims, and how often wrongly, by simulation.

    python benchmarks/verdicts.py

10,000 claims for each rule and each truth: the claims of the ledger whose printed values are
measured over runs, in equal parts, with values of runs that are Gaussian
(`plusx.evidence.power`). The truths are

    exact    an exact reproduction: the runs of the source and ours have the same distribution
    within   the true mean is allowed, and only EDGE from the limit
    beyond   the true mean is not allowed, and only EDGE from the limit
    far      the true mean is FAR beyond the limit

Writes results/verdicts.json. Exits with status 1 if more than 5 % of the verdicts of a rule are
wrong, or if --decide passes fewer than 90 % of exact reproductions.
"""

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, SEED

from plusx import store
from plusx.evidence.claim import CLAIMS
from plusx.evidence.power import MOST_SEEDS, Study, chances, study_of
from plusx.run.environment import environment
from plusx.run.folder import now


CLAIMS_PER_TRUTH = 10_000
EDGE, FAR = 0.0001, 0.005  # 0.01 and 0.5 points
TRUTHS = {"exact": None, "within": -EDGE, "beyond": EDGE, "far": FAR}
MARGIN = 0.003  # the tolerance of all claims before it had a part for the printed error
# name: (seeds, whether they are added until a decision, tolerance or None for that of the claim)
RULES: dict[str, tuple[int, bool, float | None]] = {
    "3 seeds, tolerance 0.3 points": (3, False, MARGIN),
    "--decide, tolerance 0.3 points": (MOST_SEEDS, True, MARGIN),
    "3 seeds": (3, False, None),
    "5 seeds": (5, False, None),
    "10 seeds": (10, False, None),
    "--decide": (MOST_SEEDS, True, None),
}
MAX_WRONG, MIN_PASSED = 0.05, 0.9


def studies() -> Counter[Study]:
    """The simulated claims of the ledger, and how often each occurs."""
    found = [study_of(claim) for claim in CLAIMS.values() if claim.check == "train"]
    return Counter(study for study in found if study is not None)


def row(name: str) -> dict[str, Any]:
    """The fractions of verdicts of one rule, for each truth."""
    seeds, sequential, tolerance = RULES[name]
    ledger = studies()
    result: dict[str, Any] = {"rule": name, "most_seeds": seeds}
    for truth, beyond in TRUTHS.items():
        total = dict.fromkeys(("passed", "missed", "inconclusive", "wrong", "mean_seeds"), 0.0)
        for number, (study, count) in enumerate(ledger.items()):
            share = count / ledger.total()
            one = chances(
                study if tolerance is None else replace(study, tolerance=tolerance),
                seeds,
                sequential=sequential,
                beyond=beyond,
                claims=round(share * CLAIMS_PER_TRUTH),
                rng_seed=SEED + number,
            )
            for key in total:
                total[key] += share * getattr(one, key)
        result[truth] = {key: round(value, 5) for key, value in total.items()}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "verdicts.json")
    arguments = parser.parse_args()
    rows = [row(name) for name in RULES]
    machine = environment(torch.device("cpu"))
    packages = ("plusx", "python", "numpy")
    store.write_json(
        arguments.out,
        {
            "value": {each["rule"]: each["exact"]["passed"] for each in rows},
            "spread": None,
            "seeds": [SEED],
            "claims": CLAIMS_PER_TRUTH,
            "rows": rows,
            "command": "python benchmarks/verdicts.py",
            "recipe": {"edge": EDGE, "far": FAR},
            "versions": {name: machine[name] for name in packages},
            "machine": {name: machine[name] for name in ("device", "processor", "cores")},
            "date": now(),
        },
    )
    wrong = max(each[truth]["wrong"] for each in rows for truth in TRUTHS)
    passed = rows[-1]["exact"]["passed"]
    print(f"at most {100 * wrong:.1f} % wrong; --decide passes {100 * passed:.1f} %")
    return 1 if wrong > MAX_WRONG or passed < MIN_PASSED else 0


if __name__ == "__main__":
    sys.exit(main())
