"""Decoding of text files, in UTF-8 or UTF-16."""

import codecs

from plusx.errors import UserError, printable


def decoded(data: bytes) -> str:
    """Decode a text; bytes that are not UTF-8 become surrogates, as in file names.

    Raises UnicodeDecodeError for truncated UTF-16.
    """
    return data.decode(encoding_of(data), "surrogateescape")


def encoding_of(data: bytes) -> str:
    """Return utf-16, utf-16-le, utf-16-be or utf-8-sig, by the byte order mark or zero bytes."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(data) > 1 and (data[0] == 0) != (data[1] == 0):
        return "utf-16-be" if data[0] == 0 else "utf-16-le"
    return "utf-8-sig"


def text_of(data: bytes, shown: str) -> str:
    """Return the text of a file. Raises UserError, with the line, if it is not text."""
    try:
        text = data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{printable(shown)}, line {number:,} is not UTF-8 (byte 0x{data[error.start]:02x}): "
            "save the file as UTF-8"
        ) from None
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{printable(shown)}, line {number:,} has a NUL character: it is not text")
    return text


def lines_of(text: str) -> list[str]:
    """Split a text into lines at LF and CR LF only, unlike str.splitlines."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def beginning(path: str, count: int) -> str:
    """Return the text in the first bytes of a file; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(count)
    except OSError:
        return ""
    return head.decode(encoding_of(head), "replace")
