"""Captions: the synthetic scenes, tables of captions, attention, and runs from the command line."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from plusx.cli import run
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.data.readers.captions import Vocabulary, open_captions
from plusx.data.sets import scenes
from plusx.errors import UserError
from plusx.grammar.heads import ConvDecoder, TransformerDecoder
from plusx.nn.feature_info import feature_info
from plusx.nn.token_decoders import AttentionDecoder, ConvolutionalDecoder, TokenDecoder
from plusx.run.caption_examples import words_of


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Splits of the scenes with few images."""
    monkeypatch.setattr(scenes, "COUNTS", {"train": 48, "validation": 12, "test": 12})
    scenes._rendered.cache_clear()
    yield
    scenes._rendered.cache_clear()


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def described(image: np.ndarray) -> str:
    """The sentence of the grammar for an image (3, h, w), found in the pixels alone."""
    pixels = image.astype(int)
    saturated = pixels.max(0) - pixels.min(0) > 60
    labels, count = ndimage.label(saturated | (pixels.min(0) > 170))
    colours = np.array(list(scenes.COLOURS.values()))
    groups: dict[str, list[tuple[float, float]]] = {}
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[rows, columns] == number
        mean = pixels[:, rows, columns][:, inside].mean(1)
        colour = list(scenes.COLOURS)[int(abs(colours - mean).sum(1).argmin())]
        size = "small" if inside.shape[1] <= 13 else "large"
        widths = inside.sum(1)
        third = len(widths) // 3
        shape = "square" if inside.all() else "circle"
        if widths[:third].sum() < 0.5 * widths[-third:].sum():
            shape = "triangle"
        middle = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
        groups.setdefault(f"{size} {colour} {shape}", []).append(middle)
    assert sum(map(len, groups.values())) == count <= 3
    names = {
        name: ["a", "two", "three"][len(positions) - 1] + f" {name}" + "s" * (len(positions) > 1)
        for name, positions in groups.items()
    }
    if len(groups) == 1:
        return names[next(iter(groups))]
    (a, first), (b, second) = ((name, np.array(positions)) for name, positions in groups.items())
    gaps = [
        (float(right[:, axis].min() - left[:, axis].max()), axis, names[c], names[d])
        for axis in (0, 1)
        for c, left, d, right in ((a, first, b, second), (b, second, a, first))
    ]
    gap, axis, before, after = max(gaps)
    # in the other direction they are closer by far
    assert gap >= 2 * max(other for other, direction, _, _ in gaps if direction != axis)
    return f"{before} {scenes.RELATIONS[axis]} {after}"


def test_an_image_has_one_caption_that_can_be_read_off_its_pixels() -> None:
    images, captions = scenes.rendered(1, np.arange(120))
    assert [described(image) for image in images] == captions
    words = {word for caption in captions for word in caption.split()}
    assert words == {token.strip("▁") for token in scenes._tokenizer().vocabulary} - {"</s>"}
    assert len(set(captions)) > 90


def test_scenes_are_the_same_on_every_machine_and_differ_between_splits() -> None:
    first, captions = scenes.rendered(0, np.arange(6))
    digest = hashlib.sha256(first.tobytes() + "\n".join(captions).encode()).hexdigest()
    assert digest[:16] == "f3db17f879af62d1"
    others = [scenes.rendered(split, np.arange(6))[0] for split in (1, 2)]
    images = np.concatenate([first, *others]).reshape(18, -1)
    assert len(np.unique(images, axis=0)) == 18


@pytest.mark.slow
def test_no_image_is_in_two_splits_and_every_caption_is_right() -> None:
    dataset = scenes.open_scenes("all")
    images = dataset.items.images.numpy()  # type: ignore[attr-defined]
    assert len(images) == 7500
    assert len({image.tobytes() for image in images}) == 7500
    # without noise too, no two are alike: shapes are at other positions
    assert [described(image) for image in images] == dataset.annotations.texts  # type: ignore[union-attr]


def test_batches_from_memory_have_the_captions_of_their_images(few_scenes: None) -> None:
    dataset = scenes.open_scenes("train")
    tokenizer = scenes._tokenizer()
    mean, std = 0.4, 0.2
    for batch in Loader(dataset, batch_size=16, seed=3).epoch(0):
        images = ((batch.inputs * std + mean) * 255).round().to(torch.uint8).numpy()
        for image, target in zip(images, batch.targets):
            assert tokenizer.decode(target[target >= 0].tolist()) == described(image)
        lengths = (batch.targets >= 0).sum(1)
        assert torch.equal(batch.extras["target_lengths"], lengths)


