"""Grammars of commands, decoding within them, and synthetic recordings of them."""

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import plusx
from plusx.data.batch import Batch
from plusx.data.command_grammar import (
    MAX_PHRASES,
    Command,
    open_grammar,
    shipped_grammars,
    spelled,
)
from plusx.errors import UserError


pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("jiwer")

from plusx.data.sets import voice_commands
from plusx.data.sets.voice_commands import (
    ALPHABET,
    SPLITS,
    VOICES,
    Counts,
    synthesised,
    utterances,
)
from plusx.metrics.intents import equal_error_threshold
from plusx.recipe import load_recipe, parse_recipe
from plusx.report.predictions import read_examples
from plusx.run import evaluate, load_run, predict, train, write_predictions
from plusx.run.listening import Listener
from plusx.run.spoken_commands import PAUSE, CommandStream, within_grammar
from plusx.tasks.classify import Classify
from plusx.tasks.ctc_decoding import least_positions
from plusx.tasks.transcribe import Transcribe
from plusx.tasks.within_grammar import PhraseTrie, WithinGrammar
from test_sound_runs import transcribing
from test_streaming import BODIES, recogniser, spec
from tone_files import RATE, manifest, spoken


ESPEAK = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
LIGHTS = """
[values]
room = ["kitchen", "living room"]
state = { on = true, off = false }

[numbers]
minutes = { from = 1, to = 3 }

[[commands]]
verb = "switch"
object = "light"
phrases = ["turn {state} the {room} light", "switch the {room} light {state}"]

[[commands]]
verb = "start"
object = "timer"
values = { sound = "bell" }
phrases = ["wait {minutes} minutes"]
"""
TONES = """
[values]
word = { ab = 1, ba = 2 }

[[commands]]
verb = "play"
object = "tone"
phrases = ["{word} c", "c {word}"]
"""


def test_a_phrase_is_its_verb_object_and_values() -> None:
    grammar = open_grammar(LIGHTS)
    assert len(grammar.texts) == 2 * 4 + 3
    switch = Command("switch", "light", (("room", "living room"), ("state", True)))
    assert grammar.parse("turn on the living room light") == switch
    assert grammar.parse("  switch the living  room light on ") == switch
    assert str(switch) == "switch light room=living room state=true"
    timer = Command("start", "timer", (("minutes", 2), ("sound", "bell")))
    assert grammar.parse("wait two minutes") == timer
    for text in ("turn the the light", "turn on the light", "wait four minutes", "", "wait two"):
        assert grammar.parse(text) is None


WORDS = st.text("abcd", min_size=1, max_size=4)


@st.composite
def grammars(draw: st.DrawFn) -> tuple[str, dict[str, Command]]:
    """A grammar as TOML, and its phrases. The first word of a command's phrases names it."""
    slots = draw(
        st.dictionaries(
            st.sampled_from("xyz"), st.lists(WORDS, min_size=1, max_size=4, unique=True),
            min_size=1,
        )
    )  # fmt: skip
    text = "[values]\n" + "".join(f"{slot} = {json.dumps(v)}\n" for slot, v in slots.items())
    phrases = {}
    for number in range(draw(st.integers(1, 3))):
        used = draw(st.permutations(sorted(slots)))[: draw(st.integers(0, len(slots)))]
        joined = [f"v{number}", *(f"the {{{slot}}}" for slot in used)]
        text += f'[[commands]]\nverb = "v{number}"\nobject = "o"\n'
        text += f"phrases = {json.dumps([' '.join(joined)])}\n"
        expected: list[tuple[str, tuple[tuple[str, str], ...]]] = [(f"v{number}", ())]
        for slot in used:
            expected = [
                (f"{phrase} the {word}", (*values, (slot, word)))
                for phrase, values in expected
                for word in slots[slot]
            ]
        phrases |= {p: Command(f"v{number}", "o", tuple(sorted(v))) for p, v in expected}
    return text, phrases


