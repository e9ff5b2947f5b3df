"""Predictions of tasks: tensors whose first dimension is the batch, and their rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.command_grammar import Command, CommandGrammar
from plusx.data.instance_mask import InstanceMask
from plusx.data.tokenizer import decoded
from plusx.errors import UserError


MASK_SIDE = 28  # of the grid of probabilities that a Mask R-CNN predicts within a box


P = TypeVar("P", bound="Prediction")


@dataclass(frozen=True, eq=False)
class Prediction(ABC):
    """Predictions for n inputs.

    A new kind is a frozen dataclass of tensors whose first dimension is n; other fields describe
    all of them.
    """

    @abstractmethod
    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return a JSON-ready dictionary for each input."""

    @abstractmethod
    def class_scores(self, num_classes: int) -> Float[Tensor, "n k"]:
        """Return a score from 0 to 1 of each class for each input."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map(self: P, function: Callable[[Tensor], Tensor]) -> P:
        """Return the prediction with a function applied to every tensor."""
        return replace(self, **{name: function(value) for name, value in self.tensors().items()})

    def cpu(self: P) -> P:
        return self.map(Tensor.cpu)

    def checked(self: P) -> P:
        """Return the prediction. Raises FloatingPointError if a number is not finite."""
        if not all(bool(tensor.isfinite().all()) for tensor in self.tensors().values()):
            raise FloatingPointError("the prediction is not finite")
        return self

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def mirrored(self: P) -> P:
        """The prediction for inputs, from the prediction for their mirror images."""
        return self

    def to_stored(self, batch: Batch, further: "Iterable[Prediction]" = ()) -> "list[Prediction]":
        """Return the prediction for each input, in pixels of the stored input.

        `further` are the other slabs of a prediction in several parts (Task.predict_slabs).
        """
        return [self.map(lambda tensor: tensor[index : index + 1]) for index in range(len(self))]  # noqa: B023

    @staticmethod
    def average(predictions: "Sequence[Prediction]", weights: Sequence[float]) -> "Prediction":
        """The weighted mean of predictions for views of the same inputs."""
        stacked = [prediction.tensors() for prediction in predictions]
        means = {
            name: sum(tensors[name] * weight for tensors, weight in zip(stacked, weights))
            for name in stacked[0]
        }
        return replace(predictions[0], **means)

    @staticmethod
    def joined(predictions: "Sequence[Prediction]") -> "Prediction":
        """The predictions for several batches as one."""
        first, *others = predictions
        if not others:
            return first
        tensors = [prediction.tensors() for prediction in predictions]
        return replace(
            first, **{name: torch.cat([values[name] for values in tensors]) for name in tensors[0]}
        )


@dataclass(frozen=True, eq=False)
class ClassProbabilities(Prediction):
    """The probabilities of the classes (n, k); independent of each other with `multilabel`."""

    probabilities: Float[Tensor, "n k"]
    multilabel: bool = False

    def class_scores(self, num_classes: int) -> Float[Tensor, "n k"]:
        return self.probabilities

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return label, probability, probabilities; with several labels also labels (>= 0.5)."""
        rows: list[dict[str, Any]] = []
        for values in self.probabilities.tolist():
            best = max(range(len(values)), key=values.__getitem__)
            row = {"label": class_names[best], "probability": values[best], "probabilities": values}
            if self.multilabel:
                row["labels"] = [n for n, p in zip(class_names, values, strict=True) if p >= 0.5]
            rows.append(row)
        return rows


@dataclass(frozen=True, eq=False)
class Embeddings(Prediction):
    """Unit vectors (n, width)."""

    vectors: Float[Tensor, "n width"]

    def class_scores(self, num_classes: int) -> Float[Tensor, "n k"]:
        raise UserError("embeddings have no classes")

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        # the mean over views is not of unit length, nor is what float32 rounds
        unit = F.normalize(self.vectors.double(), dim=1, eps=1e-12)
        return [{"embedding": vector} for vector in unit.tolist()]


