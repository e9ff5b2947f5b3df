"""Augmentation: the sentence, and the laws of each word."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from plusx.data.dataset import Dataset, MemoryItems
from plusx.data.loader import batches
from plusx.data.modality import ImageModality
from plusx.data.rng import CounterRNG, SampleRNG
from plusx.data.sample import Sample
from plusx.data.transforms import words
from plusx.data.transforms.pixels import PIXEL_STEPS
from plusx.data.transforms.steps import STEPS, Setting
from plusx.data.transforms.transform import Transform
from plusx.data.transforms.windows import WINDOW_STEPS, Windows, gather, gather_by_index
from plusx.data.transforms.words import BATCHED, SOUND, VOCABULARY, Word, parse_augment


def spoken(word: str, images: Tensor, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Tensor:
    """One word said to a batch of uint8 images, or of pixels."""
    (parsed,) = parse_augment(word)
    draws = CounterRNG.of(seed, 0, np.arange(len(images)))
    if parsed.kind in PIXEL_STEPS:
        images = images.clone()
        PIXEL_STEPS[parsed.kind](images, parsed, draws)
        return images
    windows = Windows.whole(len(images), (images.shape[2], images.shape[3]))
    windows = WINDOW_STEPS[parsed.kind](windows, parsed, draws, size)
    return gather(images, np.arange(len(images)), windows)


def plan(text: str, size: tuple[int, int], in_memory: bool) -> Transform:
    """The steps for images of that size."""
    modality = ImageModality(size, 3, (0.5,) * 3, (0.5,) * 3)
    return modality.transform(text, train=True, stored=in_memory)


def on_image(
    image: Image.Image, word: Word, draws: SampleRNG, size: tuple[int, int]
) -> Image.Image:
    """One word done to one image."""
    return STEPS[word.kind](Sample(image), word, draws, Setting(size)).pillow


def numbered(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Images whose pixels all differ within a channel, never 0."""
    plane = torch.arange(height * width).reshape(height, width) % 255 + 1
    return plane.to(torch.uint8).expand(count, channels, height, width).contiguous()


