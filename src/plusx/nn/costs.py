"""MACs of a network with a head on its features, counted as `grammar.arithmetic` does."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from plusx.grammar.arithmetic import Size
from plusx.nn.build import build_on_meta
from plusx.nn.with_head import NetworkWithHead


PROPOSALS, DETECTIONS = 1000, 100  # of an image, for two-stage detectors


def multiply_adds(net: NetworkWithHead, size: Size) -> int:
    """Return the MACs of one input of this size, in evaluation mode.

    Convolutions, linear layers and the products of attention count. Two-stage detectors count 1,000
    proposals and the masks of 100 boxes, decoders of tokens an output of `max_length` tokens. A
    volume for a network of images counts all slices.
    """
    meta_net: Any = build_on_meta(net.spec).eval()
    takes_tokens = net.style.takes_tokens
    channels = () if takes_tokens else (net.in_channels,)
    kind = torch.int64 if takes_tokens else torch.float32
    x = torch.zeros((1, *channels, *size), dtype=kind, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if net.head_spec.task == "decode":
            decoder = meta_net.decoder
            tokens = torch.zeros((1, decoder.max_length), dtype=torch.int64, device="meta")
            decoder(tokens, meta_net.memory(x))
        elif net.head_spec.two_stage:
            _run_two_stage(meta_net, x)
        else:
            meta_net(x)
    return int(counter.get_total_flops()) // 2


def _run_two_stage(net: NetworkWithHead, x: Tensor) -> None:
    """Run all layers with weights of a two-stage detector; the real regions depend on the image."""
    head: Any = net.detector
    _, stages = net.maps(x)
    maps = head.fpn({str(i): stages[index] for i, index in enumerate(head.indices)})
    head.rpn.head(list(maps.values()))
    heads = head.roi_heads
    width = net.head_spec.width  # type: ignore[union-attr]
    heads.box_predictor(heads.box_head(x.new_zeros((PROPOSALS, width, 7, 7))))
    if heads.has_mask():
        heads.mask_predictor(heads.mask_head(x.new_zeros((DETECTIONS, width, 14, 14))))
