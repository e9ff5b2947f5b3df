"""What the zoo keeps of a network: its spec, or the figures of a plain module, and its source."""

from dataclasses import dataclass
from typing import NamedTuple

from plusx.grammar.reversible import Reversible
from plusx.grammar.spec import Net


@dataclass(frozen=True, kw_only=True)
class External:
    """The figures of a network that is no sentence and is built as a module of its own.

    `parameters` and `multiply_adds` are those of one image of `size`, counted like a Net's.
    """

    parameters: int
    multiply_adds: int
    depth: int  # layers with weights from input to output
    in_channels: int
    num_classes: int
    size: int | tuple[int, ...]
    reversible: Reversible | None = None  # what arithmetic needs to know of a reversible network


class Entry(NamedTuple):
    """A network and where it comes from: a paper of `papers.PAPERS`, and the place in it."""

    net: Net | External
    source: str