@dataclass(frozen=True, eq=False)
class LabelMaps(Prediction):
    """The class of every position (n, *s)."""

    labels: UInt8[Tensor, "n *s"]

    def class_scores(self, num_classes: int) -> Float[Tensor, "n k"]:
        """Return the fraction of positions of each class."""
        flat = self.labels.flatten(1)
        counts = [torch.bincount(row, minlength=num_classes) for row in flat]
        return torch.stack(counts) / flat.shape[1]

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return label (the most frequent class) and class_fractions."""
        rows: list[dict[str, Any]] = []
        for labels in self.labels.numpy():
            # slice by slice: numpy counts in numbers of eight bytes
            counts = sum(np.bincount(part.ravel(), minlength=len(class_names)) for part in labels)
            fractions = (counts / max(1, labels.size)).tolist()
            rows.append(
                {
                    "label": class_names[int(np.argmax(counts))],
                    "class_fractions": dict(zip(class_names, fractions, strict=True)),
                }
            )
        return rows


@dataclass(frozen=True, eq=False)
class PositionProbabilities(Prediction):
    """The probability of each class at every position (n, k, *s) of the input."""

    probabilities: Float[Tensor, "n k *s"]

    def class_scores(self, num_classes: int) -> Float[Tensor, "n k"]:
        """Return the mean probability over positions."""
        return self.probabilities.flatten(2).mean(2)

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        return self.labels().rows(class_names)

    def labels(self) -> LabelMaps:
        return LabelMaps(self.probabilities.argmax(1).to(torch.uint8).cpu())

    def mirrored(self) -> "PositionProbabilities":
        return self.map(lambda probabilities: probabilities.flip(-1))

    def to_stored(self, batch: Batch, further: Iterable[Prediction] = ()) -> list[Prediction]:
        """Return the label map of each image at its stored size, without padding."""
        size = torch.tensor(batch.inputs.shape[2:]).expand(len(self), -1)
        content, stored = (
            batch.extras.get(name, size).tolist() for name in ("content_size", "stored_size")
        )
        slabs = (slab.tensors()["probabilities"] for slab in chain([self], further))
        if content == stored:  # probabilities of all slabs at once could take too much memory
            labels = torch.cat([slab.argmax(1).to(torch.uint8) for slab in slabs], 1)
            return [
                LabelMaps(labels[(slice(i, i + 1), *(slice(side) for side in image))])
                for i, image in enumerate(content)
            ]
        return [
            LabelMaps(labels_at_size(probabilities, tuple(content[i]), tuple(stored[i]))[None])
            for i, probabilities in enumerate(torch.cat(list(slabs), 2))
        ]


@dataclass(frozen=True, eq=False)
class Detections(Prediction):
    """Boxes (n, d, 4): left, top, right, bottom in pixels, with scores and classes, best first.

    Rows of label -1 are padding. `grids` are the mask probabilities of a Mask R-CNN within each
    box; `masks` are instance masks in the stored image, for each input and box.
    """

    boxes: Float[Tensor, "n d 4"]
    scores: Float[Tensor, "n d"]
    labels: Int[Tensor, "n d"]
    grids: Float[Tensor, "n d 28 28"] | None = None
    masks: tuple[tuple[InstanceMask, ...], ...] | None = None
    image_size: tuple[int, int] | None = None  # height and width, of one stored image

    def class_scores(self, num_classes: int) -> Float[Tensor, "n k"]:
        """Return the score of the best box of each class."""
        zeros = self.scores.new_zeros(len(self), num_classes + 1)
        # rows that stand for no box go into a column that is dropped
        columns = torch.where(self.labels < 0, num_classes, self.labels)
        return zeros.scatter_reduce(1, columns, self.scores, "amax")[:, :num_classes]

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return boxes: label, score, box, and with masks segmentation (COCO run lengths)."""
        rows: list[dict[str, Any]] = []
        columns = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist())
        for index, (boxes, scores, labels) in enumerate(columns):
            detections: list[dict[str, Any]] = [
                {
                    "label": class_names[label],
                    "score": score,
                    "box": [round(side, 2) for side in box],
                }
                for box, score, label in zip(boxes, scores, labels)
                if label >= 0
            ]
            if self.masks is not None:
                assert self.image_size is not None
                for detection, mask in zip(detections, self.masks[index], strict=True):
                    detection["segmentation"] = mask.run_lengths(self.image_size)
            rows.append({"boxes": detections})
        return rows

    def to_stored(self, batch: Batch, further: Iterable[Prediction] = ()) -> list[Prediction]:
        """Clip boxes to the stored image; leave out those without area."""
        height, width = batch.inputs.shape[-2:]
        predictions: list[Prediction] = []
        for index in range(len(self)):
            scale, size = 1.0, (int(height), int(width))
            if "stored_size" in batch.extras:
                scale = float(batch.extras["scale"][index])
                size = tuple(batch.extras["stored_size"][index].tolist())
            order = self.scores[index].argsort(descending=True, stable=True)
            boxes, present = stored_boxes(
                self.boxes[index][order], self.labels[index][order], scale, size
            )
            present = order[present]
            predictions.append(
                Detections(
                    boxes[None],
                    self.scores[index, present][None],
                    self.labels[index, present][None],
                    None if self.grids is None else self.grids[index, present][None],
                    image_size=size,
                ).with_masks()
            )
        return predictions

    def with_masks(self) -> "Detections":
        """Return the prediction with the grids of one image's boxes as instance masks."""
        if self.grids is None:
            return self
        assert self.image_size is not None
        masks = []
        for box, grid in zip(self.boxes[0], self.grids[0]):
            top, left, inside = pasted_mask(box, grid, self.image_size)
            mask = InstanceMask.of(inside.numpy() > 0)
            masks.append(mask._replace(top=top + mask.top, left=left + mask.left))
        return replace(self, grids=None, masks=(tuple(masks),))

    @staticmethod
    def average(predictions: Sequence[Prediction], weights: Sequence[float]) -> Prediction:
        raise UserError("boxes cannot be averaged over views of an image: tta = 'none'")


