"""Training, evaluating and predicting on recordings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import plusx
from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.explain.explain import explain
from plusx.recipe import parse_recipe
from plusx.report.predictions import read_examples
from plusx.run import evaluate, load_run, train
from plusx.train.state import State
from plusx.train.update import GradientStep


pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("jiwer")

from tone_files import RATE, class_folder, manifest, spoken, tone, write


NET = """
[net]
stem = "conv3 norm act"
stem_width = 16
ndim = {ndim}
in_channels = {channels}
num_classes = {classes}
size = {size}

[[net.stages]]
depth = {depth}
width = 16
stride = 2
block = {{ body = "{body}" }}
"""
SHORT, LONG = "conv3s norm act conv3 norm + act", "conv7s norm act conv7 norm + act"
REST = """
[optim]
kind = "adamw"
lr = 1e-2

[device]
precision = "float32"
kind = "cpu"
threads = 1
"""


def spotting(root: Path, layout: str = "sequence", epochs: int = 10) -> str:
    """A recipe for a keyword network on class folders."""
    ndim, channels, size = (1, 12, 48) if layout == "sequence" else (2, 1, [48, 12])
    return f"""
epochs = {epochs}
batch_size = 8
{NET.format(ndim=ndim, channels=channels, classes=3, size=size, depth=1, body=SHORT)}
[data]
kind = "recordings"
path = {json.dumps(str(root))}
rate = {RATE}
seconds = 0.5
mels = 12
layout = "{layout}"
augment = "shift.05 gain6 freqmask2"
validation = 0.25
{REST}"""


def transcribing(path: Path, epochs: int = 15, extra: str = "", classes: int = 5) -> str:
    """A recipe for a CTC network on a manifest."""
    return f"""
epochs = {epochs}
batch_size = 8
{NET.format(ndim=1, channels=12, classes=classes, size=298, depth=2, body=LONG)}
[task]
kind = "transcribe"

[head]
kind = "ctc"

