"""Recordings as log-mel spectrograms."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float32, Num
from PIL import Image
from pydantic import ConfigDict
from torch import Tensor

from plusx.data.batch import Collated, collate, collate_sequences
from plusx.data.buffer_pool import BufferPool
from plusx.data.image_file import Decoder, UnreadableInput, Verdict, content_digest, read_regular
from plusx.data.modality.audio.log_mel import FLOOR, HOP, WINDOW, log_mel, num_frames
from plusx.data.modality.audio.sound_file import Sound, read_sound
from plusx.data.modality.modality import Modality
from plusx.data.rng import SampleRNG
from plusx.data.sample import Input, Sample
from plusx.data.splits import evenly
from plusx.data.transforms.sound import SoundSetting
from plusx.data.transforms.steps import Setting
from plusx.data.transforms.transform import Transform
from plusx.data.transforms.words import NORMALISED, SOUND, Word, parse_augment
from plusx.errors import UserError, counted, printable


if TYPE_CHECKING:
    from plusx.data.dataset import Dataset

MAX_SECONDS = 600.0
MEASURED = 2_000  # recordings from which mean and deviation are measured
_CACHE_VERSION = 3  # increased whenever the rules of reading change
# words that act on the padding too
_AFTER_LENGTH = frozenset({"shift", "noise"})


@dataclass(frozen=True)
class Spectrogram:
    """From a waveform (1, t) to the log-mel spectrogram of a network's layout."""

    rate: int
    window: float
    hop: float
    mels: int
    low: float
    high: float | None
    floor: float
    layout: Literal["sequence", "image"]

    def __call__(self, waveform: Float32[Tensor, "1 t"]) -> Float32[Tensor, "..."]:
        values = log_mel(
            waveform,
            self.rate,
            window=self.window,
            hop=self.hop,
            mels=self.mels,
            low=self.low,
            high=self.high,
            floor=self.floor,
        )
        return values[0] if self.layout == "sequence" else values.transpose(1, 2)


