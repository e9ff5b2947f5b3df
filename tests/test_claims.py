"""The ledger of claims: complete, sound, and listed with what is known."""

import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from plusx import cli
from plusx.evidence import training
from plusx.evidence.claim import (
    CLAIMS,
    PROTOCOLS,
    RATE,
    TEXTS,
    claim_names,
    cost_of,
    find_claim,
    hours,
    members,
    spec,
)
from plusx.evidence.ledger import NOT_RUN, NOT_YET, ledger, read_results, select_claims
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.recipe import load_recipe
from plusx.run.datasets import DATA
from plusx.run.task_factory import TASKS
from plusx.selfsupervised import METHODS
from plusx.shipped import shipped_recipes
from plusx.study.consistency import network_count
from plusx.zoo import PAPERS, ZOO


RECORD = {
    "verdict": "PASS",
    "value": 1_727_962,
    "spread": None,
    "interval": None,
    "distance": 0.0,
    "claimed": 1_700_000,
    "seeds": [],
    "smaller": None,
    "date": "2026-01-01T00:00:00+00:00",
    "environment": 0,
}
# counts that the papers misprint or the texts confuse
WRONG = {"literature-misprint-resnet1001", "erratum-1", "part-2-resnet34", "part-2-resnet50"}


def kept(folder: Path, version: str = "0.1.0", **changed: object) -> Path:
    """A folder of results with one claim in it."""
    folder.mkdir(exist_ok=True)
    records = {
        "environments": [{"versions": {"plusx": version}, "machine": {}}],
        "claims": {"parameters-resnet110": {**RECORD, **changed}},
    }
    (folder / "claims.json").write_text(json.dumps(records))
    return folder


def state(folder: Path) -> dict[str, object]:
    return ledger("parameters-resnet110", results=folder)[0]


def test_every_claim_has_a_unique_name_a_kind_a_source_and_a_statement() -> None:
    assert len(CLAIMS) > 250
    for name, claim in CLAIMS.items():
        assert re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)+", name), name
        assert claim.kind in ("arithmetic", "property", "training")
        assert claim.statement, name
        assert claim.metric, name
        assert claim.source, name
        assert claim.tolerance >= 0, name


def test_every_named_network_protocol_and_pattern_exists() -> None:
    for claim in CLAIMS.values():
        for name in filter(None, (claim.network, claim.against, *claim.beside)):
            assert name in ZOO, claim.id
        assert claim.protocol in ("", *PROTOCOLS), claim.id
        for pattern in claim.runs:
            assert any(fnmatchcase(name, pattern) for name in CLAIMS), (claim.id, pattern)
        if claim.check == "members":
            assert claim.missing or members(claim), claim.id
            assert not any(member.erratum for member in members(claim)), claim.id
            if claim.erratum is None and claim.part_of is None:
                assert not any(member.check == "members" for member in members(claim)), claim.id


def wrong_counts(metric: str, part: str) -> list[str]:
    """Claims about networks in this part of the zoo whose count is not that of the definition."""
    wrong = []
    for claim in CLAIMS.values():
        if (
            claim.check != metric
            or claim.id in WRONG
            or claim.network.startswith("dense") != (part == "dense")
        ):
            continue
        network = ZOO[claim.network].net
        if isinstance(network, Net):
            network = measure(spec(claim.network, claim.num_classes))
        if abs(getattr(network, metric.replace("-", "_")) - claim.value) > claim.tolerance:
            wrong.append(claim.id)
    return wrong


@pytest.mark.parametrize(
    ("metric", "part"),
    [
        ("parameters", "others"),
        ("multiply-adds", "others"),
        pytest.param("parameters", "dense", marks=pytest.mark.slow),
    ],
)
def test_every_count_is_that_of_the_definition(metric: str, part: str) -> None:
    assert wrong_counts(metric, part) == []


def test_claimed_counts_are_printed_counts() -> None:
    """To the unit where a text prints it so, else within half a unit of the last digit."""
    for name in claim_names("parameters-*"):
        claim = CLAIMS[name]
        digits = claim.statement.split(" has ")[1].split()[0]
        if claim.statement.endswith("million parameters"):
            decimals = len(digits.partition(".")[2])
            assert (claim.value, claim.tolerance) == (
                pytest.approx(1e6 * float(digits)), pytest.approx(0.5 * 10 ** (6 - decimals))
            )  # fmt: skip
        assert claim.source != "by definition"
    assert CLAIMS["literature-misprint-resnet1001"].truth


