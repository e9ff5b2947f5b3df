"""Filters that were learned on colours, for images of any number of channels."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


COLOURS = 3
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def adapt_input_conv(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the first filters for as many channels as the network sees.

    Filters of three colours are taken again and again for channels 1, 2, 3, 4, ... and multiplied
    by 3 / channels, so that an image whose channels are alike is answered as in colours; of one
    channel they are the sum over the colours. That is what timm does (`adapt_input_conv`). Nothing
    is changed where the channels are as many.
    """
    adapted = dict(tensors)
    convolutions = [
        (name, conv) for name, conv in net.named_modules() if isinstance(conv, _CONVOLUTIONS)
    ]
    if not convolutions:
        return adapted
    name, conv = convolutions[0]
    ours = f"{name}.weight"
    key = next(
        (
            name_in_file
            for name_in_file in (ours, ours.removeprefix("backbone."))
            if name_in_file in adapted
        ),
        None,
    )
    if key is None or conv.groups != 1:
        return adapted
    weight, count = adapted[key], conv.in_channels
    same_shape = (
        weight.shape[:1] + weight.shape[2:] == conv.weight.shape[:1] + conv.weight.shape[2:]
    )
    if not same_shape or weight.shape[1] != COLOURS or count == COLOURS:
        return adapted
    if count == 1:
        adapted[key] = weight.sum(1, keepdim=True)
    else:
        channels = torch.arange(count) % COLOURS
        adapted[key] = weight[:, channels] * (COLOURS / count)
    return adapted
