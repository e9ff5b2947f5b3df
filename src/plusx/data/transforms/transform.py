"""`Transform`: a sentence of augmentation, compiled for one data set."""

from dataclasses import dataclass

from plusx.data.rng import SampleRNG
from plusx.data.sample import Sample
from plusx.data.transforms.patches import PatchSampler
from plusx.data.transforms.steps import ON_TENSORS, STEPS, Setting, Size, fit
from plusx.data.transforms.words import (
    BATCHED,
    CUTTING,
    NORMALISED,
    PIXELS_ONLY,
    SIZING,
    Word,
    error_at,
)
from plusx.errors import UserError


@dataclass(frozen=True)
class Transform:
    """Turns stored samples into inputs that are not yet normalised.

    words: the steps in order; if no word resizes, a first step that does is added
    final: (height, width) of outputs; None: they differ, and batches are padded
    batched: whether all words only move windows on images of one size
    annotated: whether samples have boxes or masks, so that inputs may be padded
    stretched: whether inputs are resized when they are read
    pillow: whether words act on Pillow images, if the result differs from that on tensors
    """

    words: tuple[Word, ...]
    setting: Setting
    final: Size | None
    batched: bool = False
    annotated: bool = False
    stretched: bool = False
    pillow: bool = False
    patches: PatchSampler | None = None

    @property
    def keeps_decoded(self) -> bool:
        """Whether the outputs of `begin` should be cached in memory between epochs."""
        return self.patches is None and (self.annotated or self.setting.sound is not None)

    def begin(self, sample: Sample) -> Sample:
        """Apply the part that is the same in every epoch."""
        if self.annotated:
            sample = sample.as_tensor()
            if self.words and self.words[0].kind == "fit":
                assert self.setting.size is not None
                sample = fit(sample, self.setting.size)
        if self.stretched:
            sample = STEPS["stretch"](sample, Word("stretch"), _NO_RNG, self.setting)
        return sample

    def augment(self, sample: Sample, rng: SampleRNG) -> Sample:
        """Apply the random part to the output of `begin`."""
        if self.patches is not None:
            sample = self.patches(sample, rng)
        for number, word in enumerate(self.words):
            if word.kind in NORMALISED or word.kind == "fit":
                continue
            if self.pillow and word.kind not in ON_TENSORS and word.kind != "resizedcrop":
                sample = sample.as_pillow()
            sample = STEPS[word.kind](sample, word, rng.at(number), self.setting)
        sample = sample.as_tensor()
        if self.annotated and self.final is not None and self.patches is None:
            (height, width), final = sample.size[-2:], self.final
            if height > final[0] or width > final[1]:
                sample = fit(sample, final)
        return sample

    def __call__(self, sample: Sample, rng: SampleRNG) -> Sample:
        return self.augment(self.begin(sample), rng)


def image_transform(
    words: tuple[Word, ...], text: str, setting: Setting, beginning: str, stored: bool
) -> Transform:
    """Return the transform of images without boxes or masks.

    beginning: "center_crop" or "stretch", the first step if no word resizes
    stored: whether images are stored at the final size, as data sets in memory are
    Raises UserError if the sentence crops more than there is, or images get different shapes.
    """
    size = setting.size
    assert size is not None
    if not stored and not any(word.kind in SIZING for word in words):
        words = (Word(beginning, None, beginning), *words)
    # the shape so far: exact, or a lower bound of height and width
    exact, least = stored, size if stored else (0, 0)
    number = 0
    for word in words:
        number += word.kind not in ("center_crop", "stretch")
        if not exact and word.kind == "pad":
            raise error_at(
                text,
                number,
                word.text,
                "needs images of one size, which earlier words must produce",
            )
        window = size if word.side is None else (word.side, word.side)
        if word.kind in ("center_crop", "stretch", "resizedcrop", "zoom"):
            exact, least = True, size if word.kind == "zoom" else window
        elif word.kind == "rot90":
            exact, least = exact and least[0] == least[1], (min(least), min(least))
        elif word.kind == "resize":
            exact, least = exact and least[0] == least[1], window
        elif word.kind == "pad":
            assert word.side is not None
            least = (least[0] + 2 * word.side, least[1] + 2 * word.side)
        elif word.kind in ("crop", "centercrop"):
            if window[0] > least[0] or window[1] > least[1]:
                had = f"{least[0]} x {least[1]}" if min(least) else "an unknown size"
                raise error_at(text, number, word.text, f"{window[0]} x {window[1]} out of {had}")
            exact, least = True, window
        elif word.kind == "cutout" and exact and (word.side or 0) > max(least):
            reason = f"larger than the {least[0]} x {least[1]} image"
            raise error_at(text, number, word.text, reason)
    if not exact:
        raise UserError(f"in {text!r}: the outputs have different shapes; add crop or centercrop")
    batched = stored and all(word.kind in BATCHED for word in words)
    return Transform(words, setting, least, batched)


def annotated_transform(words: tuple[Word, ...], text: str, setting: Setting) -> Transform:
    """Return the transform of images with boxes or masks; setting.size None keeps their size.

    Raises UserError if the sentence has a word that acts only on pixels.
    """
    size = final = setting.size
    for number, word in enumerate(words, 1):
        if word.kind in PIXELS_ONLY:
            reason = "does not transform boxes and masks"
            raise error_at(text, number, word.text, reason)
        sized = word.side is not None and word.kind != "zoom"
        if size is None and (word.kind == "zoom" or (word.kind in CUTTING and not sized)):
            raise error_at(text, number, word.text, "needs a size: set [data] size")
        if word.kind in CUTTING and word.side is not None:
            final = (word.side, word.side)
    if size is not None and not any(word.kind in SIZING for word in words):
        words = (Word("fit", None, "fit"), *words)
    return Transform(words, setting, final, annotated=True)


_NO_RNG = SampleRNG.of(0, 0, 0)
