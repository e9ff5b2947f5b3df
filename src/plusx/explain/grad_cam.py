"""Grad-CAM (Selvaraju et al. 2017): which positions of a network's feature maps raise a score.

The network is cut in two: the part that computes the feature maps, and the part that computes the
output from them. The first runs without a graph and only the second is differentiated, so no hook
is needed and no activation of the first part is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.words import Word, parse
from plusx.nn.block import run_layers
from plusx.nn.network import Network, stage_positions
from plusx.nn.reversible import ReversibleNetwork
from plusx.train.loop import evaluating


# From a network's output, or from its feature maps, to one number a sample.
Score = Callable[[Tensor], Tensor]
Classes = int | Sequence[int] | Int[Tensor, "n"] | Int[Tensor, ""] | Score

# Words of a tail that keep every position where it is.
_IN_PLACE = ("norm", "act", "conv", "drop", "se", "eca", "cbam", "scale", "gate")

# Networks without a sentence: from the feature maps of the last stage to the output.
_PLAIN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "alexnet": lambda net, maps: net.fc(net.tail(maps)),
    "googlenet": lambda net, maps: net.fc(net.dropout(net.avgpool(maps).flatten(1))),
    "resnet8_keras": lambda net, maps: net.fc(maps.mean((2, 3))),
}


@dataclass(frozen=True)
class Cut:
    """A network in two parts: output(maps(x)) is net(x). Maps are (n, c, *s)."""

    maps: Callable[[Tensor], Tensor]
    output: Callable[[Tensor], Tensor]


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
        function from the network's output, (n, k), to one number a sample, (n,); `cam_of` is for
        networks whose output has another form.
    stage: where the maps are taken. None: at the tensor that is pooled. Else the end of a stage,
        counted as `net.features(x, out=[stage])` does: earlier ones have more positions.
    relu: apply the ReLU of Selvaraju 2017, eq. 2, which hides evidence against the class. Off by
        default, because without it Grad-CAM at the tensor that is pooled is exactly CAM / (h w)
        (Zhou et al. 2016, eq. 2) where one linear layer follows average pooling.

    The network runs in evaluation mode and is left as it was: modes, statistics and `.grad` of the
    parameters, which need not require gradients. It may be called under `torch.no_grad`.

    UserError: the network has no stage with more than one position, or cannot be cut; a class or a
    stage that it does not have.
    """
    cut = cut_at(net, stage)
    with torch.inference_mode(False), evaluating(net):
        with torch.no_grad():
            given = x.clone() if x.is_inference() else x
            maps = cut.maps(given)
            if prod(maps.shape[2:]) == 1:
                _refuse_without_positions(net, given)
        return cam_of(maps, lambda at: scores(cut.output(at), classes), relu=relu)


def cam_of(
    maps: Float[Tensor, "n c *t"], score: Score, *, relu: bool = False
) -> Float[Tensor, "n *t"]:
    """Grad-CAM of any feature maps and any score: eq. 1 and 2 of Selvaraju et al. 2017.

    `score` gives one number a sample, (n,), from maps like these, for example the score of a box or
    the sum over a region of a mask; a sample's number must depend on its own maps alone.

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

    The tensor that is pooled is the input of the tail's `pool`, which in a pre-activation network
    follows `norm act`. Without such a word, as in VGG, it is the input of the first word that moves
    positions. UserError: the network cannot be cut there.
    """
    if isinstance(net, Network):
        return _cut_network(net, stage, _pooled(parse(net.spec.tail).branch))
    if isinstance(net, ReversibleNetwork):
        return _cut_network(net, stage, net.tail.names.index("pool1"))
    output = _PLAIN.get(str(getattr(net, "name", "")))
    if output is None:
        raise UserError(
            f"{type(net).__name__} is no network of plusx: which of its tensors are maps is "
            "not known (`plusx.explain.grad_cam.cam_of` takes maps and a score)"
        )
    count = len(net.widths)  # type: ignore[arg-type]
    if stage is not None and stage_positions([stage], count) != [count - 1]:
        raise UserError(
            f"{type(net).__name__} is not built of stages: it can be cut after its last stage only"
        )
    return Cut(
        lambda x: net.features(x, out=[-1])[0],  # type: ignore[operator]
        lambda maps: output(net, maps),
    )


def scores(outputs: Tensor, classes: Classes) -> Tensor:
    """One number a sample: the logits of these classes, or the result of the function."""
    if callable(classes):
        return classes(outputs)
    if outputs.ndim != 2:
        raise UserError(
            f"the network's output has shape {tuple(outputs.shape)} and not (n, classes): give a "
            "function to one number per sample instead of class numbers"
        )
    n, k = outputs.shape
    class_numbers = torch.as_tensor(classes, device=outputs.device)
    if class_numbers.is_floating_point() or class_numbers.shape not in ((), (n,)):
        raise UserError(
            f"classes of {class_numbers.dtype} and shape {tuple(class_numbers.shape)}: whole "
            f"numbers are needed, one for all or one for each of the {n} samples"
        )
    class_numbers = class_numbers.long().expand(n)
    if n and bool(((class_numbers < 0) | (class_numbers >= k)).any()):
        wrong = next(c for c in class_numbers.tolist() if not 0 <= c < k)
        raise UserError(f"the network has no class {wrong}: it has 0 to {k - 1}")
    return outputs.gather(1, class_numbers[:, None])[:, 0]


def _cut_network(net: Network | ReversibleNetwork, stage: int | None, pooled: int) -> Cut:
    names = net.tail.names
    if stage is None:
        stage, position = len(net.widths) - 1, pooled
    else:
        (stage,), position = stage_positions([stage], len(net.widths)), 0

    def maps(x: Tensor) -> Tensor:
        return run_layers(net.tail, names[:position], net.features(x, out=[stage])[0])

    def output(x: Tensor) -> Tensor:
        x = stages_from(net, stage, x)[-1]
        return net.fc(run_layers(net.tail, names[position:], x).flatten(1))

    return Cut(maps, output)


def stages_from(net: Network | ReversibleNetwork, stage: int, x: Tensor) -> list[Tensor]:
    """The outputs of a stage, which is x, and of all later ones."""
    outputs = [x]
    for index in range(stage + 1, len(net.widths)):
        x = net.stage(index, x)
        outputs.append(x)
    return outputs


def _pooled(words: Sequence[Word]) -> int:
    """The place of the pooling over all positions, or of the first word that moves any."""
    for position, word in enumerate(words):
        if word.kind == "pool" and (word.value or 1) == 1:
            return position
    moving = (position for position, word in enumerate(words) if word.kind not in _IN_PLACE)
    return next(moving, len(words))


def _refuse_without_positions(net: nn.Module, x: Tensor) -> None:
    """UserError if every stage has one position."""
    if all(prod(maps.shape[2:]) == 1 for maps in net.features(x)):  # type: ignore[operator]
        size = " x ".join(map(str, x.shape[2:] if x.is_floating_point() else x.shape[1:]))
        raise UserError(
            f"Grad-CAM needs a stage with positions; for inputs of {size} every stage of this "
            "network has one position"
        )
