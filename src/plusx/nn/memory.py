"""Training that keeps less: values that are cheap to make again are not kept for the backward pass.

A plan is a rule about values (`plusx.grammar.remember.Rule`). While a network runs forward under
it, every operation is seen; those of `plusx.nn.again` leave a note of how to make their result, and
where autograd would keep such a result it keeps the note. All else, gradients too, is PyTorch's
own. Batch norm is made again with the statistics that it had, so running statistics move once,
and random numbers are kept, so dropout is the same.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from plusx.grammar.remember import DEEPEST, Again, Dataset, Kept, Rule
from plusx.nn.again import (
    BATCH_NORMS,
    CALLS,
    OVERWRITING,
    SLOW_CALLS,
    aten,
    call_again,
    join_again,
    norm_again,
    overwrite_again,
)
from plusx.nn.saved import SavedBytes, counting


@dataclass(frozen=True, eq=False)
class Note:
    """How a value is made again, and how it lies in memory."""

    again: Again[Tensor]
    size: tuple[int, ...]
    stride: tuple[int, ...]


class View(Dataset[Tensor]):
    """A part of a value that is made again, or all of it."""

    def __init__(self, note: Note, seen: Tensor) -> None:
        self.note, self.steps, self.depth = note, note.again.steps, note.again.depth
        self.size, self.stride = tuple(seen.shape), seen.stride()
        self.offset = int(seen.storage_offset())

    def value(self) -> Tensor:
        return self._of(self.note.again.value())

    def used(self) -> Tensor:
        return self._of(self.note.again.used())

    def _of(self, whole: Tensor) -> Tensor:
        if self.is_whole and whole.stride() == self.stride:
            return whole
        if whole.stride() != self.note.stride:  # a view counts positions in the layout of then
            whole = whole.new_empty_strided(whole.shape, self.note.stride).copy_(whole)
        return whole.as_strided(self.size, self.stride, self.offset)

    @property
    def is_whole(self) -> bool:
        return self.size == self.note.size and not self.offset


class There(Kept[Tensor]):
    """A tensor that is kept. RuntimeError where it was overwritten since."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.detach())  # without the graph behind it
        self.seen, self.version = weakref.ref(tensor), tensor._version

    def value(self) -> Tensor:
        seen = self.seen()
        if seen is not None and seen._version != self.version:
            raise RuntimeError(
                "a value that others are made again from was overwritten after the forward pass"
            )
        return self.held


