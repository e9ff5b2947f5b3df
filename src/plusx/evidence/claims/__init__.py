"""Every claim that plusx knows, as data: from the papers, and from the texts behind plusx.

>>> from plusx.evidence.claims import find_claim
>>> find_claim("parameters-resnet110").value
1727962
"""

from difflib import get_close_matches
from fnmatch import fnmatchcase

from plusx.errors import UserError
from plusx.evidence.claims.claim import RATE, SEEDS, TEXTS, Claim, Cost, Kind, own_cost
from plusx.evidence.claims.counts import COUNTS
from plusx.evidence.claims.errata import ERRATA
from plusx.evidence.claims.errors import CIFAR_ERRORS
from plusx.evidence.claims.imagenet import IMAGENET_ERRORS
from plusx.evidence.claims.properties import PROPERTIES
from plusx.evidence.claims.protocols import PROTOCOLS, Protocol
from plusx.evidence.claims.scope import SCOPE


__all__ = [
    "CLAIMS",
    "PROTOCOLS",
    "RATE",
    "SEEDS",
    "TEXTS",
    "Claim",
    "Cost",
    "Kind",
    "Protocol",
    "claim_names",
    "cost_of",
    "find_claim",
    "members",
]

_ALL = (*COUNTS, *PROPERTIES, *ERRATA, *CIFAR_ERRORS, *IMAGENET_ERRORS, *SCOPE)

CLAIMS: dict[str, Claim] = {claim.id: claim for claim in _ALL}


def find_claim(name: str) -> Claim:
    """The claim of that id. UserError: there is none; the message lists close matches."""
    if name not in CLAIMS:
        raise UserError(f"unknown claim {name!r}: {_near(name)}")
    return CLAIMS[name]


def claim_names(pattern: str = "*") -> list[str]:
    """The ids that match a shell pattern. UserError: none does, with close matches."""
    found = [name for name in CLAIMS if fnmatchcase(name, pattern)]
    if not found:
        what = "no claim matches" if any(mark in pattern for mark in "*?[") else "unknown claim"
        raise UserError(f"{what} {pattern!r}: {_near(pattern)}")
    return found


def members(claim: Claim) -> list[Claim]:
    """The claims that a claim is made of, in the order of the ledger."""
    return [
        CLAIMS[name] for name in CLAIMS if any(fnmatchcase(name, pattern) for pattern in claim.runs)
    ]


def cost_of(claim: Claim) -> int:
    """Multiply-adds of running a claim, with those that it is made of."""
    inner = members(claim) if claim.check == "members" else ()
    return own_cost(claim) + sum(map(own_cost, inner))


def _near(name: str) -> str:
    words = name.lower().strip("*?")
    near = get_close_matches(words, CLAIMS, n=5, cutoff=0.5)
    near += [known for known in CLAIMS if words and words in known][: 5 - len(near)]
    if not near:
        return "`plusx claims` lists every one"
    return f"did you mean {', '.join(dict.fromkeys(near))}?"
