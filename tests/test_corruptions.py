"""Common corruptions: laws over generated images, and `plusx corrupt` on runs."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import small_run
from page_reader import Page
from plusx import cli
from plusx.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from plusx.errors import UserError
from plusx.recipe import parse_recipe
from plusx.run import corrupting, train


def image_of(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """A smooth image with some structure."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    phases = rng.uniform(0, 6, channels)
    image = 0.5 + 0.4 * np.sin(6 * rows[..., None] + 4 * columns[..., None] + phases)
    return image.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    height=st.integers(8, 60),
    width=st.integers(8, 60),
    channels=st.sampled_from([1, 2, 3, 5]),
    seed=st.integers(0, 9),
)
def test_size_range_and_repetition(kind, severity, height, width, channels, seed):
    image = image_of(height, width, channels, seed)
    before = image.copy()
    first = corrupt(image, kind, severity, np.random.default_rng(seed))
    assert first.shape == image.shape
    assert np.array_equal(image, before)
    assert first.min() >= 0
    assert first.max() <= 1
    assert np.allclose(first * 255, (first * 255).round(), atol=1e-3)
    repeated = corrupt(image, kind, severity, np.random.default_rng(seed))
    assert np.array_equal(first, repeated)


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize(
    "kind", ["gaussian-noise", "shot-noise", "impulse-noise", "brightness", "contrast", "jpeg"]
)
def test_the_change_grows_with_the_severity(kind, side):
    image = image_of(side, side, 3)
    changes = [
        np.abs(corrupt(image, kind, severity, np.random.default_rng(0)) - image).mean()
        for severity in SEVERITIES
    ]
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_noise_has_the_deviation_of_the_published_sets():
    for side, deviation in ((32, 0.04), (224, 0.08)):
        grey = np.full((side, side, 3), 0.5, np.float32)
        noise = corrupt(grey, "gaussian-noise", 1, np.random.default_rng(0)) - grey
        assert noise.std() == pytest.approx(deviation, rel=0.05)
        assert abs(noise.mean()) < 0.004
    # photons: the variance of a Poisson number over its square is 1 / mean
    grey = np.full((64, 64, 3), 0.4, np.float32)
    shot = corrupt(grey, "shot-noise", 5, np.random.default_rng(0))
    assert shot.var() == pytest.approx(0.4 / 50, rel=0.1)
    salted = corrupt(grey, "impulse-noise", 5, np.random.default_rng(0))
    assert np.isin(salted, (0.0, 1.0)).mean() == pytest.approx(0.07, abs=0.01)


def test_contrast_keeps_means_and_brightness_keeps_hues():
    image = image_of(40, 40, 3)
    flat = corrupt(image, "contrast", 2, np.random.default_rng(0))
    assert np.allclose(flat.mean((0, 1)), image.mean((0, 1)), atol=0.003)
    assert flat.std() == pytest.approx(image.std() / 2, rel=0.05)
    pale = np.full((10, 10, 3), (0.6, 0.3, 0.15), np.float32)
    bright = corrupt(pale, "brightness", 2, np.random.default_rng(0))
    assert bright[0, 0] == pytest.approx([0.7, 0.35, 0.175], abs=0.003)
    assert corrupt(np.zeros((9, 9, 3)), "brightness", 2, np.random.default_rng(0)).min() > 0.09


def test_blurs_keep_a_constant_image_and_jpeg_is_pillows():
    constant = np.full((50, 50, 3), 102 / 255, np.float32)
    for kind in ("defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "elastic", "pixelate"):
        for severity in SEVERITIES:
            blurred = corrupt(constant, kind, severity, np.random.default_rng(0))
            assert np.allclose(blurred, constant, atol=1e-6), (kind, severity)
    image = image_of(48, 40, 3)
    file = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file)) / 255
    assert np.allclose(corrupt(image, "jpeg", 5, np.random.default_rng(0)), expected, atol=1e-6)


