"""Sound on the CPU: loading recordings, log-mel spectrograms, a keyword network at batch size 1.

    pip install --requirement benchmarks/requirements.txt
    python benchmarks/sound.py RECORDINGS [--rounds 9] [--tiny]

RECORDINGS is a folder of recordings at 8 kHz whose names begin with their class, such as those of
the Free Spoken Digit Dataset. One thread each, in turns, after a check of equal results:

    log-mel   plusx.log_mel against torch.stft, power, mel filters and logarithm in float32
    loading   an epoch of log-mel batches from files: plusx's loader, with batches of similar
              lengths, against a torch DataLoader that reads each file with soundfile, computes the
              same spectrogram as above in float32, and pads the batch to its longest; the first
              epoch decodes, and later epochs of plusx find the waveforms in memory
    network   TC-ResNet8 for one recording of 1 s: plusx.export and its OnnxNetwork, against
              torch.onnx.export of the same network in ONNX Runtime

A ratio is the peer's time over ours: above 1 we are faster. Writes results/benchmark_sound.json.
Exits with status 1 if a ratio is below its target.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soundfile
import torch
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record
from torch import Tensor
from torch.utils.data import DataLoader

import plusx
from plusx.data.loader import Loader
from plusx.data.modality import AudioModality
from plusx.data.modality.audio.log_mel import frame_lengths, mel_filters
from plusx.data.readers.recordings import open_recordings
from plusx.export import OnnxNetwork, to_onnx
from plusx.export.agreement import TOLERANCE


RATE, MELS, BATCH = 8000, 40, 64
TARGETS = {"log-mel": 1.0, "first epoch": 1.0, "later epochs": 1.0, "network": 0.97}


class PlainLogMel:
    """The log-mel spectrogram as it is usually written: torch.stft in float32."""

    def __init__(self) -> None:
        self.length, self.step = frame_lengths(RATE, 0.025, 0.010)
        self.fft = 256
        self.window = torch.hann_window(self.length)
        self.filters = mel_filters(RATE, self.fft, MELS, 20.0, RATE / 2).float()
        before = (self.fft - self.length) // 2
        self.padding = (before, self.fft - self.length - before)

    def __call__(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            torch.nn.functional.pad(waveform, self.padding),
            self.fft,
            self.step,
            self.length,
            window=self.window,
            center=False,
            return_complex=True,
        )
        return (self.filters @ spectrum.abs().square()).clamp(min=1e-6).log()


class PlainRecordings(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Recordings of a folder as a torch data set: read, transform."""

    def __init__(self, paths: list[str], labels: list[int]) -> None:
        self.paths, self.labels = paths, labels
        self.log_mel = PlainLogMel()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        waveform, _ = soundfile.read(self.paths[index], dtype="float32")
        return self.log_mel(torch.from_numpy(waveform)), self.labels[index]


