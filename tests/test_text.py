"""Classification of texts: data in every form, training, prediction, resume, export, bad input."""

import csv
import json
import random
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plusx
from plusx.cli import run
from plusx.data.loader import Loader
from plusx.data.modality import TextModality
from plusx.data.readers.texts import TextColumns, open_texts
from plusx.data.sampler import epoch_order
from plusx.data.tokenizer import BLANK, END, PAD, START, UNKNOWN, Tokenizer
from plusx.run import evaluate, load_run
from plusx.run.sources import sources_of
from plusx.run.text_examples import tokens_of
from plusx.weights import save_network


GOOD = ("fine", "lovely", "warm", "clever")
BAD = ("dull", "tired", "cold", "stupid")
REST = ("the", "film", "is", "a", "story", "and", "its", "actors", "are", ",", "never", "very")


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts whose class is that of one word among others."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        label, words = (("good", GOOD), ("bad", BAD))[index % 2]
        text = [rng.choice(REST) for _ in range(rng.randint(3, 20))]
        text.insert(rng.randint(0, len(text)), rng.choice(words))
        rows.append((" ".join(text), label))
    return rows


def write_csv(path: Path, rows: list[tuple[str, ...]], header: str = "text,label") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def modality(kind: str = "words", **fields) -> TextModality:
    return TextModality(Tokenizer(kind, lower=True), **fields)


def opened(path: Path, split: str = "train", **arguments):
    return open_texts(path, modality(), split=split, seed=0, validation=None, **arguments)


def plusx_command(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "plusx", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_csv(folder / "reviews.csv", sentences(240))
    plusx_command(
        "train", "text", "data.path=reviews.csv", "epochs=6", "batch_size=16",
        "optim.lr=0.01", "optim.weight_decay=0.01", "device.threads=1", "--out", "runs/text",
        cwd=folder,
    )  # fmt: skip
    return folder


# tokenizers


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=5),
    kind=st.sampled_from(["bytes", "characters", "words"]),
    lower=st.booleans(),
)
def test_known_text_survives_a_round_trip(texts, kind, lower):
    if not any(text.split() for text in texts):
        texts = [*texts, "a"]
    texts = [text.replace("\u2581", "").encode("utf-8", "ignore").decode() for text in texts]
    if not any(text.split() for text in texts):
        return
    tokenizer = Tokenizer.train(texts, kind, 100_000, lower=lower)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.normalised(text)


def test_byte_pair_encoding_survives_a_round_trip_and_needs_its_vocabulary_alone():
    pytest.importorskip("tokenizers")
    texts = [text for text, _ in sentences(50)]
    tokenizer = Tokenizer.train(texts, "bpe", 80, specials=(PAD, START, END, UNKNOWN))
    retrained = Tokenizer.train(texts, "bpe", 80, specials=(PAD, START, END, UNKNOWN))
    assert tokenizer == retrained
    assert len(tokenizer.vocabulary) <= 80
    restored = Tokenizer("bpe", tokenizer.vocabulary)
    for text in texts:
        assert restored.encode(text) == tokenizer.encode(text)
        assert restored.decode(restored.encode(text)) == text
    assert max(map(len, (tokenizer.encode(word) for word in ("the", "film")))) == 1


@pytest.mark.parametrize("kind", ["words", "characters", "bytes"])
def test_tokens_are_those_of_the_text(kind):
    tokenizer = Tokenizer.train(["a fine film"], kind, 300, lower=True)
    tokens, unknown = tokens_of(TextModality(tokenizer, max_length=8, min_length=1), "A Zebra")
    assert len(tokens) == len(unknown) == len(tokenizer.encode("A Zebra")[:8])
    if kind == "words":
        assert (tokens, unknown) == ([" a", " zebra"], [False, True])


def test_tokens_outside_the_vocabulary():
    tokenizer = Tokenizer.train(["a b"], "words", 10)
    assert tokenizer.encode("a c") == [tokenizer.number("\u2581a"), tokenizer.number(UNKNOWN)]
    without = Tokenizer.train(["ab"], "characters", 10, specials=(BLANK,))
    with pytest.raises(plusx.UserError, match="'ä' in 'aä' is not in the vocabulary of 3"):
        without.encode("aä")
    with pytest.raises(plusx.UserError, match="texts are empty"):
        Tokenizer.train(["", "  "], "words", 10)


