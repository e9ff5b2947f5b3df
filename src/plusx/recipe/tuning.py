"""The table [tune] of a recipe: the search of `plusx tune` over values of its keys."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field
from pydantic.dataclasses import dataclass

from plusx.errors import UserError, did_you_mean
from plusx.recipe.values import CONFIG, Count, Positive, Seed


Value: TypeAlias = str | int | float | bool
_ENTRIES = ("low", "high", "log", "step", "choices")


@plain_dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from low to high, both included; whole numbers if low and high are whole.

    log: the logarithm is uniform
    step: the distance between two values, counted from low
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise UserError(
                f"low = {self.low!r}, high = {self.high!r}: the range is empty, low must be below "
                "high"
            )
        if self.log and self.low <= 0:
            raise UserError(f"log = true, low = {self.low!r}: low must be above 0")
        if self.step is not None:
            if self.step <= 0:
                raise UserError(f"step = {self.step!r}: must be above 0")
            if self.log:
                raise UserError("step is not for log = true: leave one of them out")
            if self.whole and type(self.step) is not int:
                raise UserError(f"step = {self.step!r}: must be whole, as low and high are")

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return type(self.low) is int and type(self.high) is int


@plain_dataclass(frozen=True)
class Choices:
    """Values without an order."""

    choices: tuple[Value, ...]

    def __post_init__(self) -> None:
        if len(self.choices) < 2:
            raise UserError("choices: at least two values are needed")
        if repeated := [value for value in self.choices if self.choices.count(value) > 1]:
            raise UserError(f"choices: {repeated[0]!r} is listed twice")


Entry: TypeAlias = Range | Choices


def _check_types(entry: Mapping[str, Any]) -> None:
    for name in ("low", "high", "step"):
        value = entry.get(name, 0)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(f"{name} = {value!r}: must be a finite number")
    if type(entry.get("log", False)) is not bool:
        raise UserError(f"log = {entry['log']!r}: must be true or false")


def _read_space(tables: object) -> dict[str, Entry]:
    """Return the entries by dotted key; `optim.lr = {...}` may be written with quotes or without,
    which TOML reads as nested tables."""
    if not isinstance(tables, Mapping):
        raise UserError('a table of keys, such as "optim.lr" = { low = 1e-3, high = 1.0 }')
    entries: dict[str, dict[str, Any] | Entry] = {}
    _collect(tables, "", entries)
    if not entries:
        raise UserError('the space is empty; a key is "optim.lr" = { low = 1e-3, high = 1.0 }')
    return {key: _read_entry(key, entry) for key, entry in entries.items()}


def _collect(
    tables: Mapping[str, Any], prefix: str, entries: dict[str, dict[str, Any] | Entry]
) -> None:
    for name, value in tables.items():
        key = f"{prefix}{name}"
        if isinstance(value, Range | Choices):
            entries[key] = value
        elif not isinstance(value, Mapping):
            raise UserError(
                f'"{key}" = {value!r}: must be {{ low = ..., high = ... }} or {{ choices = [...] }}'
            )
        elif not value or any(not isinstance(inner, Mapping) for inner in value.values()):
            before = entries.get(key, {})
            entries[key] = {**(before if isinstance(before, dict) else {}), **value}
        else:
            _collect(value, f"{key}.", entries)


def _read_entry(key: str, entry: dict[str, Any] | Entry) -> Entry:
    if not isinstance(entry, dict):
        return entry
    for name in entry:
        if name not in _ENTRIES:
            hint = did_you_mean(name, _ENTRIES)
            raise UserError(f'"{key}": {name} is not a key{hint} (allowed: {", ".join(_ENTRIES)})')
    try:
        if "choices" not in entry:
            if missing := [name for name in ("low", "high") if name not in entry]:
                raise UserError(f"{missing[0]} is missing")
            _check_types(entry)
            return Range(**entry)
        if others := [name for name in entry if name != "choices"]:
            raise UserError(f"{others[0]} is not for choices")
        choices = entry["choices"]
        if not isinstance(choices, Sequence) or isinstance(choices, str):
            raise UserError(f"choices = {choices!r}: must be a list")
        for value in choices:
            if not isinstance(value, str | int | float | bool):
                raise UserError(f"choices: {value!r} is not text, a number or a boolean")
        return Choices(tuple(choices))
    except UserError as error:
        raise UserError(f'"{key}": {error}') from None


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class NoPruner:
    """Every trial is trained to its end."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class MedianPruner:
    """A trial stops if its best value so far is worse than the median of the earlier trials at the
    same epoch (Golovin et al. 2017, "Google Vizier", section 3.2.2)."""

    kind: Literal["median"] = "median"
    startup_trials: Count = 5  # finished trials before the first one is stopped
    warmup_epochs: Count = 1  # of every trial, in which it is not stopped


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Tune:
    """A search for values of keys; trial 0 is the recipe as it is."""

    space: Annotated[dict[str, Entry], BeforeValidator(_read_space)]
    trials: Positive = 20
    # tpe: Bergstra et al. 2011; gp: a Gaussian process
    sampler: Literal["tpe", "random", "gp"] = "tpe"
    startup_trials: Positive = 10  # random ones before tpe and gp learn from their results
    seed: Seed = 0  # of the sampler
    pruner: Annotated[NoPruner | MedianPruner, Discriminator("kind")] = NoPruner()
    # every trial is trained with these, and its value is the mean; (): the seed of the recipe
    seeds: tuple[Seed, ...] = ()
    # default and best are trained again with these after the search; (): they are not
    confirm: tuple[Seed, ...] = Field(default=())

    def __post_init__(self) -> None:
        for name in ("seeds", "confirm"):
            seeds = getattr(self, name)
            if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
                raise UserError(f"{name}: {repeated[0]} is listed twice")
        if len(self.confirm) == 1:
            raise UserError("confirm: an interval needs at least two seeds")
