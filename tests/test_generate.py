"""The task of translations and captions: its loss, its metrics, and that it learns."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import plusx
from plusx.data.batch import Batch
from plusx.data.prediction import TokenSequences
from plusx.errors import UserError
from plusx.grammar.heads import ConvDecoder, Head, TransformerDecoder
from plusx.grammar.model import WithHead
from plusx.nn.build import build
from plusx.nn.network import Backbone
from plusx.report.metrics import metrics_line, with_measures
from plusx.tasks.generate import Generate, set_decoding
from plusx.zoo import find


WORDS = ("</s>", "<unk>", "▁a", "▁red", "▁blue", "▁ball", "▁cube", ".", "▁Two", "s")
CONV = ConvDecoder(width=32, depth=2, embed=24, dropout=0.0, max_length=12)
TRANSFORMER = TransformerDecoder(width=24, depth=1, heads=2, hidden=48, dropout=0.0, max_length=12)


def translator(head: Head = CONV) -> Backbone:
    base = find("convs2s_small_encoder")
    stages = (replace(base.stages[0], width=32, depth=1),)  # type: ignore[union-attr]
    encoder = replace(  # type: ignore[type-var]
        base, stem="embed24 pos conv1b", stem_width=32, stages=stages, in_channels=20, size=16
    )
    torch.manual_seed(0)
    return build(WithHead(backbone=encoder, head=head, num_classes=len(WORDS)))


def padded(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


SOURCES = [[3, 4, 5, 6], [7, 8], [9, 3, 11, 12, 13], [14, 15, 3]]
TARGETS = [[2, 3, 5], [8, 4, 6, 9, 7], [2, 6], [2, 4, 5, 7]]


def batch() -> Batch:
    lengths = torch.tensor(list(map(len, SOURCES)))
    return Batch(padded(SOURCES, 0), padded(TARGETS, -1), lengths)


def task(head: Head = CONV, **options: object) -> Generate:
    return Generate(translator(head), class_names=WORDS, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [CONV, TRANSFORMER])
def test_the_loss_is_the_mean_of_each_sequences_cross_entropy(head: Head) -> None:
    generate = task(head, label_smoothing=0.1)
    losses, errors = [], []
    for source, target in zip(SOURCES, TARGETS):
        logits = generate.net.decoder(
            torch.tensor([[0, *target]]), generate.net.memory(torch.tensor([source]))
        )
        expected = torch.tensor([*target, 0])
        losses.append(F.cross_entropy(logits[0], expected, label_smoothing=0.1))
        errors.append((logits[0].argmax(1) != expected).float().mean())
    torch.testing.assert_close(generate(batch()), torch.stack(losses).mean())
    torch.testing.assert_close(generate.scalars["token_error"], torch.stack(errors).mean())


@pytest.mark.parametrize("count", [2, 4])
def test_losses_of_parts_add_up(count: int) -> None:
    generate = task(label_smoothing=0.1)
    losses = [generate(part) for part in batch().split(count)]
    torch.testing.assert_close(torch.stack(losses).mean(), generate(batch()))


def test_padding_changes_neither_loss_nor_texts() -> None:
    generate, whole = task(beam=3), batch()
    wider = Batch(
        F.pad(whole.inputs, (0, 5), value=17), F.pad(whole.known_targets, (0, 3), value=-1),
        whole.lengths,
    )  # fmt: skip
    torch.testing.assert_close(generate(wider), generate(whole))
    first, second = generate.predict(whole), generate.predict(wider)
    assert torch.equal(first.tokens, second.tokens)
    torch.testing.assert_close(first.losses, second.losses)


def test_of_longer_targets_the_first_tokens_count() -> None:
    generate = task(replace(CONV, max_length=4))
    longer = [[*target, 3, 3, 3, 3] for target in TARGETS]
    cut = [target[:4] for target in longer]
    whole = batch()
    targets = padded(longer, -1)
    loss = generate(Batch(whole.inputs, targets, whole.lengths))
    logits = [
        generate.net.decoder(
            torch.tensor([[0, *target[:3]]]), generate.net.memory(torch.tensor([source]))
        )[0]
        for source, target in zip(SOURCES, cut)
    ]
    losses = [F.cross_entropy(x, torch.tensor(y)) for x, y in zip(logits, cut)]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


@pytest.mark.parametrize(
    "head",
    [
        CONV,
        *(pytest.param(h, marks=pytest.mark.slow) for h in (TRANSFORMER, replace(CONV, tied=True))),
    ],
)
def test_it_memorises_sentences(head: Head) -> None:
    pytest.importorskip("sacrebleu")
    generate = task(head, beam=2)
    optimizer = plusx.make_optimizer(generate, "adamw", lr=0.005, weight_decay=0.0)
    state = plusx.State(generate, optimizer)
    reports = list(plusx.fit(state, (batch() for _ in range(200)), lr=0.005))
    assert reports[-1].loss < 0.05 * reports[0].loss
    metrics = plusx.evaluate(generate, [batch()])
    assert metrics["exact_match"] == 1.0
    assert metrics["bleu"] == pytest.approx(100.0)
    assert list(metrics)[:3] == ["bleu", "chrf", "exact_match"]
    rows = generate.eval().predict(batch()).rows(WORDS)
    assert [row["translation"] for row in rows] == [
        "a red ball", "Two blue cubes.", "a cube", "a blue ball.",
    ]  # fmt: skip
    assert all(-1 < row["score"] <= 0 for row in rows)


def test_metrics_are_sacrebleus_and_say_how_they_are_computed() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    tokens = torch.tensor([[2, 3, 5, 7, -1], [8, 4, 6, 9, 7], [2, 6, 7, -1, -1], [2, 4, 5, 7, -1]])
    prediction = TokenSequences(tokens, torch.zeros(4), "translation", torch.ones(4))
    (meter,) = task().meters()
    meter.update(prediction, batch())
    metrics = meter.compute()
    hypotheses = ["a red ball.", "Two blue cubes.", "a cube.", "a blue ball."]
    references = ["a red ball", "Two blue cubes.", "a cube", "a blue ball."]
    assert metrics["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert metrics["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert (metrics["exact_match"], metrics["count"], metrics["tokens"]) == (0.5, 4, 14)
    assert metrics["loss"] == 1.0
    assert metrics["signature"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert metrics["signature"]["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")


def test_a_vocabulary_in_lower_case_is_in_the_signature_and_unknown_words_never_match() -> None:
    pytest.importorskip("sacrebleu")
    net = translator()
    names = tuple(word.lower() for word in WORDS)
    (meter,) = Generate(net, class_names=names).meters()
    targets = torch.tensor([[2, 1, 5]])
    meter.update(
        TokenSequences(targets, torch.zeros(1), "translation"),
        Batch(torch.zeros(1, 3, dtype=torch.int64), targets),
    )
    metrics = meter.compute()
    assert "case:lc" in metrics["signature"]["bleu"]
    assert metrics["exact_match"] == 0.0
    assert "loss" not in metrics


def test_a_caption_has_its_own_name_and_first_metric() -> None:
    caption = task(key="caption")
    assert caption.metrics[0] == "exact_match"
    assert "caption" in caption.predict(Batch(batch().inputs)).rows(WORDS)[0]


def test_data_without_sequences_is_refused() -> None:
    with pytest.raises(UserError, match="does not generate tokens"):
        Generate(plusx.create_model("resnet20"))
    with pytest.raises(UserError, match="targets are"):
        task()(replace(batch(), targets=torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(UserError, match="token 10; a network of 10 tokens allows 0 to 9"):
        task()(replace(batch(), targets=torch.full((4, 2), 10)))
    with pytest.raises(UserError, match="label_smoothing is 1"):
        task(label_smoothing=1.0)


def test_bleu_is_printed_in_points_and_fractions_in_per_cent() -> None:
    values = {"loss": 1.5, "bleu": 34.104, "chrf": 58.0, "exact_match": 0.25}
    line = metrics_line(values, ("bleu", "chrf", "exact_match"))
    assert line == "loss 1.5000, BLEU 34.10 points, chrF 58.00 points, exact match 25.0 %"
    assert with_measures({**values, "hd95": 3.0}, ("bleu",)) == ["bleu", "hd95"]


def test_the_beam_of_a_trained_translator_can_be_changed() -> None:
    generate = task(beam=4)
    set_decoding(generate, beam=1, cached=False)
    assert (generate.beam, generate.cached) == (1, False)
    set_decoding(generate)
    assert (generate.beam, generate.cached) == (1, True)
    with pytest.raises(UserError, match="for networks that generate text"):
        set_decoding(plusx.Classify(plusx.create_model("resnet20")), beam=2)
