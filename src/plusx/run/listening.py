"""Keywords, words and commands in sound from a file or a stream, as rows."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.image_file import UnreadableInput, printable
from plusx.data.modality import AudioModality
from plusx.data.modality.audio.sound_file import read_sound
from plusx.data.readers.recordings import BACKGROUND, UNKNOWN
from plusx.errors import UserError
from plusx.run.folder import Run
from plusx.run.sources import reason_of
from plusx.run.spoken_commands import CommandStream
from plusx.run.streaming import STEP, THRESHOLD, KeywordStream, TranscriptStream, keyword_events
from plusx.tasks.within_grammar import WithinGrammar


BLOCK = 0.05  # seconds that are read at a time
# classes that are not keywords, also by their names in Speech Commands
SILENT = (UNKNOWN, BACKGROUND, "_unknown_", "_silence_", "silence", "noise", "_background_noise_")

Samples = Float32[Tensor, "t"]


@dataclass
class Listener:
    """Finds keywords, words or commands in the sound of a file or a stream.

    hops: a row for every window of a keyword network, not only for events
    threshold: probability from which a keyword is an event
    step: seconds between two windows
    seconds: length of the sound so far
    busy: seconds of computing so far
    warnings: parts of the sound that were not evaluated, and other warnings
    """

    run: Run
    hops: bool = False
    threshold: float = THRESHOLD
    step: float = STEP
    seconds: float = 0.0
    busy: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.run.preprocessing, AudioModality):
            raise UserError(f"{self.run.path} is not a network for sound")
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold = {self.threshold:g}: it must be above 0 and at most 1")
        self.modality = self.run.preprocessing
        self.stream: KeywordStream | TranscriptStream | CommandStream
        if self.modality.fixed:
            self.stream = KeywordStream(self.run, self.step)
        elif self.hops:
            raise UserError("--hops is for networks of keywords; this one has transcripts")
        elif self.step != STEP:
            raise UserError("--step is for networks of keywords; this one has transcripts")
        elif isinstance(self.run.task, WithinGrammar):
            self.stream = CommandStream(self.run)
        else:
            self.stream = TranscriptStream(self.run)

    @property
    def latency(self) -> float:
        """Maximum seconds from a sound to its row, without the time of computing."""
        return self.stream.latency

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of sound."""
        return self.busy / self.seconds if self.seconds else 0.0

    def file_rows(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file. Raises UserError if it cannot be read."""
        try:
            sound = read_sound(path, self.modality.rate, allow_silence=True)
        except (UnreadableInput, OSError) as error:
            raise UserError(f"{printable(path)}: {reason_of(error)}") from None
        if sound.warning is not None:
            self.warnings.append(f"{printable(path)}: {sound.warning}")
        waveform = torch.from_numpy(sound.waveform)
        yield from self.rows(waveform.split(max(1, round(BLOCK * self.modality.rate))))

    def pcm_rows(self, stream: BufferedIOBase) -> Iterator[dict[str, Any]]:
        """Yield the rows of a stream of 16-bit little-endian mono PCM at the network's rate."""
        yield from self.rows(self._pcm_blocks(stream))

    def _pcm_blocks(self, stream: BufferedIOBase) -> Iterator[Samples]:
        size = 2 * max(1, round(BLOCK * self.modality.rate))
        rest = b""
        while data := stream.read1(size):  # does not wait for a full block
            data = rest + data
            rest = data[len(data) - len(data) % 2 :]
            samples = bytearray(data[: len(data) - len(rest)])
            if samples:
                # torch uses the machine's byte order, and supports only little-endian ones
                yield torch.frombuffer(samples, dtype=torch.int16).float() / 2**15
        if rest:
            self.warnings.append("the stream ends in the middle of a sample: 1 byte is ignored")

    def rows(self, blocks: "Iterator[Samples] | tuple[Samples, ...]") -> Iterator[dict[str, Any]]:
        """Yield the rows of a waveform in blocks; times to a tenth of a millisecond."""
        for row in self._rows(blocks):
            yield row | {"seconds": round(row["seconds"], 4)}

    def _rows(self, blocks: "Iterator[Samples] | tuple[Samples, ...]") -> Iterator[dict[str, Any]]:
        if not isinstance(self.stream, KeywordStream):
            for event in self._events(self.stream, iter(blocks)):
                yield event._asdict()
            return
        windows = self._windows(self.stream, iter(blocks))
        if not self.hops:
            for event in keyword_events(windows, self.run.classes, self.threshold, SILENT):
                yield event._asdict()
            return
        for seconds, probabilities in windows:
            best = int(probabilities.argmax())
            label, probability = self.run.classes[best], float(probabilities[best])
            yield {"seconds": seconds, "label": label, "probability": probability}

    def _windows(
        self, stream: KeywordStream, blocks: Iterator[Samples]
    ) -> Iterator[tuple[float, Tensor]]:
        before_window: list[Samples] = []  # blocks before the first complete window
        for block in self._counted(blocks):
            if not stream.windows:
                before_window.append(block)
            yield from self._timed(stream.add(block))
        if not self.seconds:
            self.warnings.append("the stream is empty")
        elif not stream.windows:
            self.warnings.append(
                f"the stream ends after {self.seconds:.3f} s, before the first window of "
                f"{self.modality.seconds:g} s: it is evaluated in the middle of silence"
            )
            probabilities = self._padded(torch.cat(before_window))
            yield from self._timed(iter([(self.seconds, probabilities)]))
        elif stream.rest > 0.5 / self.modality.rate:
            self.warnings.append(
                f"the last {stream.rest:.3f} s are less than a step of {self.step:g} s, and in no "
                "window"
            )

    def _padded(self, waveform: Samples) -> Float32[Tensor, "k"]:
        """Return the probabilities of a waveform shorter than a window."""
        missing = self.modality.samples - len(waveform)
        padded = torch.nn.functional.pad(waveform, (missing // 2, missing - missing // 2))
        inputs = self.modality.normalise(self.modality.spectrogram(padded[None])[None])
        with torch.inference_mode():
            prediction = self.run.task.predict(Batch(inputs.to(self.run.task.device)))
        return prediction.class_scores(len(self.run.classes))[0].cpu()

    def _events(
        self, stream: TranscriptStream | CommandStream, blocks: Iterator[Samples]
    ) -> Iterator[Any]:
        for block in self._counted(blocks):
            yield from self._timed(stream.events(block))
        yield from self._timed(stream.events(torch.zeros(0), last=True))
        if self.seconds < self.modality.window:
            self.warnings.append(
                f"the stream ends after {self.seconds:.3f} s, before the first window of "
                f"{self.modality.window:g} s"
            )

    def _counted(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self.seconds += len(block) / self.modality.rate
            yield block

    def _timed(self, results: Iterator[Any]) -> Iterator[Any]:
        """Yield the results, and add the time that they take to `busy`."""
        while True:
            start = time.perf_counter()
            result = next(results, None)
            self.busy += time.perf_counter() - start
            if result is None:
                return
            yield result
