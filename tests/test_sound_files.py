"""Reading sound files, and log-mel spectrograms."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plusx
from plusx.data.image_file import UnreadableInput
from plusx.data.modality.audio.log_mel import num_frames
from plusx.errors import UserError


soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from plusx.data.modality.audio.sound_file import read_sound  # noqa: E402


RATE = 16_000


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """A sine with faded ends."""
    t = np.arange(round(rate * seconds)) / rate
    fade = np.minimum(1, np.minimum(t, seconds - t) / 0.02)
    return (level * fade * np.sin(2 * math.pi * hz * t)).astype(np.float32)


def write(path: Path, values: np.ndarray, rate: int = RATE, **kind: Any) -> str:
    soundfile.write(path, values, rate, **kind)
    return str(path)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_U8", 1e-2),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-6),
        ("a.wav", "FLOAT", 1e-7),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.wav", "ULAW", 2e-2),
        ("a.flac", "PCM_16", 1e-4),
        ("a.flac", "PCM_24", 1e-6),
        ("a.ogg", "VORBIS", 5e-2),
    ],
)
def test_sample_formats(tmp_path: Path, name: str, subtype: str, tolerance: float) -> None:
    values = tone(RATE)
    sound = read_sound(write(tmp_path / name, values, subtype=subtype), RATE)
    assert sound.waveform.dtype == np.float32
    assert len(sound.waveform) == len(values)
    assert np.abs(sound.waveform - values).max() < tolerance
    assert sound.warning is None
    assert sound.format.endswith(subtype)
    data = (tmp_path / name).read_bytes()
    assert np.array_equal(read_sound(data, RATE).waveform, sound.waveform)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_any_rate_is_resampled_once(tmp_path: Path, rate: int) -> None:
    sound = read_sound(write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT"), RATE)
    assert sound.stored_rate == rate
    assert abs(len(sound.waveform) - RATE // 2) <= 1
    middle = slice(1000, 7000)
    assert np.abs(sound.waveform[middle] - tone(RATE)[middle]).max() < 2e-3
    assert sound.seconds == pytest.approx(0.5, abs=1e-4)


def test_frequencies_above_half_the_rate_do_not_alias(tmp_path: Path) -> None:
    high = tone(96_000, hz=20_000.0)
    sound = read_sound(write(tmp_path / "a.wav", high, 96_000, subtype="FLOAT"), RATE)
    assert np.abs(sound.waveform[500:-500]).max() < 1e-3


def test_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.stack([tone(RATE, hz=220.0 * (i + 1), level=0.1 * (i + 1)) for i in range(6)], 1)
    sound = read_sound(write(tmp_path / "six.wav", channels, subtype="FLOAT"), RATE)
    assert sound.channels == 6
    assert np.allclose(sound.waveform, channels.mean(1), atol=1e-6)


def problem(path: Path | bytes) -> str:
    with pytest.raises(UnreadableInput) as caught:
        read_sound(path if isinstance(path, bytes) else str(path), RATE)
    return str(caught.value)


def test_refused_content(tmp_path: Path) -> None:
    assert "silent: all 1,000 samples have the value 0" in problem(
        Path(write(tmp_path / "silent.wav", np.zeros(1000)))
    )
    opposite = np.stack([tone(RATE), -tone(RATE)], 1)
    assert "silent, as the mean of its 2 channels" in problem(
        Path(write(tmp_path / "opposite.wav", opposite, subtype="FLOAT"))
    )
    assert problem(Path(write(tmp_path / "none.wav", np.zeros(0)))) == "it has no samples"
    values = tone(RATE)
    values[[3, 70]] = np.nan, np.inf
    assert problem(Path(write(tmp_path / "nan.wav", values, subtype="FLOAT"))).startswith(
        "2 of its values are not finite"
    )
    values[[3, 70]] = 0, 1e30
    assert problem(Path(write(tmp_path / "far.wav", values, subtype="FLOAT"))) == (
        "its values reach 1e+30, where full scale is 1"
    )
    (tmp_path / "empty.wav").touch()
    assert problem(tmp_path / "empty.wav") == "it is empty"
    (tmp_path / "text.wav").write_text("this is no sound")
    assert problem(tmp_path / "text.wav") == "not one of WAV, FLAC, Ogg, MP3"
    with pytest.raises(OSError, match="No such file"):
        read_sound(str(tmp_path / "missing.wav"), RATE)
    assert "not a regular file" in problem(tmp_path)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_truncated(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * RATE)
    data = Path(write(tmp_path / f"a.{ending}", noise)).read_bytes()
    for length in (len(data) // 2, len(data) - 700):
        short = tmp_path / f"short.{ending}"
        short.write_bytes(data[:length])
        reason = problem(short)
        assert "truncated" in reason or "cannot be decoded" in reason


def test_a_wav_from_a_pipe_has_no_size(tmp_path: Path) -> None:
    """ffmpeg and sox write 0xFFFFFFFF where they cannot seek."""
    path = Path(write(tmp_path / "a.wav", tone(RATE)))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(read_sound(str(path), RATE).waveform) == RATE // 2


def test_content_is_compared_with_the_name(tmp_path: Path) -> None:
    mp3 = tmp_path / "a.mp3"
    try:
        write(mp3, tone(RATE, 1.0), format="MP3")
    except soundfile.LibsndfileError:
        pytest.skip("this libsndfile writes no MP3")
    assert len(read_sound(str(mp3), RATE).waveform) > RATE * 0.9
    named_wav = tmp_path / "b.wav"
    named_wav.write_bytes(mp3.read_bytes())
    assert problem(named_wav) == (
        "its content is MP3, but its name ends in .wav: rename it to end in .mp3, or convert it"
    )
    write(tmp_path / "a.aiff", tone(RATE), format="AIFF")
    assert "AIFF, not one of" in problem(tmp_path / "a.aiff")


def test_clipping_is_a_warning(tmp_path: Path) -> None:
    loud = np.clip(3 * tone(RATE), -1, 1)
    sound = read_sound(write(tmp_path / "loud.wav", loud), RATE)
    assert sound.warning is not None
    assert "clipped" in sound.warning
    beyond = read_sound(write(tmp_path / "beyond.wav", 4 * tone(RATE), subtype="FLOAT"), RATE)
    assert beyond.warning is not None
    assert "beyond full scale" in beyond.warning
    full = read_sound(write(tmp_path / "full.wav", tone(RATE, level=1.0)), RATE)
    assert full.warning is None


def reference_log_mel(
    waveform: np.ndarray, rate: int, window: int, hop: int, mels: int, low: float, floor: float
) -> np.ndarray:
    """The definition, frame by frame, with NumPy's real transform."""
    fft = 2 ** math.ceil(math.log2(window))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    corners = [
        700 * (10 ** (mel / 2595) - 1)
        for mel in np.linspace(
            2595 * math.log10(1 + low / 700), 2595 * math.log10(1 + rate / 2 / 700), mels + 2
        )
    ]
    filters = np.zeros((mels, fft // 2 + 1))
    for m in range(mels):
        left, centre, right = corners[m : m + 3]
        for k in range(fft // 2 + 1):
            hz = k * rate / fft
            if left <= hz <= centre:
                filters[m, k] = (hz - left) / (centre - left)
            elif centre < hz <= right:
                filters[m, k] = (right - hz) / (right - centre)
    frames = []
    for start in range(0, len(waveform) - window + 1, hop):
        power = np.abs(np.fft.rfft(waveform[start : start + window] * hann, fft)) ** 2
        frames.append(np.log(np.maximum(filters @ power, floor)))
    return np.array(frames).T


@pytest.mark.parametrize(
    ("rate", "window", "hop", "mels"),
    [(16_000, 0.025, 0.01, 64), (8_000, 0.025, 0.01, 40), (16_000, 0.032, 0.016, 80)],
)
@pytest.mark.parametrize("signal", ["noise", "tone", "quiet"])
def test_log_mel_is_its_definition(
    rate: int, window: float, hop: float, mels: int, signal: str
) -> None:
    rng = np.random.default_rng(1)
    waveform = {
        "noise": rng.normal(0, 0.3, rate).astype(np.float32),
        "tone": tone(rate, 1.0) + rng.normal(0, 1e-4, rate).astype(np.float32),
        "quiet": np.zeros(rate, np.float32),
    }[signal]
    values = plusx.log_mel(torch.from_numpy(waveform), rate, window=window, hop=hop, mels=mels)
    expected = reference_log_mel(
        waveform.astype(np.float64), rate, round(window * rate), round(hop * rate), mels, 20.0, 1e-6
    )
    assert values.shape == expected.shape == (mels, num_frames(rate, rate, window, hop))
    assert values.dtype == torch.float32
    assert np.abs(values.numpy() - expected).max() < 1e-5


def test_log_mel_of_a_batch_and_its_framing() -> None:
    waveforms = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    batch = plusx.log_mel(waveforms, 8_000, mels=20)
    for waveform, values in zip(waveforms, batch):
        assert torch.equal(values, plusx.log_mel(waveform, 8_000, mels=20))
    # a frame depends on the samples of its window only
    late = plusx.log_mel(waveforms[0, 800:], 8_000, mels=20)
    assert torch.allclose(batch[0][:, 10:], late, atol=1e-5)
    changed = waveforms[0].clone()
    changed[200:] = 0
    assert torch.equal(plusx.log_mel(changed, 8_000, mels=20)[:, 0], batch[0][:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hop": 0.0}, "hop = 0.0 seconds"),
        ({"window": 1.0}, "one window of 1 s has 8000"),
        ({"low": 5000.0}, "from 5000 to 4000 Hz"),
        ({"mels": 500}, "some filters lie between"),
        ({"floor": 0.0}, "floor = 0.0"),
    ],
)
def test_log_mel_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plusx.log_mel(torch.zeros(4000), 8_000, **arguments)