def decoders() -> list[TokenDecoder]:
    from plusx import create_model

    levels = feature_info(create_model("resnet20"))
    torch.manual_seed(0)
    return [
        ConvolutionalDecoder(ConvDecoder(width=8, embed=12, depth=2), levels, 7),
        ConvolutionalDecoder(
            ConvDecoder(width=8, embed=12, depth=2, shared_attention=True), levels, 7
        ),
        AttentionDecoder(TransformerDecoder(width=8, hidden=8, depth=2, heads=2), levels, 7),
    ]


@pytest.mark.parametrize("number", range(3))
def test_attention_is_that_of_the_last_layer(number: int) -> None:
    decoder = decoders()[number].double().eval()
    features = torch.randn(2, 64, 3, 4, dtype=torch.float64)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 9:] = False
    memory = decoder.memory(features, valid)
    tokens = torch.tensor([[0, 3, 5], [0, 1, 2]])
    weights = decoder.attention_weights(tokens, memory)
    assert weights.shape == (2, 3, 12)
    assert torch.allclose(weights.sum(2), torch.ones(2, 3, dtype=torch.float64))
    assert not weights[1, :, 9:].any()
    # positions without weight have no influence on the last layer; keys of 0 make all weights equal
    last = tuple(key * (i < len(memory.keys) - 1) for i, key in enumerate(memory.keys))
    equal = type(memory)(last, memory.values, None)
    assert torch.allclose(
        decoder.attention_weights(tokens, equal), torch.tensor(1 / 12, dtype=torch.float64)
    )


def test_tokens_are_grouped_into_words() -> None:
    assert words_of(["▁a", "▁sm", "all", "▁red", "</s>"]) == [
        ("a", [0]),
        ("small", [1, 2]),
        ("red", [3, 4]),
    ]
    assert words_of(["0x61", "0x20", "0x62", "0x63"]) == [("a", [0]), ("bc", [1, 2, 3])]


NAMES = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (30, 60, 210)}


