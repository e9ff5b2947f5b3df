"""Networks as frozen data: a Net of Stages of Blocks, each Block a few sentences.

This module imports only the standard library, so that networks can be listed, described and counted
without torch.
"""

from dataclasses import dataclass
from typing import Literal

from plusx.grammar.words import parse


Stride = int | tuple[int, ...]
Norm = Literal["batch", "layer", "group", "instance"]
Activation = Literal["relu", "gelu", "silu", "sigmoid", "tanh", "leaky"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block: its body, and the sentences of its shortcut.

    The default is option B of He et al. 2015 (section 4.1): a projection where the shape changes.
    Option A is ``shortcut="pad"``, option C ``identity="conv1 norm"``.
    """

    body: str
    shortcut: str = "conv1s norm"  # used where the shape changes
    identity: str = ""  # used where it does not
    gate: str = "conv1sb"  # the gate T of the mark `~`

    def __post_init__(self) -> None:
        for sentence in (self.body, self.shortcut, self.identity, self.gate):
            parse(sentence)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of one width. A tuple of blocks is repeated `depth` times."""

    block: Block | tuple[Block, ...]
    depth: int
    width: int  # output channels of each block; with `&` the growth
    stride: Stride = 1  # taken by the word marked `s` in the first block
    enter: str = ""  # layers on entry, relative to the incoming channels
    first: Block | None = None  # replaces the first block

    def __post_init__(self) -> None:
        parse(self.enter)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in the order in which they are built."""
        repeated = self.block if isinstance(self.block, tuple) else (self.block,)
        blocks = repeated * self.depth
        return blocks if self.first is None else (self.first, *blocks[1:])


@dataclass(frozen=True, kw_only=True)
class Net:
    """A whole network: a stem, stages, a tail and a linear head.

    `size` is the number of positions per dimension. If the stem begins with `embed`, `in_channels`
    is the size of the vocabulary. `num_classes=0` means no head.
    """

    stem: str
    stem_width: int = 0
    stages: tuple[Stage, ...]
    tail: str = "pool"
    ndim: Literal[1, 2, 3] = 2
    in_channels: int = 3
    num_classes: int = 1000
    size: Stride = 224
    norm: Norm = "batch"
    affine: bool = True
    act: Activation = "relu"
    drop_path: float = 0.0  # the last block's rate; block l of L has drop_path * l / L
    drop_mode: Literal["batch", "row"] = "batch"

    def __post_init__(self) -> None:
        for sentence in (self.stem, self.tail):
            parse(sentence)

    @property
    def takes_tokens(self) -> bool:
        """Whether inputs are token numbers below `in_channels`."""
        return self.stem.startswith("embed")
