"""What a network's embeddings tell by themselves: nearest neighbours and logistic regression.

Both answer from what `embed` gives, without touching the network: how well its features tell
classes apart, its own or those of other data.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, as_split
from plusx.data.loader import Loader
from plusx.data.prediction import ClassProbabilities
from plusx.data.readers.open import open_data
from plusx.data.sets import NAMED_SETS
from plusx.data.splits import held_out, stratified_order
from plusx.errors import UserError
from plusx.metrics.classification import ClassificationMeter, MultiLabelMeter
from plusx.nn.frozen import backbone_of
from plusx.run import parts
from plusx.run.evaluation import is_own, refuse_changed
from plusx.run.folder import Run, record_test_use
from plusx.tasks.prepare import find_device
from plusx.train.loop import evaluating


NEIGHBOURS = 20
IMAGES = 10_000  # that are trained on at most
TEMPERATURE = 0.07  # of the votes of neighbours (Wu et al. 2018, section 3.4)
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # of logistic regression, 1 / lambda
_ROUNDS = 1000
_TOLD = ("loss", "accuracy", "precision", "recall", "f1", "averaging", "auroc", "auroc_interval")


def probe(
    run: Run,
    *,
    data: str | Path | None = None,
    split: str = "validation",
    neighbours: int = NEIGHBOURS,
    images: int = IMAGES,
    batch_size: int = 128,
    workers: int = 0,
    device: str = "auto",
    on_unreadable: Literal["error", "skip"] = "error",
) -> dict[str, Any]:
    """Figures of a weighted vote of nearest neighbours and of logistic regression on embeddings.

    Both learn from the training images of the run's own data, or of `data`, at most so many
    `images` of them with the classes in equal shares, and are judged on `split`. Neighbours are by
    the cosine and vote with exp(cosine / 0.07); the strength of the regression, on standardised
    embeddings, is chosen on a fifth of what it learns from. With split "test" of its own data a
    line is added to the run's test_uses.jsonl.
    The embedding of a network that tells masks or boxes is the mean over the positions of its last
    stage; what is asked is then which classes an image shows.
    UserError: there is no such data, or the network gives no embeddings of images.
    """
    if neighbours < 1 or images < 2 or batch_size < 1:
        raise UserError(
            f"neighbours = {neighbours}, images = {images}, batch_size = {batch_size}: at least 1, "
            "2 and 1"
        )
    wanted = as_split(split)
    if wanted not in ("validation", "test"):
        raise UserError(f"split = {split!r}: what is learned from train is judged by another one")
    learn, judge, own = _sources(run, data, wanted, on_unreadable)
    if learn.classes != judge.classes:
        raise UserError(
            f"{judge.name}: train and {wanted} have classes of their own, as people are: what is "
            "learned of the ones says nothing of the others (plusx evaluate compares pairs)"
        )
    if len(learn) > images:
        chosen = np.sort(stratified_order(learn.labels, 0)[:images])
        learn = learn.subset(chosen.tolist())
    place = find_device(device)
    net = _embedding(run).to(place)
    features = [_embedded(net, each, run, place, batch_size, workers) for each in (learn, judge)]
    known, asked = features
    votes = _voted(known, asked, learn, min(neighbours, len(learn)))
    answers, strength = _regressed(known, asked, learn)
    result: dict[str, Any] = {
        "data": judge.name,
        "split": judge.split,
        "count": len(judge),
        "learned_from": len(learn),
        "width": known.shape[1],
        "classes": list(judge.classes),
        "neighbours": {"k": min(neighbours, len(learn)), **_figures(votes, judge)},
        "logistic": {"strength": strength, **_figures(answers, judge)},
    }
    warnings = list(dict.fromkeys([*learn.warnings, *judge.warnings]))
    if warnings:
        result["warnings"] = warnings
    if own and judge.split == "test":
        score = "auroc" if judge.multilabel else "accuracy"
        told = {"data": judge.name, "count": len(judge), score: result["logistic"][score]}
        result["test_uses"] = record_test_use(run.path, {**told, "by": "probe"})
    return result


def _sources(
    run: Run, data: str | Path | None, split: str, on_unreadable: Literal["error", "skip"]
) -> tuple[Dataset, Dataset, bool]:
    """What is learned from and what is judged, prepared for the network; whether it is its own."""
    recipe = run.recipe
    if run.preprocessing.ndim == 3:
        raise UserError(f"{run.path} is for volumes: plusx probe asks about images")
    own = recipe is not None and (data is None or is_own(recipe, data))
    if own:
        assert recipe is not None
        sources = [parts.open_split(recipe, each) for each in ("train", split)]
        for source in sources:
            refuse_changed(run.path, source)
    elif data is None:
        raise UserError(f"{run.path} is a file of weights: say which data with --data")
    else:
        known = run.preprocessing
        size = known.size[0]
        bands = None if known.kind == "image" else known
        sources = [
            open_data(
                data,
                split=each,
                size=size,
                on_unreadable=on_unreadable,
                multilabel=run.multilabel,
                modality=bands,
            )
            for each in ("train", split)
        ]
        if data in NAMED_SETS and run.assumed:
            return sources[0], sources[1], False
    for source in sources:
        if source.in_memory and source.modality.channels != run.preprocessing.channels:
            raise UserError(
                f"{source.name} has {source.modality.channels} channels, the network wants "
                f"{run.preprocessing.channels}"
            )
    learn, judge = (source.with_modality(run.preprocessing) for source in sources)
    return learn, judge, own


def _embedding(run: Run) -> nn.Module:
    """The network that embeds."""
    if not run.has_gradients:
        raise UserError(
            f"{run.path} gives answers alone, no embeddings: probe a run or its weights"
        )
    return backbone_of(run.net)[1]


def _embedded(
    net: Any, source: Dataset, run: Run, device: torch.device, batch_size: int, workers: int
) -> Float[np.ndarray, "n width"]:
    """The embeddings of all images, in their order."""
    embed: Callable[[Tensor], Tensor] = _pooled(net) if run.task.dense else net.embed
    loader = Loader(
        source,
        split="validation",
        batch_size=parts.judged_at_a_time(source, batch_size),
        workers=workers,
        device=device,
    )
    with loader, evaluating(net), torch.inference_mode():
        found = [embed(batch.inputs).float().cpu() for batch in loader.epoch(0)]
    whole = torch.cat(found)
    if not bool(whole.isfinite().all()):
        raise FloatingPointError("embeddings are not finite")
    return whole.numpy()


def _pooled(net: Any) -> Callable[[Tensor], Tensor]:
    """A vector an image from maps that a head for places stands on, which nothing pools."""
    return lambda images: net.features(images, out=[-1])[0].flatten(2).mean(2)


def _voted(
    known: Float[np.ndarray, "n width"],
    asked: Float[np.ndarray, "m width"],
    learn: Dataset,
    count: int,
) -> Float[np.ndarray, "m k"]:
    """The shares of the classes among the nearest neighbours, weighted by their cosines."""
    shares = _shares(learn.labels.cpu(), len(learn.classes))
    stored = nn.functional.normalize(torch.from_numpy(known))
    votes = []
    for part in torch.from_numpy(asked).split(512):
        cosines, places = (nn.functional.normalize(part) @ stored.T).topk(count, 1)
        weights = (cosines.double() / TEMPERATURE).softmax(1)
        votes.append(torch.einsum("mc,mck->mk", weights, shares[places]))
    return torch.cat(votes).numpy().clip(0, 1)


def _shares(labels: Shaped[Tensor, "n ..."], classes: int) -> Float[Tensor, "n k"]:
    if labels.ndim == 2:
        return labels.double()
    return nn.functional.one_hot(labels, classes).double()


def _regressed(
    known: Float[np.ndarray, "n width"], asked: Float[np.ndarray, "m width"], learn: Dataset
) -> tuple[Float[np.ndarray, "m k"], float]:
    """The probabilities by logistic regression, and the strength that was chosen for it."""
    middle, spread = known.mean(0), known.std(0)
    spread[spread < 1e-6] = 1.0
    known, asked = (known - middle) / spread, (asked - middle) / spread
    shares = _shares(learn.labels.cpu(), len(learn.classes)).numpy()
    held = held_out(learn.labels.cpu(), 0.2, 0)
    rest = np.delete(np.arange(len(known)), held)
    losses = {}
    if len(held):
        for strength in STRENGTHS:
            told = _fitted(known[rest], shares[rest], known[held], strength, learn.multilabel)
            right = np.clip(np.where(shares[held] > 0.5, told, 1 - told), 1e-12, 1)
            counted = np.ones_like(right, bool) if learn.multilabel else shares[held] > 0.5
            losses[strength] = -np.log(right[counted]).mean()
    best = min(losses, key=lambda strength: losses[strength]) if losses else 1.0
    return _fitted(known, shares, asked, best, learn.multilabel), best


def _fitted(
    known: np.ndarray, shares: np.ndarray, asked: np.ndarray, strength: float, several: bool
) -> Float[np.ndarray, "m k"]:
    """Probabilities (m, k); a class that nothing or everything shows has its share."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    told = np.tile(shares.mean(0), (len(asked), 1))
    columns = [[each] for each in range(shares.shape[1])] if several else [None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough after so many rounds
        for column in columns:
            right = shares[:, column[0]] if column else shares.argmax(1)
            if len(np.unique(right)) < 2:
                continue
            model = LogisticRegression(C=strength, max_iter=_ROUNDS).fit(known, right)
            answers = model.predict_proba(asked)
            if column:
                told[:, column[0]] = answers[:, 1]
            else:
                told[:] = 0
                told[:, model.classes_.astype(np.int64)] = answers
    return told


def _figures(probabilities: Float[np.ndarray, "m k"], judge: Dataset) -> dict[str, Any]:
    meter = (MultiLabelMeter if judge.multilabel else ClassificationMeter)(judge.classes)
    prediction = ClassProbabilities(torch.from_numpy(probabilities), judge.multilabel)
    meter.update(prediction, Batch(prediction.probabilities, judge.labels.cpu()))
    figures = meter.compute()
    return {**{key: figures[key] for key in _TOLD}, "per_class": figures["per_class"]}
