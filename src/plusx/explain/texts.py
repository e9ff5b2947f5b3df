"""Attribution of predictions for texts to their tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx import store
from plusx.data.modality import TextModality
from plusx.data.rng import permutation
from plusx.errors import UserError
from plusx.explain.faithfulness import removal_finding
from plusx.explain.grad_cam import grad_cam
from plusx.report.texts import texts_page
from plusx.run.environment import environment
from plusx.run.folder import Run, now
from plusx.run.predictor import Predictor, refuse_none
from plusx.run.sources import Failed
from plusx.run.text_examples import occlusion, probabilities, tokens_of, unknown_token
from plusx.train.loop import evaluating


METHODS = {
    "grad-cam": ("Grad-CAM", "Selvaraju et al. 2017"),
    "occlusion": ("Occlusion", "Zeiler and Fergus 2014"),
}
_REMOVED = 0.2  # fraction of the tokens that the test of faithfulness removes


def explain_texts(
    run: Run,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    method: str = "grad-cam",
    class_index: int | None = None,
    seed: int = 0,
    device: str = "auto",
    command: str = "",
) -> dict[str, Any]:
    """Attribute a network's predictions for texts to their tokens.

    Writes explanation.json and explain.html into the folder `out`, and returns the content of the
    former: for each text its label, probability, tokens, which of them are unknown (outside of the
    vocabulary), and attributions, one number per token. Grad-CAM is interpolated between the
    positions of the last layer before pooling; occlusion is how much the probability falls if the
    token is replaced by "<unk>".

    The test of faithfulness replaces a fifth of the tokens by "<unk>": those of the highest
    attributions, and random ones. Raises UserError for an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r}: for texts, allowed are {', '.join(METHODS)}")
    predictor = Predictor(run, tta="none", device=device)
    failed: Failed = []
    texts = [str(source) for source in predictor.sources(list(inputs), failed)]
    rows = [row for row in attributed(predictor, texts, method, class_index, seed) if row]
    refuse_none(rows, failed)
    title, source = METHODS[method]
    result = {
        "kind": "explanation",
        "run": str(run.path),
        "method": method,
        "title": title,
        "source": source,
        "classes": list(run.classes),
        "seed": seed,
        "finding": removal_finding(rows, "words", "as many random words", "text"),
        "texts": rows,
        "failed": failed,
        "machine": environment(predictor.task.device),
        "command": command,
        "date": now(),
    }
    store.make_folder(out)
    store.write_json(out / "explanation.json", result)
    store.write_text(out / "explain.html", texts_page(result))
    return result


def attributed(
    predictor: Predictor,
    texts: Sequence[str],
    method: str = "grad-cam",
    class_index: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return a row for each text: prediction, tokens, attributions, and the test of
    faithfulness."""
    modality, run = predictor.run.preprocessing, predictor.run
    assert isinstance(modality, TextModality)
    rows = []
    with evaluating(predictor.task):
        for number, text in enumerate(texts):
            numbers = modality.encode(text).to(predictor.task.device)
            scores = probabilities(run.net, numbers[None])[0]
            predicted = int(scores.argmax())
            index = predicted if class_index is None else class_index
            unknown = unknown_token(modality)
            values = ATTRIBUTIONS[method](run.net, numbers, index, unknown)
            tokens, outside = tokens_of(modality, text)
            count = len(tokens)
            order = values[:count].argsort(descending=True)
            removed = max(1, round(_REMOVED * count))
            at_random = torch.from_numpy(permutation(count, seed, number))
            drops = {
                name: float(
                    scores[index]
                    - probabilities(run.net, _without(numbers, chosen[:removed], unknown)[None])[
                        0, index
                    ]
                )
                for name, chosen in (("attributed", order), ("random", at_random))
            }
            rows.append(
                {
                    "text": text,
                    "label": run.classes[predicted],
                    "probability": float(scores[predicted]),
                    "class": run.classes[index],
                    "tokens": tokens,
                    "unknown": outside,
                    "attributions": [round(value, 6) for value in values[:count].tolist()],
                    "drop": drops,
                }
            )
    return rows


def _without(numbers: Tensor, chosen: Tensor, unknown: int) -> Tensor:
    changed = numbers.clone()
    changed[chosen.to(changed.device)] = unknown
    return changed


def _grad_cam(net: nn.Module, numbers: Tensor, index: int, unknown: int) -> Float[Tensor, "t"]:
    maps = grad_cam(net, numbers[None], index)[:, None]
    return F.interpolate(maps, len(numbers), mode="linear", align_corners=False)[0, 0]


ATTRIBUTIONS = {"grad-cam": _grad_cam, "occlusion": occlusion}