def padded(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack spectrograms of different lengths."""
    lengths = torch.tensor([values.shape[1] for values, _ in samples])
    inputs = torch.zeros(len(samples), MELS, int(lengths.max()))
    for row, (values, _) in zip(inputs, samples):
        row[:, : values.shape[1]] = values
    return inputs, lengths, torch.tensor([label for _, label in samples])


def our_loader(root: Path) -> Loader:
    """A new loader, without waveforms in memory."""
    modality = AudioModality(rate=RATE, seconds=20.0, fixed=False, mels=MELS)
    dataset = open_recordings(root, modality, split="all", label=r"^(\d)_")
    return Loader(dataset, split="train", batch_size=BATCH, sampler="bucketed", drop_last=False)


def peer_loader(root: Path) -> "DataLoader[Any]":
    paths = sorted(str(path) for path in root.iterdir() if path.suffix == ".wav")
    labels = [int(Path(path).name[0]) for path in paths]
    recordings = PlainRecordings(paths, labels)
    return DataLoader(recordings, batch_size=BATCH, shuffle=True, collate_fn=padded)


def spectrograms(root: Path, rounds: int) -> dict[str, Any]:
    """plusx.log_mel and the plain one, for 200 recordings one after the other."""
    paths = sorted(root.glob("*.wav"))
    waveforms = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths[:200]]
    plain = PlainLogMel()
    ours = [plusx.log_mel(waveform, RATE, mels=MELS) for waveform in waveforms]
    difference = max(float((plain(w) - values).abs().max()) for w, values in zip(waveforms, ours))
    if not difference < 0.01:  # float32 at the bands of least energy
        raise ValueError(f"another spectrogram: {difference}")
    times = in_turns(
        {
            "ours": lambda: [plusx.log_mel(waveform, RATE, mels=MELS) for waveform in waveforms],
            "peer": lambda: [plain(waveform) for waveform in waveforms],
        },
        rounds,
    )
    return row("log-mel", times, difference)


def loading(root: Path, rounds: int) -> list[dict[str, Any]]:
    """Epochs of both loaders: the first, which decodes, and later ones."""
    later, peer = our_loader(root), peer_loader(root)
    ours = sum(int(batch.lengths.sum()) for batch in later.epoch(0) if batch.lengths is not None)
    theirs = sum(int(lengths.sum()) for _, lengths, _ in peer)
    if ours != theirs:
        raise ValueError(f"other recordings: {ours} and {theirs} frames")
    epoch = iter(range(1, 10_000))
    fresh = [our_loader(root) for _ in range(rounds)]
    times = in_turns(
        {
            "first": lambda: len(list(fresh.pop().epoch(0))),
            "later": lambda: len(list(later.epoch(next(epoch)))),
            "peer": lambda: len(list(peer)),
        },
        rounds,
    )
    return [
        row("first epoch", {"ours": times["first"], "peer": times["peer"]}, 0.0),
        row("later epochs", {"ours": times["later"], "peer": times["peer"]}, 0.0),
    ]


def network(rounds: int) -> dict[str, Any]:
    """The keyword network for one recording, exported by plusx and by torch.onnx.export."""
    torch.manual_seed(SEED)
    net = plusx.create_model("tc_resnet8", in_channels=MELS, num_classes=12).eval()
    values = torch.randn(1, MELS, 98)
    ours = OnnxNetwork(to_onnx(net, values))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "peer.onnx")
        torch.onnx.export(net, (values,), path, dynamo=True, input_names=["input"], verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    inputs = {"input": values.numpy()}
    difference = float(np.abs(ours(values).numpy() - session.run(None, inputs)[0]).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"another network: logits differ by {difference}")

    def often(answer: Callable[[], object]) -> Callable[[], object]:
        return lambda: [answer() for _ in range(200)]

    times = in_turns(
        {
            "ours": often(lambda: ours(values).numpy()),
            "peer": often(lambda: session.run(None, inputs)[0]),
        },
        rounds,
    )
    return row("network", times, difference)


def row(name: str, times: dict[str, Any], difference: float) -> dict[str, Any]:
    wall = {contender: each.wall for contender, each in times.items()}
    return {
        "name": name,
        "difference": difference,
        "threads": 1,
        "target": TARGETS[name],
        "seconds": {contender: float(np.median(taken)) for contender, taken in wall.items()},
        "ratio": asdict(ratio(wall["peer"], wall["ours"])),
        "processor_time_ratio": asdict(ratio(times["peer"].processor, times["ours"].processor)),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Sound: loading, log-mel, a keyword network.")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_sound.json")
    parser.add_argument("--tiny", action="store_true", help="two rounds, no targets")
    args = parser.parse_args(arguments)
    load_before, before = load(), torch.get_num_threads()
    rounds = 2 if args.tiny else args.rounds
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = [network(rounds), spectrograms(args.recordings, rounds)]
        rows += loading(args.recordings, rounds)
    torch.set_num_threads(before)
    estimates = {each["name"]: Estimate(**each["ratio"]) for each in rows}
    for name, estimate in estimates.items():
        print(f"{name:14} {estimate}")
    record(
        args.out,
        rows,
        estimates,
        recipe={"rounds": rounds, "batch": BATCH, "rate": RATE, "mels": MELS, "targets": TARGETS},
        versions={name: version(name) for name in ("onnx", "onnxruntime", "soundfile")},
        load_before=load_before,
    )
    failed = [
        f"{each['name']}: {each['ratio']['value']:.3f}, the target is {each['target']}"
        for each in rows
        if each["ratio"]["value"] < each["target"] and not args.tiny
    ]
    for line in failed:
        print(f"missed: {line}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
