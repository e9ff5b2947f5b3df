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
    made = dict(tensors)
    found = [(name, part) for name, part in net.named_modules() if isinstance(part, _CONVOLUTIONS)]
    if not found:
        return made
    name, part = found[0]
    ours = f"{name}.weight"
    key = next((each for each in (ours, ours.removeprefix("backbone.")) if each in made), None)
    if key is None or part.groups != 1:
        return made
    given, count = made[key], part.in_channels
    alike = given.shape[:1] + given.shape[2:] == part.weight.shape[:1] + part.weight.shape[2:]
    if not alike or given.shape[1] != COLOURS or count == COLOURS:
        return made
    if count == 1:
        made[key] = given.sum(1, keepdim=True)
    else:
        places = torch.arange(count) % COLOURS
        made[key] = given[:, places] * (COLOURS / count)
    return made