class Remembering(TorchDispatchMode):
    """Sees every operation of a forward pass and notes how results are made again."""

    def __init__(self, rule: Rule, count: SavedBytes | None) -> None:
        super().__init__()
        self.rule, self.count = rule, count
        # a storage is known by its address as long as it lives
        self.notes: dict[int, tuple[weakref.ref[torch.UntypedStorage], Note]] = {}

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in OVERWRITING:
            return self._overwritten(function, args, kwargs)
        result = function(*args, **kwargs)
        if function in CALLS:
            self._called(function, args, kwargs, result, 0)
        elif function in SLOW_CALLS:
            for place in (0, 1):
                self._called(function, args, kwargs, result, place, dear=True)
        elif function in BATCH_NORMS:
            self._normed(function, args, result)
        elif function is aten.cat.default:
            self._joined(args, result)
        elif function is aten.convolution.default:
            work = args[1].numel() // len(args[1])
            if work <= self.rule.heaviest:
                dear = work > self.rule.lightest
                self._called(function, args, kwargs, result, 0, steps=0, dear=dear)
        elif _overwrites(function):
            for each in args:
                if isinstance(each, Tensor):
                    self.forget(each)
        return result

    def forget(self, tensor: Tensor) -> None:
        """The tensor is no longer what was noted of it."""
        self.notes.pop(tensor.untyped_storage()._cdata, None)

    def keep(self, tensor: Tensor) -> None:
        """The tensor is kept as it is now."""
        found = self.find(tensor)
        if found is not None and found.is_whole:
            found.note.again.keep(tensor.detach())
            if self.count is not None:
                self.count.watch(tensor)

    def find(self, tensor: Tensor) -> View | None:
        """How the tensor is made again, where it is not kept."""
        storage = tensor.untyped_storage()
        known = self.notes.get(storage._cdata)
        if known is None or known[0]() is not storage:
            return None
        return View(known[1], tensor)

    def source(self, tensor: Tensor) -> Dataset[Tensor]:
        found = self.find(tensor)
        if found is None and self.count is not None:
            self.count.watch(tensor)
        return There(tensor) if found is None else found

    def turn(
        self, x: Tensor, others: Sequence[Tensor], make: Callable[[Sequence[Tensor]], Tensor]
    ) -> None:
        """The tensor is made from others, whatever it was made from before."""
        found = self.find(x)
        if found is not None:
            sources = [self.source(other) for other in others]
            found.note.again.turn(self._watched(make), sources)

    def pack(self, tensor: Tensor) -> Tensor | View:
        """What autograd keeps for this tensor."""
        found = self.find(tensor)
        if found is not None:
            found.note.again.uses += 1
            return found
        if self.count is not None:
            self.count.watch(tensor)
        return tensor

    def _note(self, result: Tensor, again: Again[Tensor]) -> None:
        if again.depth > DEEPEST:
            self.forget(result)
            return
        storage = result.untyped_storage()
        again.make = self._watched(again.make)
        note = Note(again, tuple(result.shape), result.stride())
        self.notes[storage._cdata] = (weakref.ref(storage), note)

    def _watched(
        self, make: Callable[[Sequence[Tensor]], Tensor]
    ) -> Callable[[Sequence[Tensor]], Tensor]:
        """The same, and counted where somebody counts."""
        return make if self.count is None else partial(_watched, self.count, make)

    def _called(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        place: int,
        *,
        steps: int = 1,
        dear: bool = False,
    ) -> None:
        """Made again by the same call, from the same tensors."""
        tensors = [i for i, each in enumerate(args) if isinstance(each, Tensor)]
        rest = [None if isinstance(each, Tensor) else each for each in args]
        make = partial(call_again, function, tensors, rest, kwargs, place)
        sources = [self.source(args[i]) for i in tensors]
        out = result if isinstance(result, Tensor) else result[place]
        self._note(out, Again(make, sources, steps=steps, dear=dear))

    def _overwritten(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Made again on top of what is overwritten, unless that was kept."""
        target, rest = args[0], args[1:]
        before = self.find(target)
        if kwargs or before is None or not before.is_whole or before.note.again.kept:
            self.forget(target)
            return function(*args, **kwargs)
        others = [self.source(each) for each in rest if isinstance(each, Tensor)]
        places = [i for i, each in enumerate(rest) if isinstance(each, Tensor)]
        plain = [None if isinstance(each, Tensor) else each for each in rest]
        inner = before.note.again
        make = partial(overwrite_again, function, inner.make, len(inner.sources), places, plain)
        sources = [*inner.sources, *others]
        result = function(*args, **kwargs)
        self._note(target, Again(make, sources, steps=inner.own + 1, dear=inner.dear))
        return result

    def _normed(self, function: Any, args: tuple[Any, ...], result: Any) -> None:
        """Made again with the statistics that it had."""
        x, weight, bias, running_mean, running_var, training, _, epsilon = args[:8]
        out, mean, inverse = result[:3]
        affine = [each if each is None else each.detach() for each in (weight, bias)]
        if training:  # in evaluation the same call divides by the root of what it is given
            make = partial(norm_again, affine, mean, inverse)
        else:
            rest = [*affine, running_mean, running_var, False, 0.0, epsilon]
            make = partial(call_again, aten.native_batch_norm.default, [0], [None, *rest], {}, 0)
        self._note(out, Again(make, [self.source(x)], steps=1))

    def _joined(self, args: tuple[Any, ...], result: Tensor) -> None:
        """Made again at once from all that was joined one after another."""
        dim = args[1] if len(args) > 1 else 0
        sources: list[Dataset[Tensor]] = []
        for each in args[0]:
            found = self.source(each)
            inner = found.note.again if isinstance(found, View) and found.is_whole else None
            if isinstance(inner, Joined) and inner.dim == dim and not inner.kept:
                sources += inner.sources
            else:
                sources.append(found)
        self._note(result, Joined(dim, sources))


def _watched(
    count: SavedBytes, make: Callable[[Sequence[Tensor]], Tensor], values: Sequence[Tensor]
) -> Tensor:
    made = make(values)
    count.watch(made)
    return made


class Joined(Again[Tensor]):
    """A concatenation. Concatenated anew, it is made from the parts, not from itself."""

    def __init__(self, dim: int, sources: Sequence[Dataset[Tensor]]) -> None:
        super().__init__(partial(join_again, dim), sources, steps=1)
        self.dim = dim


_running: ContextVar[Remembering | None] = ContextVar("running", default=None)


def remembering(rule: Rule | None) -> AbstractContextManager[object]:
    """A forward pass under this rule, where gradients are wanted and none is under way already."""
    if rule is None or not torch.is_grad_enabled() or _running.get() is not None:
        return nullcontext()
    return _remembering(rule)


@contextmanager
def _remembering(rule: Rule) -> Iterator[None]:
    mode = Remembering(rule, counting.get())
    token = _running.set(mode)
    try:
        with mode, saved_tensors_hooks(mode.pack, _unpack):
            yield
    finally:
        _running.reset(token)
        mode.notes.clear()  # autograd keeps the hooks, and with them the mode


def _unpack(saved: Tensor | View) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    if not torch.is_grad_enabled():
        return saved.used()
    with torch.no_grad():
        return saved.used()


@cache
def _overwrites(function: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    changes: bool = function._schema.is_mutable
    return changes


def keep(x: Tensor) -> Tensor:
    """The same tensor, which is kept and not made again."""
    mode = _running.get()
    if mode is not None:
        mode.keep(x)
    return x


def keep_whole(whole: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """A concatenation along the channels that is kept, and its parts only as parts of it."""
    mode = _running.get()
    if mode is None:
        return whole
    mode.keep(whole)
    begin = 0
    for part in parts:
        mode.turn(part, [whole], _part(begin, part.shape[1]))
        begin += part.shape[1]
    return whole


def turn_back(x: Tensor, y: Tensor, added: Tensor) -> None:
    """x follows from y = x + added, as soon as the backward pass makes `added` again."""
    mode = _running.get()
    if mode is not None:
        mode.turn(x, [y, added], lambda values: values[0] - values[1])
        inner, found = mode.find(added), mode.find(x)
        if inner is not None and found is not None:
            last = inner.note.again.sources[0]
            if isinstance(last, View):
                last.note.again.also = found.note.again


def _part(begin: int, count: int) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda values: values[0].narrow(1, begin, count).clone()
