"""Streams of sound: the outputs equal those of the network for the complete recording."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.modality import AudioModality
from plusx.data.modality.audio.log_mel import frame_lengths
from plusx.data.tokenizer import SPACE, decoded
from plusx.errors import UserError
from plusx.grammar.receptive_field import receptive_field
from plusx.nn.with_head import NetworkWithHead
from plusx.run.folder import Run
from plusx.tasks.ctc_decoding import BLANK
from plusx.tasks.transcribe import Transcribe


STEP = 0.1  # seconds between two windows of a keyword network
CHUNK = 0.5  # seconds of log-mel frames that a recogniser processes at a time
THRESHOLD = 0.5


class Event(NamedTuple):
    """A keyword or a word: `seconds` is the end of the window, or of the word's last token."""

    seconds: float
    label: str
    probability: float


class Word(NamedTuple):
    """A decoded word: the geometric mean of the probabilities of its tokens, and the position of
    the last one."""

    text: str
    probability: float
    position: int


class FrameBuffer:
    """Log-mel frames of a stream of samples, equal to those of the complete waveform."""

    def __init__(self, modality: AudioModality) -> None:
        self.modality = modality
        self.length, self.hop = frame_lengths(modality.rate, modality.window, modality.hop)
        self.samples = torch.zeros(0)

    def add(self, samples: Float32[Tensor, "t"]) -> Float32[Tensor, "*frames"] | None:
        """Return the frames that end with these samples, in the network's layout and not yet
        normalised; None if there are none."""
        self.samples = torch.cat([self.samples, samples])
        count = (len(self.samples) - self.length) // self.hop + 1
        if count < 1:
            return None
        used = self.samples[: (count - 1) * self.hop + self.length]
        frames = self.modality.spectrogram(used[None])
        self.samples = self.samples[count * self.hop :]
        return frames


class KeywordStream:
    """The predictions of a keyword network for the last `seconds` of a stream, at every step.

    step: seconds between two windows, a multiple of the spectrogram's hop
    The prediction of a window equals that of the network for its samples alone. Raises UserError if
    the run has no network for recordings of one length.
    """

    def __init__(self, run: Run, step: float = STEP) -> None:
        modality = run.preprocessing
        if not isinstance(modality, AudioModality) or not modality.fixed or not run.classifies:
            raise UserError(f"{run.path}: not a network of keywords in recordings of one length")
        self.modality, self.task, self.classes = modality, run.task, run.classes
        per_step = step / modality.hop
        self.frames_per_step = round(per_step) if math.isfinite(step) else 0
        is_multiple = math.isclose(per_step, self.frames_per_step, abs_tol=1e-6)
        if not is_multiple or self.frames_per_step < 1:
            raise UserError(f"step = {step:g} s: a multiple of the hop, {modality.hop:g} s")
        self.buffer = FrameBuffer(modality)
        self.time_dimension = 1  # of (mels, t), and of (1, t, mels)
        self.ring: Tensor | None = None
        self.dropped = 0  # frames that are no longer in the ring
        self.skipped = 0  # frames before the next window that have not arrived
        self.windows = 0
        self.samples = 0

    @property
    def latency(self) -> float:
        """Maximum seconds from a sound to the end of a window that contains it."""
        return self.frames_per_step * self.modality.hop + self.modality.window

    def add(self, samples: Float32[Tensor, "t"]) -> Iterator[tuple[float, Tensor]]:
        """Yield the end of each window that these samples complete, in seconds, and the
        probabilities of the classes."""
        self.samples += len(samples)
        frames = self.buffer.add(samples)
        if frames is None:
            return
        time = self.time_dimension
        self.ring = frames if self.ring is None else torch.cat([self.ring, frames], time)
        count = self.modality.size[0]
        while True:
            skipped = min(self.skipped, self.ring.shape[time])
            self.ring = self.ring.narrow(time, skipped, self.ring.shape[time] - skipped)
            self.dropped, self.skipped = self.dropped + skipped, self.skipped - skipped
            if self.ring.shape[time] < count:
                return
            inputs = self.modality.normalise(self.ring.narrow(time, 0, count)[None])
            with torch.inference_mode():
                prediction = self.task.predict(Batch(inputs.to(self.task.device)))
            self.windows, self.skipped = self.windows + 1, self.frames_per_step
            yield self._end(self.windows), prediction.class_scores(len(self.classes))[0].cpu()

    def _end(self, windows: int) -> float:
        """Return the end of the last of this number of windows, in seconds."""
        start = (windows - 1) * self.frames_per_step * self.buffer.hop
        return (start + self.modality.samples) / self.modality.rate

    @property
    def rest(self) -> float:
        """Seconds at the end of the stream that are in no window."""
        return self.samples / self.modality.rate - (self._end(self.windows) if self.windows else 0)


