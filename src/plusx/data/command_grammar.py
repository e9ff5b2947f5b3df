"""Grammars of spoken commands: phrases with slots, and the command that each phrase means.

    [values]                                  # what a slot can be; or spoken words = their value
    room = ["kitchen", "living room"]
    state = { on = true, off = false }

    [numbers]                                 # slots of numbers, spoken as English words
    minutes = { from = 1, to = 30 }

    [[commands]]
    verb = "switch"
    object = "light"
    phrases = ["turn {state} the {room} light", "switch the {room} light {state}"]

A command has a verb, an object, the values of the slots of its phrase, and those of its own table
`values`, which are the same for all its phrases.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import product
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

from plusx.data.image_file import UnreadableInput, read_regular
from plusx.errors import UserError, counted, did_you_mean, printable


MAX_PHRASES = 20_000  # of a grammar, all slots filled
_MAX_BYTES = 2**20  # of a file
_MAX_NUMBER = 999
_MANY = 10**9
_SLOT = re.compile(r"\{(\w+)\}")
_KEYS = ("values", "numbers", "commands")
_COMMAND_KEYS = ("verb", "object", "phrases", "values")
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

Value = str | int | float | bool


class Command(NamedTuple):
    """What a phrase means. values: pairs of a slot and its value, ordered by slot"""

    verb: str
    object: str
    values: tuple[tuple[str, Value], ...]

    def __str__(self) -> str:
        return " ".join([self.verb, self.object, *(f"{k}={_text(v)}" for k, v in self.values)])


@dataclass(frozen=True, eq=False)
class CommandGrammar:
    """The phrases of a grammar, and the command of each. name: for messages"""

    name: str
    phrases: Mapping[str, Command]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The phrases in the order of the file."""
        return tuple(self.phrases)

    def parse(self, text: str) -> Command | None:
        """Return the command of a text; None if the grammar has no such phrase."""
        return self.phrases.get(_cleaned(text))


def open_grammar(source: str | Path) -> CommandGrammar:
    """Return the grammar of a file, of a name that comes with plusx, or of a TOML text, which has
    more than one line.

    Raises UserError, with the file and the command, if it is invalid, ambiguous or has more than
    MAX_PHRASES phrases.
    """
    name, text = grammar_text(source)
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of many digits
        raise UserError(f"{name}: not TOML: {error}") from None
    return CommandGrammar(name, _phrases(tables, name))


