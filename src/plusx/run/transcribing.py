"""Checks of transcripts before a network is trained on them."""

import copy
import math

import torch
from torch import nn

from plusx.data.annotations import Texts
from plusx.data.dataset import Dataset
from plusx.data.modality import AudioModality
from plusx.data.modality.audio.log_mel import num_frames
from plusx.data.transforms.words import parse_augment
from plusx.errors import UserError, counted
from plusx.tasks.ctc_decoding import least_positions


_NAMED = 10  # recordings that a message names; more are counted


def check_transcripts(dataset: Dataset, net: nn.Module, augment: str) -> None:
    """Raise UserError if the training set has no texts, or a text needs more positions than the
    network has for its recording, after the strongest augmentation of speed."""
    texts, modality = dataset.annotations, dataset.modality
    if not isinstance(texts, Texts) or not isinstance(modality, AudioModality):
        raise UserError(f'[task] kind = "transcribe", but {dataset.name} has no transcripts')
    lengths = dataset.items.lengths
    if lengths is None:
        return
    words = parse_augment(augment, modality.words, modality.inputs)
    fastest = math.prod(1 + (word.value or 0) for word in words if word.kind == "speed")
    needed = [least_positions(texts.tokenizer.encode(text)) for text in texts.texts]
    frames = [
        max(1, num_frames(int(length / fastest), modality.rate, modality.window, modality.hop))
        for length in lengths.tolist()
    ]
    positions: dict[int, int] = {}
    meta_net = copy.deepcopy(net).to("meta").eval()
    too_long = []
    # in the order of frames per token, so that the loop ends where outputs are clearly long enough
    for index in sorted(range(len(needed)), key=lambda index: frames[index] / (needed[index] + 1)):
        count = frames[index]
        if count not in positions:
            positions[count] = _positions(meta_net, modality.channels, count)
        if needed[index] > positions[count]:
            too_long.append(
                f"{dataset.describe(index)} needs {needed[index]} for {texts.texts[index]!r} and "
                f"has {positions[count]}"
            )
        elif needed[index] * 1.5 < positions[count]:
            break
    if too_long:
        more = f"; and {len(too_long) - _NAMED:,} more" if len(too_long) > _NAMED else ""
        raise UserError(
            f"{counted(len(too_long), 'text')} of {dataset.name} cannot be aligned with the "
            "network's output, which has too few positions: "
            f"{'; '.join(too_long[:_NAMED])}{more}. Use a smaller stride, a smaller [data] hop, or "
            "leave them out"
        )


def _positions(net: nn.Module, channels: int, frames: int) -> int:
    """Return the positions of the network's output. net: on the meta device"""
    with torch.no_grad():
        output: torch.Tensor = net(torch.zeros(1, channels, frames, device="meta"))
    return output.shape[2]
