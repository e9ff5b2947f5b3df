"""Synthetic recordings of spoken commands, by the speech synthesiser espeak-ng.

The phrases are those of a command grammar, and phrases outside it, which are to be rejected: half
of these are phrases of the grammar with one word left out, doubled, exchanged with the next or
replaced, and half are three to six other words. A speaker is an accent and a voice of espeak-ng.
The speakers of a split are in no other split, nor are their voices, rates and pitches; the test set
also has two accents that are in no other split. Level, silence around a phrase, and noise are
random. Everything but the program's sound follows from the arguments.

The recordings are written once, into the cache folder, as 16-bit WAV with a manifest, which
plusx.data.readers.transcripts reads.
"""

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from plusx import store
from plusx.data.command_grammar import CommandGrammar, refuse_outside
from plusx.data.modality.audio.sound_file import require_audio
from plusx.data.rng import SampleRNG
from plusx.errors import UserError


ALPHABET = " abcdefghijklmnopqrstuvwxyz'"
PROGRAM = "espeak-ng"
SILENCE = (0.1, 0.4)  # seconds before and after a phrase
LEVEL = (-12.0, 0.0)  # dB of full scale, of the largest sample
NOISE = (-75.0, -45.0)  # dB of full scale
MAX_PHRASE_SECONDS = 30.0  # longer recordings are refused
MANIFEST = "voice-commands.csv"
_FORMAT = 1  # of the digest: changed with anything that changes the recordings
_CHUNK = 64  # recordings in memory
_SECONDS = 60.0  # that the program may take for a phrase


class Voices(NamedTuple):
    """The voices of a split: every accent with every variant; rates in words per minute, and
    pitches from 0 to 99."""

    accents: tuple[str, ...]
    variants: tuple[str, ...]
    rates: tuple[int, ...]
    pitches: tuple[int, ...]


