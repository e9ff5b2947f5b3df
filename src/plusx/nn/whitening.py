"""A whitening first convolution, computed from image patches and not trained.

Coates and Ng 2012, "Learning feature representations with k-means", section 2, and the CIFAR-10
speed records since Page 2019.
"""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.nn.dims import CONVOLUTIONS


@torch.no_grad()
def whiten(net: nn.Module, images: Iterable[Tensor], epsilon: float = 5e-4) -> None:
    """Set the first convolution of `net` to whiten patches of images (n, c, *s), and freeze it.

    Its filters are the principal directions of the patches, by decreasing variance, each divided by
    sqrt(variance + epsilon), followed by their negatives, so that a ReLU loses no information. A
    bias starts at 0 and is trained. Raises UserError if there is no convolution, it has groups, or
    it has more filters than twice the values of a patch, and RuntimeError if there are no images.
    """
    first = next((module for module in net.modules() if isinstance(module, CONVOLUTIONS)), None)
    if first is None:
        raise UserError("the network has no convolution to be whitened")
    weight = first.weight
    count, values = len(weight), first.in_channels * prod(first.kernel_size)
    if first.groups != 1 or count > 2 * values:
        raise UserError(
            f"the first convolution has {count} filters in {first.groups} groups; a whitening one "
            f"has one group and at most {2 * values} filters for its patches of {values} values"
        )
    moments, num_patches = torch.zeros(values, values, dtype=torch.float64), 0
    for batch in images:
        patches = batch
        for dimension, length in enumerate(first.kernel_size, 2):
            patches = patches.unfold(dimension, length, 1)
        patches = patches.movedim(1, batch.ndim - 1).reshape(-1, values)
        moments += (patches.T @ patches).cpu().double()
        num_patches += len(patches)
    if not num_patches:
        raise RuntimeError("there are no images to whiten")
    variances, directions = torch.linalg.eigh(moments / num_patches)
    filters = (directions / (variances.clamp(min=0) + epsilon).sqrt()).T.flip(0)
    half = -(-count // 2)
    whitening = torch.cat([filters[:half], -filters[: count - half]])
    weight.copy_(whitening.reshape(weight.shape))
    weight.requires_grad_(False)
    if first.bias is not None:
        nn.init.zeros_(first.bias)
