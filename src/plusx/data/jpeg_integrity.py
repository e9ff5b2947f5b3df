"""Whether a PNG or JPEG has all pixels that its header declares, which decoders do not check."""

import io
import re
import struct
import zlib

from PIL import Image


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
# end of the coded pixels of a JPEG: a marker other than a stuffed zero or a restart
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# appended to the coded pixels and decoded if some are missing; with restart markers
_PART = bytes(range(0x5B, 0xF1, 7)) * 6
_FILLER = _PART + b"".join(bytes((0xFF, 0xD0 + number)) + _PART for number in range(8))


def png_problem(data: bytes) -> str | None:
    """Return what is wrong with the checksums or the number of pixels, or None."""
    offset, chunks = 8, []
    while offset + 12 <= len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        name = data[offset + 4 : offset + 8]
        end = offset + 8 + length
        if end + 4 > len(data):
            break
        if not name[0] & 0x20:
            checksum = zlib.crc32(memoryview(data)[offset + 4 : end])
            if checksum != int.from_bytes(data[end : end + 4], "big"):
                shown = name.decode("ascii", "backslashreplace")
                return f"the checksum of its {shown} chunk does not match"
        if name == b"IDAT":
            chunks.append(memoryview(data)[offset + 8 : end])
        if name == b"IEND":
            return _png_count(data, chunks)
        offset = end + 4
    return "truncated: it has no end"


def _png_count(data: bytes, chunks: list[memoryview]) -> str | None:
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    passes = _ADAM7 if data[28] else ((0, 0, 1, 1),)
    expected = 0
    for left, top, right, down in passes:
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    unpacker, missing = zlib.decompressobj(), expected
    for chunk in chunks:
        missing -= len(unpacker.decompress(chunk, min(missing, _PIECE)))
        while unpacker.unconsumed_tail and missing > 0:
            missing -= len(unpacker.decompress(unpacker.unconsumed_tail, min(missing, _PIECE)))
        if missing <= 0:
            return None
    return f"its header declares {expected:,} bytes of pixels, {missing:,} are missing"


def jpeg_problem(data: bytes, image: Image.Image) -> str | None:
    """Return the problem of a JPEG, decoded as `image`, with fewer pixels than its header states.

    libjpeg fills up missing pixels silently. But bytes appended after the last pixel are ignored if
    the image is complete, and decoded as pixels if it is not.
    """
    longer, offset, copied = [], 2, 0
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xD9:
            break
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            offset += 1 if marker == 0xFF else 2
            continue
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker == 0xDA:
            end = _MARKER.search(data, offset)
            offset = end.start() if end else len(data)
            # the data may end with half a marker, which the filler must not complete
            stuffed = b"\0" if data[offset - 1] == 0xFF else b""
            longer += [data[copied:offset], stuffed + _FILLER]
            copied = offset
    filled = Image.open(io.BytesIO(b"".join([*longer, data[copied:]])), formats=("JPEG",))
    return None if _equal(filled, image) else "its header declares more pixels than there are"


def _equal(first: Image.Image, second: Image.Image) -> bool:
    """Whether two images of one size have the same pixels; copies only a strip at a time."""
    width, height = first.size
    strips = ((0, top, width, min(height, top + _STRIP)) for top in range(0, height, _STRIP))
    return all(first.crop(strip).tobytes() == second.crop(strip).tobytes() for strip in strips)
