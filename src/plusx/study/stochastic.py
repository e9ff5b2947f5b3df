"""How deep a network with stochastic depth is on average: Huang et al. 2016, section 3."""

from collections.abc import Sequence

import torch
from torch import nn

from plusx.errors import UserError
from plusx.study.blocks import block_positions, preserved


def survivals(blocks: int, last: float) -> list[float]:
    """Equation 4: p_l = 1 - (l / L) (1 - p_L), how likely each of L blocks is to survive."""
    return [1 - number / blocks * (1 - last) for number in range(1, blocks + 1)]


def expected_depth(blocks: int, last: float) -> float:
    """How many of L blocks survive on average: the sum of equation 4, L - (L + 1) (1 - p_L) / 2.

    With p_L = 1/2 that is (3 L - 1) / 4, 40.25 for the 54 blocks of ResNet-110.
    """
    return blocks - (blocks + 1) * (1 - last) / 2


def counted_depths(net: nn.Module, draws: int, seed: int = 0) -> list[int]:
    """How many blocks of a network survive in each of `draws` training passes.

    The blocks decide as in a forward pass, but nothing is computed. UserError: the network is not
    made of blocks, or drops rows of a batch instead of whole blocks.
    """
    blocks = [position.block for position in block_positions(net)]
    if any(block.drop and block.drops_rows for block in blocks):
        raise UserError(
            "this network drops rows of a batch, so no block is ever skipped: it needs "
            'drop_mode = "batch"'
        )
    with preserved(net):
        net.train()
        torch.manual_seed(seed)
        return [sum(not block.dropped() for block in blocks) for _ in range(draws)]


def mean_and_error(counts: Sequence[int]) -> tuple[float, float]:
    """The mean of some counts, and its standard error."""
    values = torch.tensor(counts, dtype=torch.float64)
    return float(values.mean()), float(values.std() / len(counts) ** 0.5)
