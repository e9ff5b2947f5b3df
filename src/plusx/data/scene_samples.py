"""Images with their truth, augmented together and laid side by side as a batch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, Num, UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from plusx.data.augment import NORMALISED, ScenePlan
from plusx.data.draws import Draws
from plusx.data.image import Picture, UnreadableImage, quiet
from plusx.data.on_scene import SCENE_STEPS, Scene, fitted
from plusx.data.sample import Source
from plusx.data.samples import Failure
from plusx.data.truth import NOT_JUDGED, Boxes, Masks


# where no size is said, a batch is as large as its largest image, to a multiple of this: what the
# strides of the networks multiply to
MULTIPLE = 32
# of decoded scenes that are kept, so that small sets are decoded once
KEPT_BYTES = 2**30


class Scenes(NamedTuple):
    """A batch before its pixels are normalised; `extents` says how much of each is image."""

    images: Num[Tensor, "n c h w"]
    extents: Int64[Tensor, "n 2"]
    targets: Float32[Tensor, "n m 6"] | UInt8[Tensor, "n h w"]
    extras: dict[str, Tensor]  # as Batch has them


class SceneSamples(Dataset[Scene | Failure]):
    """The samples (epoch, index) of a set of scenes, augmented by a plan."""

    def __init__(self, source: Source, steps: ScenePlan, seed: int, workers: int) -> None:
        assert source.truth is not None
        self.source = source
        self.plan = steps
        self.seed = seed
        self.working_on = torch.full((0,), -1, dtype=torch.int64)
        self._kept: dict[int, Scene] = {}
        self._room = KEPT_BYTES // max(1, workers)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Scene | Failure:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Scene | Failure]:
        """Samples of one epoch; what comes after one that cannot be had is left out."""
        made: list[Scene | Failure] = []
        worker = get_worker_info()
        with quiet:
            for epoch, index in places:
                if worker is not None:
                    self.working_on[worker.id] = index
                try:
                    made.append(self._made(epoch, index))
                except (UnreadableImage, OSError) as error:
                    where = self.source.where(index)
                    return [*made, Failure(f"{where} cannot be used any more: {error}")]
        if worker is not None:
            self.working_on[worker.id] = -1
        return made

    def _made(self, epoch: int, index: int) -> Scene:
        size, draws = self.plan.size, Draws.of(self.seed, epoch, np.array([index]))
        scene = self._begun(index)
        for place, word in enumerate(self.plan.words):
            if word.kind not in NORMALISED and word.kind != "fit":
                scene = SCENE_STEPS[word.kind](scene, word, draws.at(place), size)
        final = self.plan.final
        if final is not None and (scene.size[0] > final[0] or scene.size[1] > final[1]):
            scene = fitted(scene, final)
        return scene

    def _begun(self, index: int) -> Scene:
        """A scene as all of its epochs begin; small ones are kept."""
        scene = self._kept.get(index)
        if scene is None:
            scene = self.stored(index)
            if self.plan.words and self.plan.words[0].kind == "fit":
                assert self.plan.size is not None
                scene = fitted(scene, self.plan.size)
            room = scene.image.nbytes + (0 if scene.planes is None else scene.planes.nbytes)
            if room <= self._room:
                self._room -= room
                self._kept[index] = scene
        return scene

    def stored(self, index: int) -> Scene:
        """One scene as it is stored."""
        source = self.source
        found = source.stored(index)
        if isinstance(found, Picture):
            image = found.decoded(source.preprocessing.channels, decoder=source.decoder)
            found = np.array(image).reshape(image.height, image.width, -1)
        pixels = torch.from_numpy(found).permute(2, 0, 1)
        size, truth = (pixels.shape[1], pixels.shape[2]), source.truth
        if isinstance(truth, Masks):
            mask = truth.mask(index)
            if mask.shape != size:
                raise UnreadableImage(
                    f"its mask has another size, {mask.shape[1]} x {mask.shape[0]}"
                )
            plane = torch.from_numpy(mask)[None]
            return Scene(pixels, _NO_BOXES, plane, NOT_JUDGED, stored_size=size)
        assert isinstance(truth, Boxes)
        rows = truth.rows[index]
        if truth.outlines is None:
            return Scene(pixels, rows, stored_size=size)
        planes = torch.from_numpy(truth.planes(index, size))
        return Scene(pixels, rows, planes, stored_size=size)

    def collate(self, samples: Sequence[Scene | Failure]) -> Scenes | Failure:
        """All in one batch, or the first that failed."""
        for sample in samples:
            if isinstance(sample, Failure):
                return sample
        scenes = [each for each in samples if isinstance(each, Scene)]
        size = self.plan.final or _covering(scenes)
        first = scenes[0].image
        images = first.new_zeros((len(scenes), first.shape[0], *size))
        for place, scene in zip(images, scenes):
            place[:, : scene.size[0], : scene.size[1]] = scene.image
        extents = torch.tensor([scene.size for scene in scenes], dtype=torch.int64)
        extras = {
            "content_size": extents,
            "stored_size": torch.tensor([scene.stored_size for scene in scenes]),
            "scale": torch.tensor([scene.scale for scene in scenes], dtype=torch.float32),
        }
        if isinstance(self.source.truth, Masks):
            return Scenes(images, extents, _classes(scenes, size), extras)
        masks = _masks(scenes, size)
        if masks is not None:
            extras["masks"] = masks
        return Scenes(images, extents, _rows(scenes), extras)


def blank_outside(pixels: Float32[Tensor, "n c h w"], extents: Int64[Tensor, "n 2"]) -> None:
    """What is no image becomes 0, in place."""
    height, width = pixels.shape[2:]
    for place, (tall, wide) in zip(pixels, extents.tolist()):
        if tall < height:
            place[:, tall:] = 0
        if wide < width:
            place[:, :, wide:] = 0


def unlabelled(source: Source) -> Source:
    """The same images as scenes of which nothing is known: batches tell how they were scaled."""
    return replace(source, truth=Boxes.none(len(source)))


_NO_BOXES = np.zeros((0, 6), np.float32)


def _covering(scenes: list[Scene]) -> tuple[int, int]:
    tall, wide = (max(scene.size[side] for scene in scenes) for side in (0, 1))
    return -(-tall // MULTIPLE) * MULTIPLE, -(-wide // MULTIPLE) * MULTIPLE


def _classes(scenes: list[Scene], size: tuple[int, int]) -> UInt8[Tensor, "n h w"]:
    made = torch.full((len(scenes), *size), NOT_JUDGED, dtype=torch.uint8)
    for place, scene in zip(made, scenes):
        assert scene.planes is not None
        place[: scene.size[0], : scene.size[1]] = scene.planes[0]
    return made


def _rows(scenes: list[Scene]) -> Float32[Tensor, "n m 6"]:
    most = max(1, *(len(scene.boxes) for scene in scenes))
    made = np.zeros((len(scenes), most, 6), np.float32)
    made[:, :, 4] = -1
    for place, scene in zip(made, scenes):
        place[: len(scene.boxes)] = scene.boxes
    return torch.from_numpy(made)


def _masks(scenes: list[Scene], size: tuple[int, int]) -> UInt8[Tensor, "n m h w"] | None:
    if not scenes[0].instances:
        return None
    most = max(1, *(len(scene.boxes) for scene in scenes))
    made = torch.zeros((len(scenes), most, *size), dtype=torch.uint8)
    for place, scene in zip(made, scenes):
        assert scene.planes is not None
        place[: len(scene.boxes), : scene.size[0], : scene.size[1]] = scene.planes
    return made
