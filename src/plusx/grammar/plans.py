"""Which values a plan keeps of a network: found by trying rules in thought.

"recompute" is the quickest rule that holds at most half of what PyTorch holds and convolves at
most a little again, "segments" the quickest that holds at most a fifth. Where a network allows no
such rule, it is the one that holds the least.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from plusx.grammar.memory import script_of
from plusx.grammar.remember import Plan, Rule
from plusx.grammar.sentence import parse
from plusx.grammar.shapes import measure
from plusx.grammar.spec import Net
from plusx.grammar.tape import Tape


@dataclass(frozen=True)
class Aim:
    """What a plan is to reach, as shares of what PyTorch holds and of its time a step."""

    bytes: float
    time: float
    heaviest: int | None  # multiply-adds a value of convolutions that are made again; None: any


AIMS: dict[Plan, Aim] = {
    "recompute": Aim(bytes=0.5, time=1.3, heaviest=64),
    "segments": Aim(bytes=0.197, time=1.4, heaviest=None),
}
# The time of a pass over all that PyTorch holds, as a share of a step: measured on ResNet-50.
PASS = 0.067
LIGHTEST = (0, 64, 128, 256, 512)
APART = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
DEEPEST = 30  # blocks a stage that are thought through; deeper stages repeat themselves


class Choice(NamedTuple):
    """A rule in five numbers, which are changed one at a time until none helps."""

    heaviest: int
    lightest: int
    whole: int  # stages from the first whose blocks are all kept
    apart: int  # blocks from one that is kept to the next elsewhere; 0: none is kept
    end: int  # 1: counted from the end of a stage


class Found(NamedTuple):
    bytes: float  # as a share of what PyTorch holds
    time: float  # as a share of PyTorch's time, roughly


@lru_cache(maxsize=256)
def rule_of(net: Net, plan: Plan) -> Rule | None:
    """What the plan keeps of this network; None is PyTorch's own way ("keep")."""
    if plan == "keep":
        return None
    search = Search(_thought_through(net), AIMS[plan])
    return _rule(search.best(), net)


class Search:
    """Rules of one network, judged in thought."""

    def __init__(self, net: Net, aim: Aim) -> None:
        self.net, self.aim = net, aim
        self.multiply_adds = 3 * max(measure(net).multiply_adds, 1)
        self.script = script_of(net)
        self.all_bytes = Tape(self.script, None, 1).account.peak
        works = {line.work for line in self.script.lines if line.kind == "convolve"}
        most = aim.heaviest if aim.heaviest is not None else max(works, default=0)
        weights = sorted(work for work in works if work <= most)
        longest = max(len(stage.blocks) for stage in net.stages)
        # what `&` joins is there already: "recompute" keeps none of it twice
        joins = aim.heaviest is not None and any(
            parse(block.body).merge == "concat" for stage in net.stages for block in stage.blocks
        )
        self.options: tuple[tuple[int, ...], ...] = (
            (0, *_spread(weights, 10)),
            LIGHTEST,
            (0,) if joins else tuple(range(len(net.stages) + 1)),
            (0,) if joins else tuple(k for k in APART if k <= longest),
            (0, 1),
        )
        self.known: dict[Choice, Found] = {}

    def best(self) -> Choice:
        """The best choice that is found from two beginnings."""
        heaviest, _, _, apart, _ = self.options
        blocks = sum(len(stage.blocks) for stage in self.net.stages)
        root = min(apart, key=lambda k: abs(k - blocks**0.5 / 1.5))
        beginnings = (
            Choice(heaviest[-1], min(128, heaviest[-1]), 0, root, 0),
            Choice(heaviest[len(heaviest) // 2], 0, 0, root, 1),
        )
        return min((self._improved(each) for each in beginnings), key=self._order)

    def _improved(self, choice: Choice) -> Choice:
        before = None
        while choice != before:
            before = choice
            for place, options in enumerate(self.options):
                choice = min(_variants(choice, place, options), key=self._order)
        return choice

    def _order(self, choice: Choice) -> tuple[int, float, Choice]:
        """Better ones first: in both bounds by time, then in that of time alone by bytes."""
        found = self.judged(choice)
        if found.time > self.aim.time:
            return 2, found.time, choice
        if found.bytes > self.aim.bytes:
            return 1, found.bytes, choice
        return 0, found.time, choice

    def judged(self, choice: Choice) -> Found:
        if choice not in self.known:
            tape = Tape(self.script, _rule(choice, self.net), 1)
            work, passed = tape.work / self.multiply_adds, PASS * tape.passed / self.all_bytes
            self.known[choice] = Found(tape.account.peak / self.all_bytes, 1 + work + passed)
        return self.known[choice]


def _variants(choice: Choice, place: int, options: tuple[int, ...]) -> Iterator[Choice]:
    for option in options:
        yield Choice(*(*choice[:place], option, *choice[place + 1 :]))


def _rule(choice: Choice, net: Net) -> Rule:
    kept: set[int] = set()
    begin = 0
    for number, stage in enumerate(net.stages):
        count = len(stage.blocks)
        for j in range(count):
            place = count - 1 - j if choice.end else j + 1
            if number < choice.whole or (choice.apart and place % choice.apart == 0):
                kept.add(begin + j)
        begin += count
    return Rule(choice.heaviest, choice.lightest, frozenset(kept))


def _thought_through(net: Net) -> Net:
    """The net with stages that repeat themselves no more often than it takes to choose."""
    if all(stage.depth <= DEEPEST for stage in net.stages):
        return net
    stages = (replace(stage, depth=min(stage.depth, DEEPEST)) for stage in net.stages)
    return replace(net, stages=tuple(stages))


def _spread(values: list[int], count: int) -> list[int]:
    """At most so many of the sorted values, evenly, the last among them."""
    if len(values) <= count:
        return values
    return [values[(i + 1) * len(values) // count - 1] for i in range(count)]
