"""Models: a spec, an external module, or one of them with a head."""

from dataclasses import dataclass
from typing import ClassVar

from plusx.grammar.arithmetic import Measure, measure
from plusx.grammar.heads import Head
from plusx.grammar.reversible import Reversible
from plusx.grammar.spec import Net


@dataclass(frozen=True, kw_only=True)
class External:
    """A network that the language cannot describe, built as a module of its own (`nn.external`).

    `parameters` and `multiply_adds` are those of one image of `size`, counted as for a Net;
    `embed_width` is the width of its head's input.
    """

    name: str
    parameters: int
    multiply_adds: int
    depth: int  # layers with weights from input to output
    in_channels: int
    num_classes: int
    embed_width: int
    size: int | tuple[int, ...]
    reversible: Reversible | None = None  # the sizes of a reversible network, for its memory
    ndim: ClassVar[int] = 2
    takes_tokens: ClassVar[bool] = False
    drop_path: ClassVar[float] = 0.0
    drop_mode: ClassVar[str] = "batch"


@dataclass(frozen=True, kw_only=True)
class WithHead:
    """A network with a head on its features instead of its linear one."""

    backbone: Net | External
    head: Head
    num_classes: int


Model = Net | External | WithHead


def costs(model: Net | External) -> Measure | External:
    """Return parameters, MACs, depth and embed_width of a network with a linear head."""
    return model if isinstance(model, External) else measure(model)
