"""Augmentation of images with boxes and masks: pixels, boxes and masks move together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plusx.data.modality import ImageModality
from plusx.data.rng import SampleRNG
from plusx.data.sample import IGNORE_INDEX, Sample
from plusx.data.transforms.steps import STEPS, Setting, fit
from plusx.data.transforms.transform import Transform
from plusx.data.transforms.words import parse_augment


slow = pytest.mark.slow
SIZE = (24, 32)

# what moves pixels by whole numbers, and what makes new ones between them
EXACT = ("pad5", "crop16", "crop", "centercrop14", "flip", "vflip", "altflip", "rot90")
SOFT = ("zoom1.5", "zoom3", "resizedcrop", "resizedcrop20", "resize40", "rotate20", "rotate180")


def scene_plan(text: str, size: tuple[int, int] | None) -> Transform:
    """The steps for annotated images."""
    resize = "none" if size is None else "fit"
    modality = ImageModality(size or (1, 1), 3, (0.5,) * 3, (0.5,) * 3, resize=resize)
    return modality.transform(text, train=True, annotated=True)


def annotated_image(
    seed: int,
    count: int = 4,
    size: tuple[int, int] = (30, 40),
    sides: tuple[int, int] = (4, 9),
) -> Sample:
    """Rectangles that do not overlap, each of a grey of its own in the picture and in its mask."""
    generator = np.random.default_rng(seed)
    image = np.zeros((3, *size), np.uint8)
    planes, rows = [], []
    for index in range(count):
        wide, tall = generator.integers(*sides, 2)
        left = index * size[1] // count + int(generator.integers(0, 2))
        top = int(generator.integers(0, size[0] - tall))
        plane = np.zeros(size, np.uint8)
        plane[top : top + tall, left : left + wide] = 1
        image[:, plane == 1] = 60 * (index + 1)
        planes.append(plane)
        rows.append((left, top, left + wide, top + tall, index, 0))
    stacked = np.stack(planes) if planes else np.zeros((0, *size), np.uint8)
    boxes = np.array(rows, np.float32).reshape(-1, 6)
    return Sample(torch.from_numpy(image), boxes=boxes, masks=torch.from_numpy(stacked))


def augmented(scene: Sample, text: str, seed: int, epoch: int = 0) -> Sample:
    draws = SampleRNG.of(seed, epoch, 0)
    for position, word in enumerate(parse_augment(text)):
        scene = STEPS[word.kind](scene, word, draws.at(position), Setting(SIZE))
    return scene


def shares(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def test_a_flip_turns_boxes_and_masks_over_with_the_image() -> None:
    scene = annotated_image(0)
    flipped = {augmented(scene, "flip", seed).boxes[0, 0].item() for seed in range(20)}
    first = scene.boxes[0]
    assert flipped == {first[0].item(), 40 - first[2].item()}
    for seed in range(4):
        result = augmented(scene, "flip vflip rot90", seed)
        assert result.masks is not None
        for row, plane in zip(result.boxes.astype(int), result.masks):
            expected = torch.zeros_like(plane)
            expected[row[1] : row[3], row[0] : row[2]] = 1
            assert torch.equal(plane, expected)


def test_augmentations_without_support_for_boxes_are_refused() -> None:
    for word in ("randaugment", "trivialaugment", "autoaugment"):
        with pytest.raises(ValueError, match=f"{word}.*does not transform boxes"):
            scene_plan(f"flip {word}", (32, 32))
    for word in ("crop", "centercrop", "resizedcrop", "zoom2"):
        with pytest.raises(ValueError, match="needs a size: set"):
            scene_plan(word, None)
    assert scene_plan("crop64 flip", None).final == (64, 64)
    assert [word.kind for word in scene_plan("flip", (32, 32)).words] == ["fit", "flip"]
    assert [word.kind for word in scene_plan("zoom2", (32, 32)).words] == ["zoom"]


@slow
@given(st.lists(st.sampled_from(EXACT), min_size=1, max_size=5), st.integers(0, 2**32))
def test_words_that_move_whole_pixels_keep_image_boxes_and_masks_together(
    words: list[str], seed: int
) -> None:
    scene = annotated_image(seed % 97)
    result = augmented(scene, " ".join(words), seed, epoch=seed % 3)
    assert result.masks is not None
    assert len(result.masks) == len(result.boxes)
    for row, plane in zip(result.boxes, result.masks):
        grey = 60 * (int(row[4]) + 1)
        assert torch.equal(plane.bool(), result.tensor[0] == grey)
        left, top, right, bottom = row[:4].astype(int).tolist()
        expected = torch.zeros_like(plane)
        expected[top:bottom, left:right] = 1
        assert torch.equal(plane, expected)
    # nothing of which enough is left is lost
    removed = set(scene.boxes[:, 4]) - set(result.boxes[:, 4])
    for number in removed:
        assert (result.tensor[0] == 60 * (int(number) + 1)).sum() < 0.25 * 9 * 9


@slow
@given(st.lists(st.sampled_from(EXACT + SOFT), min_size=1, max_size=3), st.integers(0, 2**32))
def test_any_words_keep_boxes_around_their_masks_and_inside_the_image(
    words: list[str], seed: int
) -> None:
    scene = annotated_image(seed % 97, count=3)
    result = augmented(scene, " ".join(words), seed)
    assert result.masks is not None
    height, width = result.size
    assert result.masks.shape == (len(result.boxes), height, width)
    assert result.tensor.dtype == torch.uint8
    assert set(result.masks.unique().tolist()) <= {0, 1}
    for row, plane in zip(result.boxes, result.masks.numpy()):
        left, top, right, bottom = row[:4]
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        down, along = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        # a pixel more on each side for every word that makes new ones
        room = 1 + len(words) * max(1.0, result.scale)
        assert left - room <= along[0]
        assert along[-1] + 1 <= right + room
        assert top - room <= down[0]
        assert down[-1] + 1 <= bottom + room


def test_a_mask_that_lies_between_the_pixels_of_a_small_image_stays() -> None:
    """Of a class no pixel more is made; of a thing those that it touches."""
    plane = torch.zeros(2, 64, 64, dtype=torch.uint8)
    plane[0, 17, 33:35] = 1
    plane[1, 8:40, 8:40] = 1
    boxes = np.array([[33, 17, 35, 18, 0, 0], [8, 8, 40, 40, 1, 0]], np.float32)
    scene = Sample(torch.zeros(3, 64, 64, dtype=torch.uint8), boxes=boxes, masks=plane)
    small = fit(scene, (8, 8))
    assert small.masks is not None
    assert small.masks[0].nonzero().tolist() == [[2, 4]]
    assert int(small.masks[1].sum()) == 16
    classes = fit(Sample(scene.tensor, masks=plane[:1], mask_fill=IGNORE_INDEX), (8, 8))
    assert classes.masks is not None
    assert not classes.masks.any()


@slow
@pytest.mark.parametrize("words", ["zoom1.5", "resize60", "rotate30", "rotate180", "resizedcrop"])
def test_masks_stay_aligned_with_the_image(words: str) -> None:
    """Where new pixels are made between others, to within a rim of a pixel or so."""
    overlaps = []
    for seed in range(12):
        scene = annotated_image(seed, count=1, size=(60, 80), sides=(16, 30))
        result = augmented(scene, words, seed)
        assert result.masks is not None
        if len(result.masks) and result.masks.sum() > 30:
            overlaps.append(shares(result.masks[0].numpy() == 1, result.tensor[0].numpy() > 30))
    assert len(overlaps) > 3
    assert np.mean(overlaps) > 0.8


@slow
@given(st.lists(st.sampled_from(EXACT + SOFT), min_size=1, max_size=3), st.integers(0, 2**32))
def test_masks_are_not_interpolated_and_padding_is_ignored(words: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed % 1009)
    mask = generator.choice([3, 7], (1, 30, 40)).astype(np.uint8)
    image = torch.from_numpy(np.repeat(mask * 30, 3, 0))
    scene = Sample(image, masks=torch.from_numpy(mask), mask_fill=IGNORE_INDEX)
    result = augmented(scene, " ".join(words), seed)
    assert result.masks is not None
    assert result.masks.shape == (1, *result.size)
    assert set(result.masks.unique().tolist()) <= {3, 7, IGNORE_INDEX}
    if set(words) <= set(EXACT):
        judged = result.masks[0] != IGNORE_INDEX
        assert torch.equal(result.tensor[0][judged], result.masks[0][judged] * 30)
        assert (result.tensor[0][~judged] == 0).all()


@slow
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(1, 80))
def test_the_whole_image_fits_into_the_size(height: int, width: int, tall: int, wide: int) -> None:
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    box = np.array([[0, 0, width, height, 0, 0]], np.float32)
    result = fit(Sample(image, boxes=box), (tall, wide))
    assert result.size[0] <= tall
    assert result.size[1] <= wide
    assert result.size[0] == tall or result.size[1] == wide
    assert result.scale == pytest.approx(min(tall / height, wide / width))
    assert result.boxes[0, 2] == pytest.approx(width * result.scale, abs=0.51)
    assert result.boxes[0, 3] == pytest.approx(height * result.scale, abs=0.51)


@slow
@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_zooming_keeps_the_size_and_records_its_scale(seed: int) -> None:
    scene = annotated_image(seed % 97, count=2, size=(48, 64))
    result = augmented(scene, "zoom2", seed)
    assert result.size == SIZE
    assert 0.25 - 0.01 <= result.scale <= 1 + 0.01
    other = augmented(scene, "zoom2", seed)
    assert torch.equal(result.tensor, other.tensor)
    assert (result.boxes == other.boxes).all()


@slow
def test_colour_augmentations_do_not_move_pixels() -> None:
    scene = annotated_image(3)
    result = augmented(scene, "jitter.4 grayscale", 5)
    assert (result.boxes == scene.boxes).all()
    assert torch.equal(result.tensor[0], result.tensor[1])
    assert not torch.equal(result.tensor, scene.tensor)
    grey = Sample(scene.tensor[:1], boxes=scene.boxes, masks=scene.masks)
    assert augmented(grey, "jitter.4 grayscale", 5).tensor.shape == grey.tensor.shape
