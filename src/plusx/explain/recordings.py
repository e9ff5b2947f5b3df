"""Attribution of predictions for recordings to moments in time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx import store
from plusx.data.image_file import printable
from plusx.data.modality import AudioModality
from plusx.data.rng import permutation
from plusx.errors import UserError
from plusx.explain.faithfulness import Maps, removal_finding
from plusx.report.recordings import recordings_page
from plusx.run import drawing
from plusx.run.environment import environment
from plusx.run.folder import Run, now
from plusx.run.predictor import Predictor, refuse_none
from plusx.run.sound_examples import frames_of, spectrogram_pixels, with_seconds
from plusx.run.sources import Failed
from plusx.train.loop import evaluating


_REMOVED = 0.2  # fraction of the frames that the test of faithfulness removes
_GAP = 6  # pixels between a spectrogram and the one with the map


def explain_recordings(
    run: Run,
    paths: Sequence[str | Path],
    out: Path,
    *,
    maps: Maps,
    about: Mapping[str, Any],
    class_index: int | None = None,
    seed: int = 0,
    device: str = "auto",
    command: str = "",
) -> dict[str, Any]:
    """Attribute a network's predictions for recordings to positions of their spectrograms.

    Writes overlays/ (the spectrogram, and below it the same, dark where the map is low),
    explanation.json and explain.html into the folder `out`, and returns the content of
    explanation.json: for each recording its label, probability and `attributions`, one number per
    frame.

    maps: an attribution method; about: its method, title and source

    The test of faithfulness replaces a fifth of the frames by the mean spectrogram of the training
    set: those of the highest attributions, and the same pattern moved in time at random. Raises
    UserError if the network has no classes.
    """
    if not run.classifies:
        raise UserError(
            f"{printable(run.path)} does not predict classes; explanations of recordings are for "
            "classifiers"
        )
    predictor = Predictor(run, tta="none", device=device)
    modality = run.preprocessing
    assert isinstance(modality, AudioModality)
    failed: Failed = []
    sources = predictor.sources(list(paths), failed)
    rows: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    # one by one: lengths differ
    with evaluating(predictor.task):
        for names, _, stored, batch in predictor.batches(sources, failed, batch_size=1):
            inputs = batch.inputs
            scores = _probabilities(run.net, inputs)
            predicted = int(scores.argmax())
            index = predicted if class_index is None else class_index
            grid = maps(run.net, inputs, torch.tensor([index], device=inputs.device)).float().cpu()
            spectrogram = frames_of(modality, stored[0])
            values = _per_frame(grid[0], spectrogram.shape[1])
            path = f"overlays/{len(rows) + 1:04}.png"
            frames = spectrogram.shape[1]
            seconds = modality.seconds if modality.fixed else frames * modality.hop
            picture = drawing.png(_overlay(spectrogram, grid[0], seconds))
            store.make_folder(out / "overlays")
            store.write_bytes(out / path, picture)
            pictures.append(picture)
            moved = int(permutation(len(values), seed, len(rows))[0])
            removed = _highest(values)
            rows.append(
                {
                    "path": printable(names[0]),
                    "label": run.classes[predicted],
                    "probability": float(scores[predicted]),
                    "class": run.classes[index],
                    "overlay": path,
                    "attributions": [round(value, 6) for value in values.tolist()],
                    "drop": {
                        name: float(
                            scores[index]
                            - _probabilities(run.net, _without(modality, inputs, chosen))[index]
                        )
                        for name, chosen in (
                            ("attributed", removed),
                            ("random", removed.roll(moved)),
                        )
                    },
                }
            )
    refuse_none(rows, failed)
    result = {
        "kind": "explanation",
        "run": printable(run.path),
        **about,
        "classes": list(run.classes),
        "seed": seed,
        "finding": removal_finding(
            rows, "frames", "the same pattern of frames at another time", "recording"
        ),
        "recordings": rows,
        "failed": failed,
        "machine": environment(predictor.task.device),
        "command": command,
        "date": now(),
    }
    store.write_json(out / "explanation.json", result)
    store.write_text(out / "explain.html", recordings_page(result, pictures))
    return result


def _probabilities(net: nn.Module, inputs: Tensor) -> Float[Tensor, "k"]:
    with torch.inference_mode():
        logits: Tensor = net(inputs)
        return logits.float().softmax(1)[0].cpu()


def _per_frame(grid: Float[Tensor, "..."], frames: int) -> Float[Tensor, "frames"]:
    """Return a map over time, or over time and mel bands, as one number per frame."""
    over_time = grid if grid.ndim == 1 else grid.sum(1)
    return F.interpolate(over_time[None, None], frames, mode="linear", align_corners=False)[0, 0]


def _highest(values: Float[Tensor, "frames"]) -> Bool[Tensor, "frames"]:
    """Return the fifth of the frames with the highest values."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.argsort(descending=True)[: max(1, round(_REMOVED * len(values)))]] = True
    return chosen


def _without(
    modality: AudioModality, inputs: Float[Tensor, "1 c *s"], frames: Bool[Tensor, "frames"]
) -> Float[Tensor, "1 c *s"]:
    """Return normalised inputs in which these frames are 0, the mean of the training set."""
    changed = inputs.clone()
    chosen = frames.to(inputs.device)
    if modality.layout == "sequence":
        changed[..., chosen] = 0
    else:
        changed[:, :, chosen] = 0
    return changed


def _overlay(
    spectrogram: Float[Tensor, "mels frames"], grid: Float[Tensor, "..."], seconds: float
) -> np.ndarray:
    """Draw the spectrogram, and below it the same, dark where the map is low."""
    pixels = spectrogram_pixels(spectrogram)
    evidence = grid.relu().numpy()
    weights = evidence[None] if evidence.ndim == 1 else evidence.T[::-1]
    gap = np.full((_GAP, pixels.shape[1], 3), 255, np.uint8)
    shown = np.concatenate([pixels, gap, drawing.overlay_weights(pixels, weights)])
    return with_seconds(shown, seconds)