def photos(folder: Path, rows: Sequence[Sequence[str]] | None = None, side: int = 16) -> Path:
    """A CSV with 24 images of one colour, each with two captions."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    table: list[Sequence[str]] = []
    for number in range(24):
        name = list(NAMES)[number % 3]
        pixels = np.array(NAMES[name]) + rng.integers(-25, 25, (side, side, 3))
        path = f"images/{number:02}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / path)
        split = "test" if number >= 18 else "train"
        table += [(path, f"A {name} wall.", split), (path, f"a wall in {name}", split)]
    header, *lines = rows or [("path", "caption", "split"), *table]
    with open(folder / "photos.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return folder / "photos.csv"


def opened(path: Path, split: str = "train", **options: object):  # type: ignore[no-untyped-def]
    modality = ImageModality((16, 16), 3, (0.5,) * 3, (0.25,) * 3, resize="stretch")
    vocabulary = Vocabulary("words", 100, lower=True)
    defaults = {"seed": 0, "validation": None, **options}
    return open_captions(path, modality, vocabulary, split=split, **defaults)  # type: ignore[arg-type]


def test_captions_of_an_image_stay_on_one_side_of_a_split(tmp_path: Path) -> None:
    path = photos(tmp_path)
    sets = {split: opened(path, split) for split in ("train", "validation", "test", "all")}
    assert {split: len(dataset) for split, dataset in sets.items()} == {
        "train": 30,
        "validation": 6,
        "test": 12,
        "all": 48,
    }
    assert not set(sets["train"].paths) & set(sets["validation"].paths)
    train = sets["train"]
    assert train.classes[:2] == ("</s>", "<unk>")
    assert train.classes == sets["test"].classes
    texts = [train.annotations.tokenizer.decode(train.read(i).target.tolist()) for i in (0, 1)]
    assert texts == ["a red wall.", "a wall in red"]
    assert train.describe(1) == f"row 3 ({Path('images/00.png')})"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "text"), ("images/00.png", "a")], r"columns path, text; it needs path and cap"),
        ([("path", "caption"), ("images/00.png", " ")], r"photos.csv: no caption in row 2 \(on_"),
        ([("path", "caption"), ("images/x.png", "a wall")], r"row 2 \(images/x.png\): missing"),
        ([("path", "caption"), ("../x.png", "a wall")], r"row 2.*leaves the folder"),
        ([("path", "caption"), ("photos.csv", "a wall")], r"photos.csv: .*photos.csv"),
        ([("path", "caption")], r"no rows below its header"),
        (
            [
                ("path", "caption", "split"),
                ("images/00.png", "a wall", "train"),
                ("images/00.png", "a red wall", "test"),
            ],
            r"row 3: images/00.png is in test here and in train in row 2",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(photos(tmp_path, rows))


def test_bad_rows_can_be_skipped(tmp_path: Path) -> None:
    rows = [("path", "caption"), ("images/00.png", ""), ("images/x.png", "a wall")]
    rows += [(f"images/{number:02}.png", "a wall") for number in range(10)]
    dataset = opened(photos(tmp_path, rows), validation=0, on_unreadable="skip")
    assert len(dataset) == 10
    assert any("row 2: no caption" in warning for warning in dataset.warnings)
    assert any("row 3 (images/x.png): missing" in warning for warning in dataset.warnings)


@pytest.mark.parametrize("command", [["info"], ["train", "images", "--out", "run"]])
def test_tables_of_captions_are_recognised(
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(photos(tmp_path / "mine"))
    described = command == ["info"]
    code = run([*command, path if described else f"data.path={path}"])
    assert code == (0 if described else 2)
    printed = capsys.readouterr()
    assert f"plusx train captions data.path={path}" in (printed.out if described else printed.err)
    assert ("48 captions of 24 images" in printed.out) == described


SMALL = ("net.base=resnet20", "head.width=16", "head.depth=1", "head.hidden=16")


def test_scenes_are_captioned_from_the_command_line(
    tmp_path: Path, few_scenes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sacrebleu")
    out = tmp_path / "run"
    result = run_json(
        capsys, "train", "scenes-caption", "epochs=1", "batch_size=16", *SMALL, "--out", str(out)
    )
    assert result["metrics"] == ["exact_match", "bleu", "chrf"]
    assert result["validation"]["count"] == 12  # type: ignore[index]
    assert run_json(capsys, "evaluate", str(out), "--split", "test")["count"] == 12
    image = scenes.open_scenes("test").items.images[0]  # type: ignore[attr-defined]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    (row,) = run_json(capsys, "predict", str(out), str(tmp_path / "scene.png"))["predictions"]
    assert list(row) == ["path", "caption", "score"]
    assert row["path"].endswith("scene.png")
    assert row["score"] < 0
    # there is no class whose evidence could be drawn
    assert run(["explain", str(out), str(tmp_path / "scene.png"), "--out", str(tmp_path)]) == 2
    assert "shows the attention for each word" in capsys.readouterr().err
    page = (out / "report.html").read_text()
    assert page.count("ground truth: ") == 6
    assert page.count("its parts that each word is predicted from") == 6
    examples = json.loads((out / "examples" / "predictions.json").read_text())["predictions"]
    expected = scenes.open_scenes("validation").annotations.texts[2]  # type: ignore[union-attr]
    assert examples[1]["ground_truth"] == {"caption": expected}


@pytest.mark.parametrize(
    ("epochs", "least"), [(1, 0.0), pytest.param(60, 0.4, marks=pytest.mark.slow)]
)
def test_images_of_a_folder_are_captioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: int, least: float
) -> None:
    pytest.importorskip("sacrebleu")
    path, out = photos(tmp_path / "mine"), tmp_path / "run"
    run_json(
        capsys, "train", "captions", f"data.path={path}", f"epochs={epochs}", "batch_size=14",
        "data.size=[16, 16]", *SMALL, "--out", str(out),
    )  # fmt: skip
    # every image has two captions, of which one can be matched
    evaluated = run_json(capsys, "evaluate", str(out), "--split", "test")
    assert evaluated["count"] == 12
    assert evaluated["exact_match"] >= least
    other = photos(tmp_path / "other")
    moved = run_json(capsys, "evaluate", str(out), "--data", str(other), "--split", "test")
    assert moved["exact_match"] == evaluated["exact_match"]
    folder = tmp_path / "mine" / "images"
    predicted = run_json(capsys, "predict", str(out), str(folder), "--out", str(tmp_path / "p"))
    rows = predicted["predictions"]
    assert len(rows) == 24  # type: ignore[arg-type]
    if least:
        for number, row in enumerate(rows):  # type: ignore[arg-type]
            assert list(NAMES)[number % 3] in row["caption"]
    table = (tmp_path / "p" / "predictions.csv").read_text().splitlines()
    assert table[0] == "path,caption,score"
    assert len(table) == 25