# the sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pad4 corp flip", r"in 'pad4 corp flip', at 'corp' \(word 2\): .*did you mean 'crop'"),
        ("pad crop", r"at 'pad' \(word 1\): written like pad4"),
        ("flip3", "written like flip"),
        ("jitter4", "written like jitter.4"),
        ("rotate181", "written like rotate15"),
        ("randaugment31", "up to randaugment30"),
        ("erase1.5", "written like erase.25"),
        ("cutout8 flip", r"at 'flip' \(word 2\): cutout, erase, freqmask and timemask come last"),
        ("xyzzy", "the words are pad, crop"),
        ("Flip", "no such word"),
        ("pad0", "written like pad4"),
    ],
)
def test_an_error_quotes_the_sentence_and_marks_the_word(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_augment(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "in_memory", "message"),
    [
        ("crop40", True, "40 x 40 out of 32 x 32"),
        ("resize256 flip", False, "different shapes; add crop"),
        ("resize16 crop", False, "32 x 32 out of 16 x 16"),
        ("resize40 pad4 crop", False, "needs images of one size"),
        ("cutout33", True, "larger than the 32 x 32"),
    ],
)
def test_a_sentence_that_cannot_give_one_size_is_refused(
    text: str, in_memory: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(text, (32, 32), in_memory)


def test_plans_have_the_output_size_and_the_position_of_each_operation() -> None:
    assert plan("pad4 crop flip cutout8", (32, 32), True).batched
    assert not plan("pad4 crop flip", (32, 32), False).batched
    assert not plan("trivialaugment flip", (32, 32), True).batched
    assert plan("resizedcrop176 flip", (224, 224), False).final == (176, 176)
    assert plan("resize256 crop224", (160, 160), False).final == (224, 224)
    assert [word.kind for word in plan("flip", (64, 64), False).words] == ["center_crop", "flip"]
    assert plan("", (32, 32), True).words == ()
    assert str(parse_augment("erase.25")[0]) == "erase.25"


def test_every_word_is_documented_and_implemented() -> None:
    assert words.__doc__ is not None
    for word in VOCABULARY:
        assert f"| `{word}" in words.__doc__ or f"` `{word}" in words.__doc__, word
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    for row in words.__doc__.splitlines():
        assert row.partition("(")[0].rstrip(" |") in page or not row.startswith("| `"), row
    inner = {"fit", "stretch", "center_crop", "of_length", "spectrogram"}
    assert set(VOCABULARY) == set(STEPS) - inner | set(PIXEL_STEPS)
    assert set(WINDOW_STEPS) | set(PIXEL_STEPS) - SOUND == BATCHED


SENTENCES = {
    "pad": "pad2 crop",
    "resize": "resize40 crop",
    "zoom": "zoom1.5",
    "jitter": "jitter.4",
    "rotate": "rotate15",
    "cutout": "cutout4",
    "erase": "erase.5",
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("word", [word for word in VOCABULARY if word in ImageModality.words])
def test_every_word_acts_on_sets_in_memory_of_one_and_three_channels(
    word: str, channels: int
) -> None:
    images = torch.randint(0, 256, (24, channels, 32, 32), dtype=torch.uint8)
    source = Dataset(
        name="x",
        split="train",
        classes=("a",),
        labels=torch.zeros(24, dtype=torch.int64),
        modality=ImageModality(
            (32, 32), channels, (0.5,) * channels, (0.5,) * channels, resize="stretch"
        ),
        items=MemoryItems(images),
    )
    (first,), (second,) = (
        batches(source, augment=SENTENCES.get(word, word), epoch=epoch) for epoch in (0, 1)
    )
    assert first.inputs.shape == (24, channels, 32, 32)
    assert first.inputs.isfinite().all()
    plain = {word.kind for word in parse_augment(SENTENCES.get(word, word))}
    if not plain & {"centercrop", "crop", "grayscale"} or "pad" in plain:
        assert not torch.equal(first.inputs, second.inputs)


# laws of the words


@settings(max_examples=40)
@given(
    st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99)
)
def test_a_crop_is_a_window_of_the_padded_image(
    count: int, height: int, width: int, pad: int, seed: int
) -> None:
    images = numbered(count, height, width)
    padded = spoken(f"pad{pad}", images)
    assert padded.shape == (count, 3, height + 2 * pad, width + 2 * pad)
    assert torch.equal(padded[:, :, pad : pad + height, pad : pad + width], images)
    assert int((padded != 0).sum()) == images.numel()
    cropped = spoken("crop", padded, seed, (height, width))
    assert cropped.shape == images.shape
    for window, whole in zip(cropped, padded):
        places = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if torch.equal(window, whole[:, top : top + height, left : left + width])
        ]
        assert places


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["pad1", "pad3", "crop6", "crop4", "flip", "vflip"]), max_size=6),
    st.integers(0, 99),
)
def test_words_are_merged_into_one_window_everywhere(words: list[str], seed: int) -> None:
    images = torch.randint(0, 256, (9, 2, 9, 8), dtype=torch.uint8)
    indices = np.array([3, 8, 0, 3, 5])
    windows, merged = Windows.whole(5, (9, 8)), images[indices]
    for position, text in enumerate(words):
        (word,) = parse_augment(text)
        if word.kind == "crop" and min(merged.shape[2:]) < int(word.value or 0):
            continue
        draws = CounterRNG.of(seed, 0, indices).at(position)
        windows = WINDOW_STEPS[word.kind](windows, word, draws, (4, 4))
        # the same word said to what the words before it have made
        alone = WINDOW_STEPS[word.kind](
            Windows.whole(5, (merged.shape[2], merged.shape[3])), word, draws, (4, 4)
        )
        merged = gather_by_index(merged, np.arange(5), alone)
    assert torch.equal(gather(images, indices, windows), merged)
    assert torch.equal(gather_by_index(images, indices, windows), merged)


def test_crops_reach_every_position_equally_often() -> None:
    padded = spoken("pad2", numbered(5000, 4, 4, 1))
    cropped = spoken("crop", padded, size=(4, 4))
    windows = padded[0, 0].unfold(0, 4, 1).unfold(1, 4, 1).reshape(25, 16)
    counts = [int((cropped.reshape(-1, 16) == window).all(1).sum()) for window in windows]
    assert sum(counts) == 5000
    assert min(counts) > 150
    assert max(counts) < 250


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_a_flip_is_its_own_inverse(count: int, height: int, width: int, seed: int) -> None:
    images = numbered(count, height, width)
    for word, dimension in (("flip", 3), ("vflip", 2)):
        once = spoken(word, images, seed)
        assert torch.equal(spoken(word, once, seed), images)
        for before, after in zip(images, once):
            mirrored = before.flip(dimension - 1)
            assert torch.equal(after, before) or torch.equal(after, mirrored)


