"""The space of a search (`plusx tune`): what its keys may be, and the recipe of given values."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from plusx.errors import UserError
from plusx.grammar.toml import toml_value
from plusx.recipe import Recipe, parse_recipe, to_dict, to_toml
from plusx.recipe.reading import RESET
from plusx.recipe.tuning import Choices, Entry, Range, Value


if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Values = Mapping[str, Value]
# keys that a search may not vary, because values of trials would not be comparable
_FIXED = {
    "seed": "[tune] seeds are the seeds of every trial",
    "data.kind": "every trial is evaluated on the same data",
    "data.path": "every trial is evaluated on the same data",
    "data.validation": "every trial is evaluated on the same data",
    "data.test": "every trial is evaluated on the same data",
    "task.kind": "every trial has the same metric",
    "evaluate.monitor": "every trial has the same metric",
    **dict.fromkeys(("tune", "compare", "study"), "it is not a key of a run"),
}


def plain(recipe: Recipe) -> Recipe:
    """Return the recipe without the tables of experiments."""
    return replace(recipe, tune=None, compare=None, study=None)


def with_values(recipe: Recipe, values: Values) -> Recipe:
    """Return the recipe of a trial. Raises UserError for an unknown key or a value that is not
    allowed."""
    overrides = [
        f"{key}={RESET if value == RESET else toml_value(value)}" for key, value in values.items()
    ]
    return parse_recipe(to_toml(plain(recipe)), overrides)


def default_values(recipe: Recipe, space: Mapping[str, Entry]) -> dict[str, Value]:
    """Return the recipe's own values of the keys, which are trial 0.

    Raises UserError for a key that is unknown or may not be varied, a value of the space that the
    recipe does not allow, and a recipe whose own value is outside of the space.
    """
    for key, entry in space.items():
        _check_entry(recipe, key, entry)
    first = {key: e.low if isinstance(e, Range) else e.choices[0] for key, e in space.items()}
    for key, entry in space.items():
        for choice in entry.choices if isinstance(entry, Choices) else ():
            _checked(recipe, key, {**first, key: choice}, " together with the other keys")
    return {key: _own_value(recipe, key, entry) for key, entry in space.items()}


def distributions(space: Mapping[str, Entry], default: Values) -> dict[str, "BaseDistribution"]:
    """Return optuna's distribution of each key; `default` are the recipe's own values."""
    return {key: _distribution(entry, default[key]) for key, entry in space.items()}


def _check_entry(recipe: Recipe, key: str, entry: Entry) -> None:
    for fixed, reason in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise UserError(f'[tune.space] "{key}": cannot be varied: {reason}')
    ends = (entry.low, entry.high) if isinstance(entry, Range) else entry.choices
    for value in ends:
        _checked(recipe, key, {key: value})


def _checked(recipe: Recipe, key: str, values: Values, where: str = "") -> Recipe:
    try:
        return with_values(recipe, values)
    except UserError as error:
        message = str(error)
        if message.startswith("override "):
            message = message.partition(": ")[2]
        value = f" = {toml_value(values[key])}{where}" if where else ""
        raise UserError(f'[tune.space] "{key}"{value}: {message}') from None


def _own_value(recipe: Recipe, key: str, entry: Entry) -> Value:
    default: Any = to_dict(plain(recipe))
    for name in key.split("."):
        default = default.get(name) if isinstance(default, dict) else None
    shown = "not set" if default is None else toml_value(default)
    advice = f"set {key} in the recipe, or extend the space: trial 0 is the recipe as it is"
    if isinstance(entry, Choices):
        before = plain(recipe)
        for choice in entry.choices:
            if with_values(recipe, {key: choice}) == before:
                return choice
        choices = toml_value(list(entry.choices))
        raise UserError(
            f'[tune.space] "{key}": {shown} in the recipe is none of {choices}; {advice}'
        )
    if type(default) not in (int, float) or not entry.low <= default <= entry.high:
        bounds = f"{entry.low!r} to {entry.high!r}"
        raise UserError(f'[tune.space] "{key}": {shown} in the recipe is not in {bounds}; {advice}')
    if entry.step is not None and _steps(entry, default) != int(_steps(entry, default)):
        raise UserError(
            f'[tune.space] "{key}": {shown} in the recipe is not a whole number of steps of '
            f"{entry.step!r} from {entry.low!r}; {advice}"
        )
    return default if type(default) is int and entry.whole else float(default)


def _steps(entry: Range, value: int | float) -> Decimal:
    """Return the number of steps from low to the value, exactly."""
    return (Decimal(repr(value)) - Decimal(repr(entry.low))) / Decimal(repr(entry.step))


def _distribution(entry: Entry, default: Value) -> "BaseDistribution":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(entry, Choices):
        return CategoricalDistribution(entry.choices)
    high = entry.high
    if entry.step is not None:
        step = Decimal(repr(entry.step))
        high = type(high)(Decimal(repr(entry.low)) + int(_steps(entry, high)) * step)
    if entry.whole and type(default) is int:
        return IntDistribution(int(entry.low), int(high), log=entry.log, step=int(entry.step or 1))
    return FloatDistribution(float(entry.low), float(high), log=entry.log, step=entry.step)
