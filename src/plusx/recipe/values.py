"""The types of a recipe's values, and what all of its tables have in common."""

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, Strict

from plusx.errors import UserError


CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


def _part(value: object) -> object:
    whole = type(value) is int and value >= 0
    if not whole and not (isinstance(value, float) and 0 <= value < 1):
        raise UserError("must be a whole number, or a share from 0.0 to below 1")
    return value


def _who(value: object) -> object:
    return value if isinstance(value, str) else _part(value)


# Strict: text is no number, and a number no truth value.
Positive: TypeAlias = Annotated[int, Strict(), Field(ge=1)]
Count: TypeAlias = Annotated[int, Strict(), Field(ge=0)]
Share: TypeAlias = Annotated[float, Strict(), Field(ge=0, lt=1)]
Amount: TypeAlias = Annotated[float, Strict(), Field(ge=0)]
Rate: TypeAlias = Annotated[float, Strict(), Field(gt=0)]
Number: TypeAlias = Annotated[float, Strict()]
Ratio: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=1)]
Grade: TypeAlias = Annotated[float, Strict(), Field(gt=0, le=1)]
Flag: TypeAlias = Annotated[bool, Strict()]
# the name of a class; that of a digit may be written as a number
Name: TypeAlias = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int else value)
]
# A whole number counts (steps, images); a number below 1 is a share of the whole.
Part: TypeAlias = Annotated[int | float, BeforeValidator(_part)]
# People: so many of them, a share, or a regular expression that fits their names.
Who: TypeAlias = Annotated[int | float | str, BeforeValidator(_who)]
