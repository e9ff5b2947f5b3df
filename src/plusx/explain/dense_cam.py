"""Grad-CAM of dense predictions: class masks or boxes.

The score is the sum of a class's scores over all positions (Vinogradova et al. 2020, eq. 2, with
all positions in the set M): of the logits for masks, of the boxes' scores for boxes. The maps are
the inputs of the head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plusx.errors import UserError
from plusx.explain.grad_cam import cam_of, stages_from
from plusx.nn.network import Network, stage_indices
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
    """Return Grad-CAM maps of a network with a head for dense predictions, not normalised.

    stage: None selects the coarsest input of the head, else the end of a stage of the backbone;
        the layers after it are computed again. The finer maps that the head of a U-Net or a
        pyramid gets directly are held fixed.

    The network runs in evaluation mode and is left unchanged.
    """
    with torch.inference_mode(False), evaluating(net):
        with torch.no_grad():
            inputs = x.clone() if x.is_inference() else x
            stem, stages = net.maps(inputs)
            index = len(stages) - 1
            start: Tensor = stages[index]
            remaining_stages: Callable[[Tensor], list[Tensor]] = _single
            if stage is not None:
                (index,) = stage_indices([stage], len(stages))
                start, remaining_stages = _from_stage(net, inputs, stages, index)

        def score(maps: Tensor) -> Tensor:
            outputs = net.head(inputs, stem, [*stages[:index], *remaining_stages(maps)])
            return class_scores(net, outputs, classes) + 0 * maps.flatten(1).sum(1)

        return cam_of(start, score, relu=relu)


def class_scores(
    net: NetworkWithHead, outputs: Any, classes: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Return the sum of a class's scores over the positions of each image."""
    if isinstance(outputs, Tensor):
        return outputs[torch.arange(len(outputs)), classes].flatten(1).sum(1)
    if isinstance(outputs[0], dict):  # boxes of torchvision, with class labels from 1
        return torch.stack(
            [
                boxes["scores"][boxes["labels"] == label + 1].sum()
                for boxes, label in zip(outputs, classes.tolist(), strict=True)
            ]
        )
    scores = [_box_scores(net, level)[torch.arange(len(level)), classes] for level in outputs]
    return torch.stack([level.flatten(1).sum(1) for level in scores]).sum(0)


def _box_scores(net: NetworkWithHead, level: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k *s"]:
    """Return the score of each class at every position of a level, per anchor if there are
    anchors."""
    k = net.num_classes
    if net.head_spec.kind == "fcos":
        return level[:, :k].sigmoid()
    anchors = level.shape[1] // (5 + k)
    scores = level.unflatten(1, (anchors, 5 + k)).sigmoid()
    return (scores[:, :, 4:5] * scores[:, :, 5:]).transpose(1, 2)


def _single(maps: Tensor) -> list[Tensor]:
    return [maps]


def _from_stage(
    net: NetworkWithHead, x: Tensor, stages: Sequence[Tensor], index: int
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """Return the output of a stage, and the function from it to the outputs of this and later
    stages."""
    backbone = net.backbone
    if not isinstance(backbone, Network):
        if index != len(stages) - 1:
            raise UserError(
                f"{type(backbone).__name__} is not built of stages: it can be cut only after its "
                "last stage"
            )
        return stages[-1], _single

    def remaining_stages(maps: Tensor) -> list[Tensor]:
        *earlier, last = stages_from(backbone, index, maps)
        return [*earlier, backbone.tail(last)]

    if index < len(stages) - 1:
        return stages[index], remaining_stages
    return backbone.features(x, out=[index])[0], remaining_stages