# samplers


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300),
    batch_size=st.integers(1, 32),
    seed=st.integers(0, 99),
)
def test_bucketed_batches_are_a_permutation_of_similar_lengths(lengths, batch_size, seed):
    values, labels = np.array(lengths), torch.zeros(len(lengths), dtype=torch.int64)
    order = epoch_order("bucketed", labels, seed, 1, batch_size, lengths=values)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    repeated = epoch_order("bucketed", labels, seed, 1, batch_size, lengths=values)
    assert order.tolist() == repeated.tolist()
    full = len(order) // batch_size * batch_size
    batches = values[order[:full]].reshape(-1, batch_size)
    if len(batches) > 1 and len(order) <= 50 * batch_size:
        spans = sorted((batch.min(), batch.max()) for batch in batches)
        for (_, first), (second, _) in pairwise(spans):
            assert first <= second


# readers


def test_every_form_of_the_same_texts(tmp_path):
    rows = sentences(40)
    write_csv(tmp_path / "a.csv", rows)
    (tmp_path / "b.tsv").write_text(
        "\n".join(["label\ttext", *(f"{label}\t{text}" for text, label in rows)]), "utf-8"
    )
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows), "utf-8"
    )
    (tmp_path / "d.csv").write_bytes(
        b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes().replace(b"\n", b"\r\n")
    )
    for number, (text, label) in enumerate(rows):
        (tmp_path / "e" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "e" / label / f"{number:03}.txt").write_text(text, "utf-8")
    expected = sorted(rows)
    for name in ("a.csv", "b.tsv", "c.jsonl", "d.csv", "e"):
        dataset = open_texts(tmp_path / name, modality(), split="all", seed=0, validation=None)
        texts = [
            (text, dataset.classes[dataset.label(index)])
            for index, text in enumerate(dataset.items.texts)
        ]
        assert sorted(texts) == expected, name
        train, validation = opened(tmp_path / name), opened(tmp_path / name, "validation")
        assert len(train) + len(validation) == 40
        assert len(validation) == 8


