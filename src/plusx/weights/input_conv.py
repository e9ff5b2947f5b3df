"""Adapt the first convolution of pretrained weights to another number of input channels."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from plusx.nn.dims import CONVOLUTIONS


COLOURS = 3


def adapt_input_conv(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the first filters adapted to the input channels of the network.

    Filters of 3 channels (or 1) are repeated for channels 1, 2, 3, 4, ... and multiplied by 3 (or
    1) / channels, so that an image with equal channels keeps its prediction; for one channel they
    are summed, as in timm's `adapt_input_conv`. If the number of channels is the same, the tensors
    are returned unchanged.
    """
    adapted = dict(tensors)
    convolutions = [
        (name, conv) for name, conv in net.named_modules() if isinstance(conv, CONVOLUTIONS)
    ]
    if not convolutions:
        return adapted
    name, conv = convolutions[0]
    keys = (f"{name}.weight", f"{name}.weight".removeprefix("backbone."))
    key = next((key for key in keys if key in adapted), None)
    if key is None or conv.groups != 1:
        return adapted
    weight, count = adapted[key], conv.in_channels
    same_shape = (
        weight.shape[:1] + weight.shape[2:] == conv.weight.shape[:1] + conv.weight.shape[2:]
    )
    stored = weight.shape[1]
    if not same_shape or stored not in (1, COLOURS) or count == stored:
        return adapted
    if count == 1:
        adapted[key] = weight.sum(1, keepdim=True)
    else:
        adapted[key] = weight[:, torch.arange(count) % stored] * (stored / count)
    return adapted
