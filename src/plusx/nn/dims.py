"""PyTorch's layer classes by number of dimensions."""

from torch import nn


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layer_type(name: str, ndim: int) -> type[nn.Module]:
    """Return the layer class: `layer_type("Conv", 2)` is nn.Conv2d."""
    layer: type[nn.Module] = getattr(nn, f"{name}{ndim}d")
    return layer