def test_own_splits_and_folds(tmp_path):
    rows = [(*row, split) for row, split in zip(sentences(12), ["train"] * 8 + ["val", "test"] * 2)]
    path = write_csv(tmp_path / "a.csv", rows, "text,label,split")
    assert [len(opened(path, split)) for split in ("train", "validation", "test")] == [8, 2, 2]
    folds = [(*row, str(number % 4)) for number, row in enumerate(sentences(12))]
    path = write_csv(tmp_path / "b.csv", folds, "sentence,class,fold")
    columns = TextColumns("sentence", "class", "fold", ("3",))
    assert len(opened(path, "test", columns=columns)) == 3
    train = opened(path, columns=columns)
    test = opened(path, "test", columns=columns)
    assert not set(train.items.texts) & set(test.items.texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\nfine,good\n,bad\nx,good\n", "row 3 without text"),
        (b"text,label\nfine,good\nok,good\n", "all 2 texts have the class 'good'"),
        (b"text,label\nfine,good\nok,\n", "row 3: no label"),
        (b"text,lable\nfine,good\nok,bad\n", "'label' is not one of them; did you mean lable"),
        (b"text,label\nfine\xe4,good\nok,bad\n", "row 2: the text .* is not UTF-8"),
        (b"text,label\n", "no rows below its header"),
        (b"text,label,split\na,x,train\nb,y,dev2\n", "row 3: split 'dev2', allowed are"),
        (b"text,label\nfine,good\na\0b,bad\n", "row 3 has a NUL character"),
        ("text,label\nfine,good\na,bad\n".encode("utf-32"), "row 1 has a NUL character"),
    ],
)
def test_bad_tables_are_named_with_their_row(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(plusx.UserError, match=message):
        opened(path, "all")


def test_every_class_has_a_text_to_train_on(tmp_path):
    rows = [("a film", "good", "train"), ("the end", "bad", "val")]
    path = write_csv(tmp_path / "a.csv", rows, "text,label,split")
    with pytest.raises(plusx.UserError, match=r"a\.csv: no text of the class 'bad' to train on"):
        opened(path)
    path = write_csv(tmp_path / "b.csv", [*sentences(20), ("so so", "neither")])
    assert "the class neither has one sample" in " ".join(opened(path).warnings)
    path = write_csv(tmp_path / "c.csv", sentences(2))
    with pytest.raises(plusx.UserError, match=r"c\.csv: 2 samples are too few"):
        opened(path, "validation")


def test_texts_in_files_are_utf_8_or_utf_16(tmp_path):
    for name, data in (("good/a", "ä b".encode("utf-16")), ("good/b", b"c"), ("bad/a", b"d")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_bytes(data)
    assert "ä b" in opened(tmp_path, "all").items.texts
    for data, problem in ((b"x\nsch\xf6n", "line 2 is not UTF-8"), (b"text\0", "line 1 has a NUL")):
        (tmp_path / "good" / "b.txt").write_bytes(data)
        with pytest.raises(plusx.UserError, match=rf"good/b\.txt, {problem}"):
            opened(tmp_path, "all")


@pytest.mark.parametrize("line", ['{"text": "a", "label": NaN}', "[" * 100_000])
def test_invalid_json_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n' + line)
    with pytest.raises(plusx.UserError, match=r"a\.jsonl, line 2 is not JSON"):
        opened(path, "all")


@pytest.mark.parametrize("vocabulary", [(UNKNOWN, "a"), (PAD, UNKNOWN, "a", "a")])
def test_a_vocabulary_has_padding_and_no_token_twice(vocabulary):
    with pytest.raises(
        plusx.UserError, match="a vocabulary without <pad>, or with a repeated token"
    ):
        TextModality(Tokenizer("words", vocabulary))


def test_byte_pairs_need_a_vocabulary_of_all_characters():
    pytest.importorskip("tokenizers")
    with pytest.raises(plusx.UserError, match=r"5 tokens: the texts have 4 different .* needs 6"):
        Tokenizer.train(["abc"], "bpe", 5)


def test_inputs_of_a_network_for_texts(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "lines.txt").write_bytes("eins\n\nzwei\n".encode("utf-16"))
    write_csv(tmp_path / "rows.csv", [("a", "x"), ("", "y")])
    write_csv(tmp_path / "none.csv", [])
    (tmp_path / "nul.txt").write_bytes(b"a\nb\0c\n")
    failed = []
    listed = [str(tmp_path / "lines.txt"), str(tmp_path / "rows.csv"), "", "a text"]
    assert sources_of(listed, modality(), failed) == ["eins", "zwei", "a", "a text"]
    assert [row["path"].rpartition("/")[2] for row in failed] == [
        "lines.txt, line 2", "rows.csv, row 3", "''",
    ]  # fmt: skip
    for name, problem in (
        ("folder", "is a folder"),
        ("none.csv", "no rows below its header"),
        ("nul.txt", "line 2 has a NUL"),
    ):
        with pytest.raises(plusx.UserError, match=problem):
            sources_of([str(tmp_path / name)], modality(), [])


def test_info_describes_texts(tmp_path):
    rows = [*sentences(40), ("", "good"), sentences(1)[0]]
    write_csv(tmp_path / "a.csv", rows)
    done = plusx_command("info", "a.csv", "--json", "--out", "page.html", cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert (summary["kind"], summary["count"]) == ("texts", 41)
    assert {row["name"] for row in summary["classes"]} == {"good", "bad"}
    assert summary["command"].startswith("plusx train text data.path=a.csv")
    assert summary["left_out"] == ["skipped row 42: no text"]
    assert any(
        "repeat" in text or "in the training set too" in text for text in summary["warnings"]
    )
    assert "texts of each class" in (tmp_path / "page.html").read_text().lower()
    assert (tmp_path / "page.html").read_text().count("<strong>good</strong>") >= 5
    text = plusx_command("info", "a.csv", cwd=tmp_path).stdout
    assert "41 texts of 2 classes" in text
    assert "characters" in text
    (tmp_path / "corpus").mkdir()
    for split in ("train", "val"):
        for language in ("de", "en"):
            (tmp_path / "corpus" / f"{split}.{language}").write_text("ein Satz\nzwei Worte\n")
    done = plusx_command("info", "corpus", "--json", "--out", "page.html", cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert (summary["inputs"], summary["target_lengths"]["min"]) == ("sentence pairs", 8)
    # "ein Satz" has 8 characters, "zwei Worte" 10
    assert summary["length_counts"]["edges"] == [float(edge) for edge in range(12)]
    assert summary["length_counts"]["splits"]["train"] == [0] * 8 + [1, 0, 1]
    page = (tmp_path / "page.html").read_text()
    assert "<strong>target</strong> ein Satz" in page
    assert "Number of sentence pairs by length in characters" in page
    assert (summary["kind"], summary["splits"]) == ("parallel", {"train": 2, "validation": 2})
    assert summary["command"] == (
        "plusx train translate data.path=corpus data.source=de data.target=en"
    )
    # folders of images with lists in .txt files are no texts
    (tmp_path / "set" / "lists").mkdir(parents=True)
    (tmp_path / "set" / "lists" / "train.txt").write_text("a.jpg")
    (tmp_path / "set" / "images").mkdir()
    (tmp_path / "set" / "images" / "a.jpg").write_bytes(b"no image")
    done = plusx_command("info", "set", cwd=tmp_path, code=2)
    assert "texts" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "pairs.csv"], "train translate data.path=pairs.csv data.source=COLUMN"),
        (["info", "stars.csv"], "train text data.path=stars.csv data.text=COLUMN"),
        (["info", "notes.txt"], "recordings, texts or pairs of sentences"),
        (["train", "text", "data.path=corpus"], "data.path=corpus data.source=de data.target=en`"),
        (
            ["train", "translate", "data.path=a.csv", "data.source=x", "data.target=y"],
            "'x' and 'y' are not among them",
        ),
    ],
)
def test_columns_and_commands_are_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv", sentences(8))
    write_csv(tmp_path / "pairs.csv", sentences(8), "de,en")
    write_csv(tmp_path / "stars.csv", sentences(8), "review,sentiment")
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "corpus").mkdir()
    for language in ("de", "en"):
        (tmp_path / "corpus" / f"train.{language}").write_text("ein Satz\nzwei Worte\n")
    assert run(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_weight_file_is_evaluated_on_texts_without_its_run(tmp_path):
    path = write_csv(tmp_path / "reviews.csv", sentences(20))
    fitted = opened(path, "all").fitted().modality
    net = plusx.create_model("resnet5_text", num_classes=2, in_channels=fitted.channels, seed=0)
    save_network(
        net, tmp_path / "a.safetensors", preprocessing=fitted.to_dict(), classes=["bad", "good"]
    )
    result = evaluate(load_run(tmp_path / "a.safetensors"), data=path)
    assert (result["count"], result["noun"], result["split"]) == (20, "text", "all")
    assert "may include" in result["warnings"][0]
    write_csv(tmp_path / "other.csv", [("a film", "dull")])
    with pytest.raises(plusx.UserError, match="'dull' is not one of the classes bad, good"):
        evaluate(load_run(tmp_path / "a.safetensors"), data=tmp_path / "other.csv")


def test_empty_texts_can_be_skipped(tmp_path):
    path = write_csv(tmp_path / "a.csv", [*sentences(10), ("  ", "good")])
    dataset = opened(path, "all", on_unreadable="skip")
    assert len(dataset) == 10
    assert dataset.warnings == ["skipped row 12: no text"]


@pytest.mark.slow
def test_texts_in_both_splits_and_long_texts_are_warned_of(tmp_path):
    rows = sentences(20)
    same = [(*rows[0], "train"), *((*row, "train") for row in rows[1:]), (*rows[0], "val")]
    long = ("word " * 40, "good", "train")
    write_csv(tmp_path / "a.csv", [*same, (*rows[3], "val"), long], "text,label,split")
    done = plusx_command(
        "train", "text", "data.path=a.csv", "epochs=1", "batch_size=8", "data.max_length=30",
        "device.threads=1", cwd=tmp_path,
    )  # fmt: skip
    assert "2 of its texts are in the training set too, word by word" in done.stderr
    assert "longer than max_length = 30 tokens and cut there" in done.stderr


def test_dropped_words_are_unknown_at_their_rate_and_in_training_alone(tmp_path):
    rows = [("the same four words " * 25, "ab"[i % 2]) for i in range(40)]
    path = write_csv(tmp_path / "t.csv", rows)
    dataset = opened(path).fitted()
    unknown = dataset.modality.tokenizer.number(UNKNOWN)

    def batch(augment, epoch=0):
        loader = Loader(dataset, augment=augment, batch_size=64, split="train")
        return next(iter(loader.epoch(epoch))).inputs

    plain, dropped = batch(""), batch("worddrop.2")
    assert float((dropped == unknown).float().mean()) == pytest.approx(0.2, abs=0.03)
    unchanged = dropped != unknown
    assert torch.equal(dropped[unchanged], plain[unchanged])
    assert torch.equal(dropped, batch("worddrop.2"))
    assert not torch.equal(dropped, batch("worddrop.2", 1))
    validation = Loader(dataset, augment="worddrop.2", batch_size=64, split="validation")
    assert not (next(iter(validation.epoch(0))).inputs == unknown).any()


def test_epochs_of_batches_can_begin_anywhere(tmp_path):
    path = write_csv(tmp_path / "a.csv", sentences(50))
    dataset = opened(path).fitted()
    with Loader(dataset, batch_size=8, sampler="bucketed", seed=3) as loader:
        whole = list(loader.epoch(2))
        rest = list(loader.epoch(2, 3))
    assert len(whole) == 5
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.lengths, other.lengths)
        assert int(one.lengths.max()) == one.inputs.shape[1]
        assert int(one.lengths.min()) >= 16


