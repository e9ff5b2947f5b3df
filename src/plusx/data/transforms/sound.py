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


def of_length(waveform: Waveform, samples: int) -> Float32[Tensor, "1 s"]:
    """Return the middle of a waveform, or the waveform in the middle of silence."""
    missing = samples - waveform.shape[-1]
    if missing >= 0:
        return torch.nn.functional.pad(waveform, (missing // 2, missing - missing // 2))
    start = -missing // 2
    return waveform[:, start : start + samples]