@settings(max_examples=50)
@given(grammars(), st.data())
def test_every_phrase_is_parsed_and_no_other(
    example: tuple[str, dict[str, Command]], data: st.DataObject
) -> None:
    text, phrases = example
    grammar = open_grammar(text)
    assert dict(grammar.phrases) == phrases
    for phrase, command in phrases.items():
        assert grammar.parse(phrase) == command
    words = data.draw(st.sampled_from(sorted(phrases))).split()
    at = data.draw(st.integers(0, len(words) - 1))
    for changed in (words[:at] + words[at + 1 :], words[: at + 1] + words[at:]):
        assert grammar.parse(" ".join(changed)) == phrases.get(" ".join(changed))


def test_the_grammars_that_come_with_plusx() -> None:
    assert "home" in shipped_grammars()
    for name in shipped_grammars():
        grammar = open_grammar(name)
        assert 200 <= len(grammar.texts) <= 2_000
        assert set("".join(grammar.texts)) <= set(ALPHABET)


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety nine"), (100, "one hundred"),
     (215, "two hundred fifteen"), (930, "nine hundred thirty")],
)  # fmt: skip
def test_numbers_are_spelled(number: int, words: str) -> None:
    assert spelled(number) == words


COMMAND = '[[commands]]\nverb = "v"\nobject = "o"\n'
ANOTHER = COMMAND.replace('"v"', '"w"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[values\n", "not TOML: Expected ']'"),
        ("", "no [[commands]]"),
        ("[value]\n", "unknown key 'value'; did you mean values?"),
        (f'{COMMAND}phrases = ["turn {{rom}}"]\n[values]\nroom = ["a"]',
         "command 1 (v o), phrase 1: unknown slot {rom}; did you mean room?"),
        (f"{COMMAND}phrases = []\n", "command 1 (v o): phrases: a list of texts, at least one"),
        (f'{COMMAND}phrases = [" "]\n', "command 1 (v o), phrase 1: is empty"),
        (f'{COMMAND}phrases = ["a {{ b"]\n', "phrase 1: 'a { b': a slot is written {name}"),
        (f'{COMMAND}phrases = ["a"]\nverbs = "x"\n', "command 1: unknown key 'verbs'"),
        ('[[commands]]\nobject = "o"\nphrases = ["a"]\n', "command 1: no verb"),
        (f'{COMMAND}phrases = ["a"]\n{ANOTHER}phrases = ["b", "a"]\n',
         "'a' is ambiguous: it is v o in"),
        (f'[values]\nx = ["a"]\n{COMMAND}phrases = ["{{x}} {{x}}"]\n', "{x} has two values"),
        (f'[values]\nx = ["a"]\n{COMMAND}values = {{x = 1}}\nphrases = ["{{x}}"]\n',
         "{x} has two values"),
        (f'[values]\nx = []\n{COMMAND}phrases = ["a"]\n', "[values] x: a list of spoken words"),
        (f'[values]\nx = [1]\n{COMMAND}phrases = ["a"]\n', "[values] x: a list of spoken words"),
        (f'[values]\nx = {{a = [1]}}\n{COMMAND}phrases = ["a"]\n', "a value that is neither"),
        (f'[numbers]\nx = {{from = 5, to = 1}}\n{COMMAND}phrases = ["a"]\n', "[numbers] x: whole"),
        (f'[numbers]\nx = {{to = 1000}}\n{COMMAND}phrases = ["a"]\n', "from 0 to 999"),
        (f'[numbers]\nx = {{til = 10}}\n{COMMAND}phrases = ["a"]\n', "unknown key 'til'"),
        (f'[numbers]\na = {{to = 999}}\nb = {{to = 99}}\n{COMMAND}phrases = ["{{a}} {{b}}"]\n',
         f"100,000 phrases, at most {MAX_PHRASES:,}; "),
        ("x = " + "1" * 5000, "not TOML: "),
        ("x = " + "[" * 5000 + "]" * 5000, "not TOML: "),
        (f'[values]\nx = {{a = nan}}\n{COMMAND}phrases = ["a"]\n', "a value that is neither"),
        (f'[values]\nx = {{"a b" = 1, "a  b" = 2}}\n{COMMAND}phrases = ["a"]\n',
         "[values] x: repeated spoken words"),
        (f'{COMMAND}phrases = ["a"]\nvalues.x = 1\n{COMMAND}phrases = ["a"]\nvalues.x = true\n',
         "'a' is ambiguous"),
    ],
)  # fmt: skip
def test_a_wrong_grammar_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "my.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        open_grammar(file)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_a_missing_grammar_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hom.toml: no such grammar .*; did you mean home\?"):
        open_grammar(tmp_path / "hom.toml")
    file = tmp_path / "marked.toml"
    file.write_text(f'{COMMAND}phrases = ["a"]', encoding="utf-8-sig")
    assert open_grammar(file).texts == ("a",)
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8 text"):
        open_grammar(tmp_path / "bytes.toml")


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(1, 3), max_size=5), min_size=1, max_size=6),
    st.integers(1, 9),
    st.integers(0, 1000),
)
def test_likelihoods_are_those_of_the_ctc_loss(
    sequences: list[list[int]], length: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(length, 4, generator=generator, dtype=torch.float64).log_softmax(1)
    likelihoods = PhraseTrie(sequences).log_likelihoods(values)
    for sequence, likelihood in zip(sequences, likelihoods):
        if least_positions(sequence) > length:
            assert likelihood == -torch.inf
            continue
        loss = F.ctc_loss(
            values[:, None],
            torch.tensor([sequence], dtype=torch.int64),
            torch.tensor([length]),
            torch.tensor([len(sequence)]),
            reduction="none",
        )
        torch.testing.assert_close(likelihood, -loss[0])


class Positions(nn.Module):
    """A network whose logits are its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


VOCABULARY = ("<blank>", "\u2581", "a", "b", "c")


def logits_of(*texts: str, certainty: float = 8.0) -> Tensor:
    """Logits (n, k, t) in which each text is read, every letter followed by a blank."""
    rows = torch.zeros(len(texts), len(VOCABULARY), 2 * max(map(len, texts)) + 2)
    letters = [token.replace("\u2581", " ") for token in VOCABULARY]
    for row, text in zip(rows, texts):
        row[0] = certainty
        for position, letter in enumerate(text):
            row[0, 2 * position + 1] = 0
            row[letters.index(letter), 2 * position + 1] = certainty
    return rows


def log_likelihood(logits: Tensor, text: str) -> float:
    """The log-likelihood of a text by torch."""
    values = logits.T[:, None].log_softmax(2)
    letters = [token.replace("\u2581", " ") for token in VOCABULARY]
    tokens = torch.tensor([[letters.index(letter) for letter in text]])
    lengths = torch.tensor([len(values)]), torch.tensor([len(text)])
    return -float(F.ctc_loss(values, tokens, *lengths, reduction="none")[0])


def test_the_most_probable_phrase_is_the_command_or_is_rejected() -> None:
    task = WithinGrammar(
        Transcribe(Positions(), vocabulary=VOCABULARY), open_grammar(TONES), 0.5
    ).eval()
    logits = logits_of("ab c", "b a c", "cc cc")
    logits[1, :, 4] = 0.0  # the space of "b a" is uncertain
    logits[1, 1, 4], logits[1, 0, 4] = 7.5, 7.0
    prediction = task.predict(Batch(logits))
    rows = prediction.rows(VOCABULARY)
    assert rows[0]["command"] == "play tone word=1"
    assert (rows[0]["verb"], rows[0]["object"], rows[0]["values"]) == ("play", "tone", {"word": 1})
    assert rows[0]["phrase"] == rows[0]["transcript"] == "ab c"
    assert rows[0]["likelihood_ratio"] == pytest.approx(1, abs=1e-3)
    phrase, transcript = rows[1]["phrase"], rows[1]["transcript"]
    assert (phrase, transcript) == ("ba c", "b a c")
    nats = log_likelihood(logits[1], phrase) - log_likelihood(logits[1], transcript)
    assert rows[1]["likelihood_ratio"] == pytest.approx(math.exp(nats / len(phrase)), rel=1e-4)
    assert rows[2]["command"] == "rejected"
    assert (rows[2]["verb"], rows[2]["object"], rows[2]["values"]) == (None, None, {})
    assert rows[2]["likelihood_ratio"] < 0.1
    json.dumps(rows, allow_nan=False)
    # a recording too short for all phrases
    (row,) = task.predict(Batch(logits_of("a")[..., :2])).rows(VOCABULARY)
    assert (row["command"], row["likelihood_ratio"]) == ("rejected", 0.0)
    assert len(task.predict_stored(Batch(logits))) == 3
    # padding changes nothing
    lengths = torch.tensor([10, 8, 12])
    padded = task.decode(logits, lengths)
    for index, length in enumerate(lengths.tolist()):
        alone = task.predict(Batch(logits[index : index + 1, :, :length]))
        assert alone.likelihood_ratios[0] == padded.likelihood_ratios[index]


def test_metrics_of_commands() -> None:
    grammar = open_grammar(TONES)
    task = WithinGrammar(Transcribe(Positions(), vocabulary=VOCABULARY), grammar, 0.5).eval()
    spoken_texts = ["ab c", "ba c", "c ab", "cc ab", "a a"]
    texts = ["ab c", "ab c", "cccab", "c ab", "a a"]
    targets = torch.full((5, 5), -1)
    letters = [token.replace("\u2581", " ") for token in VOCABULARY]
    for row, text in zip(targets, spoken_texts):
        row[: len(text)] = torch.tensor([letters.index(letter) for letter in text])
    batch = Batch(logits_of(*texts), targets)
    meters = task.meters()
    for meter in meters:
        meter.update(task.predict(batch), batch)
    values = {key: value for meter in meters for key, value in meter.compute().items()}
    assert (values["count"], values["commands"], values["outside"]) == (5, 3, 2)
    assert values["intent_accuracy"] == pytest.approx(1 / 3)  # the second is another command
    assert values["false_rejection_rate"] == pytest.approx(1 / 3)
    assert values["false_acceptance_rate"] == 0.5
    assert values["parsed_intent_accuracy"] == pytest.approx(1 / 3)
    assert values["parsed_false_acceptance_rate"] == 0.5
    assert 0 < values["wer"] < 1
    assert task.metrics[0] == "intent_accuracy"
    assert set(task.metrics) <= set(values)


def test_the_threshold_of_equal_errors() -> None:
    commands, outside = np.array([0.9, 0.8, 0.7, 0.3]), np.array([0.1, 0.2, 0.6, 0.05])
    assert equal_error_threshold(commands, outside) == pytest.approx(0.6, abs=0.11)
    assert equal_error_threshold(commands, np.array([])) is None


def test_a_grammar_must_fit_the_network() -> None:
    task = Transcribe(Positions(), vocabulary=VOCABULARY)
    with pytest.raises(UserError, match=r"11 phrases with characters that the network does not"):
        WithinGrammar(task, open_grammar(LIGHTS), 0.5)
    with pytest.raises(UserError, match=r"a grammar is for networks that transcribe speech"):
        WithinGrammar(Classify(nn.Linear(2, 2)), open_grammar(TONES), 0.5)
    with pytest.raises(UserError, match=r"threshold = 2: from 0 to 1"):
        WithinGrammar(task, open_grammar(TONES), 2.0)


def tones(path: Path, grammar: Path) -> str:
    """A recipe for a tiny network on tones, with a grammar."""
    task = f'[task]\nkind = "spoken-command"\ngrammar = {json.dumps(str(grammar))}'
    return transcribing(path, epochs=1).replace('[task]\nkind = "transcribe"', task)


def test_a_run_has_its_grammar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from plusx import cli

    path = manifest(tmp_path / "spoken")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    (text, *_) = (row[1] for row in rows if row[2] == "validation")
    grammar = tmp_path / "tones.toml"
    grammar.write_text(f"[[commands]]\nverb='play'\nobject='tone'\nphrases=['{text}']\n")
    run_folder = tmp_path / "run"
    result = train(parse_recipe(tones(path, grammar)), run_folder, progress=False)
    assert result["metrics"][0] == "intent_accuracy"
    shown = read_examples(run_folder / "examples")
    assert shown[0]["path"].startswith("clips/")
    assert shown[0]["lines"][0].startswith("command: ")
    assert {line for example in shown for line in example["lines"][2:]} <= {
        "ground truth: play tone", "ground truth: rejected",
    }  # fmt: skip
    grammar.unlink()  # the run has its text
    result = evaluate(load_run(run_folder))
    assert result["commands"] + result["outside"] == result["count"]
    assert 0 <= result["intent_accuracy"] <= 1
    (row,) = plusx.load(run_folder)(tmp_path / "spoken/clips/0.wav")
    assert row["command"] == "rejected" or row["verb"] == "play"
    (same,) = plusx.load(run_folder / "model.safetensors")(tmp_path / "spoken/clips/0.wav")
    assert same["likelihood_ratio"] == pytest.approx(row["likelihood_ratio"], abs=1e-6)

    other = tmp_path / "other.toml"
    other.write_text(TONES.replace('"play"', '"sing"'))
    clips = sorted((tmp_path / "spoken/clips").iterdir())[:3]
    run = within_grammar(load_run(run_folder), other, 0.0)
    accepted = predict(run, clips)
    assert [row["verb"] for row in accepted["predictions"]] == ["sing"] * 3
    ratios = sorted(row["likelihood_ratio"] for row in accepted["predictions"])
    some = predict(within_grammar(load_run(run_folder), other, (ratios[0] + ratios[2]) / 2), clips)
    assert {row["command"] == "rejected" for row in some["predictions"]} == {True, False}
    write_predictions(tmp_path / "out", some)
    table = list(csv.reader(io.StringIO((tmp_path / "out/predictions.csv").read_text())))
    assert table[0][:3] == ["path", "command", "verb"]
    assert {len(cells) for cells in table} == {len(table[0])}

    words = [str(run_folder), str(clips[0]), "--grammar", str(other), "--threshold", "0"]
    assert cli.run(["predict", *words]) == 0
    assert "sing tone" in capsys.readouterr().out
    assert cli.run(["evaluate", str(run_folder), "--grammar", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 0.5
    assert cli.run(["predict", str(run_folder), str(clips[0]), "--grammar", "nowhere.toml"]) == 2
    assert "nowhere.toml: no such grammar" in capsys.readouterr().err


def test_a_phrase_ends_at_a_pause(tmp_path: Path) -> None:
    """A stream has the commands of the recordings in it."""
    path = manifest(tmp_path / "spoken")
    train(parse_recipe(transcribing(path, epochs=1)), tmp_path / "run", progress=False)
    grammar = tmp_path / "tones.toml"
    grammar.write_text(TONES)
    run = within_grammar(load_run(tmp_path / "run"), grammar, 0.0)
    with pytest.raises(UserError, match="give --grammar FILE"):
        within_grammar(load_run(tmp_path / "run"), None, 0.5)
    rng = np.random.default_rng(0)
    # an untrained network hears everything: its letters are those that it is given here
    head = run.net.head.conv1
    silence = np.zeros(round(RATE * 2 * PAUSE))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([5.0, 0, 0, 0, 0]))
    sound = torch.from_numpy(np.concatenate([spoken("ab c", rng), silence])).float()
    assert list(Listener(run).rows(iter(sound.split(400)))) == []
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 0, 5, 0, 0]))
    (row,) = Listener(run).rows(iter(sound.split(400)))  # it ends with the stream
    assert list(row) == ["seconds", "label", "probability", "phrase", "verb", "object", "values"]
    assert row["verb"] == "play"
    assert 0 <= row["probability"] <= 1


def test_phrases_of_a_stream_are_those_between_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    run = recogniser(spec(BODIES[0], "conv5s2 norm act", 1, 1, "conv1s norm", "batch"))
    stream = CommandStream(within_grammar(run, TONES, 0.5))
    pause = logits_of("")[0].repeat(1, stream.pause)
    phrases = [logits_of(text)[0] for text in ("ab c", "c ba", "cc cc")]
    whole = torch.cat([pause, phrases[0], pause, phrases[1], pause, phrases[2]], 1)
    chunks = iter(whole.split(5, 1))
    monkeypatch.setattr(stream.transcripts, "add", lambda samples, last: chunks)
    events = list(stream.events(torch.zeros(0), last=True))
    assert [event.label for event in events] == [
        "play tone word=1",
        "play tone word=2",
        "rejected",
    ]
    ends = [event.seconds for event in events]
    between = (pause.shape[1] + phrases[1].shape[1]) / (pause.shape[1] + phrases[2].shape[1])
    assert (ends[1] - ends[0]) / (ends[2] - ends[1]) == pytest.approx(between, rel=0.1)


def test_speakers_and_other_words_of_a_split_are_in_no_other() -> None:
    for kind in ("variants", "rates", "pitches"):
        values = [set(getattr(VOICES[split], kind)) for split in SPLITS]
        assert len(set.union(*values)) == sum(map(len, values))
    test = set(VOICES["test"].accents)
    others = {a for split in ("train", "validation") for a in VOICES[split].accents}
    assert len(test - others) == 2
    words = [set(words.split()) for words in voice_commands._OTHER.values()]
    assert len(set.union(*words)) == sum(map(len, words))


def test_utterances_follow_from_the_seed() -> None:
    grammar, counts = open_grammar("home"), Counts(300, 10, 10, 0.25)
    first = list(utterances(grammar, counts, "train", 16_000, 0))
    assert first == list(utterances(grammar, counts, "train", 16_000, 0))
    assert first != list(utterances(grammar, counts, "train", 16_000, 1))
    outside = sum(grammar.parse(utterance.text) is None for utterance in first)
    assert 45 < outside < 105
    assert all(set(utterance.text) <= set(ALPHABET) for utterance in first)


def test_a_missing_synthesiser_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install espeak-ng"):
        synthesised(open_grammar("home"), Counts(2, 1, 1, 0.5), rate=16_000, seed=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="espeak-ng in English does not have, such as 'é'"):
        synthesised(
            open_grammar(f'{COMMAND}phrases = ["café"]\n'), Counts(1, 1, 1, 0.0), rate=8000, seed=0
        )


@ESPEAK
def test_recordings_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plusx.run.datasets import at_another_path, open_split

    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path))
    counts = ["data.phrases=5", "data.validation_phrases=3", "data.test_phrases=4"]
    recipe = load_recipe("voice-commands", counts)
    sets = {split: open_split(recipe, split) for split in SPLITS}
    assert [len(dataset) for dataset in sets.values()] == [5, 3, 4]
    assert {dataset.name for dataset in sets.values()} == {"synthetic voice-commands"}
    assert len({dataset.classes for dataset in sets.values()}) == 1
    sample = sets["train"].read(0)
    assert 0.5 < sample.input.shape[-1] / 16_000 < 10
    fingerprint = sets["test"].fingerprint()
    monkeypatch.setenv("PATH", str(tmp_path))  # not synthesised again
    assert open_split(recipe, "test").fingerprint() == fingerprint
    with pytest.raises(UserError, match="is synthetic"):
        at_another_path(recipe, "elsewhere", "test", ())


@ESPEAK
def test_the_same_utterance_is_the_same_sound() -> None:
    grammar = open_grammar("home")
    utterance = next(utterances(grammar, Counts(1, 1, 1, 0.0), "train", 16_000, 0))
    speak = voice_commands.espeak(16_000)
    assert np.array_equal(speak(utterance), speak(utterance))
    louder = utterance._replace(peak=0.9, noise=0.0)
    recorded = voice_commands.recorded(louder, speak(louder))
    assert float(np.abs(recorded).max()) == pytest.approx(0.9, abs=1e-5)


def test_help_has_an_example() -> None:
    for command in ("predict", "listen"):
        run = [sys.executable, "-m", "plusx", command, "--help"]
        text = subprocess.run(run, capture_output=True, text=True, timeout=60).stdout
        assert "--grammar" in text
        assert "home.toml" in text


def test_a_number_of_validation_recordings_names_its_key() -> None:
    with pytest.raises(UserError, match=r"must be 0; their number is data\.validation_phrases"):
        load_recipe("voice-commands", ["data.validation=50"])
