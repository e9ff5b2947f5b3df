"""A forward pass in thought: what every operation saves, in bytes, and the way back over it."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from plusx.grammar.remember import DEEPEST, Again, Dataset, Kept, Rule
from plusx.grammar.script import Line, Script


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
        account = self.account
        if not self.counted:
            self.counted = True
            account.live += self.bytes
            account.peak = max(account.peak, account.live)

    def __del__(self) -> None:
        if self.counted:
            self.account.live -= self.bytes


class Joined(Again[Held]):
    """A concatenation; concatenated anew, it is made from the parts."""


class Tape:
    """A script under a rule, forward and backward; None keeps what PyTorch keeps.

    `account.peak` is the most bytes that are held, `work` the multiply-adds of convolutions that
    are made again, `passed` the bytes of values that are, once for every pass over them.
    """

    def __init__(self, script: Script, rule: Rule | None, batch: int) -> None:
        self.script, self.rule, self.batch = script, rule, batch
        self.account = Account()
        self.work = self.passed = 0
        self.sources: list[Dataset[Held] | None] = [None] * script.values
        self.saved: list[list[Held | Again[Held]]] = []
        readers: dict[str, Callable[[Line], object]] = {
            "there": self._there,
            "call": self._call,
            "convolve": self._convolve,
            "overwrite": self._overwrite,
            "join": self._join,
            "keep": self._keep,
            "block": self._block,
            "turn": self._turn,
            "save": self._save,
            "small": self._small,
        }
        passing: Held | None = None
        for line, done in zip(script.lines, _last_uses(script), strict=True):
            if line.kind == "pass_by":
                passing = Held(self.account, line.size * batch, counted=True)
                continue
            readers[line.kind](line)
            passing = None
            for number in done:
                self.sources[number] = None
        assert passing is None
        self.sources.clear()
        self._backward()

    def _backward(self) -> None:
        """Use what was saved in reverse order, and let it go."""
        while self.saved:
            packed = self.saved.pop()
            used = [each.used() if isinstance(each, Again) else each for each in packed]
            del used, packed

    def _there(self, line: Line) -> None:
        self.sources[line.out] = Kept(Held(self.account, line.size * self.batch))

    def _call(self, line: Line) -> None:
        if self.rule is None:
            self._there(line)
        else:
            self._again(line, line.steps, line.dear, 0)

    def _convolve(self, line: Line) -> None:
        if self.rule is None or line.work > self.rule.heaviest:
            self._there(line)
        else:
            work = line.work * (line.size // 4) * self.batch
            self._again(line, 0, line.work > self.rule.lightest, work)

    def _again(self, line: Line, steps: int, dear: bool, work: int) -> None:
        size = line.size * self.batch
        make = partial(self._made, size, steps, work)
        made = Again(make, [self._source(each) for each in line.given], steps=steps, dear=dear)
        self._note(line.out, made, size)

    def _overwrite(self, line: Line) -> None:
        first, *others = line.given
        inner = self.sources[first]
        if not isinstance(inner, Again) or inner.kept:
            self.sources[line.out] = inner
            return
        size = line.size * self.batch
        make = partial(self._made_on_top, size, inner.make)
        sources = [*inner.sources, *(self._source(each) for each in others)]
        made = Again(make, sources, steps=inner.own + 1, dear=inner.dear)
        self._note(line.out, made, size)

    def _join(self, line: Line) -> None:
        if self.rule is None:
            self._there(line)
            return
        sources: list[Dataset[Held]] = []
        for number in line.given:
            inner = self.sources[number]
            if isinstance(inner, Joined) and not inner.kept:
                sources += inner.sources
            else:
                sources.append(self._source(number))
        size = line.size * self.batch
        self._note(line.out, Joined(partial(self._made, size, 1, 0), sources, steps=1), size)

    def _keep(self, line: Line) -> None:
        inner = self.sources[line.given[0]]
        if isinstance(inner, Again):
            inner.keep(Held(self.account, line.size * self.batch, counted=True))

    def _block(self, line: Line) -> None:
        if self.rule is not None and line.out in self.rule.blocks:
            self._keep(line)

    def _turn(self, line: Line) -> None:
        first, *others = line.given
        inner = self.sources[first]
        if not isinstance(inner, Again):
            return
        make = partial(self._made, line.size * self.batch, 1, 0)
        inner.turn(make, [self._source(each) for each in others])
        after = self.sources[line.out] if line.out >= 0 else None
        if isinstance(after, Again):
            last = after.sources[0]
            if isinstance(last, Again):
                last.also = inner

    def _save(self, line: Line) -> None:
        packed: list[Held | Again[Held]] = []
        for number in line.given:
            source = self.sources[number]
            if isinstance(source, Again):
                source.uses += 1
                packed.append(source)
            else:
                assert isinstance(source, Kept)
                source.held.count()
                packed.append(source.held)
        self.saved.append(packed)

    def _small(self, line: Line) -> None:
        size = line.size if line.fixed else line.size * self.batch
        self.saved.append([Held(self.account, size, counted=True)])

    def _made(self, size: int, steps: int, work: int, _: Sequence[Held]) -> Held:
        self.work += work
        self.passed += steps * size
        return Held(self.account, size, counted=True)

    def _made_on_top(
        self, size: int, make: Callable[[Sequence[Held]], Held], values: Sequence[Held]
    ) -> Held:
        self.passed += size
        return make(values)

    def _note(self, number: int, made: Again[Held], size: int) -> None:
        """What was made, unless making it again would go too deep."""
        too_deep = made.depth > DEEPEST
        self.sources[number] = Kept(Held(self.account, size)) if too_deep else made

    def _source(self, number: int) -> Dataset[Held]:
        source = self.sources[number]
        assert source is not None
        if isinstance(source, Kept):
            source.held.count()
        return source


@lru_cache(maxsize=16)
def _last_uses(script: Script) -> list[list[int]]:
    """The values that no line behind this one names, for each line."""
    last: dict[int, int] = {}
    for place, line in enumerate(script.lines):
        for number in line.given:
            last[number] = place
        if line.kind == "turn" and line.out >= 0:
            last[line.out] = place
    done: list[list[int]] = [[] for _ in script.lines]
    for number, place in last.items():
        done[place].append(number)
    return done