VOICES = {
    "train": Voices(
        ("en-us", "en-gb", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029"),
        (
            *("m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f4", "f5", "adam", "Andy", "Annie"),
            *("antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "edward"),
            *("gustave", "iven", "linda", "marcelo", "max", "michel", "norbert", "pablo", "paul"),
            *("quincy", "rob", "sandro", "steph", "travis", "zac"),
        ),
        (140, 155, 170, 185, 200),
        (30, 40, 50, 60, 70),
    ),
    "validation": Voices(
        ("en-us", "en-gb-x-gbclan"),
        ("m5", "Alicia", "Gene", "john", "victor", "Diogo"),
        (148, 163, 178, 193),
        (35, 45, 55, 65),
    ),
    "test": Voices(
        ("en-us", "en-gb", "en-gb-scotland", "en-us-nyc"),
        ("m8", "f3", "Andrea", "Denis", "grandpa", "Lee", "Michael", "shelby"),
        (145, 160, 175, 190, 205),
        (33, 43, 53, 63, 73),
    ),
}  # fmt: skip
SPLITS = tuple(VOICES)
# other words of the phrases outside the grammar: those of a split are in no other split
_OTHER = {
    "train": (
        "river seven table monkey yesterday green window purple bicycle where london tomorrow "
        "water happy pencil under doctor garden winter thinking about quickly orange paper "
        "someone forest village question because chicken number eleven market travel "
        "beautiful ship weather brother question again money please could you find near "
        "restaurant hospital the best way to write letter mother father what is time of and "
        "with very old jump basket church drive xylophone zebra queen journey voice judge "
        "quiet vase"
    ),
    "validation": (
        "mountain silver yellow captain driving station breakfast forty hammer jacket who "
        "knows children never island sugar uncle friday quarter zero"
    ),
    "test": (
        "elephant harbour coffee machine castle teacher remember umbrella people walking "
        "nothing football dragon velvet giant seventy mirror how many countries butter sister"
    ),
}


@dataclass(frozen=True)
class Counts:
    """Phrases of each split, and the fraction of them that is outside the grammar."""

    train: int
    validation: int
    test: int
    outside: float


class Utterance(NamedTuple):
    """A phrase and how it is spoken: samples of silence before and after it, the largest sample,
    and the deviation and the seed of the noise."""

    text: str
    accent: str
    variant: str
    words_per_minute: int
    pitch: int
    silences: tuple[int, int]
    peak: float
    noise: float
    seed: int

    @property
    def voice(self) -> str:
        return f"{self.accent}+{self.variant}"


def synthesised(grammar: CommandGrammar, counts: Counts, *, rate: int, seed: int) -> Path:
    """Return the manifest of the recordings; they are synthesised if the cache has none.

    rate: samples per second
    Raises UserError if espeak-ng is missing or lacks a voice, or the grammar has other characters
    than the alphabet.
    """
    refuse_outside(grammar, ALPHABET, "espeak-ng in English")
    terms = {
        "format": _FORMAT,
        "phrases": [[phrase, str(command)] for phrase, command in grammar.phrases.items()],
        "counts": asdict(counts),
        "rate": rate,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(terms).encode()).hexdigest()[:16]
    folder = store.cache_folder() / "data" / f"voice-commands-{digest}"
    if not (folder / MANIFEST).is_file():
        speak = espeak(rate)
        try:
            with store.atomic_folder(folder) as new:
                _write(new, grammar, counts, rate, seed, speak)
        except OSError:
            if not (folder / MANIFEST).is_file():  # unless another process was faster
                raise
    return folder / MANIFEST


Speak = Callable[[Utterance], Float32[np.ndarray, "t"]]


def espeak(rate: int) -> Speak:
    """Return a function that speaks an utterance, as samples at a rate, without silence and noise.

    Raises UserError if espeak-ng is not installed, or lacks one of the voices.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise UserError(
            "synthetic voice commands need the program espeak-ng: apt-get install espeak-ng"
        )
    listed = _run([program, "--voices=variant"]) + _run([program, "--voices=en"])
    has = {word.removeprefix("!v/").lower() for word in listed.decode("utf-8").split()}
    missing = [
        name
        for voices in VOICES.values()
        for name in (*voices.accents, *voices.variants)
        if name.lower() not in has
    ]
    if missing:
        raise UserError(
            f"espeak-ng lacks the voices {', '.join(missing)}: version 1.51 or later has them"
        )
    soxr = require_audio()[1]

    def speak(utterance: Utterance) -> Float32[np.ndarray, "t"]:
        options = ["-v", utterance.voice, "-s", str(utterance.words_per_minute)]
        options += ["-p", str(utterance.pitch), "--stdin", "--stdout"]
        data = _run([program, *options], utterance.text.encode())
        # the header of a stream has no length, so only the sample rate is read from it
        start = data.index(b"data") + 8
        with wave.open(io.BytesIO(data)) as header:
            stored_rate = header.getframerate()
        samples = np.frombuffer(data[start : len(data) - len(data) % 2], "<i2")
        waveform = soxr.resample(samples.astype(np.float32) / 2**15, stored_rate, rate)
        return np.asarray(waveform, np.float32)

    return speak


def _run(command: Sequence[str], text: bytes = b"") -> bytes:
    done = subprocess.run(command, input=text, capture_output=True, timeout=_SECONDS)
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _write(
    folder: Path, grammar: CommandGrammar, counts: Counts, rate: int, seed: int, speak: Speak
) -> None:
    """Write the recordings of all splits and their manifest."""
    rows = [["path", "text", "split", "speaker"]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in SPLITS:
            store.make_folder(folder / split)
            spoken = utterances(grammar, counts, split, rate, seed)
            numbers = itertools.count()
            while some := list(itertools.islice(spoken, _CHUNK)):
                for utterance, waveform in zip(some, pool.map(speak, some)):
                    path = f"{split}/{next(numbers):05}.wav"
                    store.write_bytes(folder / path, _wav(recorded(utterance, waveform), rate))
                    rows.append([path, utterance.text, split, utterance.voice])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    store.write_text(folder / MANIFEST, text.getvalue())


def recorded(utterance: Utterance, waveform: Float32[np.ndarray, "t"]) -> Float32[np.ndarray, "u"]:
    """Return a waveform at the level of the utterance, in its silence and noise."""
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak == 0:
        raise OSError(f"espeak-ng spoke nothing for {utterance.text!r} as {utterance.voice}")
    padded = np.pad(waveform * np.float32(utterance.peak / peak), utterance.silences)
    generator = np.random.Generator(np.random.Philox(key=utterance.seed))
    noise = generator.standard_normal(len(padded), np.float32) * np.float32(utterance.noise)
    return np.clip(padded + noise, -1, 1)


def _wav(waveform: Float32[np.ndarray, "t"], rate: int) -> bytes:
    """Return a mono WAV file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((waveform * (2**15 - 1)).round().astype("<i2").tobytes())
    return file.getvalue()


def utterances(
    grammar: CommandGrammar, counts: Counts, split: str, rate: int, seed: int
) -> Iterator[Utterance]:
    """Yield the utterances of a split, a function of the arguments.

    Commands are drawn with equal probability, and then a phrase of the command: a command with
    many values is not more frequent.
    """
    by_command: dict[tuple[str, str], list[str]] = {}
    for phrase, command in grammar.phrases.items():
        by_command.setdefault((command.verb, command.object), []).append(phrase)
    commands, voices = list(by_command.values()), VOICES[split]
    for number in range(getattr(counts, split)):
        rng = SampleRNG.of(seed, 1 + SPLITS.index(split), number)
        phrases = commands[rng.below(len(commands), 0)]
        text = phrases[rng.below(len(phrases), 1)]
        if rng.uniform(draw=2) < counts.outside:
            text = _outside(grammar, text, _OTHER[split].split(), rng)
        yield Utterance(
            text=text,
            accent=voices.accents[rng.below(len(voices.accents), 3)],
            variant=voices.variants[rng.below(len(voices.variants), 4)],
            words_per_minute=voices.rates[rng.below(len(voices.rates), 5)],
            pitch=voices.pitches[rng.below(len(voices.pitches), 6)],
            silences=(
                round(rate * rng.uniform(*SILENCE, 7)),
                round(rate * rng.uniform(*SILENCE, 8)),
            ),
            peak=10 ** (rng.uniform(*LEVEL, 9) / 20),
            noise=10 ** (rng.uniform(*NOISE, 10) / 20),
            seed=rng.bits(11) >> 1,
        )


def _outside(grammar: CommandGrammar, text: str, other: Sequence[str], rng: SampleRNG) -> str:
    """Return a phrase that the grammar does not have."""
    for attempt in range(20, 10_000, 20):
        words = text.split()
        at = rng.below(len(words), attempt)
        change = rng.below(8, attempt + 1)
        if change >= 4:
            draws = range(attempt + 2, attempt + 5 + rng.below(4, attempt + 2))
            words = [other[rng.below(len(other), draw + 1)] for draw in draws]
        elif change == 0:
            del words[at]
        elif change == 1:
            words.insert(at, words[at])
        elif change == 2:
            words[at : at + 2] = words[at : at + 2][::-1]
        else:
            words[at] = other[rng.below(len(other), attempt + 2)]
        if words and grammar.parse(phrase := " ".join(words)) is None:
            return phrase
    raise UserError(f"{grammar.name}: no phrase outside the grammar was found")