EXACT = json.loads((Path(__file__).parent / "golden" / "published_counts.json").read_text())


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_networks_have_their_counts_to_the_unit(classes: int) -> None:
    expected = {
        name: counts[classes == 100]
        for name, counts in EXACT["cifar"].items()
        if counts[classes == 100] and not name.startswith("dense")
    }
    assert {name: measure(spec(name, classes)).parameters for name in expected} == expected


@pytest.mark.slow
def test_densenets_of_cifar_have_their_counts_to_the_unit() -> None:
    for name, counts in EXACT["cifar"].items():
        if name.startswith("dense"):
            parameters = [measure(spec(name, classes)).parameters for classes in (10, 100)]
            assert parameters == counts, name


def test_shortcuts_of_cifar_networks_have_their_counts_to_the_unit() -> None:
    for depth, *counts in EXACT["cifar_resnets"]:
        names = (f"resnet{depth}", f"resnet{depth}_b", f"resnet{depth}_c")
        assert [measure(spec(name)).parameters for name in names] == counts
        assert measure(spec(f"plain{depth}")).parameters == counts[0]


def test_networks_of_imagenet_and_others_have_their_counts_to_the_unit() -> None:
    for name, count in EXACT["imagenet"].items():
        if name.startswith("densenet"):
            continue
        net = ZOO[name].net
        assert (measure(net) if isinstance(net, Net) else net).parameters == count, name
    for name, count in EXACT["multiply_adds"].items():
        assert network_count(name, "multiply_adds") == count, name


def test_every_erratum_is_listed_once_with_its_correction() -> None:
    errata = {claim.erratum: claim for claim in CLAIMS.values() if claim.erratum is not None}
    assert sorted(errata) == list(range(1, 30))
    assert sum(claim.erratum is not None for claim in CLAIMS.values()) == 29
    texts = {**dict.fromkeys(range(1, 15), 1), **dict.fromkeys((15, 16, 17), 0),
             **dict.fromkeys(range(18, 22), 3), **dict.fromkeys((22, 23), 2),
             **dict.fromkeys(range(24, 28), 1), 28: 0, 29: 0}  # fmt: skip
    for number, claim in errata.items():
        assert claim.source.startswith(f"text {texts[number]}"), claim.id
        assert f"text {texts[number]}" in TEXTS
        assert claim.truth, claim.id
        assert claim.id == f"erratum-{number}"


def test_an_erratum_quotes_the_text_where_its_words_are_on_record() -> None:
    without = {claim.erratum for claim in CLAIMS.values() if claim.erratum and not claim.quote}
    # of these the record has no words, and the statement says what the text means
    assert without == {9, 13, 20, 23, 27, 29}
    assert CLAIMS["part-12-formula"].quote == "y = F_N(...F_1(x)) + x"
    assert CLAIMS["part-12-vanishing"].quote


def test_a_part_belongs_to_one_erratum() -> None:
    halves = [claim for claim in CLAIMS.values() if claim.part_of is not None]
    for part in halves:
        owners = [
            claim.erratum or claim.part_of
            for claim in CLAIMS.values()
            if claim.check == "members" and part in members(claim)
        ]
        assert list(filter(None, owners)) == [part.part_of], part.id


HAS = {
    "network": set(ZOO),
    "recipe": set(shipped_recipes()),
    "data": set(DATA),
    "protocol": set(PROTOCOLS),
    "task": set(TASKS),
}


def test_missing_names_of_claims_do_not_exist() -> None:
    missing = {claim.id: claim.missing for claim in CLAIMS.values() if claim.missing}
    assert len(missing) <= 8
    for name, needs in missing.items():
        for need in needs:
            kind, _, what = need.partition(":")
            assert what, name
            assert what not in HAS[kind], f"{name} says that {need} is missing, and it is there"


