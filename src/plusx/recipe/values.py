"""The types of a recipe's values, and the configuration that all tables share."""

import math
import re
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, Strict

from plusx.errors import UserError, did_you_mean


_FRACTION = re.compile(r"[0-9.]+(e-?[0-9]+)?(/[0-9.]+)?")
CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


def _count_or_fraction(value: object) -> object:
    is_count = type(value) is int and value >= 0
    if not is_count and not (isinstance(value, float) and 0 <= value < 1):
        raise UserError("must be a whole number, or a fraction from 0.0 to below 1")
    return value


def _identity_selector(value: object) -> object:
    if value == "":
        return 0
    return value if isinstance(value, str) else _count_or_fraction(value)


def _class_weights(value: object, rules: tuple[str, ...]) -> object:
    if value in rules:
        return value
    if not isinstance(value, list | tuple):
        hint = did_you_mean(value, rules) if isinstance(value, str) else ""
        raise UserError(f"must be {', '.join(rules)}, or a list of a number for each class{hint}")
    for weight in value:
        if type(weight) not in (int, float) or weight < 0:
            raise UserError(f"{weight!r} is not a weight: a number from 0 for each class")
    if not any(value):
        raise UserError("every weight is 0, so the loss would be 0")
    return value


def parse_eps(value: object) -> float:
    """Return the size of a perturbation, in units of pixels from 0 to 1, from a number or a
    fraction such as "8/255". Raises UserError if it is not a number of 0 or above."""
    number = math.nan
    if isinstance(value, str) and _FRACTION.fullmatch(value.strip()):
        above, _, below = value.strip().partition("/")
        divisor = float(below or 1)
        number = float(above) / divisor if divisor else math.nan
    elif type(value) in (int, float):
        number = float(value)  # type: ignore[arg-type]
    if not 0 <= number < math.inf:
        raise UserError(
            "must be a number of 0 or above, in units of pixels from 0 to 1, such as 0.03 or "
            '"8/255"'
        )
    return number


# Strict: text is not accepted as a number, nor a number as a bool
Positive: TypeAlias = Annotated[int, Strict(), Field(ge=1, lt=2**63)]
Count: TypeAlias = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
Seed: TypeAlias = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
Fraction: TypeAlias = Annotated[float, Strict(), Field(ge=0, lt=1)]
Eps: TypeAlias = Annotated[float, BeforeValidator(parse_eps)]
StepSize: TypeAlias = Annotated[float, BeforeValidator(parse_eps), Field(gt=0)]
NonNegative: TypeAlias = Annotated[float, Strict(), Field(ge=0)]
Rate: TypeAlias = Annotated[float, Strict(), Field(gt=0)]
Number: TypeAlias = Annotated[float, Strict()]
UnitInterval: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=1)]
PositiveFraction: TypeAlias = Annotated[float, Strict(), Field(gt=0, le=1)]
StrictBool: TypeAlias = Annotated[bool, Strict()]
# the name of a class; digits may be written as numbers
Name: TypeAlias = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int else value)
]
# of a file or a folder; an empty one would be the current folder
Path: TypeAlias = Annotated[str, Field(min_length=1)]
# a number for each class, or a rule
ClassWeights: TypeAlias = Annotated[
    Literal["none", "balanced"] | tuple[NonNegative, ...],
    BeforeValidator(lambda value: _class_weights(value, ("none", "balanced"))),
]
PositionWeights: TypeAlias = Annotated[
    Literal["none", "balanced", "root"] | tuple[NonNegative, ...],
    BeforeValidator(lambda value: _class_weights(value, ("none", "balanced", "root"))),
]
# an integer is a number of steps or images, a float below 1 a fraction of them
CountOrFraction: TypeAlias = Annotated[int | float, BeforeValidator(_count_or_fraction)]
# people: a number, a fraction, or a regular expression for their names
IdentitySelector: TypeAlias = Annotated[int | float | str, BeforeValidator(_identity_selector)]
