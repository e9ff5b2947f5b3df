"""A forward pass in thought: what every operation saves, in bytes, and the way back over it."""

from collections.abc import Callable, Sequence

from plusx.grammar.remember import DEEPEST, Again, Kept, Rule, Source


FLOAT, INDEX = 4, 8  # bytes of a number and of a position


class Account:
    """Bytes that are held now, and the most that ever were."""

    def __init__(self) -> None:
        self.live = self.peak = 0


class Held:
    """A tensor in thought: its bytes count from when it is saved, or made again, to its end."""

    __slots__ = ("account", "bytes", "counted")

    def __init__(self, account: Account, size: int, counted: bool = False) -> None:
        self.account, self.bytes, self.counted = account, size, False
        if counted:
            self.count()

    def count(self) -> None:
        if not self.counted:
            self.counted = True
            self.account.live += self.bytes
            self.account.peak = max(self.account.peak, self.account.live)

    def __del__(self) -> None:
        if self.counted:
            self.account.live -= self.bytes


class Joined(Again[Held]):
    """A concatenation; concatenated anew, it is made from the parts."""


class Value:
    """What runs through the network: `size` bytes that come from `source`."""

    def __init__(self, size: int, source: Source[Held], moves: bool = True) -> None:
        self.size, self.source = size, source
        self.moves = moves  # whether a gradient goes back through it


class Tape:
    """A forward pass in thought under a rule; None keeps what PyTorch keeps."""

    def __init__(self, rule: Rule | None, batch: int) -> None:
        self.rule, self.batch, self.account = rule, batch, Account()
        self.saved: list[list[Held | Again[Held]]] = []
        self.work = 0  # multiply-adds of convolutions that were made again
        self.passed = 0  # bytes of values that were made again, once for every pass

    def there(self, numbers: int, *, width: int = FLOAT, moves: bool = True) -> Value:
        """A value of so many numbers an image that is kept as it is."""
        size = numbers * width * self.batch
        return Value(size, Kept(Held(self.account, size)), moves)

    def call(
        self,
        size: int,
        values: Sequence[Value],
        *,
        steps: int = 1,
        dear: bool = False,
        work: int = 0,
    ) -> Value:
        """A value of `size` bytes that can be made again from others."""
        moves = any(value.moves for value in values)
        if self.rule is None:
            return Value(size, Kept(Held(self.account, size)), moves or bool(work))
        account = self.account

        def make(_: Sequence[Held]) -> Held:
            self.work += work
            self.passed += steps * size
            return Held(account, size, counted=True)

        sources = [self._source(value) for value in values]
        made = Again(make, sources, steps=steps, dear=dear)
        if made.depth > DEEPEST:
            return Value(size, Kept(Held(account, size)), moves or bool(work))
        return Value(size, made, moves or bool(work))

    def overwrite(self, value: Value, others: Sequence[Value] = ()) -> Value:
        """An operation in place."""
        inner = value.source
        if not isinstance(inner, Again) or inner.kept:
            return value
        sources, size = [*inner.sources, *map(self._source, others)], value.size
        first: Callable[[Sequence[Held]], Held] = inner.make

        def make(values: Sequence[Held]) -> Held:
            self.passed += size
            return first(values)

        made = Again(make, sources, steps=inner.own + 1, dear=inner.dear)
        if made.depth > DEEPEST:
            return Value(value.size, Kept(Held(self.account, value.size)), value.moves)
        return Value(value.size, made, value.moves)

    def join(self, first: Value, second: Value) -> Value:
        """Two values one behind the other."""
        size = first.size + second.size
        if self.rule is None:
            return Value(size, Kept(Held(self.account, size)))
        account = self.account
        sources: list[Source[Held]] = []
        for value in (first, second):
            inner = value.source
            if isinstance(inner, Joined) and not inner.kept:
                sources += inner.sources
            else:
                sources.append(self._source(value))

        def make(_: Sequence[Held]) -> Held:
            self.passed += size
            return Held(account, size, counted=True)

        joined = Joined(make, sources, steps=1)
        if joined.depth > DEEPEST:
            return Value(size, Kept(Held(account, size)))
        return Value(size, joined)

    def keep(self, value: Value) -> None:
        """The value is kept as it is, and not made again."""
        if isinstance(value.source, Again):
            value.source.keep(Held(self.account, value.size, counted=True))

    def turn(self, value: Value, others: Sequence[Value], also: Value | None = None) -> None:
        """The value is made from others, as soon as what is made before `also` is made again."""
        inner = value.source
        if not isinstance(inner, Again):
            return
        account, size = self.account, value.size

        def make(_: Sequence[Held]) -> Held:
            self.passed += size
            return Held(account, size, counted=True)

        inner.turn(make, [self._source(other) for other in others])
        if also is not None and isinstance(also.source, Again):
            last = also.source.sources[0]
            if isinstance(last, Again):
                last.also = inner

    def save(self, *values: Value) -> None:
        """An operation whose backward pass needs these."""
        packed: list[Held | Again[Held]] = []
        for value in values:
            source = value.source
            if isinstance(source, Again):
                source.uses += 1
                packed.append(source)
            else:
                assert isinstance(source, Kept)
                source.held.count()
                packed.append(source.held)
        self.saved.append(packed)

    def save_small(self, numbers: int, *, an_image: bool = True, width: int = FLOAT) -> None:
        """Statistics, or positions, that belong to no value."""
        held = Held(self.account, numbers * width * (self.batch if an_image else 1), counted=True)
        self.saved.append([held])

    def backward(self) -> None:
        """Use what was saved in reverse order, and let it go."""
        while self.saved:
            packed = self.saved.pop()
            used = [each.used() if isinstance(each, Again) else each for each in packed]
            del used, packed

    def _source(self, value: Value) -> Source[Held]:
        if isinstance(value.source, Kept):
            value.source.held.count()
        return value.source