def test_unknown_kinds_and_severities_are_refused():
    image = image_of(8, 8, 1)
    with pytest.raises(UserError, match="fog"):
        corrupt(image, "fogg", 1, np.random.default_rng(0))
    with pytest.raises(UserError, match="from 1 to 5"):
        corrupt(image, "fog", 6, np.random.default_rng(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits."""
    folder = tmp_path_factory.mktemp("corrupt") / "run"
    text = small_run.recipe(60, 64).replace("pad1 crop flip", "").replace("drop.2 ", "")
    train(parse_recipe(text.replace("every_steps = 1", "every_steps = 0")), folder, progress=False)
    return folder


def call(*words: object, capsys: pytest.CaptureFixture[str]) -> dict:
    assert cli.run(["corrupt", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_means_and_page(run, capsys, tmp_path):
    out = tmp_path / "out"
    result = call(
        run, "--kinds", "contrast,motion-blur", "--severities", "5,1", "--images", 90, "--out", out,
        capsys=capsys,
    )  # fmt: skip
    cells = {(row["corruption"], row["severity"]): row for row in result["rows"]}
    assert list(cells) == [("contrast", 1), ("contrast", 5), ("motion-blur", 1), ("motion-blur", 5)]
    for row in result["rows"]:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert cells["contrast", 5]["accuracy"] < cells["contrast", 1]["accuracy"]
    mean = np.mean([row["accuracy"] for row in result["rows"]])
    error = result["mean_error"]
    assert error["value"] == pytest.approx(1 - mean)
    assert error["low"] < error["value"] < error["high"]
    kinds = {row["corruption"]: row["value"] for row in result["by_kind"]}
    both = [cells["contrast", severity]["accuracy"] for severity in (1, 5)]
    assert kinds["contrast"] == pytest.approx(np.mean(both))
    assert json.loads((out / "corrupt.json").read_text())["rows"] == result["rows"]
    page = Page((out / "corrupt.html").read_text())
    assert "motion blur" in page.text


def test_results_do_not_depend_on_the_batch_size(run, capsys, tmp_path):
    words = (run, "--kinds", "snow,gaussian-noise", "--severities", "3", "--images", 50)
    one = call(*words, "--batch-size", 50, "--out", tmp_path / "a", capsys=capsys)
    two = call(*words, "--batch-size", 7, "--out", tmp_path / "b", capsys=capsys)
    assert [row["accuracy"] for row in one["rows"]] == [row["accuracy"] for row in two["rows"]]


def test_mce_of_a_run_against_itself_is_one(run, capsys, tmp_path):
    result = call(
        run, "--baseline", run, "--kinds", "contrast", "--images", 60, "--out", tmp_path,
        capsys=capsys,
    )  # fmt: skip
    assert result["mce"]["value"] == pytest.approx(1)
    assert result["mce"]["low"] == pytest.approx(1)


def test_a_look_at_the_test_set_is_recorded_for_both_runs(run, capsys, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    words = ("--kinds", "contrast", "--severities", "1", "--images", 10, "--split", "test")
    result = call(
        run, "--baseline", tmp_path / "other", *words, "--out", tmp_path / "out", capsys=capsys
    )
    assert result["test_uses"] == 1
    for folder in (run, tmp_path / "other"):
        (line,) = (folder / "test_uses.jsonl").read_text().splitlines()
        assert json.loads(line)["by"] == "corrupt"


def test_mce_is_the_mean_of_the_ratios_of_errors():
    # two kinds, one severity, 40 images: errors 10 and 20 of 40 against 20 and 20
    correct = np.ones((2, 1, 40), bool)
    correct[0, 0, :10] = correct[1, 0, :20] = False
    baseline = np.ones((2, 1, 40), bool)
    baseline[:, 0, :20] = False
    mce = corrupting._relative(correct, baseline, 0)["mce"]
    assert mce["value"] == pytest.approx((10 / 20 + 20 / 20) / 2)
    assert mce["low"] < mce["value"] < mce["high"]
    assert corrupting._relative(correct, np.ones_like(correct), 0)["mce"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "fogg"], "'fogg'"),
        (["--kinds", ""], "--kinds ''"),
        (["--severities", "0"], "severity 0"),
        (["--severities", "x"], "--severities x"),
        (["--images", "0"], "images = 0"),
    ],
)
def test_bad_input_is_one_line(run, words, message, capsys):
    assert cli.run(["corrupt", str(run), *words]) == 2
    assert message in capsys.readouterr().err


def test_other_inputs_are_refused(tmp_path, capsys):
    rows = "\n".join(f"{word} {i},{label}" for i in range(20)
                     for word, label in (("good", "pos"), ("bad", "neg")))  # fmt: skip
    (tmp_path / "texts.csv").write_text("text,label\n" + rows)
    words = [f"data.path={tmp_path / 'texts.csv'}", "epochs=1", "device.kind=cpu"]
    assert cli.run(["train", "text", *words, "--out", str(tmp_path / "run")]) == 0
    assert cli.run(["corrupt", str(tmp_path / "run")]) == 2
    assert "corruptions are for images" in capsys.readouterr().err


def test_padding_is_not_corrupted():
    import torch

    from plusx.data.batch import Batch
    from plusx.data.modality import ImageModality

    modality = ImageModality(channels=3, size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    inputs = torch.full((2, 3, 16, 16), 0.5)
    sizes = torch.tensor([[16, 16], [10, 12]])
    batch = Batch(inputs, torch.zeros(2, dtype=torch.long), extras={"content_size": sizes})
    corrupted = corrupting.corrupted_batch(batch, modality, "gaussian-noise", 5, 0, 0).inputs
    changed = corrupted != inputs
    assert not changed[1, :, 10:].any()
    assert not changed[1, :, :, 12:].any()
    assert changed[1, :, :10, :12].float().mean() > 0.9
    assert changed[0].float().mean() > 0.9
