"""Sizes in bytes as text."""

import re

from plusx.errors import UserError


UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
SHORT = {"K": "kB", "M": "MB", "G": "GB", "T": "TB", "KB": "kB"}


def parse_size(text: str) -> int:
    """Return the bytes of `4GB`, `512MiB`, `1.5 GB`, `800000`. Raises UserError for other texts,
    and for a number without a unit that is too small to be one of bytes.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): size for unit, size in UNITS.items()}
    units |= {short.lower(): UNITS[unit] for short, unit in SHORT.items()} | {"": 1}
    if match is None or match[2].lower() not in units:
        raise UserError(f"{text!r} is not a size; write 4GB, 512MiB or 1.5GB")
    size = int(float(match[1]) * units[match[2].lower()])
    if size < 1:
        raise UserError(f"{text!r} is not a size: it is less than one byte")
    if not match[2] and size < 1000:
        raise UserError(f"{text!r} is {size} bytes: write {match[1]}GB or {match[1]}MB")
    return size


def format_size(size: int) -> str:
    """Return bytes with three digits, such as 86.1 MB."""
    for unit in ("TB", "GB", "MB", "kB"):
        if size >= 0.9995 * UNITS[unit]:
            value = size / UNITS[unit]
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    return f"{size} B"
