"""Augmentation of waveforms (1, t)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor


Waveform = Float32[Tensor, "1 t"]


class SoundSetting(NamedTuple):
    """What words need to know about sound.

    rate: samples per second
    samples: of inputs of one length; 0: they keep their lengths
    spectrogram: from a waveform to the input of the network, not yet normalised
    """

    rate: int
    samples: int
    spectrogram: Callable[[Tensor], Tensor]


def louder(waveform: Waveform, decibels: float) -> Waveform:
    """Return the waveform with its level changed, without clipping."""
    return waveform * 10 ** (decibels / 20)


def shifted(waveform: Waveform, samples: int) -> Waveform:
    """Return the waveform later by a number of samples, or earlier, of the same length."""
    moved = torch.zeros_like(waveform)
    count = waveform.shape[-1]
    if abs(samples) < count:
        moved[:, max(0, samples) : count + min(0, samples)] = waveform[
            :, max(0, -samples) : count + min(0, -samples)
        ]
    return moved


def played(waveform: Waveform, rate: int, speed: float) -> Float32[Tensor, "1 s"]:
    """Return the waveform as it sounds when played at another speed."""
    import soxr  # needed only here, and part of an extra

    stored = waveform[0].numpy()
    return torch.from_numpy(soxr.resample(stored, rate * speed, rate, quality="MQ"))[None]


def tilted(waveform: Waveform, rate: int, slope: float) -> Waveform:
    """Return the waveform with a spectrum that rises by `slope` dB an octave, unchanged at 1 kHz.

    Frequencies below 62.5 Hz change as that one does.
    """
    samples = waveform.shape[-1]
    frequencies = torch.fft.rfftfreq(samples, 1 / rate)
    octaves = torch.log2(frequencies.clamp(min=62.5) / 1000)
    spectrum = torch.fft.rfft(waveform) * 10 ** (slope * octaves / 20)
    return torch.fft.irfft(spectrum, samples)


def of_length(waveform: Waveform, samples: int) -> Float32[Tensor, "1 s"]:
    """Return the middle of a waveform, or the waveform in the middle of silence."""
    missing = samples - waveform.shape[-1]
    if missing >= 0:
        return torch.nn.functional.pad(waveform, (missing // 2, missing - missing // 2))
    start = -missing // 2
    return waveform[:, start : start + samples]
