"""Whole batches of packed images: windows are cropped, resized and flipped in threads.

Threads suffice, since numpy and torch release the interpreter lock. Words that need Pillow are
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
from plusx.data.readers.packed_file import PackedFile
from plusx.data.rng import CounterRNG, SampleRNG
from plusx.data.sample import Sample, image_tensor, pillow_image
from plusx.data.transforms.steps import STEPS, random_windows, resample_pixels
from plusx.data.transforms.words import NORMALISED


_FIRST = frozenset({"resizedcrop", "center_crop"})
# the dimension of an image (c, h, w) that a word flips, and the samples for which it does
_FLIPS = {
    "flip": (2, CounterRNG.coin),
    "vflip": (1, CounterRNG.coin),
    "altflip": (2, CounterRNG.alternating),
}


class PackedBatches(BatchMaker):
    """Computes batches of packed images in `request.threads` threads, or directly if that is 0.

    On the CPU the threads also normalise them. Raises RuntimeError if a batch takes longer than
    `request.timeout` seconds, for example if a disk hangs.
    """

    def __init__(self, file: PackedFile, numbers: np.ndarray, request: BatchRequest) -> None:
        self.file, self.numbers, self.request = file, numbers, request
        self.words = request.transform.words
        side = self.words[0].side
        self.size = request.modality.image_size if side is None else (side, side)
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

    @staticmethod
    def supports(request: BatchRequest) -> bool:
        """Whether the augmentation is a crop, then flips, and images have 3 channels."""
        kinds = [word.kind for word in request.transform.words if word.kind not in NORMALISED]
        is_crop = bool(kinds) and kinds[0] in _FIRST and set(kinds[1:]) <= set(_FLIPS)
        return is_crop and request.modality.channels == 3

    def close(self) -> None:
        """End the threads without waiting for them, since one may hang on a disk."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, samples: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        """Yield the batches; two per thread are computed ahead."""
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
            for future in waiting:
                future.cancel()

    def _input_batch(self, samples: np.ndarray, epoch: int) -> Tensor:
        images = self.batch(samples, epoch)
        if not self.normalised:
            return images
        return self.request.modality.normalise(images, self._per_thread.pool)

    def batch(self, samples: np.ndarray, epoch: int) -> UInt8[Tensor, "n c h w"]:
        """Return the images of these sample numbers."""
        rng = CounterRNG.of(self.request.seed, epoch, samples)
        numbers = self.numbers[samples % len(self.numbers)]
        flipped = np.zeros((len(samples), 2), np.bool_)  # vertically, horizontally
        for position, word in enumerate(self.words):
            if word.kind in _FLIPS:
                dimension, is_flipped = _FLIPS[word.kind]
                flipped[:, dimension - 1] ^= is_flipped(rng.at(position))
        count, size = len(samples), self.size
        shape = (count, *size, 3) if self.channels_last else (count, 3, *size)
        # numpy requests huge pages from the system, so that there are fewer page faults
        batch = torch.from_numpy(np.empty(shape, np.uint8))
        batch = batch.permute(0, 3, 1, 2) if self.channels_last else batch
        crops = self._crops(numbers, rng)
        for row, image, (vertically, horizontally) in zip(batch, crops, flipped.tolist()):
            image = image.flip(1) if vertically else image
            row.copy_(image.flip(2) if horizontally else image)
        return batch

    def _crops(self, numbers: np.ndarray, rng: CounterRNG) -> Iterator[UInt8[Tensor, "3 h w"]]:
        first = self.words[0]
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
            yield resample_pixels(pixels.copy(), self.size, self.channels_last)


class _PerThread(threading.local):
    """A buffer pool for each thread."""

    def __init__(self) -> None:
        self.pool = BufferPool()


def _one_thread(threads: int) -> None:
    """Make torch's kernels use this thread of the pool alone.

    torch.set_num_threads applies to the current thread and to threads that start later. For the
    latter, a second thread, which ends at once, restores `threads`.
    """
    torch.get_num_threads()  # before this call, a thread would take the default number later
    torch.set_num_threads(1)
    restoring = threading.Thread(target=torch.set_num_threads, args=(threads,))
    restoring.start()
    restoring.join()