# runs


@pytest.mark.slow
def test_train_evaluate_and_predict(trained):
    result = json.loads((trained / "runs/text/result.json").read_text())
    assert result["validation"]["accuracy"] > 0.9
    texts = ["the film is lovely", "a tired story"]
    done = plusx_command("predict", "runs/text", *texts, "--json", cwd=trained)
    rows = json.loads(done.stdout)["predictions"]
    assert [(row["text"], row["label"]) for row in rows] == [
        (texts[0], "good"),
        (texts[1], "bad"),
    ]
    (trained / "more.txt").write_text("\n".join(texts) + "\n\n", "utf-8")
    done = plusx_command("predict", "runs/text", "more.txt", "reviews.csv", "--json", cwd=trained)
    listed = json.loads(done.stdout)
    for row, other in zip(rows, listed["predictions"][:2], strict=True):  # in another batch
        assert row["text"] == other["text"]
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    assert len(listed["predictions"]) == 242
    assert listed["failed"] == [{"path": "more.txt, line 3", "reason": "an empty line"}]
    done = plusx_command("evaluate", "runs/text", "--json", cwd=trained)
    assert json.loads(done.stdout)["accuracy"] == result["validation"]["accuracy"]
    done = plusx_command(
        "evaluate", "runs/text", "--data", "reviews.csv", "--split", "all", "--json", cwd=trained
    )
    assert json.loads(done.stdout)["count"] == 240


