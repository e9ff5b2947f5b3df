"""Claims of the literature as data: what a paper or one of the texts behind plusx states.

They are in claims/*.toml, paraphrased, with the value and the source; `check` names the function
that tests the claim (`plusx.evidence.reproduce.CHECKS`). protocols.toml describes how the papers
train.

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
from plusx.grammar.spec import Net
from plusx.study.consistency import counted
from plusx.zoo import ZOO


Kind = Literal["arithmetic", "property", "training"]
Unit = Literal["count", "share", "number"]
Side = Literal["equal", "most", "least"]

FILES = ("counts", "properties", "errata", "cifar", "imagenet", "scope")  # the order of the ledger
SEEDS = (0, 1, 2)

# Multiply-adds a second of one core, of convolutions forward and backward in float32, about as many
# as ResNet-20 reaches on one core of the machine of results/cifar10-resnet20-quick.json.
RATE = 2e10

# The texts that some claims come from.
TEXTS: dict[str, str] = {
    "text 0": "a review of residual networks: architecture, applications, directions, limits",
    "text 1": "an experimental paper on residual networks and CIFAR-10",
    "text 2": "a practitioner's article on residual networks",
    "text 3": "a short survey of residual networks",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement that can be run against its number.

    `side` is which values the claim allows: equal to `value`, at most or at least `value`, each by
    `tolerance`. Shares and errors are fractions.
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
    spread: float | None = None  # as published
    network: str = ""
    num_classes: int | None = None  # None: the network's own
    against: str = ""  # the metric is the difference to this network
    beside: tuple[str, ...] = ()  # networks shown for comparison
    data: str = ""
    protocol: str = ""  # a key of PROTOCOLS
    overrides: tuple[str, ...] = ()  # of the protocol's recipe
    passes: int = 0  # forward passes of the network, where no protocol has them
    others: tuple[tuple[str, float], ...] = ()  # measured by others: who, value
    runs: tuple[str, ...] = ()  # patterns of the claims that this one consists of
    commands: tuple[str, ...] = ()  # further commands about it
    erratum: int | None = None
    truth: str = ""  # of a wrong claim: what is true
    missing: str = ""  # what plusx does not have yet to run it


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a network is trained and evaluated."""

    recipe: str  # empty: published weights are evaluated
    description: str
    images: int  # trained on in all epochs together
    evaluated: int
    overrides: tuple[str, ...] = ()
    split: str = "test"  # of the error


def hours(multiply_adds: int, cores: int) -> float:
    """The hours that these take at RATE on each of `cores`."""
    return multiply_adds / (RATE * cores) / 3600


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples, within one another too."""
    return {
        key: tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if isinstance(value, list)
        else value
        for key, value in row.items()
    }


def _read(name: str) -> dict[str, Any]:
    file = resources.files("plusx.evidence") / name
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _claims() -> dict[str, Claim]:
    claims = []
    for name in FILES:
        table = _read(f"claims/{name}.toml")
        claims += [Claim(**_tuples({**table["defaults"], **row})) for row in table["claims"]]
    assert len({claim.id for claim in claims}) == len(claims), "two claims of one id"
    return {claim.id: claim for claim in claims}


PROTOCOLS: dict[str, Protocol] = {
    name: Protocol(**_tuples(row)) for name, row in _read("protocols.toml").items()
}
CLAIMS: dict[str, Claim] = _claims()


def find_claim(name: str) -> Claim:
    """The claim of that id. UserError: there is none; the message lists close matches."""
    if name not in CLAIMS:
        raise UserError(f"unknown claim {name!r}: {_near(name)}")
    return CLAIMS[name]


def claim_names(pattern: str = "*") -> list[str]:
    """The ids that match a shell pattern. UserError: none does, with close matches."""
    names = [name for name in CLAIMS if fnmatchcase(name, pattern)]
    if not names:
        what = "no claim matches" if any(mark in pattern for mark in "*?[") else "unknown claim"
        raise UserError(f"{what} {pattern!r}: {_near(pattern)}")
    return names


def members(claim: Claim) -> list[Claim]:
    """The claims that a claim consists of, in the order of the ledger."""
    return [
        CLAIMS[name] for name in CLAIMS if any(fnmatchcase(name, pattern) for pattern in claim.runs)
    ]


def cost_of(claim: Claim) -> int:
    """Multiply-adds of running a claim, with those it consists of."""
    inner = members(claim) if claim.check == "members" else ()
    return _own_cost(claim) + sum(map(_own_cost, inner))


def spec(name: str, num_classes: int | None = None) -> Net:
    """The network of that name as a spec, with so many classes. It is no external module."""
    net = ZOO[name].net
    assert isinstance(net, Net), name
    return net if num_classes is None else replace(net, num_classes=num_classes)


def _own_cost(claim: Claim) -> int:
    """Multiply-adds of running the claim, without the claims it consists of.

    A training step is three times its forward pass: forward, and backward with respect to inputs
    and weights. Each finished run is evaluated once on its training and once on its test images.
    """
    networks = [name for name in (claim.network, claim.against) if name]
    if not networks:
        return 0
    # the digits are grey images of 8 x 8
    size, channels = (8, 1) if claim.data == "digits" else (None, None)
    one_pass = sum(counted(n, "multiply_adds", size=size, channels=channels) for n in networks)
    if claim.protocol:
        protocol = PROTOCOLS[claim.protocol]
        images = 3 * protocol.images + protocol.evaluated
        return one_pass * images * (len(SEEDS) if protocol.images else 1)
    return one_pass * claim.passes


def _near(name: str) -> str:
    words = name.lower().strip("*?")
    near = get_close_matches(words, CLAIMS, n=5, cutoff=0.5)
    near += [name_in_ledger for name_in_ledger in CLAIMS if words and words in name_in_ledger][
        : 5 - len(near)
    ]
    if not near:
        return "`plusx claims` lists every one"
    return f"did you mean {', '.join(dict.fromkeys(near))}?"
