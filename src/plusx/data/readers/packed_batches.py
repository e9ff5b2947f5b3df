"""Whole batches of a packed set: windows are cropped, scaled and flipped without a decoder.

This runs in threads, since numpy and torch release the interpreter lock. Words that need Pillow are
applied image by image in worker processes, as for files.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from plusx.data.buffer_pool import BufferPool
from plusx.data.dataset import BatchMaker, BatchRequest
from plusx.data.image_file import printable
from plusx.data.readers.packed import PackedFile
from plusx.data.rng import CounterRNG, SampleRNG
from plusx.data.sample import Sample, image_tensor, pillow_image
from plusx.data.transforms.steps import STEPS, random_windows, resample_pixels
from plusx.data.transforms.words import NORMALISED


_FIRST = frozenset({"resizedcrop", "center_crop"})
# the dimension of an image (c, h, w) that a word mirrors, and for which of the samples
_FLIPS = {
    "flip": (2, CounterRNG.coin),
    "vflip": (1, CounterRNG.coin),
    "altflip": (2, CounterRNG.alternating),
}


def can_cut(request: BatchRequest) -> bool:
    """Whether PackedBatches supports a sentence: a window, then flips."""
    kinds = [word.kind for word in request.transform.words if word.kind not in NORMALISED]
    colours = request.modality.channels == 3
    return colours and bool(kinds) and kinds[0] in _FIRST and set(kinds[1:]) <= set(_FLIPS)


class PackedBatches(BatchMaker):
    """Computes the batches of a packed set in threads or, with none, directly.

    On the CPU it also normalises them, so that threads share that work.
    Raises RuntimeError if a batch takes longer than `timeout` seconds, as on a disk that hangs.
    """

    def __init__(self, file: PackedFile, numbers: np.ndarray, request: BatchRequest) -> None:
        self.file, self.numbers, self.request = file, numbers, request
        self.words = request.transform.words
        self.channels_last = request.transform.setting.channels_last
        self.normalised = request.device.type == "cpu"
        self._per_thread = _PerThread()
        self._pool = (
            ThreadPoolExecutor(
                request.threads, "plusx-data", _one_thread, (torch.get_num_threads(),)
            )
            if request.threads
            else None
        )

    def close(self) -> None:
        """End the threads without waiting, since one may wait for a disk forever."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, samples: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        """Yield the batches, computed two per thread ahead."""
        if self._pool is None:
            yield from (self._input_batch(numbers, epoch) for numbers in samples)
            return
        upcoming = (self._pool.submit(self._input_batch, numbers, epoch) for numbers in samples)
        waiting: list[Future[Tensor]] = list(islice(upcoming, 2 * self.request.threads))
        try:
            while waiting:
                yield waiting.pop(0).result(self.request.timeout)
                waiting.extend(islice(upcoming, 1))
        except TimeoutError:
            raise RuntimeError(
                f"{printable(self.file.path)}: a batch was not read in "
                f"{self.request.timeout:g} seconds"
            ) from None
        finally:
            for left in waiting:
                left.cancel()

    def _input_batch(self, samples: np.ndarray, epoch: int) -> Tensor:
        images = self.batch(samples, epoch)
        if not self.normalised:
            return images
        return self.request.modality.normalise(images, self._per_thread.pool)

    def batch(self, samples: np.ndarray, epoch: int) -> UInt8[Tensor, "n c h w"]:
        """Return the images of these sample numbers."""
        rng = CounterRNG.of(self.request.seed, epoch, samples)
        numbers = self.numbers[samples % len(self.numbers)]
        flipped = np.zeros((len(samples), 2), np.bool_)  # upside down, mirrored
        for position, word in enumerate(self.words):
            if word.kind in _FLIPS:
                dimension, chosen = _FLIPS[word.kind]
                flipped[:, dimension - 1] ^= chosen(rng.at(position))
        size = self._window()
        shape = (len(samples), *size, 3) if self.channels_last else (len(samples), 3, *size)
        # numpy asks the system for large pages, of which it has to hand out fewer
        batch = torch.from_numpy(np.empty(shape, np.uint8))
        batch = batch.permute(0, 3, 1, 2) if self.channels_last else batch
        cut = self._cut(numbers, rng)
        for row, image, (upset, mirrored) in zip(batch, cut, flipped.tolist()):
            image = image.flip(1) if upset else image
            row.copy_(image.flip(2) if mirrored else image)
        return batch

    def _window(self) -> tuple[int, int]:
        side = self.words[0].side
        return self.request.modality.image_size if side is None else (side, side)

    def _cut(self, numbers: np.ndarray, rng: CounterRNG) -> Iterator[UInt8[Tensor, "3 h w"]]:
        first, size = self.words[0], self._window()
        if first.kind == "center_crop":
            step, setting = STEPS["center_crop"], self.request.transform.setting
            unused = SampleRNG.of(0, 0, 0)
            for number in numbers.tolist():
                sample = Sample(pillow_image(self.file.pixels(number)))
                yield image_tensor(step(sample, first, unused, setting).pillow)
            return
        heights, widths = self.file.heights[numbers], self.file.widths[numbers]
        windows = np.stack(random_windows(rng.at(0), heights, widths), 1)
        for number, (top, left, tall, wide) in zip(numbers.tolist(), windows.tolist()):
            pixels = self.file.pixels(number)[top : top + tall, left : left + wide]
            yield resample_pixels(pixels.copy(), size, self.channels_last)


class _PerThread(threading.local):
    """A buffer pool for each thread."""

    def __init__(self) -> None:
        self.pool = BufferPool()


def _one_thread(threads: int) -> None:
    """What a thread of the pool does first: torch's kernels are done by itself, without helpers.

    What torch is told holds for this thread, and for threads that begin later: for these another
    one, which ends at once, tells it the old number again.
    """
    torch.get_num_threads()  # a thread that never asked is given the common number later
    torch.set_num_threads(1)
    again = threading.Thread(target=torch.set_num_threads, args=(threads,))
    again.start()
    again.join()
