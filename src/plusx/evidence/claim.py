"""Claims of the literature as data.

claims/*.toml has the claims, paraphrased, each with its value and source; `check` names the
function that tests it (`plusx.evidence.reproduce.CHECKS`). protocols.toml has the papers' training
protocols.

>>> from plusx.evidence.claim import find_claim
>>> find_claim("parameters-resnet110").value
1700000
"""

import tomllib
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any, Literal

from plusx.errors import UserError
from plusx.grammar.spec import Activation, Net
from plusx.study.consistency import network_count
from plusx.zoo import ZOO


Kind = Literal["arithmetic", "property", "training"]
Unit = Literal["count", "share", "number"]
Side = Literal["equal", "most", "least"]
Verdict = Literal["PASS", "MISS", "IN PART", "INCONCLUSIVE"]
Word = Literal["WRONG", "UNSUPPORTED", "SLIP"]  # of a MISS of an erratum

FILES = (
    "counts",
    "properties",
    "errata",
    "cifar",
    "imagenet",
    "pretraining",
    "scope",
)  # the order of the ledger
SEEDS = (0, 1, 2)  # of measurements that take no --seeds
SEVERAL, FEW = 5, 3  # seeds of a claim that can afford SEVERAL, and of others
SEEDED = ("train", "fooled", "without-labels")  # checks that take --seeds

# MACs per second of one core, for convolutions forward and backward in float32: about the rate of
# ResNet-20 on one core of the machine of results/cifar10-resnet20-quick.json.
RATE = 2e10
AFFORDABLE = RATE * 3600  # MACs of all seeds: an hour of one core

