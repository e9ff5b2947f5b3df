"""Grad-CAM of dense predictions: masks of classes, or boxes.

The score is the sum of a class's scores over all positions (Vinogradova et al. 2020, eq. 2, with
every position in their set M): of logits, where a network predicts a class for every position, and
of the boxes' scores, where it predicts boxes. The maps are the inputs of the head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plusx.errors import UserError
from plusx.explain.grad_cam import cam_of, stages_from
from plusx.nn.network import Network, stage_positions
from plusx.nn.with_head import NetworkWithHead
from plusx.train.loop import evaluating


def dense_cam(
    net: NetworkWithHead,
    x: Float[Tensor, "n c *s"],
    classes: Int[Tensor, "n"],
    *,
    stage: int | None = None,
    relu: bool = False,
) -> Float[Tensor, "n *t"]:
    """Grad-CAM maps of a network with a head for dense predictions, not normalised.

    stage: None is the coarsest input of the head; else the end of a stage of the backbone, and the
        layers after it are computed again. Finer maps reach the head of a U-Net or a pyramid by
        connections of their own, which are held fixed.

    The network runs in evaluation mode and is left as it was.
    """
    with torch.inference_mode(False), evaluating(net):
        with torch.no_grad():
            given = x.clone() if x.is_inference() else x
            stem, stages = net.maps(given)
            index = len(stages) - 1
            start: Tensor = stages[index]
            later: Callable[[Tensor], list[Tensor]] = _alone
            if stage is not None:
                (index,) = stage_positions([stage], len(stages))
                start, later = _from_stage(net, given, stages, index)

        def score(maps: Tensor) -> Tensor:
            outputs = net.head(given, stem, [*stages[:index], *later(maps)])
            return class_scores(net, outputs, classes) + 0 * maps.flatten(1).sum(1)

        return cam_of(start, score, relu=relu)


def class_scores(
    net: NetworkWithHead, outputs: Any, classes: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """The sum of a class's scores over the positions of each image."""
    if isinstance(outputs, Tensor):
        return outputs[torch.arange(len(outputs)), classes].flatten(1).sum(1)
    if isinstance(outputs[0], dict):  # boxes of torchvision, their classes from 1 on
        return torch.stack(
            [
                boxes["scores"][boxes["labels"] == label + 1].sum()
                for boxes, label in zip(outputs, classes.tolist(), strict=True)
            ]
        )
    scores = [_box_scores(net, level)[torch.arange(len(level)), classes] for level in outputs]
    return torch.stack([level.flatten(1).sum(1) for level in scores]).sum(0)


def _box_scores(net: NetworkWithHead, level: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k *s"]:
    """The score of each class at every position of a level; with anchors, at each of those."""
    k = net.num_classes
    if net.head_spec.kind == "fcos":
        return level[:, :k].sigmoid()
    anchors = level.shape[1] // (5 + k)
    scores = level.unflatten(1, (anchors, 5 + k)).sigmoid()
    return (scores[:, :, 4:5] * scores[:, :, 5:]).transpose(1, 2)


def _alone(maps: Tensor) -> list[Tensor]:
    return [maps]


def _from_stage(
    net: NetworkWithHead, x: Tensor, stages: Sequence[Tensor], index: int
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """The end of a stage, and the function from it to the maps from there on."""
    backbone = net.backbone
    if not isinstance(backbone, Network):
        if index != len(stages) - 1:
            raise UserError(
                f"{type(backbone).__name__} is not built of stages: it can be cut after its last "
                "stage only"
            )
        return stages[-1], _alone

    def later(maps: Tensor) -> list[Tensor]:
        *earlier, last = stages_from(backbone, index, maps)
        return [*earlier, backbone.tail(last)]

    if index < len(stages) - 1:
        return stages[index], later
    return backbone.features(x, out=[index])[0], later
