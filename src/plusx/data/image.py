"""Decoding one image file into 8-bit pixels, or saying why it is refused.

The rules, the same for training, evaluation and prediction:

- JPEG, PNG, WebP, BMP, GIF and TIFF, told by content and not by name; nothing else is opened.
- Regular files only. More pixels than the limit (50 million) are refused from the header.
- Files that are truncated, or whose header promises more pixels than there are, and PNGs whose
  checksums do not fit are refused, never filled up.
- The EXIF orientation is applied. Of an animation the first frame counts.
- 16 bits a channel are scaled to 8 (the high byte); floats and 32-bit integers are refused,
  as their range is declared nowhere.
- Transparency is composited on white. CMYK, palettes and bilevel images become RGB or grey.
"""

import io
import os
import re
import stat
import struct
import threading
import unicodedata
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
DEFAULT_LIMIT = 50_000_000
_FILE_LIMIT = 512 * 2**20
_BEGINNINGS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
# left, top, right and down of the seven passes of an interlaced PNG
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PIECE = 1 << 20
_STRIP = 256
# what ends the coded pixels of a JPEG: no stuffed zero, no restart
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# decoded where pixels are missing; with restarts, for those images that have them
_PART = bytes(range(0x5B, 0xF1, 7)) * 6
_FILLER = _PART + b"".join(bytes((0xFF, 0xD0 + number)) + _PART for number in range(8))


class DamagedImage(ValueError):
    """A file that is refused; the message is the reason, without the path."""


class Verdict(NamedTuple):
    """What a full decode of one file came to: why it is refused, or what is worth remarking."""

    problem: str | None
    notice: str | None


class _Quiet:
    """Keeps Pillow's warnings from the user, while any thread is decoding.

    warnings.catch_warnings alone is not safe in threads; the first one in sets the filters, the
    last one out restores them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self.depth += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.filters.__exit__(None, None, None)


_quiet = _Quiet()


def decode(
    source: str | Path | bytes,
    limit: int = DEFAULT_LIMIT,
    channels: int = 3,
    thorough: bool = True,
) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image file (or of its bytes) as RGB (channels 3) or grey (channels 1).

    `thorough` also counts the pixels of JPEGs and PNGs, which is left out where that was done
    before. Raises DamagedImage, a ValueError, with the reason; OSError where the file cannot be
    read.
    """
    pixels = np.asarray(open_image(source, limit, channels, thorough))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def open_image(
    source: str | Path | bytes,
    limit: int = DEFAULT_LIMIT,
    channels: int = 3,
    thorough: bool = True,
) -> Image.Image:
    """As decode, but a Pillow image of mode RGB or L."""
    image, _ = _decoded(source, limit, thorough)
    mode = {1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def examine(path: str | Path, limit: int = DEFAULT_LIMIT) -> Verdict:
    """Decode a file wholly and say what came of it; never raises for a bad file."""
    try:
        _, notice = _decoded(path, limit, True)
    except DamagedImage as error:
        return Verdict(str(error), None)
    except OSError as error:
        return Verdict(f"cannot be read: {error.strerror or error}", None)
    return Verdict(None, notice)


def is_image(head: bytes) -> bool:
    """Whether a file that begins like this says that it is an image of an allowed format."""
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    if head.startswith(b"BM"):
        return len(head) >= 26 and head[6:10] == bytes(4)
    return head.startswith(_BEGINNINGS)


def printable(path: str | Path, root: str | Path | None = None) -> str:
    """A path as text for a message: relative to root, on one line, and valid UTF-8."""
    name = os.fspath(path)
    if root is not None and name.startswith(os.path.join(root, "")):
        name = os.path.relpath(name, root)
    if name.isprintable():
        return name
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        letter if unicodedata.category(letter)[0] != "C" else ascii(letter)[1:-1] for letter in text
    )