def test_a_recorded_claim_names_a_row_of_its_result_and_the_command() -> None:
    """Of all that are measured: their rows, keys and seeds are in the file."""
    folder = Path(__file__).parents[1] / "results"
    for claim in CLAIMS.values():
        assert (claim.recorded is not None) == (claim.check == "recorded"), claim.id
        if claim.recorded is None:
            continue
        assert any(claim.recorded.result in command for command in claim.commands), claim.id
        assert claim.recorded.result in shipped_recipes(), claim.id
        file = folder / f"{claim.recorded.result}.json"
        if not file.is_file():
            continue
        rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
        for row in filter(None, (claim.recorded.row, claim.recorded.minus)):
            assert len(rows[row][claim.recorded.key]["seeds"]) == len(rows[row]["seeds"]), claim.id


def test_every_row_of_the_texts_has_a_claim() -> None:
    rows = [name.removeprefix("scope-") for name in claim_names("scope-*")]
    counts = {"a": 11, "b": 7, "c": 8, "d": 4, "e": 6, "f": 5}
    expected = [f"{part}{i}" for part, count in counts.items() for i in range(1, count + 1)]
    assert rows == expected
    for name in rows:
        claim = CLAIMS[f"scope-{name}"]
        assert bool(claim.runs) != bool(claim.missing), name
        assert claim.check == "members", name


def test_sources_are_cited_papers_or_have_an_author() -> None:
    cited = (
        *PAPERS,
        *TEXTS,
        "texts ",
        "Selvaraju 2017",
        "Schroff 2015",
        "da Costa 2022",
        "by definition",
        "plusx",
    )
    others = ("torchvision", "MMPretrain", "KaimingHe/", "kuangliu/", "fb.resnet", "an independent",
              "as quoted")  # fmt: skip
    for claim in CLAIMS.values():
        assert claim.source.startswith((*cited, *others)), (claim.id, claim.source)


def runnable() -> list[str]:
    return [c.id for c in CLAIMS.values() if c.check == "train" and not c.missing]


def test_protocols_train_as_many_images_as_they_are_priced_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "imagenet", lambda: tmp_path)
    sets = {"cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167, "digits": 1_200}
    sets["svhn-extra"] = 604_388 - 6_000  # its own validation images
    priced = set()
    for name in runnable():
        claim = find_claim(name)
        protocol = PROTOCOLS[claim.protocol]
        read = training.recipe(claim, claim.network, 1)
        assert read.net.base == claim.network
        assert read.seed == 1
        assert read.compare is None
        images = sets[claim.data] - (read.data.validation or 0)
        done = read.steps * read.batch_size if read.steps else read.epochs * images
        done *= 1 if read.method is None else METHODS[read.method.kind].views
        assert done == protocol.images, name
        if protocol.split == "test" and not protocol.recipe.startswith("digits"):
            selects = read.evaluate.keep == "best"
            assert (read.data.validation == 0) != selects, name
        assert claim.metric.partition(" of ")[0] in training.METRICS
        priced.add(claim.protocol)
    assert priced == set(PROTOCOLS) - {"published-weights"}


def test_cifar_claims_use_the_recipe_of_the_first_paper() -> None:
    claim = find_claim("error-resnet110-cifar10")
    read = training.recipe(claim, claim.network, 0)
    same = load_recipe(
        "cifar10-resnet20",
        ["net.base=resnet110", "schedule.warmup_until=0.8", "schedule.warmup_lr=0.01"],
    )
    assert read == same
    assert (read.steps, read.batch_size, read.schedule.milestones) == (
        64_000,
        128,
        (32_000, 48_000),
    )
    wide = training.recipe(find_claim("error-wrn28_10-cifar100"), "wrn28_10", 0)
    assert (wide.data.kind, wide.epochs, wide.schedule.gamma) == ("cifar100", 200, 0.2)


def test_what_a_claim_costs() -> None:
    claim = find_claim("error-resnet20-cifar10")
    forward = network_count("resnet20", "multiply_adds")
    assert cost_of(claim) == 3 * forward * (3 * 64_000 * 128 + 60_000)
    assert hours(int(RATE * 3600 * 4), 2) == 2
    assert cost_of(find_claim("parameters-resnet20")) == 0
    pair = find_claim("degradation-plain-digits")
    assert cost_of(pair) > cost_of(find_claim("convergence-digits")) > 0
    row = find_claim("scope-b4")
    assert cost_of(row) == sum(map(cost_of, members(row)))


def test_the_state_of_a_claim_is_read_from_its_file(tmp_path: Path) -> None:
    assert state(tmp_path)["state"] == NOT_RUN
    row = state(kept(tmp_path))
    assert (row["state"], row["value"], row["marks"]) == ("PASS", 1_727_962, [])
    assert ledger("scope-f1", results=tmp_path)[0]["state"] == NOT_YET


def test_a_result_for_another_statement_is_ignored(tmp_path: Path) -> None:
    other = state(kept(tmp_path, statement="resnet110 has 1.8 million parameters"))
    assert (other["state"], other["value"], other["marks"]) == (NOT_RUN, None, [])
    same = state(kept(tmp_path, statement=CLAIMS["parameters-resnet110"].statement))
    assert same["state"] == "PASS"


@pytest.mark.parametrize(
    ("changed", "mark"),
    [
        ({"version": "0.0.9"}, "plusx 0.0.9"),
        ({"claimed": 1_800_000}, "another claim"),
        ({"smaller": "one seed"}, "one seed"),
    ],
)
def test_a_result_of_another_version_or_claim_is_marked(
    changed: dict[str, object], mark: str, tmp_path: Path
) -> None:
    row = state(kept(tmp_path, **changed))
    assert row["state"] == "PASS"
    assert mark in str(row["marks"])


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"claims": {"a": {}}}', '{"claims": {"a": {}}, "environments": []}', "\0"],
)
def test_a_damaged_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text(text)
    with pytest.raises(ValueError, match=r"claims\.json was not written"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": "GREAT"},
        {"verdict": None},
        {"value": "x"},
        {"value": float("nan")},
        {"claimed": "x"},
        {"interval": [1, -1]},
        {"seeds": [0, 1], "values": [0.5]},
    ],
)
def test_a_field_that_no_command_writes_is_refused(
    changed: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"claims\.json was not written"):
        state(kept(tmp_path, **changed))


