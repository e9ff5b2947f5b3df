"""Parallel corpora: what is read, what is refused, and translation from the command line."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plusx.cli import run
from plusx.data.loader import Loader
from plusx.data.modality import TextModality
from plusx.data.readers.parallel import PairNames, open_parallel
from plusx.data.tokenizer import Tokenizer
from plusx.errors import UserError
from plusx.recipe import load_recipe
from plusx.run.build import open_sets, open_split


COLOURS = {"rote": "red", "blaue": "blue", "kleine": "small", "alte": "old"}
THINGS = {"Blume": "flower", "Katze": "cat", "Tasse": "cup", "Kirche": "church"}
SENTENCES = [
    (f"Eine {a} {b} {c} liegt hier.", f"A {COLOURS[a]} {COLOURS[b]} {THINGS[c]} lies here.")
    for a, b, c in itertools.product(COLOURS, COLOURS, THINGS)
    if a != b
]
NAMES = PairNames("de", "en")


def corpus(folder: Path, **splits: list[tuple[str, str]]) -> Path:
    """A folder of SPLIT.de and SPLIT.en; one without splits has 36 + 6 + 6 sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    order = [SENTENCES[(7 * i) % len(SENTENCES)] for i in range(len(SENTENCES))]
    splits = splits or {"train": order[:36], "val": order[36:42], "test": order[42:]}
    for name, pairs in splits.items():
        for side, language in enumerate(("de", "en")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return folder


def opened(path: Path, split: str = "train", names: PairNames = NAMES, **options: object):  # type: ignore[no-untyped-def]
    modality = TextModality(Tokenizer("words"), vocabulary_size=200, max_length=20, min_length=1)
    defaults = {"seed": 0, "validation": None, **options}
    return open_parallel(path, modality, names, split=split, **defaults)  # type: ignore[arg-type]


def test_parallel_files_are_read_line_by_line(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    sizes = {split: len(opened(folder, split)) for split in ("train", "validation", "test", "all")}
    assert sizes == {"train": 36, "validation": 6, "test": 6, "all": 48}
    dataset = opened(folder).fitted()
    assert dataset.classes[:2] == ("</s>", "<unk>")
    tokenizer = dataset.modality.tokenizer
    sample = dataset.read(0)
    source, target = SENTENCES[0]
    assert tokenizer.decode(sample.tensor.tolist()) == source
    assert dataset.annotations.tokenizer.decode(sample.target.tolist()) == target
    assert dataset.describe(3).startswith(f"{tmp_path.name} train, train.de line 4 (")


def test_a_batch_has_padded_sentences_and_translations(tmp_path: Path) -> None:
    dataset = opened(
        corpus(tmp_path, train=[("ein Hund", "a dog"), ("eine rote Katze", "one red cat there")])
    ).fitted()
    (batch,) = Loader(dataset, split="validation", batch_size=2).epoch(0)
    assert batch.lengths.tolist() == [2, 3]
    assert batch.inputs[0, 2] == 0
    assert batch.targets.shape == (2, 4)
    assert batch.targets[0].tolist()[2:] == [-1, -1]
    assert batch.extras["target_lengths"].tolist() == [2, 4]


def test_a_batch_has_translations_of_similar_lengths(tmp_path: Path) -> None:
    pairs = [("a b c"[: 2 * (i % 3) + 1], " ".join("xyzuvw"[: i % 6 + 1])) for i in range(60)]
    dataset = opened(corpus(tmp_path, train=pairs), validation=0).fitted()
    loader = Loader(dataset, split="train", batch_size=10, sampler="bucketed")
    lengths = [batch.extras["target_lengths"] for batch in loader.epoch(0)]
    assert sum(len(numbers) for numbers in lengths) == 60
    assert all(len(numbers.unique()) == 1 for numbers in lengths)


def test_ends_of_lines_and_encodings(tmp_path: Path) -> None:
    plain = corpus(
        tmp_path / "plain", train=[("Über zwei", "over two"), ("drei\u2028vier", "three")]
    )
    windows = corpus(tmp_path / "windows", train=SENTENCES[:1])
    for language in ("de", "en"):
        text = (plain / f"train.{language}").read_text(encoding="utf-8")
        data = text.replace("\n", "\r\n").encode("utf-8-sig")
        (windows / f"train.{language}").write_bytes(data)
    wide = corpus(tmp_path / "wide", train=SENTENCES[:1])
    for language in ("de", "en"):
        text = (plain / f"train.{language}").read_text(encoding="utf-8")
        (wide / f"train.{language}").write_bytes(text.encode("utf-16"))
    texts = [opened(path, validation=0).items.texts for path in (plain, windows, wide)]
    # a separator that Unicode counts as the end of a line is none here
    assert texts == [["Über zwei", "drei\u2028vier"]] * 3


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_two_columns_of_a_table(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pairs{ending}"
    rows = [(*pair, "test" if i > 40 else "train") for i, pair in enumerate(SENTENCES)]
    if ending == ".jsonl":
        keys = ("german", "english", "split")
        lines = [json.dumps(dict(zip(keys, row))) for row in rows]
    else:
        mark = "," if ending == ".csv" else "\t"
        lines = [mark.join(row) for row in [("german", "english", "split"), *rows]]
    path.write_text("\n".join(lines), encoding="utf-8")
    names = PairNames("german", "english")
    assert len(opened(path, "test", names)) == 7
    train, held_out = opened(path, "train", names), opened(path, "validation", names)
    assert len(train) + len(held_out) == 41
    assert train.classes == held_out.classes
    assert not set(train.items.names) & set(held_out.items.names)
    with pytest.raises(
        UserError, match=r"'englsh' is not one of them.*english.*data.target=COLUMN"
    ):
        opened(path, "train", PairNames("german", "englsh"))


def test_the_vocabulary_is_that_of_the_training_sentences(tmp_path: Path) -> None:
    folder = corpus(tmp_path, train=SENTENCES[:30], val=[("Ein Zebra", "a zebra")])
    train, validation = opened(folder), opened(folder, "validation")
    assert train.classes == validation.classes
    assert "▁zebra" not in train.classes
    read = validation.like(train.fitted().modality, train.classes).read(0)
    assert read.target.tolist()[-1] == 1


PROBLEMS = {
    "a missing counterpart": (
        lambda folder: (folder / "val.en").unlink(),
        r"has val.de, but no val.en",
    ),
    "another language": (
        lambda folder: [path.rename(path.with_suffix(".fr")) for path in folder.glob("*.de")],
        r"no train.de \(its files end with en, fr\)",
    ),
    "a line too few": (
        lambda folder: (folder / "train.en").write_text("one\ntwo\n"),
        r"train.de has 36 lines and train.en 2; line 3 of train.de has no counterpart in train.en",
    ),
    "an empty line": (
        lambda folder: (folder / "val.en").write_text("\n".join(["a", "b", " ", "d", "e", "f"])),
        r"empty lines: val.de line 3 \(its translation\)",
    ),
    "Latin-1": (
        lambda folder: (folder / "test.de").write_bytes("eins\nzwei\nübel\n".encode("latin-1")),
        r"test.de, line 3 is not UTF-8 \(byte 0xfc\)",
    ),
    "a NUL": (
        lambda folder: (folder / "test.de").write_bytes(b"eins\nz\0wei\n"),
        r"test.de, line 2 has a NUL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_errors_are_named_with_their_line(tmp_path: Path, name: str) -> None:
    spoil, message = PROBLEMS[name]
    folder = corpus(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=message):
        opened(folder, "validation")


def test_pairs_with_an_empty_line_can_be_skipped(tmp_path: Path) -> None:
    folder = corpus(tmp_path, train=[*SENTENCES[:4], ("allein", ""), ("", "alone")])
    dataset = opened(folder, validation=0, on_unreadable="skip")
    assert len(dataset) == 4
    assert "skipped 2 pairs with an empty line: train.de line 5" in dataset.warnings[0]


def test_sentences_that_are_in_two_splits_or_too_long_are_warned_of(tmp_path: Path) -> None:
    long = ("kurz", "word " * 25)
    folder = corpus(
        tmp_path, train=[*SENTENCES[:20], long], val=[SENTENCES[3], ("lang " * 25, "long")]
    )
    recipe = load_recipe(
        "translate",
        [f"data.path={folder}", "data.tokenizer=words", "data.max_length=20", "head.max_length=20"],
    )
    warnings = "\n".join(open_sets(recipe).warnings)
    assert "1 of its texts is in the training set too, word by word" in warnings
    assert "val.de line 1" in warnings
    assert "1 translation is longer than 19 tokens, the first is train.de line 21" in warnings
    assert "1 of 2 text is longer than max_length = 20 tokens" in warnings


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def translated_as_a_file_or_a_text_with_any_beam(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = [source for source, _ in SENTENCES[:3]]
    lines, table = tmp_path / "sentences.txt", tmp_path / "sentences.csv"
    lines.write_text("\n".join([*sentences[:2], "", sentences[2]]) + "\n", encoding="utf-8")
    table.write_text("\n".join(["text", *sentences]) + "\n", encoding="utf-8")
    of_lines = run_json(capsys, "predict", str(out), str(lines))
    assert of_lines["failed"] == [{"path": f"{lines}, line 3", "reason": "an empty line"}]
    assert of_lines["classes"] == []
    rows = of_lines["predictions"]
    assert [row["text"] for row in rows] == sentences
    assert all(set(row) == {"text", "translation", "score"} for row in rows)
    of_table = run_json(capsys, "predict", str(out), str(table), "--out", str(tmp_path / "rows"))
    assert of_table["predictions"] == rows
    written = (tmp_path / "rows" / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert written[0] == "text,translation,score"
    assert len(written) == 4
    for options in ([], ["--beam", "1"], ["--beam", "3"]):
        cached, full = (
            run_json(capsys, "predict", str(out), *sentences, *options, *more)["predictions"]
            for more in ([], ["--no-cache"])
        )
        assert [row["translation"] for row in cached] == [row["translation"] for row in full]
    assert run(["predict", str(out), sentences[0]]) == 0
    assert capsys.readouterr().out.strip() == rows[0]["translation"]
    for arguments, message in {
        "missing.txt": "no such file",
        "other.csv": "texts are in a column called text",
        "latin.txt": "line 2 is not UTF-8",
    }.items():
        (tmp_path / "other.csv").write_text("fr,it\na,b\n")
        (tmp_path / "latin.txt").write_bytes("eins\nübel\n".encode("latin-1"))
        assert run(["predict", str(out), str(tmp_path / arguments)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("epochs", "least"), [(1, 0.0), pytest.param(25, 60.0, marks=pytest.mark.slow)]
)
def test_a_translator_is_trained_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: int, least: float
) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("tokenizers")
    folder, out = corpus(tmp_path / "corpus"), tmp_path / "run"
    result = run_json(
        capsys,
        "train", "translate", f"data.path={folder}", f"epochs={epochs}", "batch_size=9",
        "data.vocabulary=80", "schedule.warmup=10", "--out", str(out),
    )  # fmt: skip
    validation = result["validation"]
    assert validation["bleu"] >= least
    assert validation["signature"]["bleu"].startswith("nrefs:1|case:mixed")
    assert result["metrics"] == ["bleu", "chrf", "exact_match"]
    evaluated = run_json(capsys, "evaluate", str(out), "--split", "test")
    assert evaluated["count"] == 6
    assert evaluated["bleu"] >= least
    moved = corpus(tmp_path / "other", test=SENTENCES[:5])
    other = run_json(capsys, "evaluate", str(out), "--data", str(moved), "--split", "test")
    assert other["bleu"] >= least
    assert other["count"] == 5
    translated_as_a_file_or_a_text_with_any_beam(tmp_path, out, capsys)
    assert run(["probe", str(out)]) == 2
    assert "plusx probe needs classes" in capsys.readouterr().err
    assert run(["info", str(folder)]) == 0
    assert "plusx train translate data.path=" in capsys.readouterr().out
    assert run(["export", str(out), "--out", str(tmp_path / "net.onnx")]) == 2
    assert "generates text token by token" in capsys.readouterr().err


@pytest.mark.slow
def test_translators_are_compared_in_points_of_bleu(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("tokenizers")
    out = tmp_path / "comparison"
    arguments = [
        "compare", "translate-de-en", f"data.path={corpus(tmp_path / 'corpus')}", "epochs=2",
        "data.test=test", "data.vocabulary=80", "compare.seeds=[0,1]", "--out", str(out), "--json",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "plusx", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    rows = {row["name"]: row for row in compared["rows"]}
    assert set(rows) == {"convs2s_small_encoder", "convs2s_small_plain_encoder"}
    assert 0 <= rows["convs2s_small_encoder"]["bleu"]["mean"] <= 100
    assert " points validation BLEU" in compared["finding"]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("tokenizers")
    command = [
        sys.executable, "-m", "plusx", "train", "translate", f"data.path={corpus(tmp_path / 'c')}",
        "epochs=4", "batch_size=6", "data.vocabulary=80", "schedule.warmup=10",
        "checkpoint.every_steps=2", "device.threads=1", "--out",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = killed / "log.jsonl"
    for _ in range(1200):
        if process.poll() is not None or (log.is_file() and log.read_text().count("\n") > 8):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (killed / "result.json").exists()
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]


@pytest.mark.data
@pytest.mark.parametrize("recipe", ["translate-de-en", "translate-en-de"])
def test_all_of_multi30k_is_read_and_its_references_are_unchanged(
    recipe: str,
) -> None:
    if not (folder := Path(os.environ.get("PLUSX_DATA", "")) / "multi30k").is_dir():
        pytest.skip("multi30k is not under PLUSX_DATA")
    pytest.importorskip("tokenizers")
    loaded = load_recipe(recipe, [f"data.path={folder}"])
    sets = {split: open_split(loaded, split) for split in ("train", "validation", "test")}
    assert {split: len(dataset) for split, dataset in sets.items()} == {
        "train": 29_000, "validation": 1_014, "test": 1_000,
    }  # fmt: skip
    for dataset in sets.values():
        tokenizer = dataset.annotations.tokenizer
        assert len(tokenizer.vocabulary) == 3_000
    # metrics compare with the tokens of a reference: they are the whole of it
    for split in ("validation", "test"):
        for text in sets[split].annotations.texts:
            assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.normalised(text)
