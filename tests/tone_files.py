"""Recordings of tones for tests: a letter is a tone, so that small networks learn to read them."""

from pathlib import Path

import numpy as np
import soundfile


RATE = 8_000
HERTZ = {"a": 400.0, "b": 900.0, "c": 1_600.0, "d": 2_600.0}


def tone(letter: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A tone with random phase and level, and faded ends."""
    t = np.arange(round(RATE * seconds)) / RATE
    level = rng.uniform(0.1, 0.5)
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.01)
    return level * fade * np.sin(2 * np.pi * HERTZ[letter] * t + rng.uniform(0, 6))


def spoken(text: str, rng: np.random.Generator) -> np.ndarray:
    """A tone per letter, with pauses between them and a longer one for a space."""
    parts = [np.zeros(round(RATE * 0.05))]
    for letter in text:
        pause = np.zeros(round(RATE * (0.15 if letter == " " else rng.uniform(0.03, 0.06))))
        parts += [pause] if letter == " " else [tone(letter, rng.uniform(0.1, 0.2), rng), pause]
    waveform = np.concatenate(parts)
    return (waveform + rng.normal(0, 1e-3, len(waveform))).astype(np.float32)


def write(path: Path, waveform: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate)
    return path


def class_folder(root: Path, count: int = 8, letters: str = "abc", seed: int = 0) -> Path:
    """ROOT/LETTER/NUMBER.wav, recordings of 0.2 to 0.5 s."""
    rng = np.random.default_rng(seed)
    for letter in letters:
        for number in range(count):
            padded = [rng.normal(0, 1e-3, 400), tone(letter, rng.uniform(0.15, 0.4), rng)]
            write(root / letter / f"{number}.wav", np.concatenate(padded))
    return root


def manifest(root: Path, count: int = 24, seed: int = 0) -> Path:
    """ROOT/manifest.csv with path, text and split, and recordings of one to three letters."""
    rng = np.random.default_rng(seed)
    lines = ["path,text,split"]
    for number in range(count):
        letters = rng.choice(list("abc"), rng.integers(1, 4))
        text = " ".join(["".join(letters[:2]), "".join(letters[2:])]).strip()
        write(root / f"clips/{number}.wav", spoken(text, rng))
        split = ("train", "train", "train", "validation", "test")[number % 5]
        lines.append(f"clips/{number}.wav,{text},{split}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root / "manifest.csv"
