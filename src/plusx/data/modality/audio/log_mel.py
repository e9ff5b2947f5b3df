"""Log-mel spectrograms on torch.fft."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from plusx.errors import UserError


WINDOW, HOP = 0.025, 0.010  # seconds
MELS = 64
FLOOR = 1e-6


def hz_to_mel(hz: float) -> float:
    """Return mels: 2595 log10(1 + f / 700) (O'Shaughnessy 1987), as HTK has it."""
    return 2595.0 * math.log10(1.0 + hz / 700.0)


def mel_to_hz(mels: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """The inverse of `hz_to_mel`."""
    hz: np.ndarray = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return hz


def mel_filters(
    rate: int, fft: int, mels: int, low: float, high: float
) -> Float64[Tensor, "mels bins"]:
    """Return triangular filters over the fft // 2 + 1 frequencies of a transform.

    Their corners are `mels` + 2 points, equally spaced in mels from `low` to `high` Hz; each filter
    rises from 0 at one corner to 1 at the next and falls to 0 at the one after that. The triangles
    are straight in Hz, and their areas are not normalised.
    """
    corners = mel_to_hz(np.linspace(hz_to_mel(low), hz_to_mel(high), mels + 2))
    bins = np.arange(fft // 2 + 1) * rate / fft
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.from_numpy(np.maximum(0.0, np.minimum(rising, falling)))


def frame_lengths(rate: int, window: float, hop: float) -> tuple[int, int]:
    """Return the samples of a window and of a hop. Raises UserError if they are not valid."""
    for name, seconds in (("window", window), ("hop", hop)):
        if not (math.isfinite(seconds) and seconds > 0 and round(seconds * rate) >= 1):
            raise UserError(f"{name} = {seconds} seconds: at {rate} Hz it must be a sample or more")
    return round(window * rate), round(hop * rate)


def num_frames(samples: int, rate: int, window: float = WINDOW, hop: float = HOP) -> int:
    """Return the number of frames of a waveform: the windows that lie within it."""
    length, step = frame_lengths(rate, window, hop)
    return max(0, (samples - length) // step + 1)


def log_mel(
    waveform: Float[Tensor, "*n t"],
    rate: int,
    *,
    window: float = WINDOW,
    hop: float = HOP,
    mels: int = MELS,
    low: float = 20.0,
    high: float | None = None,
    floor: float = FLOOR,
) -> Float32[Tensor, "*n mels frames"]:
    """Return log-mel spectrograms of waveforms whose full scale is -1 to 1.

    Frame i has the samples from i * hop on: nothing is padded, so that a frame depends on no sample
    outside its window. It is multiplied by a periodic Hann window, padded with zeros to the next
    power of two, and transformed; the squared magnitudes are summed with triangular mel filters
    (see `mel_filters`), and the result is ln(max(power, floor)). The transform is computed in
    float64, except on devices that have none.

    rate: samples per second
    window, hop: seconds
    mels: number of mel filters
    low, high: the range of the filters in Hz; None: half the rate
    Raises UserError if a number is not valid, or the waveform is shorter than one window.
    """
    plan = _plan(rate, window, hop, mels, low, high, floor, waveform.device)
    samples = waveform.shape[-1]
    if samples < plan.length:
        raise UserError(
            f"a waveform of {samples} samples: one window of {window:g} s has {plan.length}"
        )
    frames = waveform.to(plan.hann.dtype).unfold(-1, plan.length, plan.step) * plan.hann
    spectrum = torch.fft.rfft(frames, n=plan.fft)  # pads with zeros
    power = spectrum.real.square().add_(spectrum.imag.square()).to(torch.float32)
    return (power @ plan.filters).clamp_(min=floor).log_().mT.contiguous()


class _Plan(NamedTuple):
    """What spectrograms with the same parameters share: the samples of a window, of a hop and of a
    transform, and the window and the filters on the waveform's device."""

    length: int
    step: int
    fft: int
    hann: Float[Tensor, "length"]
    filters: Float32[Tensor, "bins mels"]


@lru_cache(maxsize=32)
def _plan(
    rate: int,
    window: float,
    hop: float,
    mels: int,
    low: float,
    high: float | None,
    floor: float,
    device: torch.device,
) -> _Plan:
    """Return the plan. Raises UserError if a parameter is not valid."""
    length, step = frame_lengths(rate, window, hop)
    top = rate / 2 if high is None else high
    if not floor > 0:
        raise UserError(f"floor = {floor}: it must be above 0")
    if not 0 <= low < top <= rate / 2:
        raise UserError(
            f"mel filters from {low:g} to {top:g} Hz: allowed is 0 <= low < high <= {rate / 2:g}"
        )
    if mels < 1:
        raise UserError(f"mels = {mels}: at least 1")
    fft = 1 << (length - 1).bit_length()  # the next power of two
    filters = mel_filters(rate, fft, mels, low, top)
    if not bool((filters.sum(1) > 0).all()):
        raise UserError(
            f"mels = {mels}: some filters lie between the frequencies of {fft} samples at {rate} "
            "Hz; use fewer mels, a longer window or a higher `low`"
        )
    precise = torch.float32 if device.type == "mps" else torch.float64
    hann = torch.hann_window(length, periodic=True, dtype=precise, device=device)
    return _Plan(length, step, fft, hann, filters.to(device, torch.float32).T.contiguous())
