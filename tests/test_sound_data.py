"""Recordings: the modality, its augmentation, and the readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plusx
from plusx.data.annotations import Texts
from plusx.data.image_file import UnreadableInput
from plusx.data.loader import Loader
from plusx.data.modality import AudioModality, modality_from_dict
from plusx.errors import UserError
from plusx.recipe import load_recipe
from plusx.report.inspection import heading, inspection_text
from plusx.run import evaluate, load_run
from plusx.run.evaluation import refuse_views
from plusx.run.inspecting import inspect
from plusx.weights import save_network


soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from plusx.data.readers.recordings import open_recordings  # noqa: E402
from plusx.data.readers.transcripts import TextRules, open_transcripts  # noqa: E402
from plusx.data.sets.digit_strings import WORDS, open_digit_strings  # noqa: E402
from tone_files import RATE, class_folder, manifest, tone, write  # noqa: E402


FIXED = AudioModality(rate=RATE, seconds=0.5, mels=12)
FREE = AudioModality(rate=RATE, seconds=3.0, fixed=False, mels=12)


def test_sizes_and_the_way_into_a_weight_file() -> None:
    assert (FIXED.size, FIXED.channels, FIXED.ndim) == ((48,), 12, 1)
    image = AudioModality(rate=RATE, seconds=1.0, mels=40, layout="image")
    assert (image.size, image.channels, image.ndim) == ((98, 40), 1, 2)
    for modality in (FIXED, FREE, image):
        stored = json.loads(json.dumps(modality.to_dict()))
        assert modality_from_dict(stored) == modality
    with pytest.raises(UserError, match="sr"):
        modality_from_dict({**FIXED.to_dict(), "sr": 8000})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 100}, "rate = 100"),
        ({"seconds": 0.001}, "seconds = 0.001"),
        ({"mels": 900}, "mels = 900"),
        ({"mean": (0.0,), "mels": 3}, "mean has 1 numbers for 3"),
        ({"mels": 1, "mean": (0.0,), "std": (0.0,)}, "above 0"),
    ],
)
def test_invalid_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AudioModality(**fields)


def test_recordings_of_one_length(tmp_path: Path) -> None:
    """Longer ones are cropped to their middle, shorter ones stand in the middle of silence."""
    root = class_folder(tmp_path / "tones", letters="ab", count=3)
    rng = np.random.default_rng(0)
    long = np.concatenate([np.zeros(RATE), tone("a", 0.5, rng), np.zeros(RATE)])
    soundfile.write(root / "a/long.wav", long, RATE, subtype="FLOAT")
    dataset = open_recordings(root, FIXED, split="all")
    assert dataset.classes == ("a", "b")
    (batch,) = Loader(dataset, batch_size=20).epoch(0)
    assert batch.inputs.shape == (7, 12, 48)
    assert batch.lengths is None
    index = [Path(path).name for path in dataset.paths or []].index("long.wav")
    middle = torch.from_numpy(long[RATE : RATE + RATE // 2]).float()
    expected = plusx.log_mel(middle, RATE, mels=12)
    assert torch.equal(batch.inputs[index], expected)


def test_lengths_and_padding(tmp_path: Path) -> None:
    """The spectrogram of a recording is the same alone and in a batch."""
    dataset = open_transcripts(manifest(tmp_path), FREE, rules=TextRules(), split="train")
    dataset = dataset.fitted()
    assert len(dataset.modality.mean) == 12
    (batch,) = Loader(dataset, batch_size=50, split="validation").epoch(0)
    assert batch.lengths is not None
    assert len(batch.lengths.unique()) > 3
    assert batch.inputs.shape[2] == int(batch.lengths.max())
    for index in range(len(dataset)):
        (single,) = Loader(dataset.subset([index]), split="validation").epoch(0)
        count = int(batch.lengths[index])
        assert single.inputs.shape[2] == count
        assert torch.equal(single.inputs[0], batch.inputs[index, :, :count])
    values = torch.cat([x[:, :n] for x, n in zip(batch.inputs, batch.lengths)], 1)
    assert values.mean(1).abs().max() < 1e-2
    assert (values.std(1) - 1).abs().max() < 1e-2


def test_two_dimensions(tmp_path: Path) -> None:
    modality = AudioModality(rate=RATE, seconds=0.5, mels=12, layout="image")
    root = class_folder(tmp_path, letters="ab", count=3)
    image = open_recordings(root, modality).fitted()
    sequence = open_recordings(root, FIXED).fitted()
    (maps,) = Loader(image, batch_size=20, split="validation").epoch(0)
    (rows,) = Loader(sequence, batch_size=20, split="validation").epoch(0)
    assert maps.inputs.shape == (len(image), 1, 48, 12)
    assert torch.equal(maps.inputs[:, 0].transpose(1, 2), rows.inputs)


def augmented(dataset: plusx.Dataset, augment: str, epoch: int = 0) -> torch.Tensor:
    (batch,) = Loader(dataset, augment=augment, batch_size=50, split="train").epoch(epoch)
    return batch.inputs


@pytest.mark.parametrize(
    "word", ["gain12", "shift.1", "speed.2", "tilt6", "noise.1", "freqmask6", "timemask20"]
)
def test_a_word_changes_recordings_as_the_seed_says(tmp_path: Path, word: str) -> None:
    dataset = open_recordings(
        class_folder(tmp_path, letters="ab", count=2), FIXED, validation=0
    ).fitted()
    plain, first = augmented(dataset, ""), augmented(dataset, word)
    assert not torch.equal(plain, first)
    assert torch.equal(first, augmented(dataset, word))
    assert not torch.equal(first, augmented(dataset, word, epoch=1))


@pytest.mark.parametrize("slope", [-6.0, 6.0])
def test_a_tilt_changes_an_octave_by_its_decibels(slope: float) -> None:
    from plusx.data.transforms.sound import tilted

    rate = 8000
    seconds = torch.arange(rate) / rate
    for frequency, octaves in ((500, -1), (1000, 0), (2000, 1)):
        tone = torch.sin(2 * torch.pi * frequency * seconds)[None]
        factor = tilted(tone, rate, slope).square().mean().sqrt() / tone.square().mean().sqrt()
        assert 20 * float(torch.log10(factor)) == pytest.approx(slope * octaves, abs=0.01)


def test_masks_are_the_mean_and_of_one_range(tmp_path: Path) -> None:
    dataset = open_recordings(
        class_folder(tmp_path, letters="ab", count=4), FIXED, validation=0
    ).fitted()
    plain = augmented(dataset, "")
    for word, dimension, most in (("freqmask6", 1, 6), ("timemask20", 2, 20)):
        masked = augmented(dataset, word)
        changed = masked != plain
        assert (masked[changed] == 0).all()
        other = 3 - dimension
        for sample in changed:
            lines = sample.any(other - 1)
            assert int(lines.sum()) <= most
            on = lines.nonzero()[:, 0]
            assert len(on) == 0 or int(on[-1] - on[0]) + 1 == len(on)


def test_recordings_are_decoded_in_the_first_epoch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_recordings(class_folder(tmp_path, letters="ab", count=3), FIXED, validation=0)
    decoded: list[str] = []
    read_file = AudioModality.read_file

    def counted(modality: AudioModality, path: str, decoder: Any = "pillow") -> Any:
        decoded.append(path)
        return read_file(modality, path, decoder)

    monkeypatch.setattr(AudioModality, "read_file", counted)
    with Loader(dataset, augment="noise.1", batch_size=6, split="train") as loader:
        first, second = (next(iter(loader.epoch(number))) for number in (0, 1))
    assert len(decoded) == 6
    assert not torch.equal(first.inputs.sort(0).values, second.inputs.sort(0).values)


def test_gain_and_shift() -> None:
    from plusx.data.transforms.sound import louder, of_length, played, shifted

    waveform = torch.arange(1.0, 6.0)[None]
    assert torch.allclose(louder(waveform, 20.0), waveform * 10)
    assert shifted(waveform, 2).tolist() == [[0, 0, 1, 2, 3]]
    assert shifted(waveform, -2).tolist() == [[3, 4, 5, 0, 0]]
    assert shifted(waveform, 9).tolist() == [[0] * 5]
    assert of_length(waveform, 8).tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert of_length(waveform, 2).tolist() == [[2, 3]]
    slow = torch.sin(torch.arange(8000) * 2 * torch.pi * 440 / 8000)[None]
    fast = played(slow, 8000, 1.25)
    assert abs(fast.shape[1] - 6400) <= 1
    spectrum = torch.fft.rfft(fast[0]).abs()
    assert abs(int(spectrum.argmax()) * 8000 / fast.shape[1] - 550) < 3


def test_words_of_images_are_not_for_sound() -> None:
    with pytest.raises(UserError, match="not available for recordings; their words are noise"):
        FIXED.transform("flip", train=True)
    with pytest.raises(UserError, match="freqmask and timemask come last"):
        FIXED.transform("freqmask4 gain6", train=True)
    with pytest.raises(UserError, match="not available for images"):
        plusx.Loader("digits", augment="gain6")


def test_predictions_for_clipped_recordings_have_a_warning(tmp_path: Path) -> None:
    loud = np.clip(9 * tone("a", 0.3, np.random.default_rng(0)), -1, 1)
    path = write(tmp_path / "loud.wav", loud)
    with pytest.warns(UserWarning, match=r"loud\.wav: .* of its samples are clipped"):
        FREE.decode(str(path))


def test_recordings_are_not_mirrored() -> None:
    with pytest.raises(UserError, match="recordings cannot be mirrored; allowed is none"):
        refuse_views(FIXED, None, "flip")


def test_inputs_in_memory() -> None:
    waveform = torch.randn(4000)
    assert torch.equal(FREE.from_values(waveform), waveform[None])
    assert torch.equal(FREE.from_values(waveform.double().numpy()), waveform[None])
    for values, message in (
        (torch.zeros(3, 400), "takes waveforms"),
        (torch.zeros(400, dtype=torch.int16), "int16"),
        (torch.full((4000,), torch.nan), "not finite"),
        (torch.zeros(100), "one window of 0.025 s"),
        (torch.zeros(RATE * 4), "the limit is 3 s"),
    ):
        with pytest.raises(UserError, match=message):
            FREE.from_values(values)


def test_class_folders_with_and_without_splits(tmp_path: Path) -> None:
    plain = class_folder(tmp_path / "plain", count=10)
    train, validation = (open_recordings(plain, FIXED, split=s) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (24, 6)
    assert not set(train.paths or []) & set(validation.paths or [])
    assert torch.bincount(validation.labels).tolist() == [2, 2, 2]
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        class_folder(tmp_path / "cut" / split, count=count)
    for split, count in (("train", 12), ("validation", 9), ("test", 6), ("all", 27)):
        assert len(open_recordings(tmp_path / "cut", FIXED, split=split)) == count


def test_names_say_label_group_and_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for digit in range(3):
        for speaker in ("ann", "bob", "cy"):
            for number in range(4):
                write(tmp_path / f"{digit}_{speaker}_{number}.wav", tone("a", 0.2, rng))
    how: Any = {"label": r"^(\d)_", "test": r"_[01]\.wav$"}
    test = open_recordings(tmp_path, FIXED, split="test", **how)
    assert test.classes == ("0", "1", "2")
    assert len(test) == 18
    assert all(path.endswith(("_0.wav", "_1.wav")) for path in test.paths or [])
    assert len(open_recordings(tmp_path, FIXED, split="train", validation=0.5, **how)) == 9
    # a speaker who tests, and another one who validates
    how = {"label": r"^(\d)_", "test": "_cy_", "group": r"_(\w+)_", "validation": 0.4}
    speakers = {
        split: {
            path.split("_")[-2]
            for path in open_recordings(tmp_path, FIXED, split=split, **how).paths or []
        }
        for split in ("train", "validation", "test")
    }
    assert speakers["test"] == {"cy"}
    assert speakers["train"] | speakers["validation"] == {"ann", "bob"}
    assert len(speakers["train"]) == len(speakers["validation"]) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"label": "("}, "label = '.*' is not a regular expression"),
        ({"label": r"\d"}, "has no group"),
        ({"label": r"(x)"}, "does not match label"),
        ({"test": "nobody"}, "no recording matches test"),
        ({"group": "(z+)"}, "does not match group"),
        ({"keywords": ("aa",)}, "no class 'aa'; did you mean a?"),
        ({"classes": ("a", "b")}, "the class 'c' is not one of a, b"),
        ({"split": "test"}, "has no test split"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    root = class_folder(tmp_path, count=2)
    with pytest.raises(UserError, match=message):
        open_recordings(root, FIXED, **how)


def test_keywords_unknown_and_background(tmp_path: Path) -> None:
    root = class_folder(tmp_path, letters="abcd", count=6)
    rng = np.random.default_rng(0)
    write(root / "_background_noise_/hum.wav", rng.normal(0, 0.1, RATE * 10))
    lists = "".join(f"{letter}/{n}.wav\n" for letter in "abcd" for n in (0, 1))
    (root / "testing_list.txt").write_text(lists)
    (root / "validation_list.txt").write_text(
        lists.replace("1.wav", "2.wav").replace("0.wav", "3.wav")
    )
    sets = {
        split: open_recordings(root, FIXED, split=split, keywords=("a", "b"), piece=FIXED.samples)
        for split in ("train", "validation", "test")
    }
    assert sets["train"].classes == ("a", "b", "unknown", "background")
    assert torch.bincount(sets["train"].labels).tolist() == [2, 2, 4, 16]
    assert torch.bincount(sets["validation"].labels).tolist() == [2, 2, 4, 2]
    assert torch.bincount(sets["test"].labels).tolist() == [2, 2, 4, 2]
    # the pieces of different splits are different parts of a recording
    pieces = {
        split: {
            dataset.read(i).tensor.numpy().tobytes()
            for i in range(len(dataset))
            if dataset.label(i) == 3
        }
        for split, dataset in sets.items()
    }
    assert sum(map(len, pieces.values())) == len(set.union(*pieces.values())) == 20
    assert sets["train"].fingerprint() != sets["test"].fingerprint()


def test_unusable_recordings_are_named(tmp_path: Path) -> None:
    root = class_folder(tmp_path, count=3)
    write(root / "a/silent.wav", np.zeros(4000))
    (root / "b/broken.wav").write_bytes((root / "b/0.wav").read_bytes()[:1000])
    with pytest.raises(UserError) as caught:
        open_recordings(root, FIXED)
    message = str(caught.value)
    assert "a/silent.wav: it is silent" in message
    assert "b/broken.wav: it is truncated" in message
    dataset = open_recordings(root, FIXED, on_unreadable="skip", split="all")
    assert len(dataset) == 9
    assert sum("skipped" in warning for warning in dataset.warnings) == 3


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_manifests(tmp_path: Path, kind: str) -> None:
    path = manifest(tmp_path)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path = tmp_path / f"m.{kind}"
    if kind == "jsonl":
        objects = [dict(zip(rows[0], row)) | {"duration": 1.0} for row in rows[1:]]
        path.write_text("".join(json.dumps(row) + "\n" for row in objects))
    else:
        separator = "," if kind == "csv" else "\t"
        path.write_text("".join(separator.join(row) + "\n" for row in rows))
    for split, count in (("train", 15), ("validation", 5), ("test", 4), ("all", 24)):
        dataset = open_transcripts(path, FREE, rules=TextRules(), split=split)
        assert len(dataset) == count
    expected = [row[1] for row in rows[1:] if row[2] == "train"]
    train = open_transcripts(path, FREE, rules=TextRules())
    assert isinstance(train.annotations, Texts)
    assert train.annotations.texts == expected
    assert train.classes[0] == "<blank>"
    assert set(train.classes[1:]) == {"\u2581", "a", "b", "c"}
    sample = train.read(0)
    assert isinstance(sample.target, torch.Tensor)
    assert train.annotations.tokenizer.decode(sample.target.tolist()) == expected[0]


def test_librispeech(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for subset, speaker in (("train-clean-5", "12"), ("dev-clean", "34"), ("test-other", "56")):
        folder = tmp_path / subset / speaker / "7"
        for number in range(2):
            write(folder / f"{speaker}-7-000{number}.flac", tone("a", 0.4, rng))
        lines = [f"{speaker}-7-000{number} HELLO  IT'S {subset[:3]}" for number in range(2)]
        (folder / f"{speaker}-7.trans.txt").write_text("\n".join(lines) + "\n")
    for split, word in (("train", "tra"), ("validation", "dev"), ("test", "tes")):
        dataset = open_transcripts(tmp_path, FREE, rules=TextRules(), split=split)
        assert isinstance(dataset.annotations, Texts)
        assert dataset.annotations.texts == [f"hello it's {word}"] * 2
    (tmp_path / "dev-clean/34/7/34-7-0001.flac").unlink()
    with pytest.raises(UserError, match=r"34-7-0001.flac\): missing"):
        open_transcripts(tmp_path, FREE, rules=TextRules(), split="validation")


def test_layouts_of_recordings_are_recognised(tmp_path: Path) -> None:
    """Other files beside recordings do not change it, nor the transcripts of LibriSpeech."""
    rng = np.random.default_rng(0)
    root = class_folder(tmp_path / "keywords", letters="ab", count=2)
    (root / "a/notes.txt").write_text("a note")
    (root / "testing_list.txt").write_text("a/0.wav\n")
    speech = tmp_path / "speech/train-clean/1/2"
    for number in range(4):
        write(speech / f"1-2-000{number}.flac", tone("a", 0.4, rng))
    lines = "".join(f"1-2-000{number} HI\n" for number in range(4))
    (speech / "1-2.trans.txt").write_text(lines)
    path = manifest(tmp_path / "list", count=5)
    for recipe, data, kind in (
        ("commands", root, "recordings"),
        ("speech", tmp_path / "speech", "transcripts"),
        ("speech", path, "transcripts"),
    ):
        assert load_recipe(recipe, [f"data.path={data}"]).data.kind == kind
        with pytest.raises(UserError, match=f"`plusx train {recipe} data.path="):
            load_recipe("images", [f"data.path={data}"])
        values = inspect(str(data))
        assert values["command"].startswith(f"plusx train {recipe} data.path=")
    train = open_transcripts(tmp_path / "speech", FREE, rules=TextRules(), validation=1)
    assert len(train) == 3


def one_row(root: Path, text: str, header: str = "path,text") -> Path:
    write(root / "a.wav", tone("a", 0.3, np.random.default_rng(0)))
    path = root / "m.csv"
    path.write_text(f'{header}\na.wav,good\na.wav,"{text}"\n')
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "row 3 .* 1 text without characters|without characters: row 3"),
        ("naïve", r"outside the alphabet .*row 3 \(a.wav\): 'v', 'ï'|row 3 .*'ï'"),
    ],
)
def test_texts_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = one_row(tmp_path, text)
    with pytest.raises(UserError, match=message):
        open_transcripts(path, FREE, rules=TextRules(alphabet=" adegino"), split="all")


def test_characters_outside_the_alphabet(tmp_path: Path) -> None:
    path = one_row(tmp_path, "Naïve-Bayes")

    def texts(**rules: Any) -> list[str]:
        dataset = open_transcripts(path, FREE, rules=TextRules(**rules), split="all")
        assert isinstance(dataset.annotations, Texts)
        return dataset.annotations.texts

    alphabet = " abdeginosvy"
    assert texts(alphabet=alphabet, replace=(("ï", "i"), ("-", " "))) == ["good", "naive bayes"]
    assert texts(alphabet=alphabet, outside="drop") == ["good", "navebayes"]
    assert texts(alphabet=alphabet, outside="skip") == ["good"]
    assert texts(lower=False) == ["good", "Naïve-Bayes"]
    with pytest.raises(UserError, match="capital letters"):
        TextRules(alphabet="ABC")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "path,label\na.wav,b\n", "has no column text"),
        ("m.csv", "file,text\na.wav,b\n", "has no column path"),
        ("m.csv", "path,text\na.wav\n", "row 2: 1 field for 2 columns"),
        ("m.csv", "path,text,text\na.wav,x,y\n", "has the column 'text' more than once"),
        ("m.csv", "path,text\na.wav, \n", r"row 2 \(a.wav\) .on_unreadable = .skip. leaves"),
        ("m.csv", "path,text\n../b.wav,x\n", "row 2: the path '../b.wav' leaves"),
        ("m.csv", "path,text\nb.wav,x\n", r"row 2 \(b.wav\): missing"),
        ("m.csv", "path,text,split\na.wav,x,tst\n", "row 2: split 'tst'"),
        ("m.csv", "path,text\n", "no transcripts"),
        ("m.jsonl", '{"path": "a.wav"}\n', "has no column text"),
        ("m.jsonl", "{path}\n", "line 1 is not JSON"),
        ("m.jsonl", '["a.wav", "x"]\n', "line 1 is not an object"),
    ],
)
def test_manifests_that_cannot_be_read(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    write(tmp_path / "a.wav", tone("a", 0.3, np.random.default_rng(0)))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_transcripts(tmp_path / name, FREE, rules=TextRules(), split="all")
    with pytest.raises(UserError, match="other is missing: there is no such file or folder"):
        open_transcripts(tmp_path / "other", FREE, rules=TextRules())


def test_texts_of_the_validation_set_have_the_characters_of_the_training_set(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        write(tmp_path / f"{name}.wav", tone(name, 0.3, rng))
    table = tmp_path / "m.csv"
    table.write_text("path,text,split\na.wav,ab,train\nb.wav,bc,val\nc.wav,,val\n")
    train = open_transcripts(table, FREE, rules=TextRules())
    other = open_transcripts(
        table, FREE, rules=TextRules(), split="validation", on_unreadable="skip"
    )
    assert "skipped row 4 (c.wav): no text" in other.warnings
    table.write_text(table.read_text() + "a.wav,ba,train\n")
    assert any(
        "1 row with the same recording as another row" in text
        for text in open_transcripts(table, FREE, rules=TextRules()).warnings
    )
    with pytest.raises(UserError, match=r"m.csv validation: .* no 'c', in 'bc' of b.wav: its"):
        other.like(train.modality, train.classes)


def test_too_long_and_too_short_for_a_transcript(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(tmp_path / "long.wav", tone("a", 4.0, rng))
    write(tmp_path / "short.wav", rng.normal(0, 0.1, 100))
    (tmp_path / "m.csv").write_text("path,text\nlong.wav,a\nshort.wav,b\n")
    with pytest.raises(UserError, match=r"the limit is 3 s.*one window of 0.025 s"):
        open_transcripts(tmp_path / "m.csv", FREE, rules=TextRules(), split="all")
    with pytest.raises(UnreadableInput, match=r"4\.0 s"):
        FREE.decode(str(tmp_path / "long.wav"))


def test_digit_strings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("ann", "bob"):
            for number in range(4):
                write(tmp_path / f"{digit}_{speaker}_{number}.wav", tone("a", 0.2, rng))

    def strings(split: Any, seed: int = 0) -> plusx.Dataset:
        return open_digit_strings(
            tmp_path,
            AudioModality(rate=RATE, seconds=60.0, fixed=False, mels=12),
            split=split,
            seed=seed,
            count=40,
            label=r"^(\d)_",
            speaker=r"^\d_(.*)_",
            test=r"_0\.wav$",
            validation=0.3,
        )

    train, test = strings("train"), strings("test")
    assert isinstance(train.annotations, Texts)
    counts = [len(text.split()) for text in train.annotations.texts]
    assert set(counts) == set(range(1, 8))
    assert {word for text in train.annotations.texts for word in text.split()} == set(WORDS)
    assert train.classes == test.classes
    assert len(train.classes) == 17
    for dataset, ending in ((train, False), (test, True)):
        for index in range(len(dataset)):
            names = dataset.items.name(index).split("(")[1].rstrip(")").split(", ")
            assert all(name.endswith("_0.wav") == ending for name in names)
            assert len({name.split("_")[1] for name in names}) == 1
            words = [WORDS[int(name[0])] for name in names]
            assert dataset.annotations.texts[index] == " ".join(words)  # type: ignore[union-attr]
    first = train.read(3).tensor
    assert torch.equal(first, strings("train").read(3).tensor)
    assert first.shape[1] == dataset_length(train, 3)
    assert (
        train.fingerprint() == strings("train").fingerprint() != strings("train", 1).fingerprint()
    )


def dataset_length(dataset: plusx.Dataset, index: int) -> int:
    assert dataset.items.lengths is not None
    return int(dataset.items.lengths[index])


def test_a_path_keeps_the_kind_of_a_set_made_of_recordings(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "recordings", count=2)
    recipe = load_recipe("digits-transcribe", [f"data.path={folder}", "data.strings=60"])
    assert (recipe.data.kind, recipe.data.path) == ("digit-strings", str(folder))
    assert load_recipe("digits-spot", [f"data.path={folder}"]).data.kind == "recordings"


def test_info_describes_recordings(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "mine" / "train", count=4).parent
    rng = np.random.default_rng(5)
    for name in "abc":
        write(root / "test" / name / "new.wav", tone(name, 0.3, rng))
    write(root / "test" / "a" / "0.wav", np.zeros(4000))  # silent
    same = (root / "train" / "b" / "0.wav").read_bytes()
    (root / "test" / "b" / "copied.wav").write_bytes(same)
    values = inspect(str(root), tmp_path / "page.html")
    assert (values["kind"], values["inputs"]) == ("recordings", "recordings")
    assert values["splits"]["test"] == 4
    assert [row["name"] for row in values["classes"]] == ["a", "b", "c"]
    assert values["formats"] == {"WAV PCM_16": 16}
    assert values["modes"] == {"8,000 Hz, 1 channel": 16}
    assert 0.1 < values["lengths"]["min"] < values["lengths"]["max"] < 0.6
    assert any("0.wav" in text for text in values["left_out"])
    assert any("as the same file" in text for text in values["warnings"])
    assert " s together" in inspection_text(values)
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/jpeg") == 10


def test_info_names_speakers_that_train_and_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    lines = ["path,text,split,speaker"]
    for number in range(6):
        write(tmp_path / f"{number}.wav", tone("ab"[number % 2], 0.3, rng))
        lines.append(f"{number}.wav,ab,{'train' if number < 4 else 'test'},{'xyzxxw'[number]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    values = inspect(str(tmp_path / "list.csv"))
    (finding,) = [f for f in values["findings"] if f["check"] == "groups_across_splits"]
    assert finding["message"] == "1 speaker is in train and in test: x"
    assert heading(values) == "6 recordings"


def test_info_describes_recordings_in_no_class_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for number in range(6):
        write(tmp_path / "flat" / f"{number % 2}_ann_{number}.wav", tone("a", 0.3, rng))
    values = inspect(str(tmp_path / "flat"))
    assert (values["splits"], values["command"]) == ({"all": 6}, "")
    assert values["lengths"]["total"] == pytest.approx(1.8, abs=0.1)
    assert "data.label=REGEX finds a class in the name" in values["problems"][0]
    assert "`plusx train digits-spot data.path=" in values["problems"][0]


def test_transcripts_have_no_classes_to_validate(tmp_path: Path) -> None:
    write(tmp_path / "0.wav", tone("a", 0.3, np.random.default_rng(5)))
    (tmp_path / "one.csv").write_text("path,text\n0.wav,ab\nmissing.wav,b\n")
    values = inspect(str(tmp_path / "one.csv"))
    assert not any("one sample" in text for text in [*values["warnings"], *values["problems"]])


def test_a_weight_file_is_evaluated_on_recordings_without_its_run(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "tones", letters="abc", count=2)
    write(root / "_background_noise_/hum.wav", np.random.default_rng(0).normal(0, 0.1, RATE * 3))
    net = plusx.create_model("tc_resnet8", num_classes=4, in_channels=12, seed=0)
    classes = ["b", "a", "unknown", "background"]
    path = tmp_path / "net.safetensors"
    save_network(net, path, preprocessing=FIXED.to_dict(), classes=classes)
    result = evaluate(load_run(path), data=root)
    assert (result["count"], result["noun"], result["split"]) == (12, "recording", "all")