# texts that some claims are from
TEXTS: dict[str, str] = {
    "text 0": "a review of residual networks: architecture, applications, directions, limits",
    "text 1": "an experimental paper on residual networks and CIFAR-10",
    "text 2": "a practitioner's article on residual networks",
    "text 3": "a short survey of residual networks",
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A value in the result of an earlier command, RESULT.json: a row's, or how much larger it is
    than that of the row `minus`.

    `budget`: why a result of so little training cannot decide the claim, whatever its values.
    `comparisons`: of how many in the result this is one; all of them together hold with 95 %.
    """

    result: str
    key: str
    row: str
    minus: str = ""
    budget: str = ""
    comparisons: int = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a small measurement on a network (`plusx.evidence.errata`), which has no recipe.

    norm: "batch", or "none" for the network without norms
    init: a rule of `plusx.nn.init`
    steps: training steps on digits before the measurement
    seeds: their number
    images: in a training step whose time is measured
    """

    norm: Literal["batch", "none"] = "batch"
    init: str = "he"
    act: Activation = "relu"
    steps: int = 0
    seeds: int = len(SEEDS)
    images: int = 1


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement with a number that a check can test.

    `side`: the claim allows values equal to `value`, at most or at least `value`, within
    `tolerance`. Percentages and errors are fractions.
    """

    id: str
    statement: str
    kind: Kind
    check: str  # a key of `reproduce.CHECKS`
    source: str  # paper and table, or text and row
    metric: str
    value: int | float
    unit: Unit = "count"
    side: Side = "equal"
    tolerance: int | float = 0.0
    # (statistic, number of runs) that the printed value is: "mean", "median" or "best"; empty if it
    # is not measured over runs, such as a count or a limit
    printed: tuple[str, int] | tuple[()] = ()
    spread: float | None = None  # standard deviation over the runs of one network, as published
    assumed_spread: float | None = None  # if none is published
    network: str = ""
    num_classes: int | None = None  # None: those of the network
    against: str = ""  # the metric is the difference from this network
    beside: tuple[str, ...] = ()  # networks shown for comparison
    data: str = ""
    protocol: str = ""  # a key of PROTOCOLS
    overrides: tuple[str, ...] = ()  # applied to the protocol's recipe
    network_overrides: tuple[str, ...] = ()  # applied to that of `network`, not of `against`
    passes: int = 0  # forward passes of the network, if there is no protocol
    others: tuple[tuple[str, float], ...] = ()  # measured by others: who, value
    settings: Settings = Settings()
    recorded: Recorded | None = None  # of the check `recorded`
    runs: tuple[str, ...] = ()  # patterns of the ids of its member claims
    commands: tuple[str, ...] = ()  # further commands about it
    erratum: int | None = None
    part_of: int | None = None  # the erratum of which this is a part
    quote: str = ""  # the words or cells of the text, if they are on record
    word: Word = "WRONG"  # of an erratum: what a MISS shows; SLIP: of notation
    truth: str = ""  # the correct statement, if the claim is wrong
    # KIND:NAME of what plusx does not have and it needs, such as network:rdn: a network, recipe,
    # data, protocol or task, which tests/test_claims.py looks for
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a network is trained and evaluated."""

    recipe: str  # empty: published weights are evaluated
    description: str
    images: int  # training images over all epochs; two views of an image are two
    evaluated: int
    overrides: tuple[str, ...] = ()
    split: str = "test"  # of the error
    quick: str = "digits"  # the recipe of quick runs


def hours(multiply_adds: int, cores: int) -> float:
    """Return the hours for this number of MACs at RATE on each of `cores`."""
    return multiply_adds / (RATE * cores) / 3600


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with nested lists as tuples, and its tables as what they describe."""
    tables = {"recorded": Recorded, "settings": Settings}

    def field(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuple(item) if isinstance(item, list) else item for item in value)
        return tables[key](**value) if key in tables else value

    return {key: field(key, value) for key, value in row.items()}


def _read(name: str) -> dict[str, Any]:
    file = resources.files("plusx.evidence") / name
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _claims() -> dict[str, Claim]:
    claims = []
    for name in FILES:
        table = _read(f"claims/{name}.toml")
        claims += [Claim(**_fields({**table["defaults"], **row})) for row in table["claims"]]
    assert len({claim.id for claim in claims}) == len(claims), "two claims with the same id"
    return {claim.id: claim for claim in claims}


PROTOCOLS: dict[str, Protocol] = {
    name: Protocol(**_fields(row)) for name, row in _read("protocols.toml").items()
}
CLAIMS: dict[str, Claim] = _claims()


def find_claim(name: str) -> Claim:
    """Return the claim with this id. Raises UserError, with close matches, if there is none."""
    if name not in CLAIMS:
        raise UserError(f"unknown claim {name!r}: {_near(name)}")
    return CLAIMS[name]


def claim_names(pattern: str = "*") -> list[str]:
    """Return the ids that match a shell pattern. Raises UserError, with close matches, if none
    does."""
    names = [name for name in CLAIMS if fnmatchcase(name, pattern)]
    if not names:
        problem = "no claim matches" if any(sign in pattern for sign in "*?[") else "unknown claim"
        raise UserError(f"{problem} {pattern!r}: {_near(pattern)}")
    return names


def members(claim: Claim) -> list[Claim]:
    """Return the member claims of a claim, in the order of the ledger."""
    return [
        CLAIMS[name] for name in CLAIMS if any(fnmatchcase(name, pattern) for pattern in claim.runs)
    ]


def erratum_word(claim: Claim, verdict: str) -> str:
    """Return the verdict on a statement of the texts in words: `claim.word` for a MISS, HOLDS for a
    PASS, else as it is. Empty if the claim is none of the errata and their parts."""
    if claim.erratum is None and claim.part_of is None:
        return ""
    return {"MISS": claim.word, "PASS": "HOLDS"}.get(verdict, verdict)


def default_seeds(claim: Claim) -> int:
    """Return the number of seeds of a claim about training: SEVERAL if they are affordable."""
    return SEVERAL if _own_cost(claim, SEVERAL) <= AFFORDABLE else FEW


def cost_of(claim: Claim, seeds: int | None = None) -> int:
    """Return the MACs of running a claim, including its members, with this number of seeds (None:
    the default)."""
    member_claims = members(claim) if claim.check == "members" else []
    alone = _own_cost(claim, default_seeds(claim) if seeds is None else seeds)
    return alone + sum(cost_of(member, seeds) for member in member_claims)


def spec(name: str, num_classes: int | None = None) -> Net:
    """Return the spec of a network of the zoo, with `num_classes` classes."""
    net = ZOO[name].net
    assert isinstance(net, Net), name
    return net if num_classes is None else replace(net, num_classes=num_classes)


def _own_cost(claim: Claim, seeds: int) -> int:
    """Return the MACs of running a claim without its members. A training step costs three forward
    passes: one forward, and the backward passes for inputs and weights. Each finished run is
    evaluated once on its training and once on its test images."""
    networks = [name for name in (claim.network, claim.against) if name]
    if not networks:
        return 0
    # digits are greyscale images of 8 x 8
    size, channels = (8, 1) if claim.data == "digits" else (None, None)
    one_pass = sum(
        network_count(n, "multiply_adds", size=size, channels=channels) for n in networks
    )
    if claim.protocol:
        protocol = PROTOCOLS[claim.protocol]
        images = 3 * protocol.images + protocol.evaluated
        return one_pass * images * (seeds if protocol.images else 1)
    return one_pass * claim.passes


def _near(name: str) -> str:
    query = name.lower().strip("*?")
    near = get_close_matches(query, CLAIMS, n=5, cutoff=0.5)
    near += [claim_id for claim_id in CLAIMS if query and query in claim_id][: 5 - len(near)]
    if not near:
        return "`plusx claims` lists all of them"
    return f"did you mean {', '.join(dict.fromkeys(near))}?"