def test_half_of_the_images_are_flipped() -> None:
    images = numbered(4000, 1, 2)
    share = (spoken("flip", images) != images).flatten(1).any(1).float().mean()
    assert 0.47 < share < 0.53


@settings(max_examples=40)
@given(st.integers(1, 10), st.integers(0, 99))
def test_cutout_blanks_one_square_that_may_be_partly_outside(side: int, seed: int) -> None:
    pixels = torch.ones(30, 2, 10, 12)
    for image in spoken(f"cutout{side}", pixels, seed):
        assert torch.equal(image[0], image[1])
        rows, columns = (image[0] == 0).any(1).sum(), (image[0] == 0).any(0).sum()
        assert (image[0] == 0).sum() == rows * columns
        assert -(-side // 2) <= rows + 1
        assert 1 <= rows <= side
        assert 1 <= columns <= side


def test_most_cutout_squares_are_complete() -> None:
    blanked = (spoken("cutout8", torch.ones(3000, 1, 32, 32)) == 0).flatten(1).sum(1)
    assert blanked.max() == 64
    # the centre is at least 4 from the borders in (32 - 7)^2 of 32^2 places
    assert abs((blanked == 64).float().mean() - (25 / 32) ** 2) < 0.03


def test_erase_blanks_a_rectangle_of_2_to_33_percent_at_its_rate() -> None:
    pixels = torch.ones(4000, 1, 32, 32)
    blanked = (spoken("erase.25", pixels) == 0).flatten(1).sum(1) / 1024
    some = blanked[blanked > 0]
    assert abs(len(some) / 4000 - 0.25) < 0.03
    assert some.min() > 0.015
    assert some.max() < 0.36
    assert some.max() - some.min() > 0.25


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["crop", "flip", "vflip", "pad3"]))
def test_a_word_acts_alike_on_images_and_batches(seed: int, text: str) -> None:
    (word,) = parse_augment(text)
    images = torch.randint(0, 256, (3, 3, 12, 10), dtype=torch.uint8)
    together = spoken(text, images, seed)
    for index, image in enumerate(images):
        draws = SampleRNG.of(seed, 0, index)
        alone = on_image(Image.fromarray(image.permute(1, 2, 0).numpy()), word, draws, (8, 8))
        assert np.array_equal(np.asarray(alone), together[index].permute(1, 2, 0).numpy())


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 99))
def test_outputs_have_the_planned_size(height: int, width: int, size: int, seed: int) -> None:
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    draws = SampleRNG.of(seed, 0, 0)
    whole = on_image(image, Word("center_crop"), draws, (size, size + 1))
    assert whole.size == (size + 1, size)
    (word,) = parse_augment(f"resizedcrop{size}")
    assert on_image(image, word, draws, (9, 9)).size == (size, size)
    (word,) = parse_augment(f"resize{size}")
    assert min(on_image(image, word, draws, (9, 9)).size) == size


def test_resized_crops_cover_8_to_100_percent() -> None:
    """The share of the area, seen through an image whose colours are its coordinates."""
    down, right = np.mgrid[0:200, 0:200]
    image = Image.fromarray(np.stack([down, right, down * 0], 2).astype(np.uint8))
    (word,) = parse_augment("resizedcrop32")
    shares = []
    for index in range(300):
        draws = SampleRNG.of(0, 0, index)
        crop = np.asarray(on_image(image, word, draws, (32, 32))).astype(float)
        height, width = np.ptp(crop[:, 0, 0]) * 33 / 32, np.ptp(crop[0, :, 1]) * 33 / 32
        shares.append(height * width / 200**2)
        assert 0.68 < height / width < 1.47
    assert min(shares) < 0.13
    assert 0.9 < max(shares) < 1.06
    assert 0.45 < np.mean(shares) < 0.6


def test_jitter_keeps_black_and_stays_in_its_range() -> None:
    (word,) = parse_augment("jitter.4")
    grey = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    values = []
    for index in range(200):
        jittered = on_image(grey, word, SampleRNG.of(0, 0, index), (4, 4))
        values.append(int(np.asarray(jittered)[0, 0, 0]))
    assert 59 <= min(values) < 65
    assert 135 < max(values) <= 141
