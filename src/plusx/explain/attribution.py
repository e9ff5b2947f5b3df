"""Attributions by captum, an extra: integrated gradients and occlusion.

Both ask how the answer for an image differs from the answer for less of it. What stands for nothing
is the value 0 of the network's input: with the usual preparation the mean of the training images.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.explain.grad_cam import Classes
from plusx.train.loop import evaluating


STEPS = 32  # of integrated gradients: points of the integral
WINDOWS = 8  # of occlusion: how many fit along a side
TOGETHER = 128  # images that go through the network at a time


def require_captum() -> None:
    """UserError that names the extra, where captum is not installed."""
    if find_spec("captum") is None:
        raise UserError(
            "integrated gradients and occlusion are made by captum, which is not installed: "
            "pip install 'plusx[explain]' (grad-cam needs nothing more)"
        )


def integrated_gradients(
    net: nn.Module, x: Float[Tensor, "n c *s"], classes: Classes, *, steps: int = STEPS
) -> Float[Tensor, "n *s"]:
    """Integrated gradients (Sundararajan et al. 2017, eq. 1), summed over the channels.

    The path leads from 0 to x. Up to the error of `steps` points of a Gauss-Legendre sum, a map
    adds up to what the score gains on it (their proposition 1).
    """
    require_captum()
    from captum.attr import IntegratedGradients

    with torch.inference_mode(False), evaluating(net):
        method = IntegratedGradients(lambda inputs: _answers(net, inputs, classes))
        given = x.clone().detach().requires_grad_()
        found: Tensor = method.attribute(
            given,
            target=_targets(classes, len(x), x.device),
            n_steps=steps,
            internal_batch_size=max(TOGETHER, len(x)),
        )
    return found.detach().sum(1)


def occlusion(
    net: nn.Module, x: Float[Tensor, "n c *s"], classes: Classes, *, windows: int = WINDOWS
) -> Float[Tensor, "n *s"]:
    """What the score loses where a window is set to 0 (Zeiler and Fergus 2014, section 4.2).

    `windows` of them fit along a side; each is moved by half its side, and what a position is given
    is the mean over the windows that cover it.
    """
    require_captum()
    from captum.attr import Occlusion

    sides = [max(1, round(side / windows)) for side in x.shape[2:]]
    with torch.inference_mode(False), torch.no_grad(), evaluating(net):
        method = Occlusion(lambda inputs: _answers(net, inputs, classes))
        found: Tensor = method.attribute(
            x.clone(),
            sliding_window_shapes=(x.shape[1], *sides),
            strides=(x.shape[1], *(max(1, side // 2) for side in sides)),
            target=_targets(classes, len(x), x.device),
            baselines=0,
            perturbations_per_eval=max(1, TOGETHER // max(1, len(x))),
        )
    return found.detach()[:, 0].to(x.dtype)  # captum gives float32


def _answers(net: nn.Module, inputs: Tensor, classes: Classes) -> Tensor:
    """What captum takes a class from, or the score itself."""
    answers: Tensor = net(inputs)
    return classes(answers) if callable(classes) else answers


def _targets(classes: Classes, count: int, device: torch.device) -> Any:
    if callable(classes):
        return None
    return torch.as_tensor(classes, device=device).long().expand(count)
