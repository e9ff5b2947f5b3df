"""Decoding one image file into 8-bit pixels, or refusing it with a reason.

The rules, the same for training, evaluation and prediction:

- JPEG, PNG, WebP, BMP, GIF, TIFF, PNM (PGM, PPM, PBM), AVIF, and HEIF (HEIC) with the extra
  plusx[heif], recognised by content, not by name; nothing else is opened.
- Regular files only. More pixels than the limit (200 million) are refused from the header.
- Truncated files, files with fewer pixels than their header declares, and PNGs with a wrong
  checksum are refused, never padded.
- The EXIF orientation is applied. The first frame of an animation is used.
- 16 bits per channel are scaled to 8 (the high byte); floats and 32-bit integers are refused,
  because the file does not declare their range.
- Transparency is composited on white. CMYK, palettes and bilevel images become RGB or grey.
"""

import base64
import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError, features

from plusx.data.jpeg_integrity import jpeg_problem, png_problem
from plusx.errors import MissingLibrary, UserError
from plusx.errors import printable as printable


# Pillow's names of formats: PPM is all of PNM; HEIF must be last, it needs pillow-heif
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif",
           ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif")  # fmt: skip
_RAW = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
# formats that are not supported; a camera's raw file would be read as the TIFF of its thumbnail
UNSUPPORTED = {
    **dict.fromkeys(_RAW, "camera raw"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c"), "JPEG 2000"),
    ".jxl": "JPEG XL",
    ".psd": "Photoshop",
    ".svg": "SVG",
    ".tga": "TGA",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".xcf": "GIMP",
    ".qoi": "QOI",
    ".pfm": "PFM (floats)",
}
DEFAULT_LIMIT = 200_000_000
THUMBNAIL = 16
# decoder of colour JPEGs; pixels differ by a level or two, so that users choose it explicitly
Decoder = Literal["pillow", "simplejpeg"]
Box = tuple[int, int, int, int]  # left, top, right and bottom
# limit of 12 bits stored in 16, as many cameras and microscopes write them
_LIMIT_OF_12_BITS = 4096
_FILE_LIMIT = 512 * 2**20
# bytes read at each end of a file for its fingerprint
_FINGERPRINTED = 16384
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
_PNM = re.compile(rb"P[1-6]\s+[#\d]")
_AVIF = (b"avif", b"avis")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_FOREIGN = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"\x76\x2f\x31\x01": "OpenEXR",
}

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


class UnreadableInput(ValueError):
    """A file or text that is refused; the message is the reason, without the path."""


class Verdict(NamedTuple):
    """The outcome of fully decoding one file.

    problem: why it is refused, or None
    warning: what is unusual about it, or None
    height, width: after the EXIF orientation; 0 if unknown
    low, high: the range of values, for modalities that need it
    content: a digest of the size and of 16 KiB at each end
    format, mode: Pillow's names for the stored image; "" for other inputs
    contrast: the largest difference of two values of a channel; -1 if unknown
    thumbnail: the image in grey, of THUMBNAIL x THUMBNAIL pixels, in base64
    """

    problem: str | None
    warning: str | None = None
    height: int = 0
    width: int = 0
    low: float = 0.0
    high: float = 0.0
    content: str = ""
    format: str = ""
    mode: str = ""
    contrast: int = -1
    thumbnail: str = ""


class _Quiet:
    """Silences Pillow's warnings and lifts its limit of pixels while any thread is decoding.

    Callers compare sizes with a limit of their own before decoding. warnings.catch_warnings alone
    is not thread-safe: here the first thread to enter sets filters and limit, and the last one to
    leave restores them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.filters = warnings.catch_warnings()
        self.limit = Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
                self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.depth += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self.limit


quiet = _Quiet()


def decode(
    source: str | Path | bytes,
    limit: int = DEFAULT_LIMIT,
    channels: int = 3,
    thorough: bool = True,
) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an image file (or of its bytes), RGB (channels 3) or grey (channels 1).

    thorough: whether to check that JPEGs and PNGs have all their pixels; not needed a second time
    Raises UnreadableInput with the reason if the file is refused; OSError if it cannot be read.
    """
    pixels = np.asarray(open_image(source, limit, channels, thorough))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def open_image(
    source: str | Path | bytes,
    limit: int = DEFAULT_LIMIT,
    channels: int = 3,
    thorough: bool = True,
) -> Image.Image:
    """Like decode, but return a Pillow image of mode RGB or L."""
    return ImageFile(source, limit, channels).decoded(thorough)