@pytest.mark.slow
def test_a_weight_file_is_self_contained(trained, tmp_path):
    shutil.copy(trained / "runs/text/model.safetensors", tmp_path / "model.safetensors")
    ours = plusx.load(trained / "runs/text")(["a lovely film"])
    assert plusx.load(tmp_path / "model.safetensors")(["a lovely film"]) == ours
    alone = plusx.load(trained / "runs/text")(["a film", "a lovely film , and a very clever story"])
    assert alone[0]["probabilities"] == pytest.approx(
        plusx.load(trained / "runs/text")("a film")[0]["probabilities"], abs=1e-6
    )


@pytest.mark.slow
def test_an_exported_file_predicts_the_same(trained):
    pytest.importorskip("onnxruntime")
    plusx_command("export", "runs/text", "--out", "model.onnx", cwd=trained)
    texts = ["a lovely film", "a cold and tired story , and its actors are never fine"]
    ours, theirs = (plusx.load(trained / name)(texts) for name in ("runs/text", "model.onnx"))
    for one, other in zip(ours, theirs, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


@pytest.mark.slow
def test_an_explanation_finds_the_words_that_decide(trained):
    texts = ["the film is very lovely and its actors are a story", "the actors are a tired film ,"]
    for method in ("grad-cam", "occlusion"):
        done = plusx_command(
            "explain", "runs/text", *texts, "--method", method, "--out", method, "--json",
            cwd=trained,
        )  # fmt: skip
        rows = json.loads(done.stdout)["texts"]
        for row, word in zip(rows, (" lovely", " tired"), strict=True):
            best = max(range(len(row["tokens"])), key=row["attributions"].__getitem__)
            assert row["tokens"][best] == word, method
            assert len(row["tokens"]) == len(row["attributions"])
            assert row["drop"]["attributed"] > 0.2
        page = (trained / method / "explain.html").read_text()
        assert "lovely</span>" in page
        assert "plusx explain" in page


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(tmp_path):
    write_csv(tmp_path / "reviews.csv", sentences(200))
    fields = (
        "data.path=reviews.csv", "epochs=4", "batch_size=16", "device.threads=1",
        "checkpoint.every_steps=3",
    )  # fmt: skip
    plusx_command("train", "text", *fields, "--out", "whole", cwd=tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "plusx", "train", "text", *fields, "--out", "killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "killed" / "log.jsonl"
    for _ in range(600):
        if log.is_file() and log.read_text().count("\n") >= 1:
            break
        try:
            process.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()
    plusx_command("train", "text", *fields, "--out", "killed", cwd=tmp_path)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "runs/text", "missing.txt"], "missing.txt: no such file"),
        (["predict", "runs/text", "latin.txt"], "latin.txt, line 1 is not UTF-8"),
        (["predict", "runs/text", "labels.csv"], "texts are in a column called text"),
        (["train", "text", "data.path=reviews.csv", "data.label=mood"], "'mood' is not one of"),
        (["train", "text", "data.path=reviews.csv", "data.min_length=900"], "min_length = 900"),
        (["predict", "runs/text", "x", "--tta", "flip"], "texts cannot be mirrored"),
        (["explain", "runs/text", "x", "--stage", "layer1"], "--stage is for images"),
        (["export", "runs/text", "--int8", "--out", "a.onnx"], "--int8 is for images"),
        (["train", "images", "data.path=reviews.csv"], "plusx train text data.path=reviews.csv"),
    ],
)
def test_bad_input_is_named(trained, arguments, message):
    (trained / "latin.txt").write_bytes("sch\xf6n".encode("latin-1"))
    (trained / "labels.csv").write_text("label\ngood\n")
    assert message in plusx_command(*arguments, cwd=trained, code=2).stderr


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("resnet18", "resnet18 takes arrays in 2 dimensions, and the texts of reviews.csv are"),
        ("tc_resnet8", "takes arrays in 1 dimension, and the texts"),
    ],
)
def test_networks_for_other_inputs_are_refused(tmp_path, capsys, net, message):
    path = write_csv(tmp_path / "reviews.csv", sentences(20))
    out = tmp_path / "run"
    assert run(["train", "text", f"data.path={path}", f"net.base={net}", "--out", str(out)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_networks_of_the_paper_train(tmp_path):
    write_csv(tmp_path / "reviews.csv", sentences(24))
    plusx_command(
        "train", "text", "data.path=reviews.csv", "net.base=vdcnn9", "data.tokenizer=characters",
        "data.min_length=64", "data.max_length=128", "steps=2", "batch_size=8", "device.threads=1",
        "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    (row,) = plusx.load(tmp_path / "run")(["the film is lovely"])
    assert sum(row["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize("field", ["device.memory=recompute", "device.compile=true"])
def test_fields_that_would_mix_in_padding_are_refused(tmp_path, field):
    write_csv(tmp_path / "reviews.csv", sentences(24))
    done = plusx_command("train", "text", "data.path=reviews.csv", field, cwd=tmp_path, code=2)
    assert "not for texts of different lengths" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("study", ["gradients", "degradation"])
def test_studies_run_on_texts_by_their_data_alone(tmp_path, study):
    write_csv(tmp_path / "reviews.csv", sentences(60))
    of_study = {
        "gradients": ["study.networks=['plain20','resnet20']", "study.rules=['he']",
                      "study.acts=['relu']", "study.norms=['batch']"],
        "degradation": ["study.depths=[20,32]", "study.kinds=['plain','resnet']",
                        "study.seeds=[0]"],
    }[study]  # fmt: skip
    plusx_command(
        "study", study, "data.kind=texts", "data.path=reviews.csv", "data.tokenizer=characters",
        "data.min_length=32", "data.max_length=32", "steps=4", "checkpoint.every_steps=2",
        *of_study, "--out", "study", cwd=tmp_path,
    )  # fmt: skip
    rows = json.loads((tmp_path / "study" / "result.json").read_text())["rows"]
    assert len(rows) >= 2
    recipe = next((tmp_path / "study" / "runs").rglob("recipe.toml")).read_text()
    assert "embed16" in recipe
    assert "ndim = 1" in recipe
