"""Attributions by captum, an extra: integrated gradients and occlusion.

Both compare the output for an image with the output for less of it. The baseline is the value 0 of
the network's input, with the usual normalisation the mean of the training images.
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
            "integrated gradients and occlusion are computed by captum, which is not installed: "
            "pip install 'plusx[explain]' (grad-cam needs nothing more)"
        )


def integrated_gradients(
    net: nn.Module, x: Float[Tensor, "n c *s"], classes: Classes, *, steps: int = STEPS
) -> Float[Tensor, "n *s"]:
    """Integrated gradients (Sundararajan et al. 2017, eq. 1), summed over the channels.

    The path leads from 0 to x. Up to the error of a Gauss-Legendre sum of `steps` points, a map
    adds up to the score of x less the score of 0 (their proposition 1).
    """
    require_captum()
    from captum.attr import IntegratedGradients

    with torch.inference_mode(False), evaluating(net):
        method = IntegratedGradients(lambda inputs: _outputs(net, inputs, classes))
        given = x.clone().detach().requires_grad_()
        attributions: Tensor = method.attribute(
            given,
            target=_targets(classes, len(x), x.device),
            n_steps=steps,
            internal_batch_size=max(TOGETHER, len(x)),
        )
    return attributions.detach().sum(1)


def occlusion(
    net: nn.Module, x: Float[Tensor, "n c *s"], classes: Classes, *, windows: int = WINDOWS
) -> Float[Tensor, "n *s"]:
    """The fall of the score as a window is set to 0 (Zeiler and Fergus 2014, section 4.2).

    `windows` of them fit along a side; a window moves by half its side, and the value of a position
    is the mean over the windows that cover it.
    """
    require_captum()
    from captum.attr import Occlusion

    sides = [max(1, round(side / windows)) for side in x.shape[2:]]
    with torch.inference_mode(False), torch.no_grad(), evaluating(net):
        method = Occlusion(lambda inputs: _outputs(net, inputs, classes))
        attributions: Tensor = method.attribute(
            x.clone(),
            sliding_window_shapes=(x.shape[1], *sides),
            strides=(x.shape[1], *(max(1, side // 2) for side in sides)),
            target=_targets(classes, len(x), x.device),
            baselines=0,
            perturbations_per_eval=max(1, TOGETHER // max(1, len(x))),
        )
    return attributions.detach()[:, 0].to(x.dtype)  # captum gives float32


def _outputs(net: nn.Module, inputs: Tensor, classes: Classes) -> Tensor:
    """Outputs from which captum takes those of the classes, or the score itself."""
    outputs: Tensor = net(inputs)
    return classes(outputs) if callable(classes) else outputs


def _targets(classes: Classes, count: int, device: torch.device) -> Any:
    if callable(classes):
        return None
    return torch.as_tensor(classes, device=device).long().expand(count)
