"""Probes of a network's embeddings: nearest neighbours, logistic regression and k-means.

They measure how well the features of a frozen network separate the classes of its own or of other
data, beside those of the same network before training.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset, as_split
from plusx.data.prediction import ClassProbabilities
from plusx.data.readers.open import open_data
from plusx.data.sets import NAMED_SETS
from plusx.data.splits import held_out, stratified_order
from plusx.errors import UserError
from plusx.metrics.classification import ClassificationMeter, MultiLabelMeter
from plusx.metrics.neighbours import NEIGHBOURS, neighbour_votes
from plusx.nn.build import build as build_model
from plusx.nn.frozen import find_backbone
from plusx.run import build
from plusx.run.evaluation import OnUnreadable, own_split, refuse_channels
from plusx.run.folder import Run, record_test_use
from plusx.statistics import paired_difference, wilson
from plusx.tasks.prepare import find_device
from plusx.train.loop import evaluating


IMAGES = 10_000  # of the training set, at most
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # C of logistic regression, the inverse of lambda
_ROUNDS = 1000
_METRICS = ("loss", "accuracy", "precision", "recall", "f1", "averaging", "auroc", "auroc_interval")


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
    on_unreadable: OnUnreadable = "error",
) -> dict[str, Any]:
    """Return metrics of nearest neighbours ("neighbours") and of logistic regression ("linear") on
    embeddings, and as "random" those of the same network before training.

    Both are trained on at most `images` training images of the run's own data, or of `data`, with
    equally many of each class, and evaluated on `split`. The k nearest neighbours by cosine vote
    with weight exp(cosine / 0.07). The regularisation of logistic regression, on standardised
    embeddings, is chosen on a fifth of the training images. Accuracies have Wilson's interval
    [low, high]; "difference" is the accuracy minus that of the untrained network, with the interval
    of paired predictions for the same images. With one class per input, "clusters" has the
    agreement of classes and k-means clusters, as many as classes. The embedding of a dense network
    is the mean over the positions of its last stage. With split "test" of the run's own data, a
    line is added to its test_uses.jsonl.
    Raises UserError if there is no such data, or the network has no embeddings of images.
    """
    if neighbours < 1 or images < 2 or batch_size < 1:
        raise UserError(
            f"neighbours = {neighbours}, images = {images}, batch_size = {batch_size}: at least 1, "
            "2 and 1"
        )
    split = as_split(split)
    if split not in ("validation", "test"):
        raise UserError(f"split = {split!r}: allowed are 'validation' and 'test'")
    train, evaluated, is_own_data = train_and_evaluated(run, data, split, on_unreadable)
    if train.annotations is not None and not train.spatial:
        raise UserError(f"{train.name} has a text for each input; plusx probe needs classes")
    if train.classes != evaluated.classes:
        raise UserError(
            f"{evaluated.name}: train and {split} have different classes, such as people, so a "
            "probe trained on the one cannot predict the other (plusx evaluate compares pairs)"
        )
    if len(train) > images:
        chosen = np.sort(stratified_order(train.labels, 0)[:images])
        train = train.subset(chosen.tolist())
    torch_device = find_device(device)
    k = min(neighbours, len(train))
    nets = (_embedding_net(run).to(torch_device), _untrained(run).to(torch_device))
    (x_train, x), (x_train_random, x_random) = (
        [
            _embeddings(net, dataset, run, torch_device, batch_size, workers)
            for dataset in (train, evaluated)
        ]
        for net in nets
    )
    probes, correct = _probes(x_train, x, train, evaluated, k)
    random, random_correct = _probes(x_train_random, x_random, train, evaluated, k)
    result: dict[str, Any] = {
        "data": evaluated.name,
        "split": evaluated.split,
        "count": len(evaluated),
        "noun": evaluated.modality.noun,
        "learned_from": len(train),
        "width": x_train.shape[1],
        "classes": list(evaluated.classes),
        **probes,
        "random": random,
        "difference": {
            name: dict(zip(("difference", "low", "high"), paired_difference(*pair)))
            for name in probes
            for pair in [(correct[name], random_correct[name])]
        },
    }
    if not evaluated.multilabel:
        result["clusters"] = _clusters(x_train, x, train, evaluated)
    if messages := list(dict.fromkeys([*train.warnings, *evaluated.warnings])):
        result["warnings"] = messages
    if is_own_data and evaluated.split == "test":
        metric = "auroc" if evaluated.multilabel else "accuracy"
        use = {"data": evaluated.name, "count": len(evaluated)}
        use |= {metric: result["linear"][metric], "by": "probe"}
        result["test_uses"] = record_test_use(run.path, use)
    return result


def train_and_evaluated(
    run: Run, data: str | Path | None, split: str, on_unreadable: OnUnreadable
) -> tuple[Dataset, Dataset, bool]:
    """Return the training set, the evaluated set, and whether they are the run's own data."""
    if run.preprocessing.ndim == 3:
        raise UserError(f"{run.path} is for volumes, which plusx probe does not support")
    train, evaluated = (own_split(run, data, name) for name in ("train", split))
    is_own_data = train is not None and evaluated is not None
    if train is None or evaluated is None:
        assert data is not None
        train, evaluated = (
            open_data(
                data,
                split=name,
                size=run.preprocessing.size[0],
                on_unreadable=on_unreadable,
                multilabel=run.multilabel,
                modality=None if run.preprocessing.kind == "image" else run.preprocessing,
            )
            for name in ("train", split)
        )
        if data in NAMED_SETS and run.assumed:
            return train, evaluated, False
    for dataset in (train, evaluated):
        refuse_channels(run, dataset)
    train, evaluated = (d.with_modality(run.preprocessing) for d in (train, evaluated))
    return train, evaluated, is_own_data


