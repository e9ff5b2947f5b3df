"""Multiply-adds of a network with a head on its features, as `grammar.shapes` counts them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from plusx.grammar.arithmetic import Size
from plusx.nn.build import build
from plusx.nn.with_head import NetworkWithHead


PROPOSALS, FOUND = 1000, 100  # regions of an image that two-stage detectors look at, and tell


def multiply_adds(net: NetworkWithHead, size: Size) -> int:
    """Of one input with so many positions a dimension, in evaluation.

    Convolutions, linear layers and the products of attention are counted. Two-stage detectors look
    at 1,000 proposals, and at masks of 100 boxes. A volume for a network of images counts with all
    its slices.
    """
    with torch.device("meta"):
        sketch: Any = build(net.spec, initialised=False).eval()
    tokens = net.style.takes_tokens
    channels = () if tokens else (net.in_channels,)
    kind = torch.int64 if tokens else torch.float32
    x = torch.zeros((1, *channels, *size), dtype=kind, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        if net.head_spec.two_stage:
            _regions(sketch, x)
        else:
            sketch(x)
    return int(counted.get_total_flops()) // 2


def _regions(net: NetworkWithHead, x: Tensor) -> None:
    """What has weights in a two-stage detector; which regions it looks at depends on the image."""
    head: Any = net.detector
    _, stages = net.maps(x)
    maps = head.fpn({str(i): stages[place] for i, place in enumerate(head.indices)})
    head.rpn.head(list(maps.values()))
    heads = head.roi_heads
    width = net.head_spec.width  # type: ignore[union-attr]
    heads.box_predictor(heads.box_head(x.new_zeros((PROPOSALS, width, 7, 7))))
    if heads.has_mask():
        heads.mask_predictor(heads.mask_head(x.new_zeros((FOUND, width, 14, 14))))