def test_a_folder_in_place_of_the_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "claims.json").mkdir()
    with pytest.raises(ValueError, match=r"claims\.json is not a file"):
        read_results(tmp_path)


def test_results_in_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        read_results(tmp_path / "results")


@pytest.mark.parametrize(
    ("name", "near"),
    [("paramters-resnet110", "parameters-resnet110"), ("eratum-5", "erratum-5"),
     ("gradient", "gradient-identity"), ("resnet20", "parameters-resnet20")],
)  # fmt: skip
def test_an_unknown_claim_has_nearest_ones(name: str, near: str) -> None:
    for ask in (find_claim, claim_names):
        with pytest.raises(ValueError, match=near):
            ask(name)


def test_claims_are_selected_by_pattern_and_kind() -> None:
    assert select_claims("erratum-1") == (["erratum-1"], False)
    names, several = select_claims("erratum-*", "property")
    assert several
    assert {CLAIMS[name].kind for name in names} == {"property"}
    with pytest.raises(ValueError, match="did you mean arithmetic"):
        select_claims("*", "arithmetics")
    with pytest.raises(ValueError, match="no claim of the kind training"):
        select_claims("parameters-*", "training")
    with pytest.raises(ValueError, match="no claim matches 'paramters-"):
        select_claims("paramters-*")


def test_the_command_lists_and_loads_neither_torch_nor_pydantic(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom plusx import cli\n"
        f"assert cli.run(['claims', '--json', '--results', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["claims"]
    assert [row["id"] for row in rows] == list(CLAIMS)
    assert {"id", "kind", "source", "cost", "erratum", "state"} <= set(rows[0])


def test_the_command_prints_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(tmp_path, version="0.0.9")
    assert cli.run(["claims", "parameters-resnet11*", "--results", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"parameters-resnet110 +arithmetic +PASS \*", output)
    assert "* parameters-resnet110: plusx 0.0.9" in output
    assert cli.run(["claims", "nothing-like-it"]) == 2
    assert "unknown claim" in capsys.readouterr().err
    assert cli.run(["claims", "--kind", "nonsense"]) == 2


def test_a_missing_folder_of_results_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing"
    assert cli.run(["claims", "--results", str(missing)]) == 2
    assert capsys.readouterr().err == f"plusx: {missing}: there is no such folder of results\n"
    monkeypatch.chdir(tmp_path)  # without the default folder nothing is tested yet
    assert cli.run(["claims", "parameters-resnet110"]) == 0
    assert "not run" in capsys.readouterr().out
