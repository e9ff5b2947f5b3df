"""Galleries of enrolled people, with a threshold that rejects impostors.

A gallery is a self-contained folder: gallery.json has the people and the threshold,
people.safetensors a vector for each person, model.safetensors the network. The vector of a person
is the mean embedding of the images, normalised to unit length. Scores are cosines.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from plusx import store
from plusx.data.image_file import printable
from plusx.data.modality import modality_from_dict
from plusx.data.readers.people import images_of_people
from plusx.data.readers.verdicts import Entry
from plusx.data.splits import stratified_order
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.run import build
from plusx.run.datasets import DATA
from plusx.run.evaluation import tta_of
from plusx.run.folder import Run
from plusx.run.predictor import Predictor, refuse_none
from plusx.run.sources import Failed, image_files
from plusx.statistics import wilson
from plusx.tasks.embed import Embed
from plusx.tasks.tta import Tta
from plusx.weights import open_network, save_network


GALLERY, PEOPLE, NETWORK = "gallery.json", "people.safetensors", "model.safetensors"
FORMAT = "plusx gallery 1"
# largest change of a float32 score with the batch of an image
_ROUNDING = 1e-5
_MAX_NAMES = 10  # in a message
_MAX_IMAGES = 5_000  # of impostors from each split of the run, equally many of each person

Vectors = Float[np.ndarray, "n width"]
PeopleVectors = Float[np.ndarray, "people width"]
Labels = Int64[np.ndarray, "n"]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Enrolled people: a unit vector for each, and the lowest score that is accepted."""

    path: Path
    run: Run
    tta: Tta
    people: tuple[str, ...]
    vectors: PeopleVectors
    threshold: float
    far: float


