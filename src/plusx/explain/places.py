"""Grad-CAM of networks that tell where things are: masks of classes, or boxes.

What is asked is the sum of a class's scores over all positions (Vinogradova et al. 2020, eq. 2,
with every position in their set M): of logits, where a network tells a class for every position,
and of the boxes' scores, where it finds boxes. The maps are those that the head stands on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.explain.grad_cam import cam_of
from plusx.nn.dense import Dense
from plusx.nn.network import Network, stage_positions
from plusx.train.loop import evaluating


def places_cam(
    net: Dense,
    x: Float[Tensor, "n c *s"],
    classes: Int[Tensor, "n"],
    *,
    stage: int | None = None,
    relu: bool = False,
) -> Float[Tensor, "n *t"]:
    """Grad-CAM maps of a network with a head for places, not normalised.

    stage: None is the coarsest map that the head stands on; else the end of a stage of the
    backbone, from where everything behind it is computed anew. Finer maps reach the head of a
    U-Net or a pyramid on ways of their own, which are held as they are.

    The network is asked in evaluation mode and left as it was.
    """
    with torch.inference_mode(False), evaluating(net):
        with torch.no_grad():
            given = x.clone() if x.is_inference() else x
            stem, stages = net.maps(given)
            index = len(stages) - 1
            at: Tensor = stages[index]
            behind: Callable[[Tensor], list[Tensor]] = _as_it_is
            if stage is not None:
                (index,) = stage_positions([stage], len(stages))
                at, behind = _begun(net, given, stages, index)

        def score(maps: Tensor) -> Tensor:
            answers = net.head(given, stem, [*stages[:index], *behind(maps)])
            return class_scores(net, answers, classes) + 0 * maps.flatten(1).sum(1)

        return cam_of(at, score, relu=relu)


def class_scores(net: Dense, answers: Any, classes: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The sum of a class's scores over the positions of each image."""
    if isinstance(answers, Tensor):
        return answers[torch.arange(len(answers)), classes].flatten(1).sum(1)
    if isinstance(answers[0], dict):  # boxes that torchvision found, their classes from 1 on
        return torch.stack(
            [
                found["scores"][found["labels"] == wanted + 1].sum()
                for found, wanted in zip(answers, classes.tolist(), strict=True)
            ]
        )
    scores = [_box_scores(net, each)[torch.arange(len(each)), classes] for each in answers]
    return torch.stack([each.flatten(1).sum(1) for each in scores]).sum(0)


def _box_scores(net: Dense, level: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k *s"]:
    """The score of each class at every position of a level; with anchors, at each of those."""
    k = net.num_classes
    if net.head_spec.kind == "fcos":
        return level[:, :k].sigmoid()
    anchors = level.shape[1] // (5 + k)
    told = level.unflatten(1, (anchors, 5 + k)).sigmoid()
    return (told[:, :, 4:5] * told[:, :, 5:]).transpose(1, 2)


def _as_it_is(maps: Tensor) -> list[Tensor]:
    return [maps]


def _begun(
    net: Dense, x: Tensor, stages: Sequence[Tensor], index: int
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """The end of a stage, and what makes it and the maps behind it of that."""
    backbone = net.backbone
    if not isinstance(backbone, Network):
        if index != len(stages) - 1:
            raise UserError(
                f"{type(backbone).__name__} is no sentence: it can be cut after its last stage only"
            )
        return stages[-1], _as_it_is

    def behind(maps: Tensor) -> list[Tensor]:
        made = [maps]
        for place in range(index + 1, len(stages)):
            maps = getattr(backbone, f"enter{place + 1}", nn.Identity())(maps)
            maps = getattr(backbone, f"layer{place + 1}")(maps)
            made.append(maps)
        made[-1] = backbone.tail(made[-1])
        return made

    if index < len(stages) - 1:
        return stages[index], behind
    return backbone.features(x, out=[index])[0], behind
