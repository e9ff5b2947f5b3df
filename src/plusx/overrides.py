"""Parse `key=value` overrides of the command line. Standard library only."""

import re
import tomllib

from plusx.errors import UserError


def split_override(override: str) -> tuple[tuple[str, ...], object]:
    """Return the parts of the dotted key, and the value: parsed as TOML, or else plain text.

    >>> split_override("optim.lr=1e-3")
    (('optim', 'lr'), 0.001)
    >>> split_override("compare.networks=[plain20, resnet20]")
    (('compare', 'networks'), ['plain20', 'resnet20'])
    """
    dotted, equals, text = override.partition("=")
    path = split_key(dotted)
    if not equals or not all(path):
        raise UserError(f"{override!r} is not key=value, as in optim.lr=0.1")
    return path, _value(text.strip())


def split_key(dotted: str) -> tuple[str, ...]:
    """Return the parts of a dotted key, without quotes and blanks."""
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _value(text: str) -> object:
    if re.fullmatch(r"-?\.\d+(e-?\d+)?", text):  # .1, which TOML requires as 0.1
        return float(text)
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        if text.startswith("[") and text.endswith("]") and "[" not in text[1:]:
            return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
        return text
    return parsed["value"] if list(parsed) == ["value"] else text
