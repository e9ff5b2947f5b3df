"""Captions of example images, with the part of the image that each word is predicted from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from plusx import store
from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.data.prediction import TokenSequences
from plusx.data.tokenizer import SPACE, decoded
from plusx.run import drawing
from plusx.run.chosen_examples import spread
from plusx.run.dense_predictions import name_of
from plusx.run.predictor import Predictor
from plusx.run.sources import Failed
from plusx.tasks.generate import Generate
from plusx.train.loop import evaluating


NUM_IMAGES = 6
PANEL_SIDE = 160  # pixels of the longer side of an image
MAX_WORDS = 23  # words that are drawn
_PANELS_PER_ROW = 6
_GAP, _LINE = 8, 22  # pixels between panels, and of the line with the word
_WHITE = (255, 255, 255)


def predict_captions(
    predictor: Predictor, dataset: Dataset, failed: Failed, out: Path
) -> list[dict[str, Any]]:
    """Return captions of some images of a data set beside their annotations, and draw each into the
    folder `out`: the image, and the attention of every word over the image."""
    task, run = predictor.task.task, predictor.run
    assert isinstance(task, Generate)
    paths, indices = dataset.paths, spread(NUM_IMAGES, len(dataset))
    sources = [dataset.read(index).tensor if paths is None else paths[index] for index in indices]
    names = [name_of(dataset, index) for index in indices]
    annotations = dict(zip(names, indices))
    rows: list[dict[str, Any]] = []
    batches = predictor.batches(sources, failed, batch_size=len(indices), names=names)
    with evaluating(task), torch.inference_mode():
        for group, _, pixels, batch in batches:
            prediction = task.predict(batch)
            weights = task.attention(batch, prediction.tokens).float().cpu()
            prediction = prediction.cpu()
            for number, name in enumerate(group):
                row: dict[str, Any] = {"path": printable(name, dataset.root)}
                row.update(prediction.rows(run.classes)[number])
                if isinstance(dataset.annotations, Texts):
                    row["ground_truth"] = {"caption": dataset.annotations.texts[annotations[name]]}
                tokens = _tokens(prediction, number, run.classes)
                image = drawing.as_rgb(pixels[number].permute(1, 2, 0).numpy())
                panel = word_panels(image, tokens, weights[number])
                row["side_by_side"] = f"side-by-side/{len(rows) + 1:04}.png"
                store.make_folder((out / row["side_by_side"]).parent)
                store.write_bytes(out / row["side_by_side"], drawing.png(panel))
                rows.append(row)
    return rows


def _tokens(prediction: TokenSequences, number: int, class_names: Sequence[str]) -> list[str]:
    return [class_names[token] for token in prediction.tokens[number].tolist() if token >= 0]


def words_of(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return the words of tokens, each with the positions of its tokens."""
    groups: list[list[int]] = []
    for position, token in enumerate(tokens):
        if not groups or token.startswith(SPACE) or token == "0x20":
            groups.append([])
        groups[-1].append(position)
    words = [(decoded([tokens[position] for position in group]).strip(), group) for group in groups]
    return [(word, group) for word, group in words if word]


def word_panels(
    image: UInt8[np.ndarray, "h w 3"], tokens: Sequence[str], weights: Float[Tensor, "u a b"]
) -> UInt8[np.ndarray, "y x 3"]:
    """Draw an image, and for each word the image with the mean attention of its tokens."""
    height, width = image.shape[:2]
    scale = PANEL_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    base = np.asarray(Image.fromarray(image).resize(size, filter_))
    panels = [("", base)]
    for word, positions in words_of(tokens)[:MAX_WORDS]:
        grid = weights[positions].mean(0).numpy()
        panels.append((word, drawing.overlay_weights(base, grid)))
    columns = min(len(panels), _PANELS_PER_ROW)
    rows = -(-len(panels) // _PANELS_PER_ROW)
    step = size[0] + _GAP, size[1] + _LINE
    canvas = Image.new("RGB", (columns * step[0] - _GAP, rows * step[1]), _WHITE)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for number, (word, panel) in enumerate(panels):
        row, column = divmod(number, _PANELS_PER_ROW)
        left, top = column * step[0], row * step[1]
        canvas.paste(Image.fromarray(panel), (left, top))
        middle = left + size[0] / 2, top + size[1] + _LINE / 2
        draw.text(middle, word, (0, 0, 0), font, anchor="mm")
    return np.asarray(canvas)
