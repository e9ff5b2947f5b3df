"""The ONNX graph that is being written: its values, nodes and constants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


Sizes = tuple[int, ...]  # behind the first, which is the number of inputs


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. Its first dimension is the number of inputs; `sizes` are the others"""

    name: str
    sizes: Sizes


@dataclass
class Graph:
    """The nodes and constants written so far; `step` is the one that is being written."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    known: dict[int, tuple[str, Tensor]] = field(default_factory=dict)  # parameters, by identity
    taken: set[str] = field(default_factory=set)
    step: str = ""

    def add(
        self, kind: str, inputs: Sequence[str], attributes: Mapping[str, Any] | None = None
    ) -> str:
        """Add a node; the name of its only result."""
        return self.split(kind, inputs, 1, attributes)[0]

    def split(
        self,
        kind: str,
        inputs: Sequence[str],
        count: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Add a node with `count` results; their names."""
        from onnx import helper

        names = [self.unused(self.step) for _ in range(count)]
        node = helper.make_node(kind, list(inputs), names, name=names[0], **dict(attributes or {}))
        self.nodes.append(node)
        return names

    def operand(self, given: Any) -> str:
        """The name of a value, or of a constant with these numbers."""
        if isinstance(given, Value):
            return given.name
        if isinstance(given, Tensor):
            name = self.operand_name(given)
            self.constants[name] = given.detach().cpu().contiguous().numpy()
            return name
        numbers = np.asarray(given, np.float32 if isinstance(given, float) else None)
        name = self.unused(f"{self.step}.constant")
        self.constants[name] = numbers
        return name

    def name(self, tensor: Tensor, name: str) -> None:
        """Let a constant have this name where it is used."""
        self.known[id(tensor)] = name, tensor
        self.taken.add(name)

    def operand_name(self, tensor: Tensor) -> str:
        if id(tensor) not in self.known:
            self.name(tensor, self.unused(f"{self.step}.constant"))
        return self.known[id(tensor)][0]

    def unused(self, name: str) -> str:
        """This name, or one like it that nothing has yet."""
        found, count = name, 1
        while found in self.taken:
            count += 1
            found = f"{name}.{count}"
        self.taken.add(found)
        return found
