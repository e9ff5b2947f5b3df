"""Weights of networks with a head that are known by torchvision's name."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plusx.grammar.heads import DeepLab, FasterRcnn, Fcn, Head, MaskRcnn
from plusx.nn.network import Network
from plusx.nn.with_head import NetworkWithHead
from plusx.zoo import find
from plusx.zoo.with_head import HEADED


EPSILON = 1e-5  # of a batch norm, and of torchvision's frozen one
# torchvision reads these files with frozen norms that add nothing to the variance
WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
# where the number of classes stands in a file
LAST = ("head.classifier.4.weight", "head.roi_heads.box_predictor.cls_score.weight")


def dense_named(
    name: str, num_classes: int | None = None, head: Head | None = None
) -> NetworkWithHead:
    """The network with a head of that name, its parameters as PyTorch initialises them."""
    known = HEADED[name]
    spec: Any = replace(find(known.base), num_classes=0, size=known.size)
    return NetworkWithHead(Network(spec), head or known.head, num_classes or known.num_classes)


def matched(name: str, given: Mapping[str, Tensor]) -> NetworkWithHead:
    """The same for what a file has: as many classes, an auxiliary head or none, norms that are
    constants or not."""
    head: Any = HEADED[name].head
    if isinstance(head, Fcn | DeepLab):
        auxiliary = any(key.startswith("head.aux_classifier.") for key in given)
        head = replace(head, auxiliary=auxiliary)
    if isinstance(head, FasterRcnn | MaskRcnn):
        counted = any(key.endswith(".num_batches_tracked") for key in given)
        head = replace(head, frozen_norms=not counted)
    classes = None
    for key in LAST:
        if key in given and given[key].ndim >= 2:
            classes = max(given[key].shape[0] - HEADED[name].background, 1)
    return dense_named(name, classes, head)


def with_epsilon(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network whose frozen norms add nothing to the variance, for norms that add
    EPSILON: what they compute is the same."""
    changed = dict(given)
    for key, variance in given.items():
        weight = f"{key.removesuffix('running_var')}weight"
        if key.endswith(".running_var") and weight in given:
            more = torch.sqrt((variance.double() + EPSILON) / variance.double())
            changed[weight] = (given[weight].double() * more).to(given[weight].dtype)
    return changed


def task_of(head: Head) -> dict[str, str]:
    """What a file says that answers are made of what the network gives."""
    return {"kind": "segment" if isinstance(head, Fcn | DeepLab) else "detect"}
