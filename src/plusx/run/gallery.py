"""Galleries: people by their pictures, and a threshold that refuses impostors.

A gallery is a folder that needs nothing else: gallery.json says who is in it and what is accepted,
people.safetensors has a vector a person, model.safetensors the network. A person's vector is the
mean of those of the pictures, at unit length. A score is a cosine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from plusx import store
from plusx.data.image_file import printable
from plusx.data.readers.people import images_of_people
from plusx.data.readers.verdicts import Entry
from plusx.errors import UserError
from plusx.run import build
from plusx.run.datasets import DATA
from plusx.run.evaluation import tta_of
from plusx.run.folder import Run, prepared_as
from plusx.run.predictor import Predictor, image_files
from plusx.tasks.embed import Embed
from plusx.tasks.tta import Tta
from plusx.weights import open_network, save_network


GALLERY, PEOPLE, NETWORK = "gallery.json", "people.safetensors", "model.safetensors"
FORMAT = "plusx gallery 1"
# how much a score may change with the batch that a picture is in, float32 being what it is
_ROUNDING = 1e-5
_NAMED = 10  # people that a message names

Vectors = Float[np.ndarray, "n width"]
OfPeople = Float[np.ndarray, "people width"]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """People who were enrolled: a unit vector each, and the score from which on they are told."""

    path: Path
    run: Run
    tta: Tta
    people: tuple[str, ...]
    vectors: OfPeople
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
    """Write a gallery of the people in a folder (one folder a person) into the new folder `to`.

    The threshold is the lowest one by which, of the pictures of impostors, at most this share
    (default: as the recipe says) is taken for somebody in the gallery. Strangers are the people who
    validated the run, or those in the folder `impostors`; and each enrolled person is one to all
    the others. Who is a impostor and enrolled, by name or by a picture, is no impostor.

    Gives gallery, people, pictures, threshold, false_accept_rate, trials (pictures of impostors),
    impostor_people, false_accepts (how many of the trials are accepted), true_accept_rate (of
    pictures of enrolled people against their other ones; None where each has one picture), and
    warnings.

    UserError: the network makes no embeddings, the folders are wrong, there are no impostors, or
    `to` is there already. Nothing is written then.
    """
    task = run.task
    if not isinstance(task, Embed):
        raise UserError(
            f'{run.path} tells classes apart: people are enrolled by [task] kind = "embed"'
        )
    rate = task.far if far is None else far
    if not 0 < rate < 1:
        raise UserError(f"far = {rate}: a false-accept rate lies above 0 and below 1")
    to = Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is there already: a gallery is written into a new folder")
    pictures, warnings = images_of_people(folder, on_unreadable)
    names = tuple(sorted({entry.label for entry in pictures}))
    others, said = _impostors(run, impostors, pictures, on_unreadable)
    warnings += said
    alone = [name for name in names if sum(entry.label == name for entry in pictures) == 1]
    if alone:
        more = ", ..." if len(alone) > _NAMED else ""
        warnings.append(f"people with one picture: {', '.join(alone[:_NAMED])}{more}")
    if not others and len(names) < 2:
        raise UserError(
            "there are no impostors to be refused: name a folder of some (--impostors FOLDER)"
        )
    tta = tta_of(run, None)
    own = _embedded(run, tta, [entry.path for entry in pictures], batch_size, device)
    labels = np.array([names.index(entry.label) for entry in pictures])
    sums = np.zeros((len(names), own.shape[1]))
    np.add.at(sums, labels, own)
    vectors = _unit(sums).astype(np.float32).astype(np.float64)  # as they are kept
    trials = [_against_others(own, labels, vectors)]
    if others:
        unknown = _embedded(run, tta, [entry.path for entry in others], batch_size, device)
        trials.append((unknown @ vectors.T).max(1))
    scores = np.sort(np.concatenate(trials))[::-1]
    allowed = int(rate * len(scores) + 1e-9)
    threshold = float(scores[allowed]) + _ROUNDING
    if not allowed:
        warnings.append(
            f"none of {len(scores):,} pictures of impostors is accepted: that the share is as low "
            f"as {rate:g}, more of them would have to show"
        )
    known = {
        "people": [
            {"name": name, "pictures": int((labels == number).sum())}
            for number, name in enumerate(names)
        ],
        "threshold": threshold,
        "false_accept_rate": rate,
        "trials": len(scores),
    }
    _write(to, run, tta, known, vectors)
    return {
        "gallery": str(to),
        **known,
        "people": len(names),
        "pictures": len(pictures),
        "impostor_people": len({entry.label for entry in others}),
        "false_accepts": int((scores >= threshold).sum()),
        "true_accept_rate": _true_accepts(own, labels, sums, vectors, threshold),
        "warnings": warnings,
    }


def open_gallery(path: str | Path) -> Gallery:
    """Open a gallery. UserError: it is none, or its parts do not fit together."""
    path = Path(path)
    if not (path / GALLERY).is_file():
        raise UserError(f"{path} is no gallery: it has no {GALLERY} (plusx enroll writes one)")
    known = store.read_json(path / GALLERY)
    tensors, _ = store.load_tensors(path / PEOPLE)
    net, weights = open_network(path / NETWORK)
    try:
        if known["format"] != FORMAT or weights.preprocessing is None:
            raise UserError(f"it is no {FORMAT}")
        people = tuple(str(each["name"]) for each in known["people"])
        vectors = tensors["vectors"].double().numpy()
        if vectors.ndim != 2 or len(vectors) != len(people) or not people:
            raise UserError(f"{len(people)} people, but vectors of shape {vectors.shape}")
        if known["tta"] not in get_args(Tta):
            raise UserError(f"tta = {known['tta']!r}: allowed is {', '.join(get_args(Tta))}")
        if vectors.shape[1] != net.num_classes:
            raise UserError("its vectors are not those of its network")
        task = Embed(net).eval()
        run = Run(
            path=path,
            net=net,
            task=task,
            classes=(),
            preprocessing=prepared_as(weights.preprocessing, weights.view),
            recipe=None,
            finished=True,
        )
        return Gallery(
            path=path,
            run=run,
            tta=known["tta"],
            people=people,
            vectors=_unit(vectors),
            threshold=float(known["threshold"]),
            far=float(known["false_accept_rate"]),
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
    """Say who is on pictures: `answers` with path, person (None: a impostor), score and nearest.

    With `person` the question is whether it is that one, and no other name is told. Files that
    cannot be used are in `failed` (path, reason) and stop no other.
    UserError: nobody of that name is enrolled, or a path does not exist. RuntimeError: no file can
    be used.
    """
    if person is not None and person not in gallery.people:
        raise UserError(
            f"{person!r} is not enrolled in {gallery.path} ({', '.join(gallery.people[:_NAMED])}"
            f"{', ...' if len(gallery.people) > _NAMED else ''})"
        )
    failed: list[dict[str, str]] = []
    files = image_files(paths, failed)
    answers: list[dict[str, Any]] = []
    found, vectors = _vectors(gallery.run, gallery.tta, files, batch_size, device, failed)
    if not found:
        said = "; ".join(f"{each['path']}: {each['reason']}" for each in failed[:3])
        raise RuntimeError(f"none of {len(failed):,} files can be used: {said}")
    for path, scores in zip(found, vectors @ gallery.vectors.T, strict=True):
        best = int(scores.argmax()) if person is None else gallery.people.index(person)
        score, nearest = float(scores[best]), gallery.people[best]
        told = nearest if score >= gallery.threshold else None
        answers.append(
            {"path": printable(path), "person": told, "score": score, "nearest": nearest}
        )
    return {
        "gallery": str(gallery.path),
        "threshold": gallery.threshold,
        "false_accept_rate": gallery.far,
        "answers": answers,
        "failed": failed,
    }


def _impostors(
    run: Run,
    folder: str | Path | None,
    enrolled: list[Entry],
    on_unreadable: Literal["error", "skip"],
) -> tuple[list[Entry], list[str]]:
    """Pictures of people who are not enrolled, and who of them are after all."""
    if folder is not None:
        entries, warnings = images_of_people(folder, on_unreadable)
    elif (
        run.recipe is not None
        and DATA[run.recipe.data.kind].has_people  # else who validates has trained too
        and run.recipe.data.validation != 0
    ):
        source = build.open_split(run.recipe, "validation")
        labels = [source.classes[number] for number in source.labels.tolist()]
        entries = [Entry(path, name) for path, name in zip(source.paths or [], labels, strict=True)]
        warnings = []
    else:
        return [], []
    names = {entry.label for entry in enrolled}
    contents = {_digest(entry.path) for entry in enrolled}
    known = {e.label for e in entries if e.label in names or _digest(e.path) in contents}
    if known:
        more = ", ..." if len(known) > _NAMED else ""
        said = ", ".join(sorted(known)[:_NAMED])
        count = "1 impostor is" if len(known) == 1 else f"{len(known):,} impostors are"
        does = "does" if len(known) == 1 else "do"
        warnings.append(f"{count} enrolled and {does} not count: {said}{more}")
    return [entry for entry in entries if entry.label not in known], warnings


def _digest(path: str) -> bytes:
    return hashlib.sha256(store.read_bytes(path)).digest()


def _embedded(run: Run, tta: Tta, files: Sequence[str], batch_size: int, device: str) -> Vectors:
    """Unit vectors of files that have been decoded before. RuntimeError: one has changed since."""
    failed: list[dict[str, str]] = []
    _, vectors = _vectors(run, tta, files, batch_size, device, failed)
    if failed:
        raise RuntimeError(f"{failed[0]['path']} cannot be used any more: {failed[0]['reason']}")
    return vectors


def _vectors(
    run: Run,
    tta: Tta,
    files: Sequence[str],
    batch_size: int,
    device: str,
    failed: list[dict[str, str]],
) -> tuple[list[str], Vectors]:
    """The files that can be used, and a unit vector of each, in float64."""
    predictor = Predictor(run, tta=tta, device=device)
    names: list[str] = []
    vectors: list[Tensor] = [torch.zeros(0, 1)]
    for name, _, prediction in predictor.predictions(files, failed, batch_size=batch_size):
        names.append(name)
        vectors.append(prediction.tensors()["vectors"])
    return names, _unit(torch.cat(vectors[1:] or vectors).double().numpy())


def _unit(vectors: Vectors) -> Vectors:
    lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return unit


def _against_others(
    own: Vectors, labels: Int64[np.ndarray, "n"], vectors: OfPeople
) -> Float[np.ndarray, "_"]:
    """How near each enrolled picture is to the nearest other person; none with one person."""
    if len(vectors) < 2:
        return np.zeros(0)
    scores = own @ vectors.T
    scores[np.arange(len(own)), labels] = -np.inf
    nearest: np.ndarray = scores.max(1)
    return nearest


def _true_accepts(
    own: Vectors,
    labels: Int64[np.ndarray, "n"],
    sums: OfPeople,
    vectors: OfPeople,
    threshold: float,
) -> float | None:
    """The share of enrolled pictures that are told rightly by the other pictures of the person."""
    counts = np.bincount(labels)
    judged = counts[labels] > 1
    if not judged.any():
        return None
    scores = own @ vectors.T
    scores[np.arange(len(own)), labels] = (own * _unit(sums[labels] - own)).sum(1)
    right = (scores.argmax(1) == labels) & (scores.max(1) >= threshold)
    return float(right[judged].mean())


def _write(to: Path, run: Run, tta: Tta, known: dict[str, Any], vectors: OfPeople) -> None:
    with store.whole_folder(to) as folder:
        save_network(
            run.net,
            folder / NETWORK,
            preprocessing=run.preprocessing.to_dict(),
        )
        store.save_tensors(folder / PEOPLE, {"vectors": torch.from_numpy(vectors).float()}, {})
        store.write_json(folder / GALLERY, {"format": FORMAT, "tta": tta, **known})