def keyword_events(
    windows: Iterator[tuple[float, Tensor]],
    classes: tuple[str, ...],
    threshold: float,
    silent: tuple[str, ...],
) -> Iterator[Event]:
    """Yield an event when a class first reaches the threshold; it can recur after a window in which
    it does not.

    silent: classes that are not events, such as the background
    """
    current = ""
    for seconds, probabilities in windows:
        best = int(probabilities.argmax())
        label, probability = classes[best], float(probabilities[best])
        if probability < threshold or label in silent:
            current = ""
        elif label != current:
            current = label
            yield Event(seconds, label, probability)


class TranscriptStream:
    """The logits of a CTC network for a stream, and its words.

    A chunk of frames is processed with the frames around it that its outputs depend on (the
    receptive field), so that the logits equal those of the complete recording.
    Raises UserError if the run has no such network, or one whose outputs depend on all frames.
    """

    def __init__(self, run: Run, chunk: float = CHUNK) -> None:
        modality, task, net = run.preprocessing, run.task, run.net
        if not (
            isinstance(modality, AudioModality)
            and isinstance(task, Transcribe)
            and isinstance(net, NetworkWithHead)
        ):
            raise UserError(f"{run.path}: not a network for transcripts with its weights in torch")
        self.modality, self.net, self.classes = modality, net, run.classes
        self.field = receptive_field(net.backbone.spec)
        self.outputs_per_chunk = max(1, round(chunk / modality.hop / self.field.stride))
        self.buffer = FrameBuffer(modality)
        self.frames: Tensor | None = None
        self.first = 0  # index of the first frame in `frames`
        self.next_output = 0
        self.decoder = WordDecoder(run.classes)

    @property
    def latency(self) -> float:
        """Maximum seconds from a sound to the outputs that depend on it."""
        frames = self.field.after + self.outputs_per_chunk * self.field.stride
        return frames * self.modality.hop + self.modality.window

    def seconds(self, output: int) -> float:
        """Return the middle of the window of an output."""
        return output * self.field.stride * self.modality.hop + self.modality.window / 2

    def add(
        self, samples: Float32[Tensor, "t"], last: bool = False
    ) -> Iterator[Float32[Tensor, "k m"]]:
        """Yield logits of the outputs that these samples complete.

        last: whether the stream ends with them, so that the rest is computed
        """
        frames = self.buffer.add(samples)
        if frames is not None:
            frames = self.modality.normalise(frames[None])[0]
            self.frames = frames if self.frames is None else torch.cat([self.frames, frames], 1)
        if self.frames is None:
            return
        field, arrived = self.field, self.first + self.frames.shape[1]
        while True:
            end = self.next_output + self.outputs_per_chunk
            needed = (end - 1) * field.stride + field.after + 1
            if needed > arrived and not last:
                return
            start = self._aligned(max(0, self.next_output * field.stride - field.before))
            stop = min(arrived, needed)
            inputs = self.frames[:, start - self.first : stop - self.first]
            with torch.inference_mode():
                logits = self.net(inputs[None].to(next(self.net.parameters()).device))[0].cpu()
            before = self.next_output - start // field.stride
            count = logits.shape[1] - before if needed > arrived else self.outputs_per_chunk
            if count > 0:
                yield logits[:, before : before + count]
            if needed > arrived:
                return
            self.next_output = end
            keep = self._aligned(max(0, end * field.stride - field.before))
            self.frames, self.first = self.frames[:, keep - self.first :], keep

    def _aligned(self, frame: int) -> int:
        """Return the frame rounded down to a multiple of the stride."""
        return frame // self.field.stride * self.field.stride

    def events(self, samples: Float32[Tensor, "t"], last: bool = False) -> Iterator[Event]:
        """Yield the words that these samples complete."""
        for logits in self.add(samples, last):
            for row in logits.log_softmax(0).T:
                yield from self._events(self.decoder.add(row))
        if last:
            yield from self._events(self.decoder.finish())

    def _events(self, word: Word | None) -> Iterator[Event]:
        if word is not None:
            yield Event(self.seconds(word.position), word.text, word.probability)


class WordDecoder:
    """Greedy decoding, position by position, into words."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.position = -1
        self.previous = BLANK
        self.word: list[str] = []
        self.scores: list[float] = []
        self.end = 0

    def add(self, log_probabilities: Float32[Tensor, "k"]) -> Word | None:
        """Process the next position; return the word that it completes, if any."""
        self.position += 1
        best = int(log_probabilities.argmax())
        repeated, self.previous = best == self.previous, best
        if best == BLANK or repeated:
            return None
        token, ended = self.classes[best], None
        if token.startswith(SPACE):
            ended, token = self.finish(), token.removeprefix(SPACE)
        if token:
            self.word.append(token)
            self.scores.append(float(log_probabilities[best]))
            self.end = self.position
        return ended

    def finish(self) -> Word | None:
        """Return the incomplete word, if any."""
        if not self.word:
            return None
        probability = math.exp(sum(self.scores) / len(self.scores))
        word = Word(decoded(self.word), probability, self.end)
        self.word, self.scores = [], []
        return word
