"""A corpus of hostile and unusual image files, with what must become of each.

Every case is made here, from a few bytes; nothing is read. `plant` lays the corpus out as a class
folder. A case that is used states its pixels, so that a wrong decode shows.
"""

import functools
import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin


class Case(NamedTuple):
    """A file, what becomes of it, and if it is used its pixels and how far they may be off."""

    name: str
    data: bytes
    verdict: Literal["used", "refused", "ignored"]
    reason: str = ""  # a part of the reason, or of the warning
    pixels: np.ndarray | None = None  # (h, w, 3) uint8
    within: int = 0


# six pixels that no turn or mirror maps onto themselves, enlarged so that JPEG keeps them
SMALL = np.array(
    [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 0, 0], [250, 250, 250]]],
    np.uint8,
)
PICTURE = SMALL.repeat(16, 0).repeat(16, 1)  # (32, 48, 3)


def saved(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, extra: bytes = b""
) -> bytes:
    """A PNG from raw rows (each with its filter byte), with chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of stored pixels under an EXIF orientation (TIFF 6.0, tag 274)."""
    return {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p, 1),
    }[orientation](pixels)


def plain(colour: tuple[int, int, int], height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


@functools.cache
def corpus() -> list[Case]:
    """All cases that are one file."""
    return [
        *damaged(),
        *foreign(),
        *bombs(),
        *orientations(),
        *depths(),
        *modes(),
        *pnm(),
        *oddities(),
    ]


def damaged() -> list[Case]:
    jpeg, whole_png = saved(noise(), "JPEG", quality=90), saved(noise(), "PNG")
    cases = []
    for kind, ending in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("PPM", "ppm"),
        ("AVIF", "avif"),
    ):
        data = saved(noise(), kind)
        for share in (50, 99):
            cut = data[: len(data) * share // 100]
            cases.append(Case(f"cut{share}.{ending}", cut, "refused"))
    cases.append(
        Case(
            "cut_deflate.tif", saved(noise(), "TIFF", compression="tiff_deflate")[:2000], "refused"
        )
    )
    cases.append(Case("head_only.jpg", jpeg[:20], "refused"))
    cases.append(Case("empty.jpg", b"", "refused", "empty"))
    cases.append(Case("zeros.png", bytes(4000), "refused", "not one of"))
    cases.append(Case("text.jpg", b"this is no image\n" * 50, "refused", "not one of"))
    cases.append(Case("no_end.png", whole_png[:-12], "refused", "no end"))
    flipped = bytearray(whole_png)
    flipped[len(flipped) // 2] ^= 4
    cases.append(Case("flipped_bit.png", bytes(flipped), "refused", "checksum"))
    flipped = bytearray(whole_png)
    flipped[18] ^= 1
    cases.append(Case("flipped_size.png", bytes(flipped), "refused"))
    rows = (b"\0" + bytes(48)) * 16
    cases.append(Case("says_more_rows.png", png(16, 64, 8, 2, rows), "refused"))
    header = jpeg.index(b"\xff\xc0")
    lying = jpeg[: header + 5] + struct.pack(">H", 4000) + jpeg[header + 7 :]
    cases.append(Case("says_more_rows.jpg", lying, "refused"))
    tables = jpeg.index(b"\xff\xc4")
    cases.append(
        Case("broken_table.jpg", jpeg[: tables + 4] + b"\xff" * 40 + jpeg[tables + 44 :], "refused")
    )
    bmp = bytearray(saved(noise(), "BMP"))
    bmp[22:26] = struct.pack("<i", 4000)
    cases.append(Case("says_more_rows.bmp", bytes(bmp), "refused"))
    gif = bytearray(saved(noise(), "GIF"))
    descriptor = 13 + (6 << (gif[10] & 7))
    gif[6:10] = gif[descriptor + 5 : descriptor + 9] = struct.pack("<HH", 40, 400)
    cases.append(Case("says_more_rows.gif", bytes(gif), "refused"))
    for options in ({}, {"progressive": True}):
        data = saved(noise(), "JPEG", quality=90, **options)
        cases += [
            Case(
                f"cut{share}_ended{len(options)}.jpg",
                data[: len(data) * share // 100] + b"\xff\xd9",
                "refused",
                "more pixels",
            )
            for share in (60, 95)
        ]
    return cases


def foreign() -> list[Case]:
    """Formats that are not opened, under the names of images; and images under other names."""
    heads = {
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "pdf.jpg": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
        "fits.jpg": b"SIMPLE  =                    T".ljust(2880),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "html.jpg": b"<html><script>alert(1)</script></html>",
        "icon.bmp": b"\0\0\1\0\1\0\x10\x10" + bytes(60),
        "zip.jpg": b"PK\3\4" + bytes(60),
        "pickle.png": b"\x80\4cos\nsystem\n(S'true'\ntR.",
    }
    cases = [Case(name, data, "refused", "not one of") for name, data in heads.items()]
    named = {
        "psd.tif": (b"8BPS\0\1" + bytes(60), "Photoshop is not read"),
        "jxl.jpg": (b"\xff\x0a" + bytes(60), "JPEG XL is not read"),
        "jp2.jpg": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "JPEG 2000 is not read"),
        "thumbnail.NEF": (saved(PICTURE, "TIFF"), "camera raw is not read"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not read"),
        "head.avif": (b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", ""),
    }
    cases += [Case(name, data, "refused", reason) for name, (data, reason) in named.items()]
    cases.append(Case("notes.md", b"P3 comes before P4\n", "ignored", "not an image"))
    as_png, as_tiff = saved(PICTURE, "PNG"), saved(PICTURE, "TIFF")
    cases.append(Case("tiff.jpg", as_tiff, "used", pixels=PICTURE))
    cases.append(Case("png.jpg", as_png, "used", pixels=PICTURE))
    cases.append(
        Case(
            "UPPER.PNG",
            as_png[:-12] + chunk(b"tEXt", b"a\0b") + as_png[-12:],
            "used",
            pixels=PICTURE,
        )
    )
    cases.append(Case("no_ending", saved(PICTURE, "BMP"), "used", pixels=PICTURE))
    cases.append(
        Case("photo.jpg.bak", saved(PICTURE, "WEBP", lossless=True), "used", pixels=PICTURE)
    )
    cases.append(
        Case("notes.txt", b"BM is how a bitmap begins, and a note can\n", "ignored", "not an image")
    )
    cases.append(Case("README", b"about these images\n", "ignored", "not an image"))
    cases.append(Case("._photo.jpg", b"\0\5\x16\7" + bytes(78), "ignored", "hidden"))
    cases.append(Case(".DS_Store", b"\0\0\0\1Bud1", "ignored", "hidden"))
    cases.append(Case("Thumbs.db", b"\xd0\xcf\x11\xe0", "ignored", "hidden"))
    return cases


@functools.cache
def bombs() -> list[Case]:
    """A few kilobytes that decode to gigabytes: refused from the header."""
    cases = []
    for side in (20_000, 15_000):
        row = b"\0" + bytes(side // 8)
        packer = zlib.compressobj(9)
        data = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        cases.append(Case(f"bomb{side}.png", b"\x89PNG\r\n\x1a\n" + body, "refused", "pixels"))
    cases.append(
        Case(
            "bomb.gif",
            b"GIF89a"
            + struct.pack("<HH", 65535, 65535)
            + b"\xf0\0\0"
            + bytes(6)
            + b"\x2c"
            + bytes(4)
            + struct.pack("<HH", 65535, 65535)
            + b"\0\2\2\x44\1\0;",
            "refused",
            "pixels",
        )
    )
    cases.append(
        Case(
            "bomb.bmp",
            b"BM"
            + struct.pack("<IHHI", 60, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, 30000, 30000, 1, 24, *[0] * 6)
            + bytes(6),
            "refused",
            "pixels",
        )
    )
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\0\xfe\x3f\0"
    cases.append(
        Case(
            "bomb.webp",
            b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
            "refused",
            "pixels",
        )
    )
    jpeg = bytearray(saved(noise(), "JPEG"))
    start_of_frame = jpeg.index(b"\xff\xc0")
    jpeg[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", 65500, 65500)
    cases.append(Case("bomb.jpg", bytes(jpeg), "refused", "pixels"))
    cases.append(
        Case(
            "bomb.tif",
            tiff(
                [
                    (256, 4, 60000),
                    (257, 4, 60000),
                    (258, 3, 8),
                    (259, 3, 1),
                    (262, 3, 1),
                    (273, 4, 8),
                    (278, 4, 60000),
                    (279, 4, 10),
                ]
            ),
            "refused",
            "pixels",
        )
    )
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 9))
    cases.append(Case("text_bomb.png", png(2, 2, 8, 0, b"\0ab\0cd", extra=text), "refused"))
    return cases


def tiff(tags: list[tuple[int, int, int]], following: int = 0) -> bytes:
    """A little-endian TIFF of one directory; `following` is where the next one lies."""
    body = b"".join(
        struct.pack("<HHI", tag, kind, 1)
        + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", following)


def orientations() -> list[Case]:
    cases = []
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        shown = turned(PICTURE, number)
        cases.append(
            Case(f"turned{number}.png", saved(PICTURE, "PNG", exif=exif), "used", pixels=shown)
        )
        cases.append(
            Case(
                f"turned{number}.jpg",
                saved(PICTURE, "JPEG", exif=exif, quality=95, subsampling=0),
                "used",
                pixels=shown,
                within=16,
            )
        )
    exif = Image.Exif()
    exif[0x0112] = 6
    cases.append(
        Case(
            "turned6.webp",
            saved(PICTURE, "WEBP", lossless=True, exif=exif),
            "used",
            pixels=turned(PICTURE, 6),
        )
    )
    cases.append(
        Case("turned6.tif", saved(PICTURE, "TIFF", exif=exif), "used", pixels=turned(PICTURE, 6))
    )
    exif[0x0112] = 77
    cases.append(Case("turned77.png", saved(PICTURE, "PNG", exif=exif), "used", pixels=PICTURE))
    broken = saved(
        PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1", quality=95, subsampling=0
    )
    cases.append(Case("broken_exif.jpg", broken, "used", pixels=PICTURE, within=16))
    return cases


def depths() -> list[Case]:
    grey = np.array([[0, 255, 256, 32768], [65535, 12345, 40000, 257]], np.uint16)
    expected = (grey >> 8).astype(np.uint8)[:, :, None].repeat(3, 2)
    cases = [
        Case("grey16.png", saved(Image.fromarray(grey), "PNG"), "used", pixels=expected),
        Case("grey16.tif", saved(Image.fromarray(grey), "TIFF"), "used", pixels=expected),
    ]
    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in grey)
    cases.append(Case("rgb16.png", png(4, 2, 16, 2, rows), "used", pixels=expected))
    rows = b"".join(
        b"\0" + np.stack([row, np.full(4, 65535)], 1).astype(">u2").tobytes() for row in grey
    )
    cases.append(Case("grey_alpha16.png", png(4, 2, 16, 4, rows), "used", pixels=expected))
    floats = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    cases.append(Case("floats.tif", saved(floats, "TIFF"), "refused", "floats"))
    whole = Image.fromarray(np.arange(12, dtype=np.int32).reshape(3, 4) * 70000)
    cases.append(Case("int32.tif", saved(whole, "TIFF"), "refused", "32-bit"))
    bits = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)
    bilevel = Image.fromarray(bits).convert("1")
    shown = bits[:, :, None].repeat(3, 2)
    cases.append(Case("bilevel.png", saved(bilevel, "PNG"), "used", pixels=shown))
    cases.append(
        Case("bilevel.tif", saved(bilevel, "TIFF", compression="group4"), "used", pixels=shown)
    )
    return cases


def pnm() -> list[Case]:
    """All variants of PBM, PGM and PPM, of text and of bytes; AVIF is beside them."""
    grey = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
    wide = np.array([[0, 255, 256], [32768, 65535, 12345]], np.uint16)
    bits = np.array([[0, 255, 0], [255, 255, 0]], np.uint8)
    colours = np.array([[[255, 0, 0], [0, 51, 0], [1, 2, 3]]], np.uint8)

    def words(values: np.ndarray) -> bytes:
        return " ".join(map(str, values.ravel())).encode()

    def shown(values: np.ndarray) -> np.ndarray:
        return values[:, :, None].repeat(3, 2)

    files = {
        "bits.pbm": (b"P1\n# drawn\n3 2\n1 0 1\n0 0 1\n", shown(bits)),
        "bits4.pbm": (b"P4 3 2\n\xa0\x20", shown(bits)),
        "grey2.pgm": (b"P2\n3 2\n255\n" + words(grey), shown(grey)),
        "grey5.pgm": (b"P5\n# by a scanner\n3 2\n255\n" + grey.tobytes(), shown(grey)),
        "five.pgm": (b"P5 3 2 5\n" + (grey // 51).tobytes(), shown(grey)),
        "wide2.pgm": (b"P2 3 2 65535\n" + words(wide), shown((wide >> 8).astype(np.uint8))),
        "wide5.pgm": (
            b"P5 3 2 65535\n" + wide.astype(">u2").tobytes(),
            shown((wide >> 8).astype(np.uint8)),
        ),
        "colours3.ppm": (b"P3 3 1 255\n" + words(colours), colours),
        "colours6.ppm": (b"P6 3 1 255\n" + colours.tobytes(), colours),
        "wide6.ppm": (b"P6 3 1 65535\n" + (colours.astype(">u2") * 257).tobytes(), colours),
        "colours.pnm": (b"P6\t3\t1\t255\n" + colours.tobytes(), colours),
        "ppm.png": (b"P6 1 1 255\n\xff\0\0", plain((255, 0, 0), 1, 1)),
    }
    cases = [Case(name, data, "used", pixels=pixels) for name, (data, pixels) in files.items()]
    cases.append(Case("cut.pgm", b"P2 3 2 255\n0 1 2 3", "refused"))
    cases.append(Case("cut5.pgm", b"P5 3 2 255\n\0\1\2", "refused"))
    cases.append(Case("beyond.pgm", b"P2 2 1 255\n0 999", "refused"))
    cases.append(Case("bomb.pgm", b"P5 60000 60000 255\n", "refused", "pixels"))
    floats = b"Pf\n1 1\n-1.0\n\0\0\0\0"
    cases.append(Case("floats.pfm", floats, "refused", "PFM (floats) is not read"))
    avif = saved(PICTURE, "AVIF", quality=100, subsampling="4:4:4")
    cases.append(Case("photo.avif", avif, "used", pixels=PICTURE, within=8))
    return cases


def modes() -> list[Case]:
    alpha = np.zeros((4, 4, 4), np.uint8)
    alpha[:, :, 0] = 200
    cases = [Case("alpha0.png", saved(alpha, "PNG"), "used", pixels=plain((255, 255, 255)))]
    alpha[:, :, 3] = 51  # 0.2
    cases.append(
        Case("alpha51.png", saved(alpha, "PNG"), "used", pixels=plain((244, 204, 204)), within=1)
    )
    cases.append(
        Case(
            "alpha51.webp",
            saved(alpha, "WEBP", lossless=True, exact=True),
            "used",
            pixels=plain((244, 204, 204)),
            within=1,
        )
    )
    grey_alpha = Image.merge("LA", [Image.new("L", (4, 4), 100), Image.new("L", (4, 4), 0)])
    cases.append(
        Case("grey_alpha.png", saved(grey_alpha, "PNG"), "used", pixels=plain((255, 255, 255)))
    )
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30, 90, 90, 90])
    cases.append(Case("palette.png", saved(palette, "PNG"), "used", pixels=plain((10, 200, 30))))
    cases.append(
        Case(
            "palette_clear.png",
            saved(palette, "PNG", transparency=1),
            "used",
            pixels=plain((255, 255, 255)),
        )
    )
    cases.append(
        Case(
            "palette_alphas.png",
            saved(palette, "PNG", transparency=b"\xff\x00"),
            "used",
            pixels=plain((255, 255, 255)),
        )
    )
    clear = chunk(b"tRNS", struct.pack(">H", 7))
    cases.append(
        Case(
            "grey_clear.png",
            png(2, 1, 8, 0, b"\0\7\x64", extra=clear),
            "used",
            pixels=np.array([[[255] * 3, [100] * 3]], np.uint8),
        )
    )
    clear = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    cases.append(
        Case(
            "rgb_clear.png",
            png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", extra=clear),
            "used",
            pixels=np.array([[[255] * 3, [4, 5, 6]]], np.uint8),
        )
    )
    ink = Image.new("CMYK", (16, 16), (0, 128, 255, 51))
    cases.append(
        Case(
            "cmyk.jpg",
            saved(ink, "JPEG", quality=95),
            "used",
            pixels=plain((204, 102, 0), 16, 16),
            within=3,
        )
    )
    cases.append(
        Case("cmyk.tif", saved(ink, "TIFF"), "used", pixels=plain((204, 102, 0), 16, 16), within=3)
    )
    # the same bytes read as YCCK: with neutral chroma the luminance comes back inverted twice
    neutral = bytearray(saved(Image.new("CMYK", (16, 16), (200, 127, 127, 0)), "JPEG", quality=95))
    neutral[neutral.index(b"Adobe") + 11] = 2
    cases.append(
        Case("ycck.jpg", bytes(neutral), "used", pixels=plain((200, 200, 200), 16, 16), within=3)
    )
    cases.append(
        Case(
            "grey.jpg",
            saved(Image.new("L", (8, 8), 90), "JPEG"),
            "used",
            pixels=plain((90, 90, 90), 8, 8),
            within=1,
        )
    )
    return cases


def oddities() -> list[Case]:
    first, second = (Image.fromarray(plain(colour)) for colour in ((9, 8, 7), (200, 0, 0)))
    more = {"save_all": True, "append_images": [second], "duration": 50}
    cases = [
        Case(
            "moves.gif",
            saved(first, "GIF", **more),
            "used",
            "first is used",
            pixels=plain((9, 8, 7)),
        ),
        Case(
            "moves.webp",
            saved(first, "WEBP", lossless=True, **more),
            "used",
            "first is used",
            pixels=plain((9, 8, 7)),
        ),
        Case(
            "moves.png",
            saved(first, "PNG", **more),
            "used",
            "first is used",
            pixels=plain((9, 8, 7)),
        ),
        Case(
            "pages.tif",
            saved(first, "TIFF", save_all=True, append_images=[second]),
            "used",
            "first is used",
            pixels=plain((9, 8, 7)),
        ),
        Case("still.gif", saved(first, "GIF"), "used", pixels=plain((9, 8, 7))),
    ]
    cases.append(
        Case(
            "one_pixel.png",
            saved(plain((1, 2, 3), 1, 1), "PNG"),
            "used",
            pixels=plain((1, 2, 3), 1, 1),
        )
    )
    cases.append(
        Case(
            "long.png",
            saved(plain((1, 2, 3), 1, 5000), "PNG"),
            "used",
            pixels=plain((1, 2, 3), 1, 5000),
        )
    )
    cases.append(
        Case(
            "tall.png",
            saved(plain((1, 2, 3), 5000, 1), "PNG"),
            "used",
            pixels=plain((1, 2, 3), 5000, 1),
        )
    )
    cases.append(
        Case(
            "progressive.jpg",
            saved(PICTURE, "JPEG", progressive=True, quality=95, subsampling=0),
            "used",
            pixels=PICTURE,
            within=16,
        )
    )
    whole = saved(PICTURE, "JPEG", quality=95, subsampling=0)
    cases.append(
        Case("bytes_after_end.jpg", whole + b"\0" * 100, "used", pixels=PICTURE, within=16)
    )
    cases.append(
        Case(
            "broken_profile.jpg",
            saved(PICTURE, "JPEG", quality=95, subsampling=0, icc_profile=b"no profile"),
            "used",
            pixels=PICTURE,
            within=16,
        )
    )
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "long " * 20000)
    cases.append(Case("much_text.png", saved(PICTURE, "PNG", pnginfo=info), "used", pixels=PICTURE))
    grey = [
        (256, 3, 2),
        (257, 3, 2),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (278, 3, 2),
        (279, 4, 4),
    ]
    circle = tiff(grey, following=8).ljust(200, b"\0") + bytes([10, 20, 30, 40])
    cases.append(
        Case(
            "directory_circle.tif",
            circle,
            "used",
            pixels=np.array([[10, 20], [30, 40]], np.uint8)[:, :, None].repeat(3, 2),
        )
    )
    fine = saved(PICTURE, "PNG")
    for name in (
        "-rf.png",
        "emoji \U0001f600.png",
        "<script>alert(1)</script>.png".replace("/", ""),
        "new\nline.png",
        "a" * 251 + ".png",
        "quote\"'.png",
    ):
        cases += [Case(name, fine + bytes(len(name)), "used", pixels=PICTURE)]
    cases.append(Case(os.fsdecode(b"caf\xe9\xff.png"), fine, "used", pixels=PICTURE))
    return cases


def noise() -> np.ndarray:
    """Pixels that compress badly, so that what is cut off is missed."""
    return np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def plant(folder: Path) -> dict[str, Case]:
    """Write the corpus into a folder; gives the cases by path."""
    folder.mkdir(parents=True)
    planted = {}
    for case in corpus():
        path = os.path.join(folder, case.name)
        assert path not in planted
        with open(path, "wb") as file:
            file.write(case.data)
        planted[path] = case
    return planted


# what plant_specials makes: its state and a part of the reason
SPECIALS = {
    "real.png": "used",
    "folder.jpg/inside.png": "used",
    "pipe.jpg": "refused pipe",
    "socket.jpg": "refused socket",
    "device.jpg": "refused leaves",
    "dangling.jpg": "refused nothing",
    "self.jpg": "refused circle",
    "leaves.png": "refused leaves",
    "leaves": "refused leaves",
    "loop": "refused above",
    "twin_link.png": "ignored same",
    "twin_hard.png": "ignored same",
    ".ipynb_checkpoints": "ignored hidden",
}


def plant_specials(folder: Path, outside: Path) -> None:
    """Pipes, sockets, links and hidden folders in a class folder.

    `outside` is a folder that is not below the root.
    """
    folder.mkdir(parents=True)
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "away.png").write_bytes(saved(plain((5, 5, 5)), "PNG"))
    (folder / "real.png").write_bytes(saved(plain((6, 6, 6)), "PNG"))
    os.mkfifo(folder / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        listener.bind(f"/proc/self/fd/{descriptor}/socket.jpg")
    finally:
        os.close(descriptor)
        listener.close()
    os.symlink("/dev/zero", folder / "device.jpg")
    os.symlink("nothing.jpg", folder / "dangling.jpg")
    os.symlink("self.jpg", folder / "self.jpg")
    os.symlink(outside / "away.png", folder / "leaves.png")
    os.symlink(outside, folder / "leaves")
    os.symlink("..", folder / "loop")
    os.symlink("real.png", folder / "twin_link.png")
    os.link(folder / "real.png", folder / "twin_hard.png")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "x.png").write_bytes(saved(plain((7, 7, 7)), "PNG"))
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(saved(plain((8, 8, 8)), "PNG"))
