"""Example predictions for recordings: their spectrograms with classes or transcripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from plusx import store
from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.data.modality import AudioModality
from plusx.data.prediction import command_row
from plusx.data.rng import SampleRNG
from plusx.data.sample import Sample
from plusx.metrics.transcripts import error_rates
from plusx.run import drawing
from plusx.run.chosen_examples import hardest, spread
from plusx.run.dense_predictions import name_of
from plusx.run.predictor import Predictor
from plusx.run.sources import Failed
from plusx.tasks.within_grammar import WithinGrammar


NUM_RECORDINGS = 8
NUM_TRANSCRIPTS = 6
_TRANSCRIBED = 64  # recordings from which the examples are selected
_WIDTH, _HEIGHT = 480, 160  # of a spectrogram in pixels, at least
_AXIS = 20  # pixels below it for the seconds


def predict_recordings(
    predictor: Predictor, dataset: Dataset, failed: Failed, out: Path
) -> list[dict[str, Any]]:
    """Return rows of the recordings whose class got the lowest probability, and draw them."""
    waveforms = Waveforms(dataset)
    rows = []
    for index, row in hardest(predictor, dataset, waveforms, NUM_RECORDINGS, failed):
        rows.append({"path": printable(name_of(dataset, index), dataset.root), **row})
        rows[-1]["side_by_side"] = _drawn(predictor, waveforms[index], out, len(rows))
    return rows


def predict_transcripts(
    predictor: Predictor, dataset: Dataset, failed: Failed, out: Path
) -> list[dict[str, Any]]:
    """Return rows of the recordings whose transcripts have the highest character error rate, and
    draw them."""
    rows = _transcribed(predictor, dataset, failed)
    return _shown(predictor, dataset, rows, out)


def predict_commands(
    predictor: Predictor, dataset: Dataset, failed: Failed, out: Path
) -> list[dict[str, Any]]:
    """Return rows of the recordings whose command is wrong, then of those whose transcripts have
    the highest character error rate, and draw them."""
    task = predictor.run.task
    assert isinstance(task, WithinGrammar)
    rows = _transcribed(predictor, dataset, failed)
    for row in rows.values():
        target = row["ground_truth"]
        target["command"] = command_row(task.grammar.parse(target["transcript"]))["command"]
    wrong_first = sorted(
        rows, key=lambda i: rows[i]["command"] == rows[i]["ground_truth"]["command"]
    )
    return _shown(predictor, dataset, {index: rows[index] for index in wrong_first}, out)


def _transcribed(
    predictor: Predictor, dataset: Dataset, failed: Failed
) -> dict[int, dict[str, Any]]:
    """Return rows of some recordings by their indices, the highest character error rate first."""
    assert isinstance(dataset.annotations, Texts)
    waveforms = Waveforms(dataset)
    indices = spread(_TRANSCRIBED, len(dataset))
    rows: dict[int, dict[str, Any]] = {}
    names = [str(index) for index in indices]
    predictions = predictor.predictions([waveforms[i] for i in indices], failed, names=names)
    for name, _, prediction in predictions:
        (row,) = prediction.rows(predictor.run.classes)
        reference = dataset.annotations.texts[int(name)]
        error = _character_error_rate(reference, row["transcript"])
        rows[int(name)] = {**row, "ground_truth": {"transcript": reference}, "cer": error}
    return {index: rows[index] for index in sorted(rows, key=lambda i: (-rows[i]["cer"], i))}


def _shown(
    predictor: Predictor, dataset: Dataset, rows: Mapping[int, dict[str, Any]], out: Path
) -> list[dict[str, Any]]:
    """Return the first rows with their paths, and draw their recordings."""
    waveforms = Waveforms(dataset)
    shown: list[dict[str, Any]] = []
    for index, row in list(rows.items())[:NUM_TRANSCRIPTS]:
        shown.append({"path": printable(name_of(dataset, index), dataset.root), **row})
        shown[-1]["side_by_side"] = _drawn(predictor, waveforms[index], out, len(shown))
    return shown


class Waveforms(Sequence[Tensor]):
    """The waveforms (1, t) of a data set, read when they are used."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset.read(index).tensor


def spectrogram(
    modality: AudioModality, waveform: Float[Tensor, "1 t"]
) -> Float[Tensor, "mels frames"]:
    """Return the log-mel spectrogram of a waveform, not normalised."""
    transform = modality.transform("", train=False)
    return frames_of(modality, transform(Sample(waveform), SampleRNG.of(0, 0, 0)).tensor)


def frames_of(
    modality: AudioModality, values: Float[Tensor, "..."]
) -> Float[Tensor, "mels frames"]:
    """Return the spectrogram of an input of the network, in either layout."""
    return values if modality.layout == "sequence" else values[0].T


def spectrogram_pixels(values: Float[Tensor, "mels frames"]) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a spectrogram: time from left to right, low frequencies at the bottom."""
    import matplotlib  # half a second

    low, high = np.percentile(values.numpy(), (1, 99.5))
    scaled = ((values.numpy()[::-1] - low) / max(high - low, 1e-6)).clip(0, 1)
    colours = matplotlib.colormaps["magma"](scaled)[..., :3]
    image = Image.fromarray((255 * colours).round().astype(np.uint8))
    size = image.width * max(1, -(-_WIDTH // image.width)), max(_HEIGHT, image.height)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def with_seconds(pixels: UInt8[np.ndarray, "h w 3"], seconds: float) -> UInt8[np.ndarray, "y w 3"]:
    """Add an axis of the seconds below a spectrogram."""
    height, width = pixels.shape[:2]
    canvas = Image.new("RGB", (width, height + _AXIS), (255, 255, 255))
    canvas.paste(Image.fromarray(pixels), (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for fraction, anchor in ((0.0, "lt"), (0.5, "mt"), (1.0, "rt")):
        draw.text((fraction * width, height + 4), f"{fraction * seconds:.2g} s", (0, 0, 0), font,
                  anchor=anchor)  # fmt: skip
    return np.asarray(canvas)


def _drawn(predictor: Predictor, waveform: Tensor, out: Path, number: int) -> str:
    """Write the spectrogram of a recording; return its path in the folder."""
    modality = predictor.run.preprocessing
    assert isinstance(modality, AudioModality)
    values = spectrogram(modality, waveform)
    path = f"side-by-side/{number:04}.png"
    store.make_folder((out / path).parent)
    seconds = modality.seconds if modality.fixed else waveform.shape[1] / modality.rate
    pixels = with_seconds(spectrogram_pixels(values), seconds)
    store.write_bytes(out / path, drawing.png(pixels))
    return path


def _character_error_rate(reference: str, transcript: str) -> float:
    if not reference.strip():  # every predicted character is an insertion
        return float(len(transcript))
    return float(error_rates([reference], [transcript])["cer"])
