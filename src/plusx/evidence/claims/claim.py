"""What a claim is, as frozen data, and what it costs to run it.

A claim says what a paper or one of the texts behind plusx states, in our words, with the figure and
the place; `check` names what is run to see whether it holds (see plusx.evidence.reproduce).
"""

from dataclasses import dataclass, replace
from typing import Literal

from plusx.evidence.claims.protocols import PROTOCOLS
from plusx.grammar.shapes import measure
from plusx.grammar.spec import Net
from plusx.zoo import ZOO


Kind = Literal["arithmetic", "property", "training"]
Unit = Literal["count", "share", "number"]

SEEDS = (0, 1, 2)

# Multiply-adds a second of one core, of convolutions forward and backward in float32. ResNet-20 on
# one core of the machine of results/cifar10-resnet20-quick.json comes to about as many.
RATE = 2e10

# What the texts are that some claims come from.
TEXTS: dict[str, str] = {
    "text 0": "a review of residual networks: architecture, applications, directions, limits",
    "text 1": "an experimental paper on residual networks and CIFAR-10",
    "text 2": "a practitioner's article on residual networks",
    "text 3": "a short survey of residual networks",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement that can be run against its number.

    `side` says which values the claim allows: equal to `value`, at most or at least `value`, each
    by `tolerance`. Shares and errors are fractions.
    """

    id: str
    statement: str
    kind: Kind
    check: str  # what is run
    source: str  # paper and table, or text and row
    metric: str
    value: int | float
    unit: Unit = "count"
    side: Literal["equal", "most", "least"] = "equal"
    tolerance: int | float = 0.0
    spread: float | None = None  # as published
    network: str = ""
    num_classes: int | None = None  # None: the network's own
    against: str = ""  # the metric is the difference to this network
    beside: tuple[str, ...] = ()  # networks that are shown beside
    data: str = ""
    protocol: str = ""  # a key of PROTOCOLS
    overrides: tuple[str, ...] = ()  # of the protocol's recipe
    passes: int = 0  # times that the network's multiply-adds are done, where no protocol says it
    others: tuple[tuple[str, float], ...] = ()  # who else came to what
    runs: tuple[str, ...] = ()  # patterns of claims that this one is made of
    commands: tuple[str, ...] = ()  # what else plusx runs for it
    erratum: int | None = None
    truth: str = ""  # of a wrong claim: what is true
    missing: str = ""  # what plusx has not got yet that is needed to run it


@dataclass(frozen=True)
class Cost:
    """Multiply-adds in all, and what they come to in hours at RATE for each of `cores`."""

    multiply_adds: int
    cores: int

    @property
    def hours(self) -> float:
        return self.multiply_adds / (RATE * self.cores) / 3600


def spec(name: str, num_classes: int | None = None) -> Net:
    """The network of that name as a spec, with so many classes. It is no plain module."""
    net = ZOO[name].net
    assert isinstance(net, Net), name
    return net if num_classes is None else replace(net, num_classes=num_classes)


def multiply_adds(name: str, data: str = "") -> int:
    """Of one input of the network's own size; of a grey image of 8 x 8 where the data is digits."""
    net = ZOO[name].net
    if not isinstance(net, Net):
        return net.multiply_adds
    return measure(replace(net, size=8, in_channels=1) if data == "digits" else net).multiply_adds


def own_cost(claim: Claim) -> int:
    """Multiply-adds of running the claim, without those of the claims that it is made of.

    A training step is three times its forward pass: forward, and backward with respect to inputs
    and weights. Each finished run is judged once on its training and once on its test images.
    """
    networks = [name for name in (claim.network, claim.against) if name]
    if not networks:
        return 0
    each = sum(multiply_adds(name, claim.data) for name in networks)
    if claim.protocol:
        protocol = PROTOCOLS[claim.protocol]
        passes = 3 * protocol.images + protocol.judged
        return each * passes * (len(SEEDS) if protocol.images else 1)
    return each * claim.passes