@dataclass(frozen=True, eq=False)
class TokenSequences(Prediction):
    """Texts as token numbers (n, u), padded with -1, and the log-probability of each.

    key: what the texts are: "translation", "caption" or "transcript"
    losses: of the targets, if they are known, for metrics
    """

    tokens: Int[Tensor, "n u"]
    scores: Float[Tensor, "n"]
    key: str
    losses: Float[Tensor, "n"] | None = None

    def class_scores(self, num_classes: int) -> Float[Tensor, "n k"]:
        raise UserError(
            "generated text has no class scores to explain; the report of a run that captions "
            "images shows the attention for each word"
        )

    def texts(self, class_names: Sequence[str]) -> list[str]:
        """Return the texts; `class_names` are the tokens."""
        return [
            decoded([class_names[number] for number in row if number >= 0])
            for row in self.tokens.tolist()
        ]

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the text by its key, and score, its log-probability."""
        texts = self.texts(class_names)
        return [
            {self.key: text, "score": score} for text, score in zip(texts, self.scores.tolist())
        ]

    @staticmethod
    def average(predictions: Sequence[Prediction], weights: Sequence[float]) -> Prediction:
        raise UserError("texts cannot be averaged over views of an input: tta = 'none'")


REJECTED = "rejected"


@dataclass(frozen=True, eq=False, kw_only=True)
class SpokenCommands(TokenSequences):
    """Transcripts, and for each the most probable phrase of a grammar of commands.

    phrases: their numbers in the grammar
    likelihood_ratios: from 0 to 1, see plusx.tasks.within_grammar
    threshold: the ratio from which a phrase is accepted
    """

    phrases: Int[Tensor, "n"]
    likelihood_ratios: Float[Tensor, "n"]
    grammar: CommandGrammar
    threshold: float

    @property
    def phrase_texts(self) -> list[str]:
        return [self.grammar.texts[number] for number in self.phrases.tolist()]

    @property
    def commands(self) -> list[Command | None]:
        """The command of each phrase; None for a rejected one."""
        accepted = (self.likelihood_ratios >= self.threshold).tolist()
        return [
            self.grammar.phrases[phrase] if accept else None
            for phrase, accept in zip(self.phrase_texts, accepted)
        ]

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the command as text, or "rejected"; its verb, object and values, or None; the
        most probable phrase with its likelihood ratio; the transcript and its score."""
        transcripts = super().rows(class_names)
        ratios = self.likelihood_ratios.tolist()
        return [
            {**command_row(command), "phrase": phrase, "likelihood_ratio": ratio, **transcript}
            for command, phrase, ratio, transcript in zip(
                self.commands, self.phrase_texts, ratios, transcripts
            )
        ]


