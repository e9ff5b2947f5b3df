"""`Predictor`: predictions of a trained network for files, bytes, arrays and tensors."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Num
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.dataset import stored_sample
from plusx.data.image_file import UnreadableInput, Verdict, printable
from plusx.data.modality import Modality
from plusx.data.prediction import Prediction
from plusx.data.rng import SampleRNG
from plusx.data.sample import Input, Sample
from plusx.errors import UserError
from plusx.run.evaluation import tta_of, viewed
from plusx.run.folder import UNFINISHED, Run, load_run
from plusx.run.sources import Failed, Source, reason_of, sources_of
from plusx.run.volume_predictions import predict_volumes, stored_volumes
from plusx.tasks.prepare import prepare
from plusx.tasks.tta import TestTimeAugmented, Tta
from plusx.train.loop import evaluating


MAX_POSITIONS = 2**22  # pixels or voxels in a batch
MAX_BATCH_BYTES = 2**27  # of inputs that are collected for a batch


class InputBatch(NamedTuple):
    """A batch of inputs.

    stored: for dense tasks the samples as stored, for others the transformed ones
    pixels: the inputs before normalisation
    """

    names: list[str]
    stored: list[Sample]
    pixels: Num[Tensor, "n c h w"]
    batch: Batch


class Predicted(NamedTuple):
    """The prediction for one input, in pixels of the stored input."""

    name: str
    stored: Sample
    prediction: Prediction


class Predictor:
    """Predicts with a trained network.

    An input is the path of a file or folder, the bytes of a file, a Pillow image, an array (h, w)
    or (h, w, c), or a tensor (c, h, w); 8-bit images are uint8. Of a network for texts, an
    input is a text, or the path of a file of texts.

        predictor = plusx.load("runs/photos")
        for row in predictor(["a.jpg", "b.jpg"]):
            print(row["label"], row["probability"])
    """

    def __init__(self, run: Run, *, tta: Tta | None = None, device: str = "auto") -> None:
        if not run.finished:
            warnings.warn(f"{run.path}: {UNFINISHED}", stacklevel=3)
        self.run = run
        task = prepare(run.task, device=device, precision="float32")
        self.task = TestTimeAugmented(task, tta_of(run, tta), run.preprocessing.size)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; () for networks that predict embeddings or texts."""
        return self.run.classes if self.run.task.has_labels else ()

    def __call__(
        self,
        inputs: Source | Iterable[Source],
        *,
        batch_size: int = 64,
        failed: Failed | None = None,
    ) -> list[dict[str, Any]]:
        """Return a row for each input: its path or text, and the prediction.

        The prediction is label, probability and probabilities; the embedding; the fraction of each
        class; or boxes.

        failed: a list to which path and reason of unreadable inputs are added; with None, the first
            one raises UserError
        """
        failures: Failed = [] if failed is None else failed
        sources = self.sources(inputs, failures)
        rows = []
        if self.run.preprocessing.ndim == 3:
            volumes = stored_volumes(self.run, list(map(str, sources)), failures)
            rows = predict_volumes(self.run, self.task, volumes)["predictions"]
        else:
            key = self.run.preprocessing.key
            for name, _, prediction in self.predictions(sources, failures, batch_size=batch_size):
                (row,) = prediction.rows(self.run.classes)
                rows.append({key: printable(name) if key == "path" else name, **row})
        if failed is None and failures:
            raise UserError(f"{failures[0]['path']}: {failures[0]['reason']}")
        return rows

    def sources(self, inputs: Source | Iterable[Source], failed: Failed) -> list[Source]:
        """Return the inputs, with folders replaced by all files in them."""
        if isinstance(inputs, Source) or not isinstance(inputs, Iterable):
            inputs = [inputs]
        return sources_of(list(inputs), self.run.preprocessing, failed)

    def predictions(
        self,
        sources: Sequence[Source],
        failed: Failed,
        *,
        batch_size: int = 64,
        names: Sequence[str] | None = None,
    ) -> Iterator[Predicted]:
        """Yield the prediction for each readable input; add the others to `failed`.

        names: one for each input; default: their paths, or numbers
        Raises FloatingPointError if a prediction is not finite.
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
        """Yield batches of preprocessed inputs.

        modality: default: the network's, at the size that test-time augmentation needs
        """
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: at least 1")
        modality = modality or viewed(self.run.preprocessing, self.task.views)
        dense = self.run.task.dense
        transform = modality.transform("", train=False, annotated=dense)
        group: list[str] = []
        stored: list[Sample] = []
        samples: list[Sample] = []
        size: tuple[int, ...] | None = None
        num_bytes = 0

        def finish() -> InputBatch:
            collated = modality.collate(samples, transform)
            inputs = modality.normalise(collated.inputs.to(self.task.device))
            batch = collated.batch(inputs, self.task.device)
            return InputBatch(group, stored, collated.inputs, batch)

        for name, source in self._read(sources, failed, modality, names):
            sample = transform(source, SampleRNG.of(0, 0, 0))
            final = modality.padded_size(sample, transform)
            max_count = min(batch_size, max(1, MAX_POSITIONS // prod(final)))
            stored_input = source if dense else sample
            added = sample.tensor.nbytes + prod(stored_input.size) * modality.channels
            full = len(group) == max_count or num_bytes + added > MAX_BATCH_BYTES
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
            except (UnreadableInput, OSError) as error:
                failed.append({"path": printable(name), "reason": reason_of(error)})
                continue
            verdicts.append(modality.verdict_of(value))
            yield name, stored_sample(value)
        if (problem := modality.common_problem(verdicts)) is not None:
            warnings.warn(problem, stacklevel=2)


def load(path: str | Path, *, tta: Tta | None = None, device: str = "auto") -> Predictor:
    """Return a predictor for a run's folder, or a safetensors or ONNX file that plusx wrote.

    tta: test-time augmentation, see `plusx.evaluate`; default: as in the recipe
    Raises UserError if it is none of these, or does not state its preprocessing.
    """
    return Predictor(load_run(path), tta=tta, device=device)


def refuse_none(predictions: Sequence[Any], failed: Failed) -> None:
    """Raise RuntimeError if there are no predictions."""
    if predictions:
        return
    reasons = "; ".join(f"{row['path']}: {row['reason']}" for row in failed[:3])
    none = "the only file cannot" if len(failed) == 1 else f"none of {len(failed)} files can"
    raise RuntimeError(f"{none} be used: {reasons}")


def _decoded(source: Source, modality: Modality) -> Input:
    if isinstance(source, str | Path | bytes):
        return modality.decode(source if isinstance(source, bytes) else str(source))
    return modality.from_values(source)