class ImageFile:
    """An image file with a valid header; pixels are decoded when they are needed.

    Raises UnreadableInput if the file is refused; OSError if it cannot be read.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        limit: int = DEFAULT_LIMIT,
        channels: int = 3,
        decoder: Decoder = "pillow",
    ) -> None:
        data = source if isinstance(source, bytes) else read_regular(source)
        if not data:
            raise UnreadableInput("an empty file")
        _refuse(_format_problem(data[:32], source))
        _check_size(_webp_size(data), limit)
        self.channels = channels
        self.decoder = decoder
        self.data = data
        formats = FORMATS if data[4:8] == b"ftyp" and data[8:12] in _HEIF else FORMATS[:-1]
        with _refusing(data):
            self._image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
            _check_size(self._image.size, limit)
        image = self._image
        # a 16-bit PGM has mode I too
        of_32_bits = image.mode == "I" and image.format != "PPM"
        if of_32_bits or image.mode == "F" or image.mode.startswith("F;"):
            kind = "floats" if image.mode.startswith("F") else "32-bit integers"
            raise UnreadableInput(f"its pixels are {kind}, whose range the file does not declare")
        self.is_jpeg = image.format == "JPEG"
        self.stored_as = (image.format or "", image.mode)
        # JPEGs with an embedded preview (MPO), as many cameras write them, are not animations
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
        self.warning = "animated or of several pages: the first is used" if animated else None
        if image.format == "TIFF" and image.mode == "RGBA":
            self.warning = (
                "a TIFF whose fourth channel is tagged as transparency: it is composited on white; "
                "if it is a band, such as infrared, set [data] channels = 4"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height after the EXIF orientation, known before decoding."""
        width, height = self._image.size
        return (height, width) if _orientation(self._image) > 4 else (width, height)

    def decoded(self, thorough: bool = False, shrink: int = 1) -> Image.Image:
        """Return a Pillow image of mode RGB or L. It can be called once.

        thorough: see `decode`
        shrink: 2, 4 or 8 divides the rows and columns of a JPEG, rounded up; other formats are
            decoded at full size
        """
        image = self._image
        with _refusing():
            if thorough and image.format == "PNG":
                _refuse(png_problem(self.data))
            pixels = None if thorough else self._by_simplejpeg(shrink)
            if pixels is not None:
                image = Image.fromarray(pixels)
            else:
                if shrink > 1 and self.is_jpeg:
                    image.draft(None, (image.width // shrink, image.height // shrink))
                image.load()
            if thorough and image.format in ("JPEG", "MPO"):
                _refuse(jpeg_problem(self.data, image))
            turn = _TURNS.get(_orientation(self._image))
            if thorough and image.mode.startswith("I"):
                self.warning = self.warning or _dark(image)
            image = _eight_bits(image)
            image = image if turn is None else image.transpose(turn)
            mode = {1: "L", 3: "RGB"}[self.channels]
            return image if image.mode == mode else image.convert(mode)

    def raw(self) -> Image.Image:
        """Return the image in its stored mode and orientation; of a palette image the indices."""
        with _refusing():
            self._image.load()
        return self._image

    def window(self, box: Box, shrink: int) -> UInt8[np.ndarray, "h w c"]:
        """Return the pixels of a JPEG within (left, top, right, bottom), in coordinates of `size`.

        shrink: see `decoded`; the window then covers all pixels that the box touches
        """
        size = self.size
        if self.channels == 3 and _orientation(self._image) not in _TURNS:
            with _refusing():
                decoded = self._by_simplejpeg(shrink)
            if decoded is not None:
                left, top, right, bottom = _shrunken(box, shrink)
                return decoded[top:bottom, left:right]
        image = self.decoded(shrink=shrink)
        if image.size != size:
            box = _shrunken(box, shrink)
        pixels = np.array(image if box == (0, 0, *image.size) else image.crop(box))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def _by_simplejpeg(self, shrink: int) -> UInt8[np.ndarray, "h w 3"] | None:
        if self.decoder == "pillow" or not self.is_jpeg or self._image.mode != "RGB":
            return None
        return _by_simplejpeg(self.data, self._image.size, shrink)


def _shrunken(box: Box, shrink: int) -> Box:
    left, top, right, bottom = box
    return left // shrink, top // shrink, -(-right // shrink), -(-bottom // shrink)


def decoders() -> list[str | bool]:
    """Return what verdicts depend on besides the file: Pillow's version, and pillow-heif."""
    return [PIL.__version__, find_spec("pillow_heif") is not None]


def check_decoder(decoder: str) -> None:
    """Raise UserError for an unknown decoder, MissingLibrary if it is not installed."""
    if decoder not in get_args(Decoder):
        raise UserError(f"decoder = {decoder!r}: allowed are {', '.join(get_args(Decoder))}")
    if decoder == "simplejpeg" and find_spec("simplejpeg") is None:
        raise MissingLibrary('decoder = "simplejpeg" needs simplejpeg', "fast")


def _by_simplejpeg(
    data: bytes, size: tuple[int, int], shrink: int
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Return the pixels of a colour JPEG, decoded by simplejpeg; None if it reports a problem.

    Pillow has checked the header before; both must read the same size.
    """
    import simplejpeg

    width, height = size
    rows, columns = -(-height // shrink), -(-width // shrink)
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns)
    except ValueError:
        return None
    return pixels if pixels.shape == (rows, columns, 3) else None


def examine(source: str | Path | bytes, limit: int = DEFAULT_LIMIT) -> Verdict:
    """Fully decode a file (or its bytes); return the verdict, also for a refused file."""
    try:
        image_file = ImageFile(source, limit)
        width, height = image_file.size
        image = image_file.decoded(thorough=True)
    except UnreadableInput as error:
        return Verdict(str(error))
    except OSError as error:
        return Verdict(f"cannot be read: {error.strerror or error}")
    stored_format, mode = image_file.stored_as
    return verdict_of(image)._replace(
        warning=image_file.warning,
        height=height,
        width=width,
        content=content_digest(image_file.data),
        format=stored_format,
        mode=mode,
    )


def verdict_of(image: Image.Image) -> Verdict:
    """Return the verdict on a decoded image in RGB or grey."""
    contrast = max(int(np.ptp(band.getextrema())) for band in image.split())
    return Verdict(
        None,
        height=image.height,
        width=image.width,
        contrast=contrast,
        thumbnail=thumbnail(image),
    )


def thumbnail(image: Image.Image) -> str:
    """Return a small grey version in base64, which duplicates are detected by."""
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR).convert("L")
    return base64.b64encode(small.tobytes()).decode()


def content_digest(data: bytes) -> str:
    """Return a digest of a file's size and of 16 KiB at each end."""
    digest = hashlib.sha256(len(data).to_bytes(8, "little"))
    digest.update(data[:_FINGERPRINTED])
    digest.update(data[max(_FINGERPRINTED, len(data) - _FINGERPRINTED) :])
    return digest.hexdigest()


def is_image(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an allowed format."""
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    if head.startswith(b"BM"):
        return len(head) >= 26 and head[6:10] == bytes(4)
    if head[4:8] == b"ftyp":
        return head[8:12] in (*_AVIF, *_HEIF)
    return head.startswith(_BEGINNINGS) or _PNM.match(head) is not None


def unsupported(path: str) -> str | None:
    """Return why an image format, by its file extension, is not supported, or None."""
    name = UNSUPPORTED.get(os.path.splitext(path)[1].lower())
    return name and f"{name} is not read: convert it to JPEG or PNG"


def _format_problem(head: bytes, source: str | Path | bytes) -> str | None:
    """Return why a file with these first bytes is not supported, or None."""
    reason = None if isinstance(source, bytes) else unsupported(os.fspath(source))
    if reason is not None:
        return reason
    if not is_image(head):
        name = next((name for start, name in _FOREIGN.items() if head.startswith(start)), None)
        if name is not None:
            return f"{name} is not read: convert it to JPEG or PNG"
        reason = f"not one of {', '.join(FORMATS)}"
        if not isinstance(source, bytes) and os.fspath(source).lower().endswith(".csv"):
            reason += (
                ": give the images or their folder; `plusx evaluate RUN --data FILE.csv` takes a "
                "CSV of images with labels"
            )
        return reason
    if head[4:8] != b"ftyp":
        return None
    if head[8:12] in _AVIF:
        return None if features.check("avif") else "AVIF: convert it, or install a newer Pillow"
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return "HEIC: convert it, or install pillow-heif (pip install 'plusx[heif]')"
    register_heif_opener()
    return None


def read_regular(path: str | Path, limit: int = _FILE_LIMIT) -> bytes:
    """Return the bytes of a regular file; pipes, sockets and devices are refused unopened."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UnreadableInput("not a regular file")
    # the file may have been replaced since: open without blocking, and check again
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableInput("not a regular file")
        if status.st_size > limit:
            raise UnreadableInput(f"{status.st_size:,} bytes, at most {limit:,} are read")
        return file.read(status.st_size)


@contextmanager
def _refusing(data: bytes = b"") -> Iterator[None]:
    """Turns any error of a decoder into UnreadableInput, and silences its warnings."""
    with quiet:
        try:
            yield
        except (UnreadableInput, KeyboardInterrupt):
            raise
        except UnidentifiedImageError as error:
            if data[:2] in (b"II", b"MM"):
                raise UnreadableInput(
                    "a corrupt TIFF, or one that is not an image in grey or RGB; for several bands "
                    "set [data] channels"
                ) from error
            raise UnreadableInput("its header is corrupt") from error
        except Exception as error:
            # decoders raise errors of any kind for corrupt files, such as struct.error and KeyError
            raise UnreadableInput(f"cannot be decoded: {error or type(error).__name__}") from error


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise UnreadableInput(problem)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # corrupt metadata does not affect the pixels
        return 1


def _dark(image: Image.Image) -> str | None:
    """Return a warning about a 16-bit image whose high byte, the only one used, has few values."""
    highest = int(np.asarray(image).max())
    for bound in (256, _LIMIT_OF_12_BITS):
        if highest < bound:
            count = bound // 256
            greys = (
                f"at most {count} of 256 grey levels remain" if count > 1 else "it becomes black"
            )
            return f"16 bits, but all values are below {bound:,}: {greys}"
    return None


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        return Image.fromarray((wide >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _check_size(size: tuple[int, int], limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise UnreadableInput(f"{width} x {height} pixels, at most {limit:,} are decoded")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height from a WebP header, (0, 0) for others.

    Pillow allocates the pixels of a WebP as soon as it is opened.
    """
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
