"""The chance that an exact reproduction of a claim passes, by simulation.

An exact reproduction trains the same networks in the same way as the source of the claim, so that
its runs and those of the source have the same distribution. The printed value is drawn as the
source computed it (the mean, median or best of some runs, or a single run), then the values of our
seeds are drawn, and the rules of `plusx.evidence.verdict` decide. Values of runs are Gaussian, with
the published spread, or an assumed one if none is published.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plusx.evidence.claim import Claim, Side
from plusx.evidence.verdict import allowed
from plusx.statistics import sequence_factor, student_factor


MOST_SEEDS = 30  # of a claim that is tested until it is decided
CLAIMS_PER_CHANCE = 4_000  # a chance of 0.9 is then within 0.01
STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "best": np.min}


@dataclass(frozen=True, kw_only=True)
class Study:
    """Claims of one kind.

    printed: (statistic, number of runs) of the printed value
    spread: standard deviation over the runs of one network
    difference: whether the value is a difference of two networks, each with its runs
    """

    tolerance: float
    side: Side
    printed: tuple[str, int]
    spread: float
    difference: bool = False


@dataclass(frozen=True, kw_only=True)
class Chances:
    """Fractions of simulated claims, and the number of seeds until the decision.

    wrong: PASS although the true mean is not allowed, or MISS although it is
    mean_seeds, most_seeds: the mean, and the number that 95 % of claims do not exceed
    """

    passed: float
    missed: float
    inconclusive: float
    wrong: float
    mean_seeds: float
    most_seeds: int


def study_of(claim: Claim) -> Study | None:
    """Return what a claim is in a simulation; None if its value is not measured over runs, or the
    spread of the runs is neither published nor assumed."""
    spread = claim.spread or claim.assumed_spread
    if not claim.printed or not spread:
        return None
    return Study(
        tolerance=claim.tolerance,
        side=claim.side,
        printed=claim.printed,
        spread=spread,
        difference=bool(claim.against),
    )


def chances(
    study: Study,
    seeds: int,
    *,
    sequential: bool = False,
    beyond: float | None = None,
    claims: int = CLAIMS_PER_CHANCE,
    rng_seed: int = 0,
) -> Chances:
    """Simulate claims, each with a printed value and `seeds` seeds, or with up to `seeds` seeds
    until a decision if `sequential`.

    beyond: how far the mean of our runs is beyond the limit of what the claim allows, negative if
        within; None: an exact reproduction
    """
    rng = np.random.default_rng(rng_seed)
    limits = allowed(0.0, study.tolerance, study.side)
    printed = _printed(study, rng, claims)
    low, high = printed + limits.low, printed + limits.high
    true_mean = np.zeros(claims)
    if beyond is not None:
        true_mean = low - beyond if study.side == "least" else high + beyond
    spread = study.spread * (np.sqrt(2) if study.difference else 1.0)
    values = true_mean[:, None] + rng.normal(0.0, spread, (claims, seeds))

    counts = np.arange(1, seeds + 1)
    means = values.cumsum(1) / counts
    centred = values - true_mean[:, None]  # so that the squares do not cancel
    squares = (centred**2).cumsum(1) - centred.cumsum(1) ** 2 / counts
    deviations = np.sqrt(np.maximum(squares, 0.0) / np.maximum(counts - 1, 1))
    looks = list(range(2, seeds + 1)) if sequential else [seeds]
    factor = sequence_factor if sequential else student_factor
    columns = np.array(looks, dtype=int) - 1
    half = np.array([factor(n) for n in looks]) * deviations[:, columns]
    below, above = means[:, columns] - half, means[:, columns] + half

    passes = (low[:, None] <= below) & (above <= high[:, None])
    misses = (above < low[:, None]) | (high[:, None] < below)
    decided = passes | misses
    first = np.where(decided.any(1), decided.argmax(1), len(looks) - 1)
    rows = np.arange(claims)
    passed, missed = passes[rows, first], misses[rows, first]
    inside = (low <= true_mean) & (true_mean <= high)
    used = np.array(looks)[first]
    return Chances(
        passed=float(passed.mean()),
        missed=float(missed.mean()),
        inconclusive=float((~passed & ~missed).mean()),
        wrong=float(np.where(inside, missed, passed).mean()),
        mean_seeds=float(used.mean()),
        most_seeds=int(np.quantile(used, 0.95)),
    )


def _printed(study: Study, rng: np.random.Generator, claims: int) -> np.ndarray:
    """Return printed values of networks with a true mean of 0, or differences of two."""
    statistic, runs = study.printed
    networks = rng.normal(0.0, study.spread, (2 if study.difference else 1, claims, runs))
    values = STATISTICS[statistic](networks, axis=2)
    return values[0] - values[1] if study.difference else values[0]
