"""Verdicts by seeds: confidence sequences, the chance that a claim passes, --seeds and --decide."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import nctdtr

from plusx import cli
from plusx.evidence import directions, training
from plusx.evidence import reproduce as reproducing
from plusx.evidence.claim import CLAIMS, Claim, cost_of, default_seeds, find_claim
from plusx.evidence.power import MOST_SEEDS, STATISTICS, Study, chances, study_of
from plusx.evidence.reproduce import reproduce, reproduce_all
from plusx.evidence.verdict import Options, Outcome, decide
from plusx.recipe import to_toml
from plusx.statistics import confidence_sequence, mean_interval, sequence_factor, student_factor
from plusx.study.results import MACHINE, VERSIONS


STUDIES = {study for claim in CLAIMS.values() if (study := study_of(claim)) is not None}
SINGLE = Study(tolerance=0.0063, side="most", printed=("mean", 1), spread=0.002)
several = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=4, max_size=12)
few = settings(max_examples=30)


# the confidence sequence


@few
@given(several.filter(lambda values: len(set(values)) > 1), st.floats(-50, 50), st.floats(0.1, 10))
def test_a_confidence_sequence_moves_and_scales_with_its_values(
    values: list[float], shift: float, scale: float
) -> None:
    ends = confidence_sequence(values)
    moved = confidence_sequence([scale * value + shift for value in values])
    assert ends is not None
    assert moved is not None
    assert moved == pytest.approx([scale * end + shift for end in ends], abs=1e-6, rel=1e-6)
    student = mean_interval(values)
    assert student is not None
    assert ends.low < student.low < student.high < ends.high


@few
@given(several.filter(lambda values: len(set(values)) > 1))
def test_at_the_ends_the_likelihood_ratio_is_twenty(values: list[float]) -> None:
    """The ratio of Wang and Ramdas, with their c^2 = 1/4."""
    ends = confidence_sequence(values)
    assert ends is not None
    for end in ends:
        n, c = len(values), 0.25
        squares = (n + c) * sum((value - end) ** 2 for value in values)
        total = sum(value - end for value in values)
        ratio = math.sqrt(c / (n + c)) * (squares / (squares - total**2)) ** (n / 2)
        assert ratio == pytest.approx(20, rel=1e-4)


def test_few_values_have_no_confidence_sequence_and_more_make_it_narrower() -> None:
    assert confidence_sequence([1.0, 2.0, 3.0]) is None
    assert confidence_sequence([1.0]) is None
    assert confidence_sequence([1.0, 2.0, 3.0, math.inf]) is None
    assert confidence_sequence([1.0] * 6) is None
    factors = [sequence_factor(count) for count in range(4, 200)]
    assert factors == sorted(factors, reverse=True)
    assert confidence_sequence([0.99, 1.0, 1.0, 1.0], bounds=(0.0, 1.0)).high == 1.0


def test_all_intervals_of_a_sequence_contain_the_mean_at_once() -> None:
    """Student's t interval, looked at after each value, leaves it out too often."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2_000, 40))
    left_out = {sequence_factor: 0.0, student_factor: 0.0}
    for factor in left_out:
        outside = np.zeros(2_000, dtype=bool)
        for count in range(4, 41):
            part = values[:, :count]
            outside |= abs(part.mean(1)) > factor(count) * part.std(1, ddof=1)
        left_out[factor] = outside.mean()
    assert left_out[sequence_factor] < 0.05
    assert left_out[student_factor] > 0.1


@few
@given(st.floats(-1, 1), st.integers(1, 9))
def test_equal_values_decide_a_sequence_only_after_a_few(value: float, count: int) -> None:
    verdict = decide([value] * count, value, exact=False, sequential=True).verdict
    assert verdict == ("PASS" if count > 3 else "INCONCLUSIVE")


# chances


@pytest.mark.parametrize("runs", [1, 5])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_chance_of_a_mean_is_that_of_the_noncentral_t(runs: int, seeds: int) -> None:
    study = replace(SINGLE, printed=("mean", runs), tolerance=0.004)
    error = study.spread * math.sqrt(1 / runs + 1 / seeds)
    limit = student_factor(seeds) * study.spread / error
    chance = 1 - float(nctdtr(seeds - 1, study.tolerance / error, limit))
    assert chances(study, seeds).passed == pytest.approx(chance, abs=0.03)


@pytest.mark.parametrize("sequential", [False, True])
def test_simulated_claims_are_decided_like_real_ones(sequential: bool) -> None:
    study = Study(
        tolerance=0.005, side="equal", printed=("median", 5), spread=0.002, difference=True
    )
    seeds, claims = 8, 600
    rng = np.random.default_rng(1)
    verdicts = []
    for _ in range(claims):
        printed = float(np.diff(np.median(rng.normal(0, study.spread, (2, 5)), axis=1))[0])
        values = rng.normal(0, math.sqrt(2) * study.spread, seeds).tolist()
        for count in range(2, seeds + 1) if sequential else (seeds,):
            verdict = decide(
                values[:count], printed, study.tolerance, "equal",
                exact=False, sequential=sequential,
            ).verdict  # fmt: skip
            if verdict != "INCONCLUSIVE":
                break
        verdicts.append(verdict)
    simulated = chances(study, seeds, sequential=sequential)
    passed = verdicts.count("PASS") / claims
    assert 0.1 < passed < 0.95
    assert simulated.passed == pytest.approx(passed, abs=0.07)


