"""The types of a recipe's values, and the configuration that all tables share."""

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, Strict

from plusx.errors import UserError


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


# Strict: text is not accepted as a number, nor a number as a bool
Positive: TypeAlias = Annotated[int, Strict(), Field(ge=1)]
Count: TypeAlias = Annotated[int, Strict(), Field(ge=0)]
Fraction: TypeAlias = Annotated[float, Strict(), Field(ge=0, lt=1)]
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
# an integer is a number of steps or images, a float below 1 a fraction of them
CountOrFraction: TypeAlias = Annotated[int | float, BeforeValidator(_count_or_fraction)]
# people: a number, a fraction, or a regular expression for their names
IdentitySelector: TypeAlias = Annotated[int | float | str, BeforeValidator(_identity_selector)]