def command_row(command: Command | None) -> dict[str, Any]:
    """Return a command as text and in its parts, JSON-ready; of None, a rejection."""
    if command is None:
        return {"command": REJECTED, "verb": None, "object": None, "values": {}}
    parts = {"verb": command.verb, "object": command.object, "values": dict(command.values)}
    return {"command": str(command), **parts}


def stored_boxes(
    boxes: Float[Tensor, "d 4"],
    labels: Int[Tensor, "d"],
    scale: float,
    size: tuple[int, int],
) -> tuple[Float[Tensor, "p 4"], Int[Tensor, "p"]]:
    """Return boxes in pixels of the stored image (height, width), and their indices.

    Boxes are clipped to the image and rounded to 0.01. Those of label -1, outside of the image, or
    without area are left out.
    """
    height, width = size
    scaled = boxes / max(scale, 1e-6)
    limits = scaled.new_tensor([width, height, width, height])
    cut = torch.minimum(scaled.clamp(min=0), limits).round(decimals=2)
    present = (labels >= 0) & (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    indices = present.nonzero()[:, 0]
    return cut[indices], indices


def pasted_mask(
    box: Float[Tensor, "4"], grid: Float[Tensor, "28 28"], size: tuple[int, int]
) -> tuple[int, int, UInt8[Tensor, "y x"]]:
    """Return the mask of a box in an image (height, width): top, left, and pixels of 0 or 1.

    The grid of probabilities is resized to the box, as in torchvision (He et al. 2017, section 3.1:
    "resized to the RoI size, and binarized at a threshold of 0.5").
    """
    from torchvision.models.detection.roi_heads import (
        expand_boxes,
        expand_masks,
        paste_mask_in_image,
    )

    height, width = size
    expanded, ratio = expand_masks(grid[None, None], 1)
    corners = expand_boxes(box[None], ratio)[0].to(torch.int64)
    left, top = (min(max(int(corners[i]), 0), side) for i, side in ((0, width), (1, height)))
    right, bottom = (min(int(corners[i]) + 1, side) for i, side in ((2, width), (3, height)))
    window = max(bottom - top, 0), max(right - left, 0)
    if not all(window):
        return top, left, torch.zeros(window, dtype=torch.uint8)
    inside: Tensor = paste_mask_in_image(
        expanded[0, 0], corners - corners.new_tensor([left, top] * 2), *window
    )
    return top, left, (inside >= 0.5).to(torch.uint8)


def labels_at_size(
    probabilities: Float[Tensor, "k y x"], content: tuple[int, ...], size: tuple[int, ...]
) -> UInt8[Tensor, "h w"]:
    """Return the class of every pixel of an image of this size (height, width).

    `content` is the height and width of the image within the padded input. Probabilities are
    interpolated bilinearly class by class, since all classes at once can take many times the memory
    of the image.
    """
    inside = probabilities[:, : content[0], : content[1]].float().cpu()
    if content == size:
        return inside.argmax(0).to(torch.uint8)
    best, labels = torch.full(size, -1.0), torch.zeros(size, dtype=torch.uint8)
    for number, plane in enumerate(inside):
        scaled = F.interpolate(plane[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        better = scaled > best
        best[better], labels[better] = scaled[better], number
    return labels