def enroll(
    run: Run,
    folder: str | Path,
    to: str | Path,
    *,
    far: float | None = None,
    impostors: str | Path | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Write a gallery of the people in a folder (one folder per person) into the new folder `to`.

    The threshold is the lowest one that accepts at most the fraction `far` (default: that of the
    recipe) of the images of impostors. Impostors are the people of the run's training and
    validation sets, or those of the folder `impostors`; each enrolled person is also an impostor
    for all others. An impostor who is enrolled, by name or by an identical image, is left out.

    Returns gallery, people, pictures (the number of images), threshold, false_accept_rate (`far`),
    false_accepts (of images of impostors), true_accepts (of images of enrolled people, compared
    with the person's other images; None if each has only one), and warnings. The accepts have
    accepted, images and people (numbers), rate, and its Wilson interval, low and high.

    Raises UserError, and writes nothing, if the network predicts no embeddings, a folder is
    invalid, there are no impostors, or `to` exists.
    """
    if not isinstance(run.task, Embed):
        raise UserError(f'{run.path}: a gallery needs a network with [task] kind = "embed"')
    rate = run.task.far if far is None else far
    if not 0 < rate < 1:
        raise UserError(f"far = {rate}: the false-accept rate must be between 0 and 1")
    to = Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} exists already: give a new folder for the gallery")
    entries, warnings = images_of_people(folder, on_unreadable)
    names = sorted({entry.label for entry in entries})
    impostor_entries, impostor_warnings = _impostors(run, impostors, entries, on_unreadable)
    warnings += impostor_warnings
    labels = np.array([names.index(entry.label) for entry in entries])
    counts = np.bincount(labels)
    single = [name for name, count in zip(names, counts) if count == 1]
    if single:
        warnings.append(f"people with one image: {_listed(single)}")
    if not impostor_entries and len(names) < 2:
        raise UserError(
            "there are no impostors for the threshold: give a folder (--impostors FOLDER)"
        )
    tta = tta_of(run, None)
    embeddings = _embeddings(run, tta, [entry.path for entry in entries], batch_size, device)
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, labels, embeddings)
    vectors = _unit(sums).astype(np.float32).astype(np.float64)  # rounded as they are stored
    trials = [_against_others(embeddings, labels, vectors)]
    impostor_people = len({entry.label for entry in impostor_entries})
    if impostor_entries:
        files = [entry.path for entry in impostor_entries]
        impostor_embeddings = _embeddings(run, tta, files, batch_size, device)
        trials.append((impostor_embeddings @ vectors.T).max(1))
    scores = np.sort(np.concatenate(trials))[::-1]
    allowed = int(rate * len(scores) + 1e-9)
    threshold = float(scores[allowed]) + _ROUNDING
    if not allowed:
        warnings.append(
            f"none of {len(scores):,} images of impostors is accepted; more images are needed to "
            f"measure a rate as low as {rate:g}"
        )
    values = {
        "people": [
            {"name": name, "pictures": count} for name, count in zip(names, counts.tolist())
        ],
        "threshold": threshold,
        "false_accept_rate": rate,
        "false_accepts": _accepts(
            scores >= threshold, impostor_people + (len(names) if len(names) > 1 else 0)
        ),
        "true_accepts": _true_accepts(embeddings, labels, sums, vectors, threshold),
    }
    with store.atomic_folder(to) as new:
        save_network(run.net, new / NETWORK, preprocessing=run.preprocessing.to_dict())
        store.save_tensors(new / PEOPLE, {"vectors": torch.from_numpy(vectors).float()}, {})
        store.write_json(new / GALLERY, {"format": FORMAT, "tta": tta, **values})
    return {
        "gallery": str(to),
        **values,
        "people": len(names),
        "pictures": len(entries),
        "warnings": warnings,
    }


def open_gallery(path: str | Path) -> Gallery:
    """Open a gallery. Raises UserError if it is invalid."""
    path = Path(path)
    if not (path / GALLERY).is_file():
        raise UserError(f"{path} is not a gallery: it has no {GALLERY} (plusx enroll writes it)")
    values = store.read_json(path / GALLERY)
    tensors, _ = store.load_tensors(path / PEOPLE)
    net, weights = open_network(path / NETWORK)
    try:
        if values["format"] != FORMAT or weights.preprocessing is None:
            raise UserError(f"its format is not {FORMAT!r}")
        people = tuple(str(person["name"]) for person in values["people"])
        vectors = tensors["vectors"].double().numpy()
        if vectors.ndim != 2 or len(vectors) != len(people) or not people:
            raise UserError(f"{len(people)} people, but vectors of shape {vectors.shape}")
        if values["tta"] not in get_args(Tta):
            raise UserError(f"tta = {values['tta']!r}: allowed is {', '.join(get_args(Tta))}")
        if vectors.shape[1] != net.num_classes:
            raise UserError("its vectors do not have the width of its network's embeddings")
        run = Run(
            path=path,
            net=net,
            task=Embed(net).eval(),
            classes=(),
            preprocessing=modality_from_dict(weights.preprocessing),
            recipe=None,
            finished=True,
        )
        return Gallery(
            path=path,
            run=run,
            tta=values["tta"],
            people=people,
            vectors=_unit(vectors),
            threshold=float(values["threshold"]),
            far=float(values["false_accept_rate"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be used as a gallery: {error}") from None


def verify(
    gallery: Gallery,
    paths: Sequence[str | Path],
    *,
    person: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Identify the people on images.

    With `person`, only the identity with that person is verified. Returns `answers`, for each image
    path, person (None: an impostor), score and nearest, and `failed`, the path and reason of each
    unusable file.
    Raises UserError if `person` is not enrolled or a path does not exist, RuntimeError if no file
    can be used.
    """
    if person is not None and person not in gallery.people:
        raise UserError(f"{person!r} is not enrolled in {gallery.path} ({_listed(gallery.people)})")
    failed: Failed = []
    files = image_files(paths, failed)
    predictor = Predictor(gallery.run, tta=gallery.tta, device=device)
    rows: list[dict[str, Any]] = []
    for name, _, prediction in predictor.predictions(files, failed, batch_size=batch_size):
        vector = _unit(prediction.tensors()["vectors"].double().numpy())[0]
        scores = gallery.vectors @ vector
        best = int(scores.argmax()) if person is None else gallery.people.index(person)
        score, nearest = float(scores[best]), gallery.people[best]
        accepted = nearest if score >= gallery.threshold else None
        rows.append(
            {"path": printable(name), "person": accepted, "score": score, "nearest": nearest}
        )
    refuse_none(rows, failed)
    return {
        "gallery": str(gallery.path),
        "threshold": gallery.threshold,
        "false_accept_rate": gallery.far,
        "answers": rows,
        "failed": failed,
    }


def _impostors(
    run: Run,
    folder: str | Path | None,
    enrolled: list[Entry],
    on_unreadable: Literal["error", "skip"],
) -> tuple[list[Entry], list[str]]:
    """Return images of people who are not enrolled, and warnings."""
    if folder is not None:
        entries, warnings = images_of_people(folder, on_unreadable)
    elif run.recipe is not None and DATA[run.recipe.data.kind].has_people:
        entries, warnings = _own_people(run.recipe), []
    else:
        return [], []
    names = {entry.label for entry in enrolled}
    digests = {_digest(entry.path) for entry in enrolled}
    both = {e.label for e in entries if e.label in names or _digest(e.path) in digests}
    if both:
        count = "1 impostor is" if len(both) == 1 else f"{len(both):,} impostors are"
        warnings.append(f"{count} enrolled and left out: {_listed(sorted(both))}")
    return [entry for entry in entries if entry.label not in both], warnings


def _own_people(recipe: Recipe) -> list[Entry]:
    """Return images of the people of a run's training and validation sets.

    The highest scores of training people are above those of other impostors, so a threshold that
    rejects them is conservative; validation people alone are too few for a rate of 1 %
    (docs/faces.md).
    """
    splits = ["train"] if recipe.data.validation == 0 else ["validation", "train"]
    entries = []
    for split in splits:
        dataset = build.open_split(recipe, split)
        order = stratified_order(dataset.labels, 0)[:_MAX_IMAGES]
        labels = dataset.labels.tolist()
        assert dataset.paths is not None
        entries += [
            Entry(dataset.paths[i], dataset.classes[labels[i]]) for i in sorted(order.tolist())
        ]
    return entries


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")


def _digest(path: str) -> bytes:
    return hashlib.sha256(store.read_bytes(path)).digest()


def _embeddings(run: Run, tta: Tta, files: Sequence[str], batch_size: int, device: str) -> Vectors:
    """Return unit vectors of files in float64. Raises RuntimeError if a file is unreadable."""
    failed: Failed = []
    predictions = Predictor(run, tta=tta, device=device).predictions(
        files, failed, batch_size=batch_size
    )
    vectors = [prediction.tensors()["vectors"] for _, _, prediction in predictions]
    if failed:
        raise RuntimeError(f"{failed[0]['path']} is no longer usable: {failed[0]['reason']}")
    return _unit(torch.cat(vectors).double().numpy())


def _unit(vectors: Vectors) -> Vectors:
    lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return unit


def _against_others(
    embeddings: Vectors, labels: Labels, vectors: PeopleVectors
) -> Float[np.ndarray, "_"]:
    """Return the score of each enrolled image with the nearest other person."""
    if len(vectors) < 2:
        return np.zeros(0)
    scores = embeddings @ vectors.T
    scores[np.arange(len(labels)), labels] = -np.inf
    nearest: np.ndarray = scores.max(1)
    return nearest


def _true_accepts(
    embeddings: Vectors,
    labels: Labels,
    sums: PeopleVectors,
    vectors: PeopleVectors,
    threshold: float,
) -> dict[str, Any] | None:
    """Return how many enrolled images are identified by the person's other images."""
    evaluated = np.bincount(labels)[labels] > 1
    if not evaluated.any():
        return None
    scores = embeddings @ vectors.T
    without_image = _unit(sums[labels] - embeddings)
    scores[np.arange(len(labels)), labels] = (embeddings * without_image).sum(1)
    correct = (scores.argmax(1) == labels) & (scores.max(1) >= threshold)
    return _accepts(correct[evaluated], len(np.unique(labels[evaluated])))


def _accepts(accepted: Bool[np.ndarray, "_"], people: int) -> dict[str, Any]:
    """Return how many images are accepted, and the rate with its interval; `people` is their
    number."""
    rate = float(accepted.mean())
    interval = wilson(rate, len(accepted))
    return {
        "accepted": int(accepted.sum()),
        "images": len(accepted),
        "people": people,
        "rate": rate,
        "low": interval.low,
        "high": interval.high,
    }