def _embedding_net(run: Run) -> nn.Module:
    """Return the network without its head."""
    if not run.has_gradients:
        raise UserError(
            f"{run.path} is an ONNX file without embeddings; probe a run or its weight file"
        )
    return find_backbone(run.net)[1]


def _untrained(run: Run) -> nn.Module:
    """Return the network before training: with the run's own initialisation, or a new one."""
    if run.recipe is not None:
        recipe, table = run.recipe, run.recipe.net_by_name
        if table is not None:
            recipe = replace(recipe, net=replace(table, weights=""))
        return find_backbone(build.make_net(recipe)[0])[1]
    backbone: Any = find_backbone(run.net)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(backbone.spec)


def _probes(
    x_train: Float[np.ndarray, "n width"],
    x: Float[np.ndarray, "m width"],
    train: Dataset,
    evaluated: Dataset,
    k: int,
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Return the metrics of both probes, and for each evaluated input whether it was correct."""
    votes = (
        neighbour_votes(torch.from_numpy(x_train), _targets(train), torch.from_numpy(x), k)
        .numpy()
        .clip(0, 1)
    )
    probabilities, strength = _logistic_regression(x_train, x, train)
    metrics = {
        "neighbours": {"k": k, **_metrics(votes, evaluated)},
        "linear": {"strength": strength, **_metrics(probabilities, evaluated)},
    }
    predicted = {"neighbours": votes, "linear": probabilities}
    return metrics, {name: _correct(p, evaluated) for name, p in predicted.items()}


def _correct(probabilities: Float[np.ndarray, "m classes"], dataset: Dataset) -> list[int]:
    """Return 1 for each input that is predicted correctly (all of its labels), else 0."""
    labels = dataset.labels.cpu().numpy()
    if labels.ndim == 2:
        correct = ((probabilities >= 0.5) == (labels > 0.5)).all(1)
    else:
        correct = probabilities.argmax(1) == labels
    return [int(value) for value in correct]


def _clusters(
    x_train: Float[np.ndarray, "n width"],
    x: Float[np.ndarray, "m width"],
    train: Dataset,
    evaluated: Dataset,
) -> dict[str, Any]:
    """Return the accuracy of k-means on standardised embeddings of the training images, in which
    each cluster predicts the most frequent class of its training images; and the agreement of
    clusters and classes: normalised mutual information and adjusted Rand index."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    x_train, x = _standardised(x_train, x)
    count = min(len(train.classes), len(x_train))
    model = KMeans(count, n_init=10, random_state=0).fit(x_train)
    labels, clusters = evaluated.labels.cpu().numpy(), model.predict(x)
    votes = np.zeros((count, len(train.classes)))
    np.add.at(votes, (model.labels_, train.labels.cpu().numpy()), 1)
    accuracy = float((votes.argmax(1)[clusters] == labels).mean())
    low, high = wilson(accuracy, len(labels))
    return {
        "clusters": count,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "mutual_information": float(normalized_mutual_info_score(labels, clusters)),
        "rand_index": float(adjusted_rand_score(labels, clusters)),
    }


def _standardised(
    x_train: Float[np.ndarray, "n width"], x: Float[np.ndarray, "m width"]
) -> tuple[Float[np.ndarray, "n width"], Float[np.ndarray, "m width"]]:
    """Return both with the mean and deviation of the training embeddings removed."""
    mean, std = x_train.mean(0), x_train.std(0)
    std[std < 1e-6] = 1.0
    return (x_train - mean) / std, (x - mean) / std


def _embeddings(
    net: Any, dataset: Dataset, run: Run, device: torch.device, batch_size: int, workers: int
) -> Float[np.ndarray, "n width"]:
    """Return the embeddings of all images; of dense tasks the mean over the last feature map."""
    loader = build.evaluation_loader(dataset, batch_size, device, workers)

    def embed(images: Tensor) -> Tensor:
        if not run.task.dense:
            return net.embed(images)
        return net.features(images, out=[-1])[0].flatten(2).mean(2)

    with loader, evaluating(net), torch.inference_mode():
        embeddings = torch.cat([embed(batch.inputs).float().cpu() for batch in loader.epoch(0)])
    if not bool(embeddings.isfinite().all()):
        raise FloatingPointError("embeddings are not finite")
    return embeddings.numpy()


def _targets(dataset: Dataset) -> Float[Tensor, "n classes"]:
    """Return the labels as zeros and ones."""
    labels = dataset.labels.cpu()
    if labels.ndim == 2:
        return labels.double()
    return nn.functional.one_hot(labels, len(dataset.classes)).double()


def _logistic_regression(
    x_train: Float[np.ndarray, "n width"], x: Float[np.ndarray, "m width"], train: Dataset
) -> tuple[Float[np.ndarray, "m classes"], float]:
    """Return probabilities of logistic regression on standardised embeddings, and its C.

    C is that of the smallest loss on a fifth of the training images.
    """
    x_train, x = _standardised(x_train, x)
    targets = _targets(train).numpy()
    held = held_out(train.labels.cpu(), 0.2, 0)
    rest = np.delete(np.arange(len(x_train)), held)
    losses = {}
    for strength in STRENGTHS if len(held) else ():
        probabilities = _fit_predict(
            x_train[rest], targets[rest], x_train[held], strength, train.multilabel
        )
        likelihood = np.where(targets[held] > 0.5, probabilities, 1 - probabilities)
        counted = train.multilabel | (targets[held] > 0.5)
        losses[strength] = -np.log(np.clip(likelihood[counted], 1e-12, 1)).mean()
    best = min(losses, key=lambda strength: losses[strength]) if losses else 1.0
    return _fit_predict(x_train, targets, x, best, train.multilabel), best


def _fit_predict(
    x_train: np.ndarray, targets: np.ndarray, x: np.ndarray, strength: float, multilabel: bool
) -> Float[np.ndarray, "m classes"]:
    """Fit and predict; a label that no or every training image has gets its fraction."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probabilities = np.tile(targets.mean(0), (len(x), 1))
    columns = range(targets.shape[1]) if multilabel else [None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for column in columns:
            labels = targets.argmax(1) if column is None else targets[:, column]
            if len(np.unique(labels)) < 2:
                continue
            model = LogisticRegression(C=strength, max_iter=_ROUNDS).fit(x_train, labels)
            predicted = model.predict_proba(x)
            if column is None:
                probabilities[:] = 0
                probabilities[:, model.classes_.astype(np.int64)] = predicted
            else:
                probabilities[:, column] = predicted[:, 1]
    return probabilities


def _metrics(probabilities: Float[np.ndarray, "m classes"], dataset: Dataset) -> dict[str, Any]:
    meter = (MultiLabelMeter if dataset.multilabel else ClassificationMeter)(dataset.classes)
    prediction = ClassProbabilities(torch.from_numpy(probabilities), dataset.multilabel)
    meter.update(prediction, Batch(prediction.probabilities, dataset.labels.cpu()))
    metrics = meter.compute()
    low, high = wilson(metrics["accuracy"], len(dataset))
    ordered = {"accuracy": metrics["accuracy"], "low": low, "high": high}
    return {**ordered, **{key: metrics[key] for key in (*_METRICS, "per_class")}}
