"""Whole batches of a packed set: windows are cut, scaled and turned over without a decoder.

Done in threads, as no foreign file is decoded and numpy and torch leave the interpreter to others
meanwhile; words that need Pillow are done image by image, in processes, as for files.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from plusx.data.augment import NORMALISED, Plan
from plusx.data.draws import Draws
from plusx.data.image import printable
from plusx.data.packed import Packed
from plusx.data.sample import Source
from plusx.data.samples import as_image, as_tensor, viewed
from plusx.data.scaled import random_windows, scaled
from plusx.data.spare import Spare
from plusx.data.windows import TURNS


_FIRST = frozenset({"resizedcrop", "middle"})


def can_cut(source: Source, steps: Plan) -> bool:
    """Whether a sentence is one that Cutter does: a window, then flips."""
    kinds = [word.kind for word in steps.words if word.kind not in NORMALISED]
    colours = source.packed is not None and source.preprocessing.channels == 3
    return colours and bool(kinds) and kinds[0] in _FIRST and set(kinds[1:]) <= set(TURNS)


class Cutter:
    """Makes the batches of a packed set by a plan, in `threads` threads or, with none, at once.

    normalised: whether they come as a network takes them, so that threads share that work too.
    Raises RuntimeError where a batch takes over `timeout` seconds, as on a disk that hangs.
    """

    def __init__(
        self,
        source: Source,
        steps: Plan,
        seed: int,
        *,
        threads: int,
        channels_last: bool,
        timeout: int | float,
        normalised: bool,
    ) -> None:
        assert source.packed is not None
        assert source.numbers is not None
        self.packed: Packed = source.packed
        self.numbers = source.numbers.numpy()
        self.plan = steps
        self.size = source.preprocessing.size
        self.seed = seed
        self.threads = threads
        self.channels_last = channels_last
        self.timeout = timeout
        self.normalised = normalised
        self._normalise = source.preprocessing.normalise
        self._own = _Own()
        self._pool = (
            ThreadPoolExecutor(threads, "plusx-data", _alone, (torch.get_num_threads(),))
            if threads
            else None
        )

    def close(self) -> None:
        """End the threads, without waiting: one that a disk holds up would never end."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, chosen: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        """Each of the batches, two a thread ahead of what is asked for."""
        if self._pool is None:
            yield from (self._finished(indices, epoch) for indices in chosen)
            return
        upcoming = (self._pool.submit(self._finished, indices, epoch) for indices in chosen)
        waiting: list[Future[Tensor]] = list(islice(upcoming, 2 * self.threads))
        try:
            while waiting:
                yield waiting.pop(0).result(self.timeout)
                waiting.extend(islice(upcoming, 1))
        except TimeoutError:
            raise RuntimeError(
                f"{printable(self.packed.path)}: a batch was not read in {self.timeout} seconds"
            ) from None
        finally:
            for left in waiting:
                left.cancel()

    def _finished(self, indices: np.ndarray, epoch: int) -> Tensor:
        images = self.batch(indices, epoch)
        return self._normalise(images, self._own.spare) if self.normalised else images

    def batch(self, indices: np.ndarray, epoch: int) -> UInt8[Tensor, "n c h w"]:
        """The images of the samples `indices`."""
        draws = Draws.of(self.seed, epoch, indices)
        numbers = self.numbers[indices]
        turned = np.zeros((len(indices), 2), np.bool_)  # upside down, mirrored
        for place, word in enumerate(self.plan.words):
            if word.kind in TURNS:
                dimension, chosen = TURNS[word.kind]
                turned[:, dimension - 1] ^= chosen(draws.at(place))
        size, inner = self._window(), self.channels_last
        shape = (len(indices), *size, 3) if inner else (len(indices), 3, *size)
        # numpy asks the system for large pages, of which it has to hand out fewer
        made = torch.from_numpy(np.empty(shape, np.uint8))
        made = made.permute(0, 3, 1, 2) if inner else made
        for row, image, (upset, mirrored) in zip(made, self._cut(numbers, draws), turned.tolist()):
            image = image.flip(1) if upset else image
            row.copy_(image.flip(2) if mirrored else image)
        return made

    def _window(self) -> tuple[int, int]:
        side = self.plan.words[0].side
        return self.size if side is None else (side, side)

    def _cut(self, numbers: np.ndarray, draws: Draws) -> Iterator[UInt8[Tensor, "3 h w"]]:
        size = self._window()
        if self.plan.words[0].kind == "middle":
            for number in numbers.tolist():
                image = as_image(self.packed.pixels(number), 3)
                yield as_tensor(viewed(image, size, "middle"))
            return
        heights, widths = self.packed.heights[numbers], self.packed.widths[numbers]
        found = np.stack(random_windows(draws.at(0), heights, widths), 1)
        for number, (top, left, tall, wide) in zip(numbers.tolist(), found.tolist()):
            pixels = self.packed.pixels(number)[top : top + tall, left : left + wide]
            yield scaled(pixels.copy(), size, self.channels_last)


class _Own(threading.local):
    """What every thread has for itself."""

    def __init__(self) -> None:
        self.spare = Spare()


def _alone(threads: int) -> None:
    """What a thread of the pool does first: torch's kernels are done by itself, without helpers.

    What torch is told holds for this thread, and for threads that begin later: for these another
    one, which ends at once, tells it the old number again.
    """
    torch.get_num_threads()  # a thread that never asked is given the common number later
    torch.set_num_threads(1)
    again = threading.Thread(target=torch.set_num_threads, args=(threads,))
    again.start()
    again.join()
