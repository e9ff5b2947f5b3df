"""Example predictions for texts: classified texts with attributions, and translations."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset
from plusx.data.modality import TextModality
from plusx.data.text_items import TextItems
from plusx.data.tokenizer import PAD, SPACE, UNKNOWN
from plusx.run.chosen_examples import hardest, spread
from plusx.run.predictor import Predictor
from plusx.run.sources import Failed
from plusx.train.loop import evaluating


NUM_TEXTS = 8
NUM_TRANSLATIONS = 3  # of the lowest, and of the median chrF
_TRANSLATED = 64  # sentences from which the examples are selected
_MAX_BATCH = 128  # texts in a batch


def predict_texts(
    predictor: Predictor, dataset: Dataset, failed: Failed, out: Path
) -> list[dict[str, Any]]:
    """Return rows of the texts whose class got the lowest probability, with the attribution of
    every token by `occlusion`."""
    modality, run = predictor.run.preprocessing, predictor.run
    assert isinstance(dataset.items, TextItems)
    assert isinstance(modality, TextModality)
    rows = []
    for index, row in hardest(predictor, dataset, dataset.items.texts, NUM_TEXTS, failed):
        with evaluating(predictor.task):
            numbers = modality.encode(dataset.items.texts[index]).to(predictor.task.device)
            label = run.classes.index(row["label"])
            values = occlusion(run.net, numbers, label, unknown_token(modality))
        tokens, unknown = tokens_of(modality, dataset.items.texts[index])
        rows.append(
            {
                "text": dataset.items.texts[index],
                **row,
                "class": row["label"],
                "tokens": tokens,
                "unknown": unknown,
                "attributions": [round(value, 6) for value in values[: len(tokens)].tolist()],
            }
        )
    return rows


def predict_translations(
    predictor: Predictor, dataset: Dataset, failed: Failed, out: Path
) -> list[dict[str, Any]]:
    """Return rows of the sentences whose translations have the lowest chrF, and of those around
    the median."""
    from sacrebleu.metrics.chrf import CHRF

    assert isinstance(dataset.items, TextItems)
    assert isinstance(dataset.annotations, Texts)
    indices = spread(_TRANSLATED, len(dataset))
    texts = [dataset.items.texts[index] for index in indices]
    references = [dataset.annotations.texts[index] for index in indices]
    metric = CHRF()
    rows = []
    for text, reference, row in zip(texts, references, predictor(texts), strict=True):
        chrf = metric.sentence_score(row["translation"], [reference]).score
        rows.append({**row, "text": text, "ground_truth": {"translation": reference}, "chrf": chrf})
    rows.sort(key=lambda row: row["chrf"])
    middle = max(NUM_TRANSLATIONS, (len(rows) - NUM_TRANSLATIONS) // 2)
    return rows[:NUM_TRANSLATIONS] + rows[middle : middle + NUM_TRANSLATIONS]


def occlusion(
    net: nn.Module, numbers: Int64[Tensor, "t"], index: int, unknown: int
) -> Float[Tensor, "t"]:
    """Return for each token how much the probability of a class falls if the token is replaced by
    `unknown` (Zeiler and Fergus 2014, section 4.2)."""
    unchanged = probabilities(net, numbers[None])[0, index]
    occluded = numbers.repeat(len(numbers), 1)
    occluded.fill_diagonal_(unknown)
    parts = [probabilities(net, batch)[:, index] for batch in occluded.split(_MAX_BATCH)]
    return unchanged - torch.cat(parts)


def probabilities(net: nn.Module, numbers: Int64[Tensor, "n t"]) -> Float[Tensor, "n k"]:
    """Return the probabilities of texts of one length."""
    with torch.inference_mode():
        logits: Tensor = net(numbers)
        return logits.float().softmax(1)


def unknown_token(modality: TextModality) -> int:
    """Return the token that replaces a word: "<unk>", or padding in vocabularies without it."""
    tokenizer = modality.tokenizer
    return tokenizer.number(UNKNOWN if UNKNOWN in tokenizer.vocabulary else PAD)


def tokens_of(modality: TextModality, text: str) -> tuple[list[str], list[bool]]:
    """Return the tokens of a text, at most the maximum length, and whether each is outside of the
    vocabulary."""
    tokens = modality.tokenizer.tokens(text)[: modality.max_length]
    vocabulary = set(modality.tokenizer.vocabulary)
    unknown = [token not in vocabulary for token in tokens]
    return [token.replace(SPACE, " ") for token in tokens], unknown