[data]
kind = "transcripts"
path = {json.dumps(str(path))}
rate = {RATE}
seconds = 3.0
mels = 12
{extra}
{REST}"""


@pytest.mark.parametrize("layout", ["sequence", "image"])
def test_keywords(tmp_path: Path, layout: str) -> None:
    root = class_folder(tmp_path / "tones", count=12)
    result = train(parse_recipe(spotting(root, layout)), tmp_path / "run", progress=False)
    assert result["validation"]["accuracy"] == 1.0
    run = load_run(tmp_path / "run")
    evaluated = evaluate(run, split="validation")
    assert evaluated["accuracy"] == 1.0
    predictor = plusx.load(tmp_path / "run")
    files = [root / letter / "0.wav" for letter in "abc"]
    rows = predictor(files)
    assert [row["label"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["path"] == str(files[0])
    assert len(predictor(root)) == 36
    shown = read_examples(tmp_path / "run" / "examples")
    assert len(shown) == 8  # of 9
    assert all(example["uri"].startswith("data:image/png;base64,") for example in shown)
    probabilities = [float(e["lines"][1].split()[-2]) for e in shown]
    assert probabilities == sorted(probabilities)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without recordings"):
        predictor(tmp_path / "empty")
    # bytes and waveforms are predicted alike
    (row,) = predictor(files[1].read_bytes())
    assert row["probabilities"] == pytest.approx(rows[1]["probabilities"], abs=1e-6)
    waveform = predictor.run.preprocessing.decode(str(files[2]))
    assert isinstance(waveform, torch.Tensor)
    (row,) = predictor(waveform[0])
    assert row["probabilities"] == pytest.approx(rows[2]["probabilities"], abs=1e-6)
    why = explain(run, files, tmp_path / "why")
    assert [row["label"] for row in why["recordings"]] == ["a", "b", "c"]
    assert all(len(row["attributions"]) == 48 for row in why["recordings"])
    assert len(list((tmp_path / "why" / "overlays").glob("*.png"))) == 3
    page = (tmp_path / "why" / "explain.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3
    # the weight file alone knows how its input is prepared
    (row,) = plusx.load(tmp_path / "run" / "model.safetensors")(files[0])
    assert row["probabilities"] == pytest.approx(rows[0]["probabilities"], abs=1e-6)


def test_unusable_inputs_are_named(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "tones", count=4)
    train(parse_recipe(spotting(root, epochs=1)), tmp_path / "run", progress=False)
    write(tmp_path / "silent.wav", np.zeros(4000))
    (tmp_path / "text.wav").write_text("no sound")
    failed: list[dict[str, str]] = []
    inputs = [root / "a/0.wav", tmp_path / "silent.wav", tmp_path / "text.wav"]
    rows = plusx.load(tmp_path / "run")(inputs, failed=failed)
    assert len(rows) == 1
    assert [Path(row["path"]).name for row in failed] == ["silent.wav", "text.wav"]
    assert "silent" in failed[0]["reason"]
    assert "not one of WAV" in failed[1]["reason"]


@pytest.mark.slow
def test_transcripts(tmp_path: Path) -> None:
    path = manifest(tmp_path / "spoken", count=120)
    result = train(parse_recipe(transcribing(path, 45)), tmp_path / "run", progress=False)
    assert result["validation"]["wer"] < 0.3
    run = load_run(tmp_path / "run")
    test = evaluate(run, split="test")
    assert test["wer"] < 0.3
    assert test["metrics"] == ["wer", "cer", "exact_match"]
    assert sorted(run.classes) == ["<blank>", "a", "b", "c", "\u2581"]
    predictor = plusx.load(tmp_path / "run")
    rng = np.random.default_rng(9)
    write(tmp_path / "new.wav", spoken("ab c", rng))
    write(tmp_path / "long.wav", spoken("ba cab", rng))
    rows = predictor([tmp_path / "new.wav", tmp_path / "long.wav"])
    assert [row["transcript"] for row in rows] == ["ab c", "ba cab"]
    # a recording's transcript does not depend on those around it
    (alone,) = predictor(tmp_path / "new.wav")
    assert alone["score"] == pytest.approx(rows[0]["score"], abs=1e-4)


@pytest.mark.slow
def test_onnx_files_predict_alike(tmp_path: Path) -> None:
    """Transcripts of any length, and keywords."""
    pytest.importorskip("onnxruntime")
    from plusx.run import export_onnx

    path = manifest(tmp_path / "spoken", count=40)
    root = class_folder(tmp_path / "tones", count=8)
    for name, text in (("words", transcribing(path, 12)), ("spot", spotting(root, epochs=3))):
        train(parse_recipe(text), tmp_path / name, progress=False)
        export_onnx(tmp_path / name, tmp_path / f"{name}.onnx")
        files = sorted((root / "a").iterdir()) + sorted((tmp_path / "spoken/clips").iterdir())[:9]
        rows = plusx.load(tmp_path / name)(files)
        same = plusx.load(tmp_path / f"{name}.onnx")(files)
        key = "transcript" if name == "words" else "label"
        assert [row[key] for row in rows] == [row[key] for row in same]
        assert len({row[key] for row in rows}) > 1
        exported = export_onnx(tmp_path / name, tmp_path / f"{name}-int8.onnx", int8=True)["int8"]
        assert exported["metric"] == {"words": "wer", "spot": "accuracy"}[name]
        assert exported["agreement"] > 0.9
        rounded = plusx.load(tmp_path / f"{name}-int8.onnx")(files)
        assert sum(a[key] == b[key] for a, b in zip(rows, rounded)) > 0.8 * len(rows)


def test_a_text_that_cannot_be_aligned_is_named_before_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        write(tmp_path / f"{number}.wav", tone("a", 0.3, rng))
    lines = "".join(f"{number}.wav,ab\n" for number in range(5))
    (tmp_path / "m.csv").write_text(f"path,text\n{lines}5.wav,{'ab' * 12}\n")
    recipe = parse_recipe(transcribing(tmp_path / "m.csv", extra="validation = 0", classes=3))
    with pytest.raises(UserError) as caught:
        train(recipe, tmp_path / "run", progress=False)
    assert "1 text of m.csv cannot be aligned" in str(caught.value)
    assert "5.wav needs 24 for 'abab" in str(caught.value)
    assert "has 14" in str(caught.value)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest(tmp_path / "spoken", count=40)
    text = transcribing(path, epochs=2, extra='augment = "speed.1 timemask5"')
    text += "\n[checkpoint]\nevery_steps = 1\nevery_seconds = 0.0\n"
    train(parse_recipe(text), tmp_path / "whole", progress=False)

    def interrupted(state: State, batch: Batch) -> torch.Tensor:
        if state.step == 4:  # in the second epoch
            raise RuntimeError("the power is gone")
        return GradientStep()(state, batch)

    with monkeypatch.context() as patch:
        patch.setattr("plusx.run.optim.update_of", lambda recipe, sharing: interrupted)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train(parse_recipe(text), tmp_path / "again", progress=False)
    assert not (tmp_path / "again" / "model.safetensors").exists()
    train(parse_recipe(text), tmp_path / "again", progress=False)
    for name in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