def grammar_text(source: str | Path) -> tuple[str, str]:
    """Return the name and the TOML text of a grammar, for `open_grammar`."""
    if isinstance(source, str) and "\n" in source:
        return "the grammar", source
    shown = printable(source)
    if str(source) in shipped_grammars():
        file = resources.files("plusx.data") / "grammars" / f"{source}.toml"
        return shown, file.read_text(encoding="utf-8")
    try:
        return shown, read_regular(Path(source).expanduser(), _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not UTF-8 text (byte {error.start})") from None
    except UnreadableInput as error:
        raise UserError(f"{shown}: {error}") from None
    except OSError as error:
        names = shipped_grammars()
        hint = did_you_mean(Path(source).stem, names, cutoff=0.4)
        raise UserError(
            f"{shown}: no such grammar ({error.strerror}): it is a TOML file, or one that comes "
            f"with plusx ({', '.join(names)}){hint}"
        ) from None


def shipped_grammars() -> list[str]:
    """Return the names of the grammars that come with plusx."""
    folder = resources.files("plusx.data") / "grammars"
    files = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def spelled(number: int) -> str:
    """Return a number from 0 to 999 in English words: "one hundred twenty one"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return f"{_TENS[tens - 2]} {_ONES[ones]}" if ones else _TENS[tens - 2]
    hundreds, rest = divmod(number, 100)
    return f"{_ONES[hundreds]} hundred {spelled(rest)}" if rest else f"{_ONES[hundreds]} hundred"


def _phrases(tables: Mapping[str, Any], name: str) -> dict[str, Command]:
    """Return the phrases of a grammar, all slots filled, and their commands."""
    _refuse_unknown(tables, _KEYS, name)
    slots = _slots(tables, name)
    commands = tables.get("commands")
    if not isinstance(commands, list) or not commands:
        raise UserError(f"{name}: no [[commands]]: a grammar has at least one")
    patterns = [p for n, table in enumerate(commands, 1) for p in _patterns(table, slots, n, name)]
    count = sum(prod(len(slots[slot]) for slot in pattern.slots) for pattern in patterns)
    if count > MAX_PHRASES:
        largest = max(patterns, key=lambda p: prod(len(slots[slot]) for slot in p.slots))
        raise UserError(
            f"{name}: {_many(count)} phrases, at most {MAX_PHRASES:,}; {largest.where} has the "
            "most: use fewer values, or fewer slots in a phrase"
        )
    phrases: dict[str, Command] = {}
    origins: dict[str, str] = {}
    for pattern in patterns:
        for phrase, command in pattern.filled(slots):
            # 1 and true are equal, and not the same
            if repr(phrases.setdefault(phrase, command)) != repr(command):
                raise UserError(
                    f"{name}: {phrase!r} is ambiguous: it is {phrases[phrase]} in "
                    f"{origins[phrase]} and {command} in {pattern.where}"
                )
            origins.setdefault(phrase, pattern.where)
    return phrases


def _many(count: int) -> str:
    return f"{count:,}" if count < _MANY else f"more than {_MANY:,}"


@dataclass(frozen=True)
class _Pattern:
    """A phrase with slots. constant: values of the command itself; where: for messages"""

    text: str
    slots: tuple[str, ...]
    verb: str
    object: str
    constant: tuple[tuple[str, Value], ...]
    where: str

    def filled(self, slots: Mapping[str, Mapping[str, Value]]) -> Iterator[tuple[str, Command]]:
        """Yield each phrase, and its command."""
        for spoken in product(*(slots[slot] for slot in self.slots)):
            words = dict(zip(self.slots, spoken))
            phrase = _cleaned(_SLOT.sub(lambda match: words[match[1]], self.text))  # noqa: B023
            values = [(slot, slots[slot][word]) for slot, word in words.items()]
            yield (
                phrase,
                Command(
                    self.verb, self.object, tuple(sorted([*values, *self.constant], key=_name))
                ),
            )


def _name(pair: tuple[str, Value]) -> str:
    return pair[0]


def _slots(tables: Mapping[str, Any], name: str) -> dict[str, dict[str, Value]]:
    """Return what can be spoken for each slot, and its value."""
    slots: dict[str, dict[str, Value]] = {}
    for slot, value in _table(tables, "values", name).items():
        where = f"{name}, [values] {slot}"
        count = len(value) if isinstance(value, list | dict) else 0
        if isinstance(value, list):
            value = dict(zip(map(str, value), value)) if _are_texts(value) else None
        if not isinstance(value, dict) or not value:
            raise UserError(f"{where}: a list of spoken words, or a table such as {{ on = true }}")
        for spoken, meaning in value.items():
            if not _is_value(meaning):
                raise UserError(
                    f"{where}: {spoken!r} has a value that is neither text nor a number"
                )
        slots[slot] = {_words(spoken, where): meaning for spoken, meaning in value.items()}
        if len(slots[slot]) < count:
            raise UserError(f"{where}: repeated spoken words")
    for slot, value in _table(tables, "numbers", name).items():
        where = f"{name}, [numbers] {slot}"
        if slot in slots:
            raise UserError(f"{where}: [values] has this slot too")
        slots[slot] = {spelled(number): number for number in _numbers(value, where)}
    for slot in slots:
        if not _SLOT.fullmatch(f"{{{slot}}}"):
            raise UserError(f"{name}: slot {slot!r}: letters, digits and _ only")
    return slots


def _numbers(value: Any, where: str) -> range:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a table such as {{ from = 1, to = 30 }}")
    _refuse_unknown(value, ("from", "to", "step"), where)
    first: Any = value.get("from", 0)
    last: Any = value.get("to")
    step: Any = value.get("step", 1)
    if (
        not all(type(number) is int for number in (first, last, step))
        or not 0 <= first <= last <= _MAX_NUMBER
        or step < 1
    ):
        raise UserError(
            f"{where}: whole numbers from 0 to {_MAX_NUMBER}, `from` not above `to`, and a `step` "
            "of at least 1"
        )
    return range(first, last + 1, step)


def _patterns(
    table: Any, slots: Mapping[str, Mapping[str, Value]], number: int, name: str
) -> Iterator[_Pattern]:
    """Yield the phrases of a command, with their slots."""
    where = f"{name}, command {number}"
    if not isinstance(table, dict):
        raise UserError(f"{where}: a table [[commands]] with verb, object and phrases")
    _refuse_unknown(table, _COMMAND_KEYS, where)
    for key in ("verb", "object"):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise UserError(f"{where}: no {key}: a text that is not empty")
    where = f"{where} ({table['verb']} {table['object']})"
    phrases = table.get("phrases")
    if not isinstance(phrases, list) or not phrases or not _are_texts(phrases):
        raise UserError(f"{where}: phrases: a list of texts, at least one")
    constant = _table(table, "values", where)
    for slot, value in constant.items():
        if not _is_value(value):
            raise UserError(f"{where}: values.{slot}: a text or a number")
    for position, text in enumerate(phrases, 1):
        here = f"{where}, phrase {position}"
        if not _cleaned(text):
            raise UserError(f"{here}: is empty")
        used = _SLOT.findall(text)
        rest = _SLOT.sub("", text)
        if "{" in rest or "}" in rest:
            raise UserError(f"{here}: {text!r}: a slot is written {{name}}")
        for slot in used:
            if slot not in slots:
                has = ", ".join(slots) or "none"
                raise UserError(
                    f"{here}: unknown slot {{{slot}}}{did_you_mean(slot, slots)} (the grammar "
                    f"has {has})"
                )
            if used.count(slot) > 1 or slot in constant:
                raise UserError(f"{here}: slot {{{slot}}} has two values in {text!r}")
        yield _Pattern(
            text, tuple(used), table["verb"], table["object"], tuple(constant.items()), here
        )


def _table(tables: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = tables.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key} is a table")
    return value


def _refuse_unknown(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise UserError(
                f"{where}: unknown key {key!r}{did_you_mean(key, allowed)} (allowed are "
                f"{', '.join(allowed)})"
            )


def _is_value(value: Any) -> bool:
    return isinstance(value, Value) and (not isinstance(value, float) or isfinite(value))


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _words(text: str, where: str) -> str:
    if not (cleaned := _cleaned(text)) or "{" in text or "}" in text:
        raise UserError(f"{where}: {text!r}: words without braces")
    return cleaned


def _cleaned(text: str) -> str:
    """Return a text in composed Unicode (NFC), with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def refuse_outside(grammar: CommandGrammar, alphabet: Sequence[str], whose: str) -> None:
    """Raise UserError if phrases have characters outside an alphabet; `whose`: for the message."""
    allowed = frozenset(alphabet)
    for phrase in grammar.texts:
        if outside := sorted(set(phrase) - allowed):
            total = sum(not allowed.issuperset(text) for text in grammar.texts)
            raise UserError(
                f"{grammar.name}: {counted(total, 'phrase')} with characters that {whose} does "
                f"not have, such as {', '.join(map(repr, outside))} in {phrase!r}"
            )
