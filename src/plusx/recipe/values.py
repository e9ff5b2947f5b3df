"""The types of a recipe's values, and what all of its tables have in common."""

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, Strict

from plusx.errors import UserError


CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


def _count_or_fraction(value: object) -> object:
    whole = type(value) is int and value >= 0
    if not whole and not (isinstance(value, float) and 0 <= value < 1):
        raise UserError("must be a whole number, or a fraction from 0.0 to below 1")
    return value


def _identity_selector(value: object) -> object:
    return value if isinstance(value, str) else _count_or_fraction(value)


# Strict: text is no number, and a number no truth value.
Positive: TypeAlias = Annotated[int, Strict(), Field(ge=1)]
Count: TypeAlias = Annotated[int, Strict(), Field(ge=0)]
Fraction: TypeAlias = Annotated[float, Strict(), Field(ge=0, lt=1)]
NonNegative: TypeAlias = Annotated[float, Strict(), Field(ge=0)]
Rate: TypeAlias = Annotated[float, Strict(), Field(gt=0)]
Number: TypeAlias = Annotated[float, Strict()]
UnitInterval: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=1)]
PositiveFraction: TypeAlias = Annotated[float, Strict(), Field(gt=0, le=1)]
StrictBool: TypeAlias = Annotated[bool, Strict()]
# the name of a class; that of a digit may be written as a number
Name: TypeAlias = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int else value)
]
# A whole number counts (steps, images); a number below 1 is a fraction of the whole.
CountOrFraction: TypeAlias = Annotated[int | float, BeforeValidator(_count_or_fraction)]
# People: a number of them, a fraction, or a regular expression that fits their names.
IdentitySelector: TypeAlias = Annotated[int | float | str, BeforeValidator(_identity_selector)]
