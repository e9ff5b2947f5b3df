"""What a check of a claim is asked, and what it finds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plusx.evidence.claims import Claim


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a claim is to be run."""

    quick: bool
    work: Path  # the folder of the runs that training needs
    tell: Callable[[str], None]  # takes a line about how far it is


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found: one value a seed, or one that is exact.

    `shown` are lines of evidence. `smaller` says what --quick made smaller. `unsettled` says why
    the values do not decide about the claim, whatever they are.
    """

    values: tuple[float, ...]
    exact: bool = True
    seeds: tuple[int, ...] = ()
    shown: tuple[str, ...] = ()
    recipe: str | None = None
    smaller: str = ""
    unsettled: str = ""
    environment: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Claim, Asked], Outcome]
