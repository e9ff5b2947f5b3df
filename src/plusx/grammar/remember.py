"""Values that are kept for the backward pass, and values that are made again from those.

The same few lines decide what is held while a network trains (`plusx.nn.memory`, on tensors) and
what arithmetic says of it (`plusx.grammar.memory`, on numbers of bytes), so that the two agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar


Value = TypeVar("Value")

Plan = Literal["keep", "recompute", "segments"]
PLANS: tuple[Plan, ...] = ("keep", "recompute", "segments")

# Values made one from the other before one is kept: making the last calls itself for each.
DEEPEST = 100
# Passes over a value that are cheaper to run again than to hold while other values are made.
FEW = 3


@dataclass(frozen=True)
class Rule:
    """What a plan keeps of a network.

    heaviest: convolutions of at most so many multiply-adds a value are made again, others kept.
    lightest: of those, convolutions of at most so many are never held for a later use.
    blocks: the blocks, counted from 0 through the whole network, whose outputs are kept.
    """

    heaviest: int = 0
    lightest: int = 0
    blocks: frozenset[int] = frozenset()


class Dataset(ABC, Generic[Value]):
    """Where a value comes from: it is there, or it is made again in `steps` passes."""

    steps: int = 0
    depth: int = 0  # values that are made one after another for it

    @abstractmethod
    def value(self) -> Value:
        """The value, for another that is made from it."""


class Kept(Dataset[Value]):
    """A value that is there."""

    def __init__(self, held: Value) -> None:
        self.held = held

    def value(self) -> Value:
        return self.held


class Again(Dataset[Value]):
    """A value that is made again from others when the backward pass asks for it.

    `uses` counts how often it still will. While there are some, a value that was asked for, or
    one that took many passes or a convolution worth its place, is held. `steps` are the passes
    from what is kept to this value.
    """

    def __init__(
        self,
        make: Callable[[Sequence[Value]], Value],
        sources: Sequence[Dataset[Value]],
        *,
        steps: int,
        dear: bool = False,
    ) -> None:
        self.make, self.sources, self.own, self.dear = make, tuple(sources), steps, dear
        self.steps = steps + sum(source.steps for source in self.sources)
        self.depth = 1 + max((source.depth for source in self.sources), default=0)
        self.uses = 0
        self.cached: Value | None = None
        self.kept = self.once = False
        self.also: Again[Value] | None = None  # is made as soon as this was asked for

    def value(self) -> Value:
        if self.cached is not None:
            return self.cached
        made = self.make([source.value() for source in self.sources])
        if self.once:
            self.keep(made)
        elif self.uses > 0 and (self.dear or self.steps > FEW):
            self.cached = made
        return made

    def used(self) -> Value:
        """The value, for the backward pass."""
        made = self.value()
        if self.also is not None:
            also, self.also, self.cached = self.also, None, made
            also.value()
        self.uses -= 1
        self.cached = made if self.uses > 0 or self.kept else None
        return made

    def keep(self, value: Value) -> None:
        """This is the value, and it is kept from now on."""
        self.cached, self.kept = value, True
        self.sources, self.steps, self.depth = (), 0, 0

    def turn(
        self, make: Callable[[Sequence[Value]], Value], sources: Sequence[Dataset[Value]]
    ) -> None:
        """From now on the value is made in another way, and kept once it was made."""
        self.make, self.sources, self.cached, self.kept = make, tuple(sources), None, False
        self.once = True
