"""Grad-CAM (Selvaraju et al. 2017): where in a network's maps lies what speaks for an answer.

A network is cut in two: what makes the maps, and what makes the answer of them. The first part
runs without a graph and the gradient is asked of the second alone, so no hook is needed, none can
stay behind, and nothing of the first part is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.sentence import Word, parse
from plusx.nn.block import say
from plusx.nn.network import Network, stage_positions
from plusx.nn.reversible import ReversibleNetwork
from plusx.train.loop import evaluating


# From what a network answers, or from its maps, to one number a sample.
Score = Callable[[Tensor], Tensor]
Classes = int | Sequence[int] | Int[Tensor, "n"] | Int[Tensor, ""] | Score

# Words of a tail that keep every position where it is.
_IN_PLACE = ("norm", "act", "conv", "drop", "se", "eca", "cbam", "scale", "gate")

# What the modules that are no sentence do with the maps of their last stage.
_PLAIN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "alexnet": lambda net, maps: net.fc(net.tail(maps)),
    "googlenet": lambda net, maps: net.fc(net.dropout(net.avgpool(maps).flatten(1))),
    "resnet8_keras": lambda net, maps: net.fc(maps.mean((2, 3))),
}


@dataclass(frozen=True)
class Cut:
    """A network in two parts: answer(maps(x)) is what it says of x. Maps are (n, c, *s)."""

    maps: Callable[[Tensor], Tensor]
    answer: Callable[[Tensor], Tensor]


def grad_cam(
    net: nn.Module,
    x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"],
    classes: Classes,
    *,
    stage: int | None = None,
    relu: bool = False,
) -> Float[Tensor, "n *t"]:
    """Grad-CAM maps, not normalised: (n, h, w) of images, (n, t) of texts and sounds, (n, d, h, w)
    of volumes, at the resolution of the maps that they are taken at.

    classes: a class number for each sample, or one for all of them, whose logit is explained. Or a
        function from what the network answers, (n, k), to one number a sample, (n,), for anything
        else that can be asked; `cam_of` is for networks whose answer has another form.
    stage: where the maps are taken. None: at the tensor that is pooled. Else the end of a stage,
        counted as `net.features(x, out=[stage])` does: earlier ones have more positions.
    relu: apply the ReLU of Selvaraju 2017, eq. 2, which hides what speaks against the class. Left
        out as long as nobody asks for it, because the sum that it cuts off is worth having: for a
        network with nothing but one linear layer after average pooling, Grad-CAM at the tensor
        that is pooled is exactly CAM / (h w) (Zhou et al. 2016, eq. 2).

    The network is asked in evaluation mode and left as it was: modes, statistics and `.grad` of the
    parameters, which need not require gradients. A caller under `torch.no_grad` is served too.

    UserError: the network has no stage with more than one position, or is none that plusx knows
    how to cut; a class or a stage that is not there.
    """
    cut = cut_at(net, stage)
    with torch.inference_mode(False), evaluating(net):
        with torch.no_grad():
            given = x.clone() if x.is_inference() else x
            maps = cut.maps(given)
            if prod(maps.shape[2:]) == 1:
                _refuse_without_positions(net, given)
        return cam_of(maps, lambda at: scores(cut.answer(at), classes), relu=relu)


def cam_of(
    maps: Float[Tensor, "n c *t"], score: Score, *, relu: bool = False
) -> Float[Tensor, "n *t"]:
    """Grad-CAM of any maps and any question: eq. 1 and 2 of Selvaraju et al. 2017.

    `score` gives one number a sample, (n,), from maps like these; a sample's number must depend on
    its own maps alone. So a detector can ask for the score of a box, or a network for segmentation
    for the sum over a region.

    UserError: the score is not one number a sample, or does not depend on the maps.
    """
    maps = maps.detach()
    with torch.inference_mode(False), torch.enable_grad():
        at = maps.clone() if maps.is_inference() else maps.detach()
        scored = score(at.requires_grad_())
        if scored.shape != maps.shape[:1]:
            raise UserError(
                f"the score has shape {tuple(scored.shape)}; one number a sample is needed, "
                f"({len(maps)},)"
            )
        if not scored.requires_grad:
            raise UserError("the score does not depend on the maps")
        (gradient,) = torch.autograd.grad(scored.sum(), at)
    weights = gradient.flatten(2).mean(2)
    cam = torch.einsum("nc,nc...->n...", weights, maps)
    return cam.relu() if relu else cam


def cut_at(net: nn.Module, stage: int | None = None) -> Cut:
    """The network cut at the tensor that is pooled, or at the end of a stage.

    The tensor that is pooled is what reaches the tail's `pool`: behind its `norm act` in a
    pre-activation network. Where there is no such word, as in VGG, it is what reaches the first
    word that moves positions. UserError: the network cannot be cut there.
    """
    if isinstance(net, Network):
        return _cut_network(net, stage, _pooled(parse(net.spec.tail).branch))
    if isinstance(net, ReversibleNetwork):
        return _cut_network(net, stage, net.tail.names.index("pool1"))
    answer = _PLAIN.get(str(getattr(net, "plain", "")))
    if answer is None:
        raise UserError(
            f"{type(net).__name__} is no network of plusx: it does not say which of its tensors "
            "are maps (`plusx.explain.grad_cam.cam_of` takes maps and a score)"
        )
    count = len(net.widths)  # type: ignore[arg-type]
    if stage is not None and stage_positions([stage], count) != [count - 1]:
        raise UserError(
            f"{type(net).__name__} is no sentence: it can be cut after its last stage only"
        )
    return Cut(
        lambda x: net.features(x, out=[-1])[0],  # type: ignore[operator]
        lambda maps: answer(net, maps),
    )


def scores(answers: Tensor, classes: Classes) -> Tensor:
    """One number a sample: the logits of these classes, or what the function says."""
    if callable(classes):
        return classes(answers)
    if answers.ndim != 2:
        raise UserError(
            f"the network's answer has shape {tuple(answers.shape)} and not (n, classes): give a "
            "function to one number a sample in the place of class numbers"
        )
    n, k = answers.shape
    wanted = torch.as_tensor(classes, device=answers.device)
    if wanted.is_floating_point() or wanted.shape not in ((), (n,)):
        raise UserError(
            f"classes of {wanted.dtype} and shape {tuple(wanted.shape)}: whole numbers are needed, "
            f"one for all or one for each of the {n} samples"
        )
    wanted = wanted.long().expand(n)
    if n and bool(((wanted < 0) | (wanted >= k)).any()):
        wrong = next(c for c in wanted.tolist() if not 0 <= c < k)
        raise UserError(f"class {wrong} is not there: the network has 0 to {k - 1}")
    return answers.gather(1, wanted[:, None])[:, 0]


def _cut_network(net: Network | ReversibleNetwork, stage: int | None, pooled: int) -> Cut:
    names = net.tail.names
    if stage is None:
        stage, place = len(net.widths) - 1, pooled
    else:
        (stage,), place = stage_positions([stage], len(net.widths)), 0

    def maps(x: Tensor) -> Tensor:
        return say(net.tail, names[:place], net.features(x, out=[stage])[0])

    def answer(x: Tensor) -> Tensor:
        for i in range(stage + 1, len(net.widths)):
            x = getattr(net, f"enter{i + 1}", nn.Identity())(x)
            x = getattr(net, f"layer{i + 1}")(x)
        return net.fc(say(net.tail, names[place:], x).flatten(1))

    return Cut(maps, answer)


def _pooled(words: Sequence[Word]) -> int:
    """The place of the pooling over all positions, or of the first word that moves any."""
    for place, word in enumerate(words):
        if word.kind == "pool" and (word.value or 1) == 1:
            return place
    moving = (place for place, word in enumerate(words) if word.kind not in _IN_PLACE)
    return next(moving, len(words))


def _refuse_without_positions(net: nn.Module, x: Tensor) -> None:
    """UserError where no stage has a map that could show a place."""
    if all(prod(maps.shape[2:]) == 1 for maps in net.features(x)):  # type: ignore[operator]
        size = " x ".join(map(str, x.shape[2:] if x.is_floating_point() else x.shape[1:]))
        raise UserError(
            f"Grad-CAM needs a stage with positions; for inputs of {size} every stage of this "
            "network has one position"
        )
