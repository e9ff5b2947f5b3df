"""Sound as it arrives gives what the network gives for the whole recording."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import plusx
from plusx.data.modality import AudioModality
from plusx.errors import UserError
from plusx.grammar.heads import Ctc
from plusx.grammar.model import WithHead
from plusx.grammar.receptive_field import ReceptiveField, receptive_field
from plusx.nn.build import build
from plusx.run.folder import Run
from plusx.tasks.classify import Classify


soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("jiwer")

from plusx.run.listening import Listener  # noqa: E402
from plusx.run.streaming import FrameBuffer, KeywordStream, TranscriptStream  # noqa: E402
from plusx.tasks.transcribe import Transcribe  # noqa: E402
from tone_files import RATE, class_folder, manifest, spoken, tone, write  # noqa: E402


FREE = AudioModality(
    rate=RATE, seconds=60.0, fixed=False, mels=12, mean=(-5.0,) * 12, std=(3.0,) * 12
)
FIXED = AudioModality(rate=RATE, seconds=0.5, mels=12, mean=(-5.0,) * 12, std=(3.0,) * 12)
VOCABULARY = ("<blank>", "\u2581", "a", "b", "c")
BODIES = (
    "conv3s norm act conv3 norm + act",
    "norm act | conv5s norm act conv3d2 +",
    "conv3s act conv1 norm ~",
    "conv7sdw conv1 norm + act",
    "conv3s norm act",
)


def spec(body: str, stem: str, stride: int, depth: int, shortcut: str, norm: Any) -> plusx.Net:
    block = plusx.Block(body=body, shortcut=shortcut)
    return plusx.Net(
        stem=stem,
        stem_width=8,
        stages=(
            plusx.Stage(block=block, depth=depth, width=8),
            plusx.Stage(block=block, depth=1, width=12, stride=stride),
        ),
        tail="norm act pool",
        ndim=1,
        in_channels=12,
        num_classes=5,
        size=200,
        norm=norm,
    )


SPECS = st.tuples(
    st.sampled_from(BODIES),
    st.sampled_from(("conv5 norm act", "conv5s2 norm act", "conv3 act maxpool3s2")),
    st.sampled_from((1, 2)),
    st.integers(1, 2),
    st.sampled_from(("conv1s norm", "avgpool2s conv1 norm")),
    st.sampled_from(("batch", "layer")),
)


def recogniser(net_spec: plusx.Net) -> Run:
    torch.manual_seed(0)
    net = build(WithHead(backbone=net_spec, head=Ctc(), num_classes=5)).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return run_of(net, Transcribe(net, vocabulary=VOCABULARY).eval(), VOCABULARY, FREE)


def run_of(net: Any, task: Any, classes: tuple[str, ...], modality: AudioModality) -> Run:
    return Run(
        path=Path("made"),
        net=net,
        task=task,
        classes=classes,
        preprocessing=modality,
        recipe=None,
        finished=True,
    )


def pieces(waveform: Tensor, seed: int) -> list[Tensor]:
    """The waveform in pieces of random lengths, some of them empty."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(waveform) + 1, rng.integers(0, 30)))
    return list(waveform.tensor_split(torch.from_numpy(cuts)))


def offline(run: Run, waveform: Tensor) -> Tensor:
    modality = run.preprocessing
    assert isinstance(modality, AudioModality)
    with torch.no_grad():
        logits: Tensor = run.net(modality.normalise(modality.spectrogram(waveform[None])[None]))
    return logits[0]


@settings(deadline=None, max_examples=25)
@given(SPECS, st.integers(0, 10_000), st.floats(0.03, 4.0), st.floats(0.02, 1.0))
def test_a_streamed_recording_has_the_logits_of_the_whole(
    fields: tuple[Any, ...], seed: int, seconds: float, chunk: float
) -> None:
    run = recogniser(spec(*fields))
    waveform = torch.randn(
        round(seconds * RATE), generator=torch.Generator().manual_seed(seed)
    ).mul(0.1)
    stream = TranscriptStream(run, chunk)
    streamed = [logits for piece in pieces(waveform, seed) for logits in stream.add(piece)]
    streamed += list(stream.add(torch.zeros(0), last=True))
    expected = offline(run, waveform)
    together = torch.cat(streamed, 1)
    assert together.shape == expected.shape
    assert torch.allclose(together, expected, atol=2e-4)