def read_regular(path: str | Path, limit: int = _FILE_LIMIT) -> bytes:
    """The bytes of a regular file. A pipe, a socket or a device is refused before it is opened."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DamagedImage("not a regular file")
    # the file may have been replaced since: opening must not wait, and is checked again
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise DamagedImage("not a regular file")
        if found.st_size > limit:
            raise DamagedImage(f"{found.st_size:,} bytes, at most {limit:,} are read")
        return file.read(limit)


def _decoded(
    source: str | Path | bytes, limit: int, thorough: bool
) -> tuple[Image.Image, str | None]:
    data = source if isinstance(source, bytes) else read_regular(source)
    if not data:
        raise DamagedImage("an empty file")
    if not is_image(data[:32]):
        raise DamagedImage(f"not one of {', '.join(FORMATS)}")
    _check_size(_webp_size(data), limit)
    with _quiet:
        try:
            return _opened(data, limit, thorough)
        except (DamagedImage, KeyboardInterrupt):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DamagedImage(f"too many pixels, at most {limit:,} are decoded") from error
        except UnidentifiedImageError as error:
            raise DamagedImage("its header is damaged") from error
        except Exception as error:
            # a hostile file makes a decoder raise anything, struct.error and KeyError among them
            raise DamagedImage(f"cannot be decoded: {error or type(error).__name__}") from error


def _opened(data: bytes, limit: int, thorough: bool) -> tuple[Image.Image, str | None]:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image.size, limit)
    if thorough and image.format == "PNG":
        _check_png(data)
    if image.mode in ("F", "I") or image.mode.startswith("F;"):
        kind = "floats" if image.mode.startswith("F") else "32-bit integers"
        raise DamagedImage(f"its pixels are {kind}, whose range is declared nowhere")
    # the two-picture JPEGs of many cameras are no animations
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    image.load()
    if thorough and image.format in ("JPEG", "MPO"):
        _check_jpeg(data, image)
    turn = _TURNS.get(_orientation(image))
    image = _eight_bits(image)
    if turn is not None:
        image = image.transpose(turn)
    return image, "animated or of several pages: the first is used" if animated else None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # damaged metadata does not make the pixels wrong
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        return Image.fromarray((wide >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _check_size(size: tuple[int, int], limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise DamagedImage(f"{width} x {height} pixels, at most {limit:,} are decoded")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP header, (0, 0) for others: Pillow allocates on opening."""
    if data[:4] != b"RIFF" or len(data) < 30:
        return 0, 0
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    sides = (int.from_bytes(data[start : start + 2], "little") & 0x3FFF for start in (26, 28))
    return next(sides), next(sides)


def _check_png(data: bytes) -> None:
    """Compare the checksums and count the pixels, both of which Pillow leaves alone."""
    place, parts = 8, []
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        name = data[place + 4 : place + 8]
        end = place + 8 + length
        if end + 4 > len(data):
            break
        if not name[0] & 0x20:
            found = zlib.crc32(memoryview(data)[place + 4 : end])
            if found != int.from_bytes(data[end : end + 4], "big"):
                shown = name.decode("ascii", "backslashreplace")
                raise DamagedImage(f"the checksum of its {shown} chunk does not fit")
        if name == b"IDAT":
            parts.append(memoryview(data)[place + 8 : end])
        if name == b"IEND":
            _count_png(data, parts)
            return
        place = end + 4
    raise DamagedImage("truncated: it has no end")


def _count_png(data: bytes, parts: list[memoryview]) -> None:
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    passes = _ADAM7 if data[28] else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, right, down in passes:
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0:
            wanted += rows * (1 + (columns * bits + 7) // 8)
    unpacker, missing = zlib.decompressobj(), wanted
    for part in parts:
        missing -= len(unpacker.decompress(part, min(missing, _PIECE)))
        while unpacker.unconsumed_tail and missing > 0:
            missing -= len(unpacker.decompress(unpacker.unconsumed_tail, min(missing, _PIECE)))
        if missing <= 0:
            return
    raise DamagedImage(f"its header promises {wanted:,} bytes of pixels, {missing:,} are missing")


def _check_jpeg(data: bytes, image: Image.Image) -> None:
    """Refuse a JPEG that has fewer pixels than its header promises.

    libjpeg fills up what is missing and says nothing. But bytes put in behind the last pixel are
    skipped where the image is whole, and decoded as pixels where it is not.
    """
    longer, place, copied = [], 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xD9:
            break
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            place += 1 if marker == 0xFF else 2
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA:
            found = _MARKER.search(data, place)
            place = found.start() if found else len(data)
            # a cut may have left half a marker, which must not become one with the filler
            stuffed = b"\0" if data[place - 1] == 0xFF else b""
            longer += [data[copied:place], stuffed + _FILLER]
            copied = place
    filled = Image.open(io.BytesIO(b"".join([*longer, data[copied:]])), formats=("JPEG",))
    if not _equal(filled, image):
        raise DamagedImage("its header promises more pixels than there are")


def _equal(first: Image.Image, second: Image.Image) -> bool:
    """Whether two images of one size have the same pixels; copies only a strip at a time."""
    width, height = first.size
    strips = ((0, top, width, min(height, top + _STRIP)) for top in range(0, height, _STRIP))
    return all(first.crop(strip).tobytes() == second.crop(strip).tobytes() for strip in strips)
