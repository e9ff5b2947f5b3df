"""Grad-CAM (Selvaraju et al. 2017).

The network is cut in two: the part that computes the feature maps, and the part that computes the
output from them. The first part runs without a graph and only the second is differentiated, so no
hook is needed and no activation of the first part is stored.
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
from plusx.nn.network import Network, stage_indices
from plusx.nn.reversible import ReversibleNetwork
from plusx.train.loop import evaluating


# from a network's output, or from its feature maps, to one number per sample
Score = Callable[[Tensor], Tensor]
Classes = int | Sequence[int] | Int[Tensor, "n"] | Int[Tensor, ""] | Score

# words of a tail that keep the positions of the feature maps
_IN_PLACE = ("norm", "act", "conv", "drop", "se", "eca", "cbam", "scale", "gate")

# external modules: from the feature maps of the last stage to the output
_EXTERNAL_HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
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
    """Return Grad-CAM maps, not normalised, at the resolution of the feature maps.

    Their shape is (n, h, w) for images, (n, t) for texts and sounds, (n, d, h, w) for volumes.

    classes: one class number for each sample, or one for all of them, whose logit is explained.
        Or a function from the network's output, (n, k), to one number per sample, (n,). For
        outputs of another form use `cam_of`.
    stage: None selects the tensor that is pooled, else the end of a stage, numbered as in
        `net.features(x, out=[stage])`: earlier stages have more positions.
    relu: apply the ReLU of Selvaraju 2017, eq. 2, which hides evidence against the class. Off by
        default: without it, Grad-CAM at the pooled tensor equals CAM / (h w) (Zhou et al. 2016,
        eq. 2) if one linear layer follows average pooling.

    The network runs in evaluation mode; modes, statistics and `.grad` of the parameters are left
    unchanged. Parameters need not require gradients, and torch.no_grad may be active. Raises
    UserError if no stage has more than one position, the network cannot be cut, or a class or stage
    does not exist.
    """
    cut = cut_at(net, stage)
    with torch.inference_mode(False), evaluating(net):
        with torch.no_grad():
            inputs = x.clone() if x.is_inference() else x
            maps = cut.maps(inputs)
            if prod(maps.shape[2:]) == 1:
                _refuse_without_positions(net, inputs)
        return cam_of(maps, lambda maps: scores(cut.output(maps), classes), relu=relu)


def cam_of(
    maps: Float[Tensor, "n c *t"], score: Score, *, relu: bool = False
) -> Float[Tensor, "n *t"]:
    """Return Grad-CAM of any feature maps and score: eq. 1 and 2 of Selvaraju et al. 2017.

    `score` returns one number per sample, (n,), from such maps, for example the score of a box or
    the sum over a region of a mask; the number of a sample must depend on its own maps only. Raises
    UserError if the score is not one number per sample, or does not depend on the maps.
    """
    maps = maps.detach()
    with torch.inference_mode(False), torch.enable_grad():
        leaf = maps.clone() if maps.is_inference() else maps.detach()
        values = score(leaf.requires_grad_())
        if values.shape != maps.shape[:1]:
            raise UserError(
                f"the score has shape {tuple(values.shape)}; one number per sample is needed, "
                f"({len(maps)},)"
            )
        if not values.requires_grad:
            raise UserError("the score does not depend on the maps")
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    weights = gradient.flatten(2).mean(2)
    cam = torch.einsum("nc,nc...->n...", weights, maps)
    return cam.relu() if relu else cam


def cut_at(net: nn.Module, stage: int | None = None) -> Cut:
    """Return the network cut at the tensor that is pooled, or at the end of a stage.

    The tensor that is pooled is the input of the tail's `pool`, in a pre-activation network after
    `norm act`. Without such a word, as in VGG, it is the input of the first word that changes
    positions. Raises UserError if the network cannot be cut there.
    """
    if isinstance(net, Network):
        return _cut_network(net, stage, _pooling_index(parse(net.spec.tail).branch))
    if isinstance(net, ReversibleNetwork):
        return _cut_network(net, stage, net.tail.names.index("pool1"))
    output = _EXTERNAL_HEADS.get(str(getattr(net, "name", "")))
    if output is None:
        raise UserError(
            f"{type(net).__name__} is not a network of plusx, so its feature maps are "
            "unknown; use `plusx.explain.grad_cam.cam_of` with maps and a score"
        )
    count = len(net.widths)  # type: ignore[arg-type]
    if stage is not None and stage_indices([stage], count) != [count - 1]:
        raise UserError(
            f"{type(net).__name__} is not built of stages: it can be cut only after its last stage"
        )
    return Cut(
        lambda x: net.features(x, out=[-1])[0],  # type: ignore[operator]
        lambda maps: output(net, maps),
    )


def scores(outputs: Tensor, classes: Classes) -> Tensor:
    """Return one number per sample: the logits of these classes, or the result of the function."""
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
        (stage,), position = stage_indices([stage], len(net.widths)), 0

    def maps(x: Tensor) -> Tensor:
        return run_layers(net.tail, names[:position], net.features(x, out=[stage])[0])

    def output(x: Tensor) -> Tensor:
        x = stages_from(net, stage, x)[-1]
        return net.fc(run_layers(net.tail, names[position:], x).flatten(1))

    return Cut(maps, output)


def stages_from(net: Network | ReversibleNetwork, stage: int, x: Tensor) -> list[Tensor]:
    """Return the outputs of a stage, which is x, and of all later ones."""
    outputs = [x]
    for index in range(stage + 1, len(net.widths)):
        x = net.stage(index, x)
        outputs.append(x)
    return outputs


def _pooling_index(words: Sequence[Word]) -> int:
    """Return the index of the global pooling, or of the first word that changes positions."""
    for position, word in enumerate(words):
        if word.kind == "pool" and (word.value or 1) == 1:
            return position
    moving = (position for position, word in enumerate(words) if word.kind not in _IN_PLACE)
    return next(moving, len(words))


def _refuse_without_positions(net: nn.Module, x: Tensor) -> None:
    """Raise UserError if every stage has a single position."""
    if all(prod(maps.shape[2:]) == 1 for maps in net.features(x)):  # type: ignore[operator]
        size = " x ".join(map(str, x.shape[2:] if x.is_floating_point() else x.shape[1:]))
        raise UserError(
            f"Grad-CAM needs a stage with several positions; for inputs of {size} every stage of "
            "this network has a single position"
        )
