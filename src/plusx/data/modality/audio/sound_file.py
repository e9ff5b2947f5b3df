"""Reading one sound file as a mono waveform at a given rate, or refusing it with a reason.

The rules, the same for training, evaluation and prediction:

- WAV, FLAC, Ogg (Vorbis and Opus) and MP3, by libsndfile (soundfile). The format is recognised by
  content; a file whose ending names another format is refused.
- Any sample format: 8, 16, 24 and 32 bits, floats, A-law and mu-law. Integers are scaled to -1..1.
- Any rate and number of channels: the mean of the channels, resampled once by soxr (HQ).
- Files without samples, with values that are not finite or beyond 2**31, with fewer samples than
  their header declares, or with one value only (silence) are refused. Clipped files are used, with
  a warning.
"""

import io
import os
import struct
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from plusx.data.image_file import UnreadableInput, read_regular
from plusx.errors import MissingLibrary, counted


# by libsndfile's name of the format: its name in messages and its endings
FORMATS = {
    "WAV": ("WAV", (".wav", ".wave")),
    "WAVEX": ("WAV", (".wav", ".wave")),
    "RF64": ("WAV", (".wav", ".wave", ".rf64")),
    "FLAC": ("FLAC", (".flac",)),
    "OGG": ("Ogg", (".ogg", ".oga", ".opus")),
    "MP3": ("MP3", (".mp3",)),
}
ENDINGS = tuple(sorted({ending for _, endings in FORMATS.values() for ending in endings}))
MIN_RATE, MAX_RATE = 1_000, 768_000  # samples per second of a file
# values of all channels of a file; 2 hours of mono at 16 kHz are 115 million
MAX_VALUES = 2**28
_CLIPPED_RUN = 3  # samples in a row at the extreme value that count as clipped
_HIGHEST = 2.0**31  # of integers that were stored as floats
_FULL_SCALE = 0.98
_CLIPPED_FRACTION = 1e-3  # of clipped samples, from which there is a warning
_MAX_ENTRIES, _MAX_FOLDERS = 500, 4
_UNKNOWN_SIZE = (0, 0xFFFFFFFF)  # in the header of a WAV that was written to a pipe


class Sound(NamedTuple):
    """A decoded file.

    waveform: mono, at the requested rate; full scale is -1 to 1
    seconds: of the file as stored
    stored_rate, channels: as stored
    format: as libsndfile names it, for example "WAV PCM_16"
    warning: what is unusual about the file, or None
    """

    waveform: Float32[np.ndarray, "t"]
    seconds: float
    stored_rate: int
    channels: int
    format: str
    warning: str | None


def read_sound(source: str | bytes, rate: int, allow_silence: bool = False) -> Sound:
    """Read a sound file, from its path or its bytes, as a mono waveform of `rate` samples per
    second.

    allow_silence: whether a recording of one value is returned, not refused
    Raises UnreadableInput with the reason, OSError, and UserError if soundfile or soxr is missing.
    """
    soundfile, soxr = require_audio()
    data = source if isinstance(source, bytes) else read_regular(source)
    if not data:
        raise UnreadableInput("it is empty")
    try:
        # libsndfile reads files five times as fast as Python's file objects
        stored = io.BytesIO(data) if isinstance(source, bytes) else os.fsencode(source)
        with soundfile.SoundFile(stored) as file:
            form = _checked_format(file, None if isinstance(source, bytes) else source)
            declared, stored_rate, channels = int(file.frames), file.samplerate, file.channels
            if not MIN_RATE <= stored_rate <= MAX_RATE:
                raise UnreadableInput(
                    f"its rate is {stored_rate:,} Hz; allowed are {MIN_RATE:,} to {MAX_RATE:,} Hz"
                )
            if declared * channels > MAX_VALUES:
                raise UnreadableInput(
                    f"it has {declared * channels:,} values, at most {MAX_VALUES:,} are read: cut "
                    "it into shorter files"
                )
            values = file.read(dtype="float32", always_2d=True)
            subtype = file.subtype
    except soundfile.LibsndfileError as error:
        raise UnreadableInput(_decoding_problem(data, error)) from error
    except (RuntimeError, MemoryError, TypeError) as error:
        raise UnreadableInput(f"cannot be decoded: {error or type(error).__name__}") from error
    missing = _truncated(data, form, len(values), declared)
    if missing is not None:
        raise UnreadableInput(missing)
    if not len(values):
        raise UnreadableInput("it has no samples")
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):  # NaN is the minimum, too
        bad = int((~np.isfinite(values)).sum())
        raise UnreadableInput(f"{bad:,} of its values are not finite (NaN or infinite)")
    highest = float(max(values.max(), -values.min()))
    if highest > _HIGHEST:
        raise UnreadableInput(f"its values reach {highest:g}, where full scale is 1")
    waveform = values[:, 0] if channels == 1 else values.mean(1, dtype=np.float32)
    if waveform.min() == waveform.max() and not allow_silence:
        mean = f", as the mean of its {channels} channels" if channels > 1 else ""
        raise UnreadableInput(
            f"it is silent{mean}: all {counted(len(waveform), 'sample')} have the value "
            f"{waveform[0]:g}"
        )
    warning = _clipping(values)
    if stored_rate != rate:
        waveform = np.ascontiguousarray(soxr.resample(waveform, stored_rate, rate), np.float32)
        if not len(waveform):
            raise UnreadableInput(f"it has no samples at {rate:,} Hz")
    seconds = len(values) / stored_rate
    return Sound(waveform, seconds, stored_rate, channels, f"{form} {subtype}", warning)


