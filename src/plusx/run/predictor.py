"""A trained network ready for use: files, bytes, arrays or tensors in, predictions out."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor

from plusx.data.batch import Batch, collate, covering_size
from plusx.data.dataset import stored_sample
from plusx.data.image_file import UnreadableImage, Verdict, printable
from plusx.data.modality import Modality
from plusx.data.prediction import Prediction
from plusx.data.readers.folder import scan_images
from plusx.data.readers.volumes import scans_in
from plusx.data.rng import SampleRNG
from plusx.data.sample import Input, Sample
from plusx.errors import UserError
from plusx.run.evaluation import tta_of
from plusx.run.folder import UNFINISHED, Run, load_run
from plusx.tasks.prepare import prepare
from plusx.tasks.tta import TestTimeAugmented, Tta
from plusx.train.loop import evaluating


Source = str | Path | bytes | Image.Image | np.ndarray | Tensor
Failed = list[dict[str, str]]

MAX_POSITIONS = 2**22  # of the inputs of a batch
MAX_WAITING = 2**27  # bytes of inputs that wait for a batch


class InputBatch(NamedTuple):
    """Inputs side by side.

    stored: the samples as they are stored, of a task that predicts positions; of others as they are
        transformed
    pixels: the inputs before they are normalised
    """

    names: list[str]
    stored: list[Sample]
    pixels: Num[Tensor, "n c h w"]
    batch: Batch


class Predicted(NamedTuple):
    """The prediction for one input, in its stored pixels."""

    name: str
    stored: Sample
    prediction: Prediction


class Predictor:
    """Predictions of a trained network, for inputs of any number, as they are stored.

    An input is the path of a file or of a folder of files, the bytes of a file, a Pillow image, an
    array (h, w) or (h, w, c), or a tensor (c, h, w); images of 8 bits are uint8.

        predictor = plusx.load("runs/photos")
        for row in predictor(["a.jpg", "b.jpg"]):
            print(row["label"], row["probability"])
    """

    def __init__(self, run: Run, *, tta: Tta | None = None, device: str = "auto") -> None:
        if not run.finished:
            warnings.warn(f"{run.path}: {UNFINISHED}", stacklevel=3)
        self.run = run
        task = prepare(run.task, device=device, precision="float32")
        self.task = TestTimeAugmented(task, tta_of(run, tta))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; none of a network that gives embeddings."""
        return () if self.run.embeds else self.run.classes

    def __call__(
        self,
        inputs: Source | Iterable[Source],
        *,
        batch_size: int = 64,
        failed: Failed | None = None,
    ) -> list[dict[str, Any]]:
        """A row for each input: its path, and label, probability and probabilities; embedding; the
        fraction of each class; or boxes.

        failed: where an input that cannot be read is listed, with path and reason, without stopping
            the others; None raises UserError for the first one.
        """
        listed: Failed = [] if failed is None else failed
        sources = self.sources(inputs, listed)
        rows = []
        if self.run.preprocessing.ndim == 3:
            from plusx.run.volume_predictions import predict_volumes, stored_volumes

            paths = [str(source) for source in sources]
            volumes = stored_volumes(self.run, paths, listed)
            rows = predict_volumes(self, volumes, None)["predictions"]
        else:
            for name, _, prediction in self.predictions(sources, listed, batch_size=batch_size):
                (row,) = prediction.rows(self.run.classes)
                rows.append({"path": printable(name), **row})
        if failed is None and listed:
            raise UserError(f"{listed[0]['path']}: {listed[0]['reason']}")
        return rows

    def sources(self, inputs: Source | Iterable[Source], failed: Failed) -> list[Source]:
        """Inputs one by one: of a folder its files, those within its folders too."""
        found: list[Source] = []
        if isinstance(inputs, Source) or not isinstance(inputs, Iterable):
            inputs = [inputs]
        listed = list(inputs)
        missing = _missing([source for source in listed if isinstance(source, str | Path)])
        for source in listed:
            if not isinstance(source, Source):
                raise UserError(
                    f"an input of the type {type(source).__name__}: inputs are paths, bytes, "
                    "Pillow images, NumPy arrays (h, w) or (h, w, c), or tensors (c, h, w)"
                )
            if not isinstance(source, str | Path):
                found.append(source)
            elif source in missing and len(missing) < len(listed):
                failed.append(_not_there(source))
            elif self.run.preprocessing.ndim == 3:
                found += scans_in([source], self.run.preprocessing.channels)
            else:
                found += image_files([source], failed)
        return found

    def predictions(
        self,
        sources: Sequence[Source],
        failed: Failed,
        *,
        batch_size: int = 64,
        names: Sequence[str] | None = None,
    ) -> Iterator[Predicted]:
        """The prediction for each input that can be read; the others go to `failed`.

        names: of the inputs; default: their paths, and numbers of those that have none
        FloatingPointError: a prediction is not finite.
        """
        batches = self.batches(sources, failed, batch_size=batch_size, names=names)
        with evaluating(self.task), torch.inference_mode():
            for group, stored, _, batch in batches:
                try:
                    predicted = self.task.predict_stored(batch)
                except FloatingPointError as error:
                    more = f" or one of the {len(group) - 1} after it" if group[1:] else ""
                    raise FloatingPointError(f"{printable(group[0])}{more}: {error}") from None
                yield from map(Predicted, group, stored, predicted)

    def batches(
        self,
        sources: Sequence[Source],
        failed: Failed,
        *,
        batch_size: int = 64,
        names: Sequence[str] | None = None,
        modality: Modality | None = None,
    ) -> Iterator[InputBatch]:
        """The inputs as the network takes them. modality: how they are prepared; default: as the
        network says.
        """
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: at least 1")
        modality = modality or self.run.preprocessing
        dense = self.run.task.dense
        transform = modality.transform("", train=False, annotated=dense)
        group: list[str] = []
        stored: list[Sample] = []
        samples: list[Sample] = []
        size: tuple[int, ...] | None = None
        num_bytes = 0

        def finish() -> InputBatch:
            collated = collate(samples, transform)
            inputs = modality.normalise(collated.inputs.to(self.task.device))
            batch = collated.batch(inputs, self.task.device)
            return InputBatch(group, stored, collated.inputs, batch)

        for name, source in self._read(sources, failed, modality, names):
            sample = transform(source, SampleRNG.of(0, 0, 0))
            final = transform.final or covering_size([sample.size])
            most = min(batch_size, max(1, MAX_POSITIONS // prod(final)))
            stored_input = source if dense else sample
            added = sample.tensor.nbytes + prod(stored_input.size) * modality.channels
            full = len(group) == most or num_bytes + added > MAX_WAITING
            if group and (final != size or full):
                yield finish()
                group, stored, samples, num_bytes = [], [], [], 0
            size, num_bytes = final, num_bytes + added
            group.append(name)
            stored.append(stored_input)
            samples.append(sample)
        if group:
            yield finish()

    def _read(
        self,
        sources: Sequence[Source],
        failed: Failed,
        modality: Modality,
        names: Sequence[str] | None,
    ) -> Iterator[tuple[str, Sample]]:
        verdicts: list[Verdict] = []
        for number, source in enumerate(sources):
            name = str(source) if isinstance(source, str | Path) else f"input {number}"
            name = name if names is None else names[number]
            try:
                value = _decoded(source, modality)
            except (UnreadableImage, OSError) as error:
                failed.append({"path": printable(name), "reason": reason_of(error)})
                continue
            verdicts.append(modality.verdict_of(value))
            yield name, stored_sample(value)
        if (problem := modality.common_problem(verdicts)) is not None:
            warnings.warn(problem, stacklevel=2)


def load(path: str | Path, *, tta: Tta | None = None, device: str = "auto") -> Predictor:
    """A run's folder, or a safetensors or ONNX file that plusx wrote, ready to predict.

    tta: test-time augmentation, "none", "flip" or "flip-shift"; default: as the run was evaluated.
    UserError: it is neither, or does not say how inputs are prepared.
    """
    return Predictor(load_run(path), tta=tta, device=device)


def image_files(paths: Sequence[str | Path], failed: Failed) -> list[str]:
    """The files named, and the images in the folders named, in the order of their names.

    What is missing, or found there but can be no image of a set (a pipe, a link into itself), goes
    to `failed`. UserError: nothing of it is there, or a folder has no images.
    """
    files: list[str] = []
    missing = _missing(paths)
    if len(missing) == len(paths):
        raise UserError(f"{', '.join(map(printable, missing[:3]))}: no such file or folder")
    for path in paths:
        if path in missing:
            failed.append(_not_there(path))
            continue
        found = scan_images(path)
        used = [entry.path for entry in found if entry.state == "used"]
        if not used:
            raise UserError(f"{printable(path)}: a folder without images")
        files += used
        failed += [
            {"path": printable(entry.path), "reason": entry.reason}
            for entry in found
            if entry.state == "refused"
        ]
    return files


def _missing(paths: Sequence[str | Path]) -> list[str | Path]:
    return [path for path in paths if not os.path.lexists(path)]


def _not_there(path: str | Path) -> dict[str, str]:
    return {"path": printable(path), "reason": "no such file or folder"}


def reason_of(error: Exception) -> str:
    """Why a file cannot be used, without its path."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return reason or str(error)


def refuse_none(predictions: Sequence[Any], failed: Failed) -> None:
    """RuntimeError where no file could be used."""
    if predictions:
        return
    reasons = "; ".join(f"{each['path']}: {each['reason']}" for each in failed[:3])
    none = "the only file cannot" if len(failed) == 1 else f"none of {len(failed)} files can"
    raise RuntimeError(f"{none} be used: {reasons}")


def _decoded(source: Source, modality: Modality) -> Input:
    if isinstance(source, str | Path | bytes):
        return modality.decode(source if isinstance(source, bytes) else str(source))
    if isinstance(source, Image.Image):
        source = np.asarray(source.convert("L" if modality.channels == 1 else "RGB"))
    shape = tuple(source.shape)
    layout = "(c, h, w)"
    if isinstance(source, np.ndarray):
        layout = "(h, w) or (h, w, c)"
        planes = source[:, :, None] if source.ndim == 2 else source
        if planes.ndim == 3 and planes.dtype.kind in "biuf":
            source = torch.from_numpy(np.moveaxis(planes, 2, 0).copy())
        else:
            source = torch.empty(0)
    if source.ndim != 3 or len(source) != modality.channels or not source.numel():
        raise UserError(
            f"an input of shape {shape}: the network takes one image {layout} with "
            f"{modality.channels} {'channel' if modality.channels == 1 else 'channels'}"
        )
    eight_bits = (modality.low, modality.high) == (0, 255)
    if eight_bits and source.dtype != torch.uint8:
        raise UserError(f"an input of {source.dtype}: the network takes uint8, from 0 to 255")
    return source if eight_bits else source.float()