@dataclass(frozen=True)
class AudioModality(Modality):
    """Recordings, as log-mel spectrograms (see `log_mel`).

    rate: samples per second, to which recordings are resampled
    seconds: with `fixed` the length of every input: longer recordings are cropped to their middle,
        shorter ones padded on both sides; otherwise the maximum length
    layout: "sequence" (n, mels, t) for networks in one dimension, "image" (n, 1, t, mels) for
        networks in two
    mean, std: of each mel band, measured on the training set
    window, hop, mels, low, high, floor: see `log_mel`
    """

    rate: int = 16_000
    seconds: float = 1.0
    fixed: bool = True
    layout: Literal["sequence", "image"] = "sequence"
    mels: int = 40
    window: float = WINDOW
    hop: float = HOP
    low: float = 20.0
    high: float | None = None
    floor: float = FLOOR
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, ...] = field(init=False)
    channels: int = field(init=False)

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: ClassVar[str] = "audio"
    noun: ClassVar[str] = "recording"
    words: ClassVar[frozenset[str]] = SOUND | {"noise"}
    length_unit: ClassVar[str] = "s"

    def __post_init__(self) -> None:
        if not 1_000 <= self.rate <= 192_000:
            raise UserError(f"rate = {self.rate}: from 1,000 to 192,000 samples per second")
        if not self.window <= self.seconds <= MAX_SECONDS:
            raise UserError(
                f"seconds = {self.seconds:g}: from one window ({self.window:g}) to {MAX_SECONDS:g}"
            )
        # raises an error if a parameter of the spectrogram is invalid
        self.spectrogram(torch.zeros(1, max(1, round(self.window * self.rate))))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.mels:
                raise UserError(f"{name} has {len(values)} numbers for {self.mels} mel bands")
        if not all(value > 0 for value in self.std):
            raise UserError(f"std {self.std}: every number must be above 0")
        frames = num_frames(self.samples, self.rate, self.window, self.hop)
        image = self.layout == "image"
        object.__setattr__(self, "size", (frames, self.mels) if image else (frames,))
        object.__setattr__(self, "channels", 1 if image else self.mels)

    @property
    def samples(self) -> int:
        """The number of samples of `seconds`."""
        return round(self.seconds * self.rate)

    @property
    def sequence(self) -> bool:
        return not self.fixed

    @property
    def per_length_unit(self) -> int:
        return self.rate

    @property
    def spectrogram(self) -> Spectrogram:
        """From a waveform to the network's input, not yet normalised."""
        return Spectrogram(
            self.rate,
            self.window,
            self.hop,
            self.mels,
            self.low,
            self.high,
            self.floor,
            self.layout,
        )

    def decode(self, source: str | bytes) -> Input:
        sound = self._read(source)
        if sound.warning is not None:
            name = "a recording" if isinstance(source, bytes) else printable(source)
            warnings.warn(f"{name}: {sound.warning}", stacklevel=2)
        return torch.from_numpy(sound.waveform)[None]

    def read_file(self, path: str, decoder: Decoder = "pillow") -> Input:
        return torch.from_numpy(self._read(path).waveform)[None]

    def _read(self, source: str | bytes) -> Sound:
        sound = read_sound(source, self.rate)
        self._check_length(len(sound.waveform))
        return sound

    def from_values(self, values: Image.Image | np.ndarray | Tensor) -> Input:
        if isinstance(values, Image.Image):
            raise UserError("the network takes recordings, not images")
        waveform = torch.as_tensor(values)
        if waveform.ndim == 2 and len(waveform) == 1:
            waveform = waveform[0]
        if waveform.ndim != 1 or not waveform.is_floating_point() or not len(waveform):
            raise UserError(
                f"an input of {waveform.dtype} and shape {tuple(waveform.shape)}: the network "
                f"takes waveforms (t,) of floats from -1 to 1 at {self.rate:,} Hz"
            )
        if not bool(waveform.isfinite().all()):
            raise UserError("an input has values that are not finite")
        try:
            self._check_length(len(waveform))
        except UnreadableInput as error:
            raise UserError(f"an input: {error}") from None
        return waveform.float()[None]

    def _check_length(self, samples: int) -> None:
        """Raise UnreadableInput if a recording is too long, or too short for one window."""
        if self.fixed:
            return
        if samples < round(self.window * self.rate):
            raise UnreadableInput(
                f"it has {samples / self.rate:.3f} s: the network needs one window of "
                f"{self.window:g} s or more"
            )
        if samples > self.samples:
            raise UnreadableInput(
                f"it has {samples / self.rate:.1f} s, and the limit is {self.seconds:g} s: cut it "
                "into shorter files, or raise [data] seconds"
            )

    def verdict_terms(self) -> list[Any]:
        limits = None if self.fixed else [self.seconds, self.window]
        return [_CACHE_VERSION, self.rate, limits]

    def examine(self, source: str | bytes) -> Verdict:
        """Read a file; the verdict's width is the number of samples at the network's rate."""
        try:
            data = source if isinstance(source, bytes) else read_regular(source)
            sound = self._read(source if isinstance(source, str) else data)
        except UnreadableInput as error:
            return Verdict(str(error))
        except OSError as error:
            return Verdict(f"cannot be read: {error.strerror or error}")
        return Verdict(
            None,
            sound.warning,
            1,
            len(sound.waveform),
            content=content_digest(data),
            format=sound.format,
            mode=f"{sound.stored_rate:,} Hz, {counted(sound.channels, 'channel')}",
        )

    def transform(
        self,
        augment: str,
        *,
        train: bool,
        annotated: bool = False,
        stored: bool = False,
        channels_last: bool = False,
    ) -> Transform:
        words = list(parse_augment(augment if train else "", self.words, self.inputs))
        last = sum(word.kind not in NORMALISED for word in words)
        words.insert(last, Word("spectrogram", text="spectrogram"))
        if self.fixed:
            kinds = [word.kind for word in words]
            first = next(
                index
                for index, kind in enumerate(kinds)
                if kind in _AFTER_LENGTH or kind == "spectrogram"
            )
            words.insert(first, Word("of_length", text="of_length"))
        sound = SoundSetting(self.rate, self.samples if self.fixed else 0, self.spectrogram)
        return Transform(tuple(words), Setting(None, 0.0, 1.0, sound=sound), None)

    def collate(self, samples: Sequence[Sample], transform: Transform) -> Collated:
        return collate(samples, transform) if self.fixed else collate_sequences(samples, 0.0)

    def normalise(
        self, values: Num[Tensor, "..."], pool: BufferPool | None = None
    ) -> Float32[Tensor, "..."]:
        """(value - mean) / std of every mel band, in float32."""
        if not self.mean:
            return values.to(torch.float32)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=values.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=values.device)
        if self.layout == "sequence":
            mean, std = mean[:, None], std[:, None]
        return (values.to(torch.float32) - mean) / std

    def fitted(self, dataset: "Dataset") -> "AudioModality":
        """Return the modality with mean and deviation of each mel band, over the frames of at most
        2,000 recordings of the training set, evenly spread."""
        transform = replace(self, mean=(), std=()).transform("", train=False)
        total = torch.zeros(2, self.mels, dtype=torch.float64)
        frames = 0
        for index in evenly(len(dataset), MEASURED).tolist():
            values = transform(dataset.read(index), SampleRNG.of(0, 0, 0)).tensor.double()
            bands = values if self.layout == "sequence" else values[0].T
            total += torch.stack([bands.sum(1), bands.square().sum(1)])
            frames += bands.shape[1]
        mean, square = total / frames
        std = (square - mean.square()).clamp(min=1e-6).sqrt()
        return replace(
            self,
            mean=tuple(round(value, 4) for value in mean.tolist()),
            std=tuple(max(1e-3, round(value, 4)) for value in std.tolist()),
        )

    def like(self, other: Modality) -> Modality:
        return other if isinstance(other, AudioModality) else self

    def padded_size(self, sample: Sample, transform: Transform) -> tuple[int, ...]:
        return tuple(sample.tensor.shape[1:])

    def input_steps(self, dense: bool) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = [{"step": "mean_of_channels"}]
        steps.append({"step": "resample", "rate": self.rate, "method": "soxr HQ"})
        if self.fixed:
            steps.append({"step": "of_length", "samples": self.samples, "value": 0})
        spectrogram = {
            "step": "log_mel",
            "rate": self.rate,
            "window": self.window,
            "hop": self.hop,
            "mels": self.mels,
            "low": self.low,
            "high": self.rate / 2 if self.high is None else self.high,
            "floor": self.floor,
            "layout": self.layout,
        }
        normalise = {"step": "normalise", "mean": list(self.mean), "std": list(self.std)}
        return [*steps, spectrogram, normalise]
