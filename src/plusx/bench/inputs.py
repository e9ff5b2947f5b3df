"""Random batches in the shape that a network takes."""

import torch

from plusx.data.batch import Batch
from plusx.grammar.arithmetic import each_dimension
from plusx.grammar.spec import Net
from plusx.zoo import External


def random_batch(spec: Net | External, count: int, size: int | None = None) -> Batch:
    """Random inputs and labels, the same every time; `size` replaces the network's own."""
    sides = each_dimension(size or spec.size, spec.ndim if isinstance(spec, Net) else 2)
    random = torch.Generator().manual_seed(0)
    if isinstance(spec, Net) and spec.stem.startswith("embed"):
        inputs = torch.randint(spec.in_channels, (count, *sides), generator=random)
    else:
        inputs = torch.randn((count, spec.in_channels, *sides), generator=random)
    return Batch(inputs, torch.randint(max(spec.num_classes, 1), (count,), generator=random))
