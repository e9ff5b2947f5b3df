"""What a network does in training, written down once and read under any rule.

A line of the script is an operation on values that are known by number. Sizes are bytes of one
image. `plusx.grammar.tape` reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


FLOAT, INDEX = 4, 8  # bytes of a number and of a position


@dataclass(frozen=True)
class Named:
    """What runs through the network: so many bytes an image."""

    number: int
    size: int
    moves: bool  # whether a gradient goes back through it


class Line(NamedTuple):
    """One operation: what it makes, from what, and what it costs to make it again."""

    kind: str
    out: int = -1
    given: tuple[int, ...] = ()
    size: int = 0
    steps: int = 1
    dear: bool = False
    work: int = 0  # multiply-adds a number, of a convolution
    fixed: bool = False  # the same size whatever the batch


class Script:
    """The operations of a forward pass and its loss, in their order."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.values = 0
        self.blocks = 0

    def there(self, numbers: int, *, width: int = FLOAT, moves: bool = True) -> Named:
        """A value of so many numbers that is kept as it is."""
        return self._made(Line("there", size=numbers * width), moves)

    def call(
        self, size: int, values: Sequence[Named], *, steps: int = 1, dear: bool = False
    ) -> Named:
        """A value of `size` bytes that can be made again from others."""
        given = tuple(value.number for value in values)
        moves = any(value.moves for value in values)
        return self._made(Line("call", given=given, size=size, steps=steps, dear=dear), moves)

    def convolve(self, x: Named, work: int, numbers: int) -> Named:
        """A convolution of so many multiply-adds for each of the numbers that it gives."""
        line = Line("convolve", given=(x.number,), size=numbers * FLOAT, work=work)
        y = self._made(line, True)
        self.save(x)
        return y

    def overwrite(self, value: Named, others: Sequence[Named] = ()) -> Named:
        """An operation in place."""
        given = (value.number, *(other.number for other in others))
        return self._made(Line("overwrite", given=given, size=value.size), value.moves)

    def join(self, first: Named, second: Named) -> Named:
        """Two values one behind the other."""
        size = first.size + second.size
        return self._made(Line("join", given=(first.number, second.number), size=size), True)

    def keep(self, value: Named) -> None:
        """The value is kept as it is, and not made again."""
        self.lines.append(Line("keep", given=(value.number,), size=value.size))

    def block(self, value: Named) -> None:
        """The end of a block, whose output a rule may keep."""
        self.lines.append(Line("block", out=self.blocks, given=(value.number,), size=value.size))
        self.blocks += 1

    def turn(self, value: Named, others: Sequence[Named], also: Named | None = None) -> None:
        """The value is made from others, as soon as what is made before `also` is made again."""
        given = (value.number, *(other.number for other in others))
        after = -1 if also is None else also.number
        self.lines.append(Line("turn", out=after, given=given, size=value.size))

    def save(self, *values: Named) -> None:
        """An operation whose backward pass needs these."""
        self.lines.append(Line("save", given=tuple(value.number for value in values)))

    def save_small(self, numbers: int, *, an_image: bool = True, width: int = FLOAT) -> None:
        """Statistics, or positions, that belong to no value."""
        self.lines.append(Line("small", size=numbers * width, fixed=not an_image))

    def pass_by(self, numbers: int, *, width: int) -> None:
        """Numbers that are there with the next line, and no longer."""
        self.lines.append(Line("pass_by", size=numbers * width))

    def _made(self, line: Line, moves: bool) -> Named:
        number = self.values
        self.values += 1
        self.lines.append(line._replace(out=number))
        return Named(number, line.size, moves)