@pytest.mark.parametrize("study", sorted(STUDIES, key=repr), ids=repr)
def test_claims_are_decided_rightly_and_exact_reproductions_pass(study: Study) -> None:
    """As results/verdicts.json, smaller: 500 claims of each kind."""

    def simulated(beyond: float | None) -> Any:
        return chances(study, MOST_SEEDS, sequential=True, beyond=beyond, claims=500)

    exact = simulated(None)
    assert exact.passed >= 0.9
    assert exact.mean_seeds < 12
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)
    for beyond in (None, -1e-4, 1e-4, 0.005):
        assert simulated(beyond).wrong <= limit
    assert simulated(0.005).missed > 0.9
    for seeds in (2, 3, 5, 10):
        for beyond in (-1e-4, 1e-4):
            assert chances(study, seeds, beyond=beyond, claims=500).wrong <= limit


def test_a_chance_grows_with_seeds_and_with_the_tolerance() -> None:
    passed = [chances(SINGLE, seeds).passed for seeds in (2, 3, 5, 8)]
    assert passed == sorted(passed)
    assert chances(replace(SINGLE, tolerance=0.003), 5).passed < passed[2]
    assert chances(SINGLE, 3, sequential=True).passed == 0.0


# the claims


def test_a_tolerance_allows_for_the_chance_of_the_printed_error() -> None:
    """0.3 points, and what an exact reproduction prints below its mean in 95 % of cases."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(2, 200_000, 10))
    for claim in CLAIMS.values():
        if not claim.id.startswith(("error-", "difference-")) or "imagenet" in claim.data:
            continue
        study = study_of(claim)
        if study is None:
            assert claim.printed == ()
            continue
        statistic, runs = study.printed
        first, second = STATISTICS[statistic](normal[:, :, :runs], axis=2)
        printed = first - second if study.difference else first
        below = -np.quantile(printed, 0.05) * study.spread
        assert claim.tolerance == pytest.approx(0.003 + below, abs=1e-4), claim.id


def test_a_variant_is_worse_if_its_printed_difference_exceeds_the_tolerance() -> None:
    variants = [claim for name, claim in CLAIMS.items() if name.startswith("difference-")]
    assert len(variants) > 10
    for claim in variants:
        assert claim.against in ("resnet110", "resnet164")
        assert claim.metric == f"test error of {claim.network} minus that of {claim.against}"
        assert claim.side == ("least" if claim.value > claim.tolerance else "equal"), claim.id


def test_the_gate_of_a_variant_is_not_that_of_the_original() -> None:
    claim = find_claim("difference-resnet110_exclusive_gate-cifar10-bias6")
    gated = training.recipe(claim, claim.network, 0)
    original = training.recipe(claim, claim.against, 0)
    assert "gate_bias = -6.0" in to_toml(gated)
    assert "gate_bias = -6.0" not in to_toml(original)
    same = find_claim("error-resnet110-cifar10")
    assert original == training.recipe(same, "resnet110", 0)
    folder = training._work_name(claim, claim.against, False)
    assert folder == training._work_name(same, "resnet110", False)
    assert folder != training._work_name(claim, claim.network, False)


def test_claims_of_minutes_have_five_seeds_and_others_three() -> None:
    cheap, dear = find_claim("convergence-digits"), find_claim("error-resnet20-cifar10")
    assert (default_seeds(cheap), default_seeds(dear)) == (5, 3)
    assert cost_of(dear) == 3 * cost_of(dear, 1)
    assert cost_of(cheap, 10) == 2 * cost_of(cheap)


# seeds of a claim


def trained(
    monkeypatch: pytest.MonkeyPatch, value: Callable[[int], float]
) -> list[tuple[int, ...]]:
    """Put values in the place of training; the seeds of each call are recorded."""
    calls: list[tuple[int, ...]] = []

    def check(claim: Claim, options: Options) -> Outcome:
        seeds = tuple(range(options.seeds or default_seeds(claim)))
        calls.append(seeds)
        return Outcome(values=tuple(map(value, seeds)), exact=False, seeds=seeds)

    monkeypatch.setitem(reproducing.CHECKS, "train", check)
    return calls


def normal(mean: float, spread: float = 0.002) -> Callable[[int], float]:
    values = np.random.default_rng(3).normal(mean, spread, 100)
    return lambda seed: float(values[seed])


@pytest.mark.parametrize(("mean", "verdict"), [(0.0875, "PASS"), (0.12, "MISS")])
def test_seeds_are_added_until_the_claim_is_decided(
    mean: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = trained(monkeypatch, normal(mean))
    record = reproduce("error-resnet20-cifar10", decide=True, out=tmp_path)
    assert record["verdict"] == verdict
    assert record["sequential"] is True
    assert [len(seeds) for seeds in calls] == list(range(1, len(record["seeds"]) + 1))
    assert 4 <= len(record["seeds"]) < 15
    recorded = json.loads((tmp_path / "claims.json").read_text())["claims"]
    assert recorded["error-resnet20-cifar10"]["values"] == record["values"]


def test_an_undecided_claim_ends_with_the_seeds_or_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 0.0875 + 0.0063
    calls = trained(monkeypatch, lambda seed: limit + 0.002 * (-1) ** seed)
    record = reproduce("error-resnet20-cifar10", decide=True, out=tmp_path)
    assert (record["verdict"], len(record["seeds"])) == ("INCONCLUSIVE", MOST_SEEDS)
    clock = iter(range(0, 10**9, 900))  # a quarter of an hour passes at every look
    fake = SimpleNamespace(monotonic=lambda: next(clock), sleep=None)
    monkeypatch.setattr(reproducing, "time", fake)
    calls.clear()
    lines: list[str] = []
    record = reproduce(
        "error-resnet20-cifar10", decide=True, budget=2.0, out=tmp_path, progress=lines.append
    )
    assert 2 <= len(calls) <= 4
    assert len(record["seeds"]) == len(calls)
    assert any("the budget ends" in line for line in lines)


def test_the_chance_and_the_cost_are_printed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []

    def check(claim: Claim, options: Options) -> Outcome:
        lines.append("the work")
        return Outcome(values=(0.0875, 0.0876), exact=False, seeds=(0, 1))

    monkeypatch.setitem(reproducing.CHECKS, "train", check)
    record = reproduce("error-resnet20-cifar10", seeds=5, out=tmp_path, progress=lines.append)
    assert lines[1:] == ["the work"]
    assert "5 seeds" in lines[0]
    assert f"a chance of {100 * record['power']:.0f} %" in lines[0]
    assert "hours a seed on the CPU" in lines[0]
    lines.clear()
    monkeypatch.setattr(reproducing, "MOST_SEEDS", 4)
    reproduce("error-resnet20-cifar10", decide=True, out=tmp_path, progress=lines.append)
    assert "seeds in the mean, about" in lines[0]
    assert "hours" in lines[0]
    lines.clear()
    record = reproduce("convergence-digits", out=tmp_path, progress=lines.append)
    assert "not known" in lines[0]
    assert record["power"] is None


def test_exact_claims_have_no_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "option-?-*", "--seeds", "7", "--out", str(tmp_path)]
    assert cli.run(command) == 0
    output = capsys.readouterr()
    assert output.out.count("PASS") == 2
    assert output.err.count("are left out") == 2
    trained(monkeypatch, normal(0.0875))
    for options in (["--seeds", "5"], ["--decide", "--budget", "1"]):
        assert cli.run(["reproduce", "option-a-zeros", *options, "--out", str(tmp_path)]) == 2
        assert "option-a-zeros has no seeds to choose" in capsys.readouterr().err
    results = reproduce_all(["option-a-zeros", "error-resnet20-cifar10"], seeds=7, out=tmp_path)
    assert [len(record["seeds"]) for record in results["claims"]] == [0, 7]
    assert results["claims"][1]["command"] == "plusx reproduce error-resnet20-cifar10 --seeds 7"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1"], "2 seeds or more"),
        (["--seeds", "-3"], "2 seeds or more"),
        (["--seeds", "5", "--decide"], "one of them"),
        (["--budget", "3"], "give both"),
        (["--decide", "--budget", "0"], "above 0"),
        (["--decide", "--budget", "nan"], "above 0"),
        (["--decide", "--budget", "inf"], "above 0"),
        (["--quick", "--decide"], "--quick trains one seed"),
        (["--quick", "--seeds", "5"], "--quick trains one seed"),
        (["--seeds", "many"], "many"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for names in ("error-resnet20-cifar10", "error-*"):
        assert cli.run(["reproduce", names, *options, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "claims.json").exists()


def test_a_seed_of_another_version_is_in_no_mean_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: Any, out: Path) -> None:
        out.mkdir(parents=True)
        versions = dict.fromkeys((*VERSIONS, *MACHINE), "one")
        versions["plusx"] = "2" if recipe.seed == 1 else "1"
        (out / "environment.json").write_text(json.dumps(versions))

    monkeypatch.setattr(directions.run, "train", train)
    monkeypatch.setattr(directions, "load_run", lambda folder: folder)
    options = Options(quick=False, work=tmp_path, progress=lambda line: None, seeds=4)
    outcome = directions._over_seeds(
        find_claim("fooled-digits"), "digits-resnet20", lambda folder: (0.6, "text"), options
    )
    assert outcome.seeds == (0, 2, 3)
    assert any("not in the mean: seed 1: plusx 2, not 1" in line for line in outcome.shown)
