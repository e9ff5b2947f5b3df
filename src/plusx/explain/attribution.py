"""Integrated gradients and occlusion, computed by captum (an extra).

The baseline of both is the input value 0, which with the usual normalisation is the mean of the
training images.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.errors import MissingLibrary
from plusx.explain.grad_cam import Classes
from plusx.train.loop import evaluating


STEPS = 32  # integration points of integrated gradients
WINDOWS = 8  # occlusion windows per side
MAX_BATCH = 128  # images per forward pass


def require_captum() -> None:
    """Raise MissingLibrary if captum is not installed."""
    if find_spec("captum") is None:
        raise MissingLibrary("integrated-gradients and occlusion need captum", "explain")


def integrated_gradients(
    net: nn.Module, x: Float[Tensor, "n c *s"], classes: Classes, *, steps: int = STEPS
) -> Float[Tensor, "n *s"]:
    """Return integrated gradients (Sundararajan et al. 2017, eq. 1), summed over the channels.

    The path leads from 0 to x. A map sums to the score of x minus the score of 0 (their proposition
    1), up to the error of Gauss-Legendre quadrature with `steps` points.
    """
    require_captum()
    from captum.attr import IntegratedGradients

    with torch.inference_mode(False), evaluating(net):
        method = IntegratedGradients(lambda inputs: _outputs(net, inputs, classes))
        inputs = x.clone().detach().requires_grad_()
        attributions: Tensor = method.attribute(
            inputs,
            target=_targets(classes, len(x), x.device),
            n_steps=steps,
            internal_batch_size=max(MAX_BATCH, len(x)),
        )
    return attributions.detach().sum(1)


def occlusion(
    net: nn.Module, x: Float[Tensor, "n c *s"], classes: Classes, *, windows: int = WINDOWS
) -> Float[Tensor, "n *s"]:
    """Return the decrease of the score if a window is 0 (Zeiler and Fergus 2014, section 4.2).

    `windows` windows fit along a side; a window moves by half its side, and the value at a position
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
            perturbations_per_eval=max(1, MAX_BATCH // max(1, len(x))),
        )
    return attributions.detach()[:, 0].to(x.dtype)  # captum returns float32


def _outputs(net: nn.Module, inputs: Tensor, classes: Classes) -> Tensor:
    """Return the outputs from which captum selects the classes, or the score itself."""
    outputs: Tensor = net(inputs)
    return classes(outputs) if callable(classes) else outputs


def _targets(classes: Classes, count: int, device: torch.device) -> Any:
    if callable(classes):
        return None
    return torch.as_tensor(classes, device=device).long().expand(count)
