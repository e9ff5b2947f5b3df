"""PyTorch's layers by their number of dimensions: one name for Conv1d, Conv2d and Conv3d."""

from torch import nn


def layer_type(name: str, ndim: int) -> type[nn.Module]:
    """`layer_type("Conv", 2)` is nn.Conv2d."""
    layer: type[nn.Module] = getattr(nn, f"{name}{ndim}d")
    return layer