def sound_files(root: str) -> list[str]:
    """Return all files below a folder with the extension of a sound file, ordered by name."""
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            os.path.join(folder, name)
            for name in names
            if not name.startswith(".") and name.lower().endswith(ENDINGS)
        ]
    return sorted(files)


def has_sound(folder: str, beside: str = "", depth: int = 4) -> bool:
    """Whether there are sound files in a folder, or in the first of its subfolders.

    beside: ending of the name of another file that must be in the same folder
    Only the first entries of a few folders are checked, so that large folders take little time.
    """
    names, folders, others = [], [], not beside
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, _MAX_ENTRIES):
                names.append(entry.name.lower())
                if entry.is_dir() and not entry.name.startswith("."):
                    folders.append(entry.path)
    except OSError:
        return False
    others = others or any(name.endswith(beside) for name in names)
    if others and any(name.endswith(ENDINGS) for name in names):
        return True
    inside = sorted(folders)[:_MAX_FOLDERS] if depth else []
    return any(has_sound(path, beside, depth - 1) for path in inside)


def require_audio() -> tuple[Any, Any]:
    """Return the modules soundfile and soxr. Raises MissingLibrary if they are not installed."""
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # soundfile without libsndfile is an OSError
        raise MissingLibrary(f"sound needs soundfile and soxr ({error})", "audio") from None
    return soundfile, soxr


def _checked_format(file: Any, path: str | None) -> str:
    """Return the format. Raises UnreadableInput if it is not allowed or not that of the name."""
    form = str(file.format)
    allowed = ", ".join(dict.fromkeys(name for name, _ in FORMATS.values()))
    if form not in FORMATS:
        raise UnreadableInput(f"its format is {form}, not one of {allowed}")
    name, endings = FORMATS[form]
    if path is None or path.lower().endswith(endings):
        return form
    ending = next((ending for ending in ENDINGS if path.lower().endswith(ending)), None)
    if ending is None:
        return form
    raise UnreadableInput(
        f"its content is {name}, but its name ends in {ending}: rename it to end in {endings[0]}, "
        "or convert it"
    )


def _decoding_problem(data: bytes, error: Exception) -> str:
    if data[:4] not in (b"RIFF", b"RF64", b"fLaC", b"OggS"):
        allowed = ", ".join(dict.fromkeys(name for name, _ in FORMATS.values()))
        return f"not one of {allowed}"
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return f"cannot be decoded: {reason}"


def _truncated(data: bytes, form: str, frames: int, declared: int) -> str | None:
    """Return a message if a file is shorter than its header declares, else None."""
    if frames < declared:
        return f"it is truncated: {frames:,} of {declared:,} samples can be decoded"
    if form in ("WAV", "WAVEX"):
        size, start = _wav_data(data)
        if size is not None and size not in _UNKNOWN_SIZE and start + size > len(data):
            return (
                f"it is truncated: its header declares {size:,} bytes of samples, and "
                f"{len(data) - start:,} follow"
            )
    if form == "OGG" and not _ogg_ends(data):
        return "it is truncated: the last page of its stream is missing"
    return None


def _wav_data(data: bytes) -> tuple[int | None, int]:
    """Return the declared size of a WAV's samples in bytes and their position; None if unknown."""
    position = 12
    while position + 8 <= len(data):
        name, (size,) = data[position : position + 4], struct.unpack_from("<I", data, position + 4)
        if name == b"data":
            return size, position + 8
        position += 8 + size + size % 2
    return None, position


def _ogg_ends(data: bytes) -> bool:
    """Whether the last page of an Ogg file is complete and marked as the end of its stream."""
    start = data.rfind(b"OggS")
    if start < 0 or start + 27 > len(data):
        return False
    segments = data[start + 26]
    sizes = data[start + 27 : start + 27 + segments]
    complete = len(sizes) == segments and start + 27 + segments + sum(sizes) <= len(data)
    return complete and bool(data[start + 5] & 4)


def _clipping(values: Float32[np.ndarray, "t c"]) -> str | None:
    """Return a warning if samples are clipped, or beyond full scale, else None."""
    highest = float(max(values.max(), -values.min()))
    if highest > 1.0:
        return f"its values reach {highest:g}, beyond full scale (1)"
    if highest < _FULL_SCALE:
        return None
    clipped = 0
    for channel in values.T:
        for limit in (channel.max(), channel.min()):
            if abs(limit) < _FULL_SCALE:
                continue
            at_limit = np.flatnonzero(np.diff(np.pad(channel == limit, 1).astype(np.int8)))
            lengths = at_limit[1::2] - at_limit[::2]
            clipped += int(lengths[lengths >= _CLIPPED_RUN].sum())
    if clipped < _CLIPPED_FRACTION * values.size:
        return None
    return f"{clipped / values.size:.1%} of its samples are clipped (at the largest value)"