@settings(deadline=None, max_examples=15)
@given(SPECS)
def test_outputs_depend_on_their_receptive_field_alone(fields: tuple[Any, ...]) -> None:
    """A change outside of it changes nothing; one at its edges can."""
    net_spec = spec(*fields)
    run, field = recogniser(net_spec), receptive_field(replace(net_spec, tail="norm act"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 12, 120, dtype=torch.float64, generator=generator).requires_grad_()
    net = run.net.double()
    output = net(x)[0, :, 120 // field.stride // 2]
    (gradient,) = torch.autograd.grad(output.abs().sum(), x)
    touched = gradient[0].abs().sum(0).nonzero()[:, 0]
    assert len(touched) > 1
    middle = 120 // field.stride // 2 * field.stride
    assert int(touched.min()) >= middle - field.before
    assert int(touched.max()) <= middle + field.after


def test_receptive_fields() -> None:
    assert receptive_field(
        plusx.Net(
            stem="conv5s2 norm act",
            stem_width=4,
            stages=(plusx.Stage(block=plusx.Block(body="conv3 act conv3d2 +"), depth=2, width=4),),
            tail="",
            ndim=1,
        )
    ) == ReceptiveField(before=2 + 2 * (1 + 2) * 2, after=2 + 2 * (1 + 2) * 2, stride=2)
    for change, message in (
        ({"norm": "instance"}, "depends on the whole sequence"),
        ({"ndim": 2}, "2 dimensions"),
        ({"tail": "pool"}, "'pool' depends on the whole sequence"),
        ({"stem": "conv3 se/4"}, "'se/4' depends"),
    ):
        fields: dict[str, Any] = {
            "stem": "conv3",
            "stem_width": 4,
            "stages": (plusx.Stage(block=plusx.Block(body="conv3 +"), depth=1, width=4),),
            "tail": "",
            "ndim": 1,
        }
        with pytest.raises(UserError, match=message):
            receptive_field(plusx.Net(**{**fields, **change}))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(0, 6_000))
def test_frames_are_those_of_the_whole_waveform(seed: int, samples: int) -> None:
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1
    buffer = FrameBuffer(FREE)
    frames = [buffer.add(piece) for piece in pieces(waveform, seed)]
    computed = [frame for frame in frames if frame is not None]
    if samples < 200:
        assert not computed
        return
    assert torch.allclose(torch.cat(computed, 1), FREE.spectrogram(waveform[None]), atol=1e-5)


def spotter(layout: str) -> Run:
    ndim, channels, size = (1, 12, 48) if layout == "sequence" else (2, 1, (48, 12))
    torch.manual_seed(1)
    net = build(
        plusx.Net(
            stem="conv3 norm act",
            stem_width=8,
            stages=(
                plusx.Stage(
                    block=plusx.Block(body="conv3 norm act conv3 norm + act"), depth=1, width=8
                ),
            ),
            ndim=ndim,  # type: ignore[arg-type]
            in_channels=channels,
            num_classes=3,
            size=size,
        )
    ).eval()
    classes = ("a", "b", "unknown")
    modality = AudioModality(
        rate=RATE,
        seconds=0.5,
        mels=12,
        layout=layout,  # type: ignore[arg-type]
        mean=(-5.0,) * 12,
        std=(3.0,) * 12,
    )
    return run_of(net, Classify(net, class_names=classes).eval(), classes, modality)


@pytest.mark.parametrize("layout", ["sequence", "image"])
@pytest.mark.parametrize("step", [0.01, 0.1, 0.7])
def test_every_window_is_predicted_as_if_it_were_alone(layout: str, step: float) -> None:
    run = spotter(layout)
    waveform = torch.randn(3 * RATE, generator=torch.Generator().manual_seed(3)) * 0.1
    stream = KeywordStream(run, step)
    windows = [window for piece in pieces(waveform, 5) for window in stream.add(piece)]
    assert len(windows) == int((2.5 + 1e-9) / step) + 1
    predictor = plusx.Predictor(run, device="cpu")
    for number, (seconds, probabilities) in enumerate(windows):
        end = round(seconds * RATE)
        assert end == RATE // 2 + round(number * step * RATE)
        (row,) = predictor(waveform[end - RATE // 2 : end])
        assert probabilities.tolist() == pytest.approx(row["probabilities"], abs=1e-5)
    assert stream.rest == pytest.approx((3 * RATE - end) / RATE)


def test_streams_refuse_other_networks() -> None:
    with pytest.raises(UserError, match="not a network for transcripts"):
        TranscriptStream(spotter("sequence"))
    run = recogniser(spec(BODIES[0], "conv5 norm act", 1, 1, "conv1s norm", "batch"))
    with pytest.raises(UserError, match="not a network of keywords"):
        KeywordStream(run)
    with pytest.raises(UserError, match="a multiple of the hop"):
        KeywordStream(spotter("sequence"), 0.015)
    with pytest.raises(UserError, match="step = nan s: a multiple of the hop"):
        KeywordStream(spotter("sequence"), float("nan"))
    with pytest.raises(UserError, match="--step is for networks of keywords"):
        Listener(run, step=0.2)
    with pytest.raises(UserError, match="--hops is for networks of keywords"):
        Listener(run, hops=True)


def pcm(waveform: np.ndarray) -> bytes:
    return (waveform * 32767).astype("<i2").tobytes()


def test_streams_that_end_early_say_so() -> None:
    rng = np.random.default_rng(0)
    short = tone("a", 0.3, rng)
    listener = Listener(spotter("sequence"), hops=True)
    rows = list(listener.pcm_rows(io.BytesIO(pcm(short) + b"x")))
    assert [row["seconds"] for row in rows] == [pytest.approx(0.3)]
    assert "ends in the middle of a sample: 1 byte is ignored" in listener.warnings[0]
    assert "before the first window of 0.5 s" in listener.warnings[1]
    listener = Listener(spotter("sequence"), hops=True)
    rows = list(listener.pcm_rows(io.BytesIO(pcm(tone("a", 0.75, rng)))))
    assert [row["seconds"] for row in rows] == pytest.approx([0.5, 0.6, 0.7])
    assert listener.warnings == ["the last 0.050 s are less than a step of 0.1 s, and in no window"]
    listener = Listener(spotter("sequence"))
    assert list(listener.pcm_rows(io.BytesIO(b""))) == []
    assert listener.warnings == ["the stream is empty"]


@pytest.mark.slow
def test_the_command_listens(tmp_path: Path) -> None:
    from plusx.recipe import parse_recipe
    from plusx.run import train
    from test_sound_runs import spotting, transcribing

    root = class_folder(tmp_path / "tones", count=12)
    train(parse_recipe(spotting(root)), tmp_path / "spot", progress=False)
    rng = np.random.default_rng(0)
    quiet = rng.normal(0, 1e-3, RATE)
    sound = np.concatenate([quiet, tone("b", 0.4, rng), quiet, tone("c", 0.4, rng), quiet])
    write(tmp_path / "two.wav", sound)
    run = [sys.executable, "-m", "plusx", "listen", str(tmp_path / "spot")]

    def rows(*more: str, data: bytes | None = None) -> tuple[list[dict[str, Any]], str]:
        done = subprocess.run([*run, *more], input=data, capture_output=True, check=True)
        lines = done.stdout.decode().splitlines()
        return [json.loads(line) for line in lines], done.stderr.decode()

    hops, summary = rows(str(tmp_path / "two.wav"), "--hops")
    assert set(hops[0]) == {"seconds", "label", "probability"}
    assert len(hops) == (len(sound) - RATE // 2) // (RATE // 10) + 1
    assert "real-time factor" in summary
    assert "latency" in summary
    # what arrives on standard input has the same rows
    streamed, _ = rows("-", "--hops", data=pcm(sound))
    assert [row["label"] for row in streamed] == [row["label"] for row in hops]
    # the network of the command, on the window that ends there
    stored, _ = soundfile.read(tmp_path / "two.wav", dtype="float32")
    end = round(hops[7]["seconds"] * RATE)
    (row,) = plusx.load(tmp_path / "spot")(stored[end - RATE // 2 : end])
    assert row["label"] == hops[7]["label"]
    assert row["probability"] == pytest.approx(hops[7]["probability"], abs=1e-5)
    events, _ = rows(str(tmp_path / "two.wav"), "--threshold", "0.9")
    labels = [event["label"] for event in events]
    assert "b" in labels
    assert "c" in labels[labels.index("b") :]
    assert len(events) < len(hops)
    # transcripts: a row a word
    path = manifest(tmp_path / "spoken", count=120)
    train(parse_recipe(transcribing(path, 45)), tmp_path / "words", progress=False)
    write(tmp_path / "new.wav", np.concatenate([spoken("ab c", rng), quiet, spoken("ca", rng)]))
    run[-1] = str(tmp_path / "words")
    words, _ = rows(str(tmp_path / "new.wav"))
    (whole,) = plusx.load(tmp_path / "words")(tmp_path / "new.wav")
    assert " ".join(row["label"] for row in words) == whole["transcript"]
    assert [row["seconds"] for row in words] == sorted(row["seconds"] for row in words)
    failed = subprocess.run([*run, str(tmp_path / "none.wav")], capture_output=True)
    assert failed.returncode == 2
    assert b"none.wav: No such file" in failed.stderr
