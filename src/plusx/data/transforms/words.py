"""Augmentation is a sentence of words, applied in their order: `pad4 crop flip cutout8`.

| word | meaning |
|---|---|
| `pad4` | 4 black pixels on each side |
| `crop` `crop28` | a random crop: of the data set's size, or 28 x 28 |
| `flip` `vflip` `dflip` | mirrored along columns, rows, slices, with probability 0.5 |
| `altflip` | mirrored left to right in every second epoch, half of the images first (Jordan 2024) |
| `resize256` | the shorter side to 256 |
| `centercrop` `centercrop224` | the centre crop |
| `resizedcrop` `resizedcrop224` | a random crop of 8 to 100 % of the area, 3:4 to 4:3, resized |
| `zoom1.5` | 1/1.5 to 1.5 times the size at which the image just fits, at a random position |
| `jitter.4` | brightness, contrast and saturation times 0.6 to 1.4, in a random order |
| `grayscale` `grayscale.2` | to grey, always or with probability 0.2 |
| `rot90` | rotated by 0, 90, 180 or 270 degrees in the plane of rows and columns |
| `rotate15` | rotated by -15 to 15 degrees, black outside |
| `brightness.2` | values times 0.8 to 1.2, around the middle of their range |
| `noise.1` | normal noise with a standard deviation of 0 to 0.1 of the range |
| `randaugment` `randaugment9` | two random operations of RandAugment, of magnitude 9 |
| `trivialaugment` | one random operation of TrivialAugment, of a random strength |
| `autoaugment` | AutoAugment's policy for ImageNet, or for CIFAR-10 at 32 x 32 and below |
| `cutout8` | a square of 8 x 8 around a random pixel becomes the mean (DeVries and Taylor 2017) |
| `gain6` | of sound: -6 to 6 dB louder |
| `shift.1` | of sound: 0 to 0.1 s earlier or later, with zeros at the other end |
| `speed.1` | of sound: 0.9 to 1.1 times as fast, which changes the pitch too (Ko et al. 2015) |
| `tilt6` | of sound: high frequencies -6 to 6 dB an octave louder, as another microphone has them |
| `freqmask8` | of log-mel spectrograms: 0 to 8 adjacent bands become the mean (Park et al. 2019) |
| `timemask20` | of log-mel spectrograms: 0 to 20 adjacent frames become the mean |
| `worddrop.2` | of texts: a token becomes `<unk>` with probability 0.2 (Iyyer et al. 2015) |
| `erase.25` | with probability 0.25 a random rectangle becomes the mean (Zhong et al. 2017) |

`cutout`, `erase`, `freqmask` and `timemask` act on normalised values and come last. Each modality
lists its words (plusx.data.modality). Boxes and masks are transformed together with their image.
"""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from plusx.errors import UserError


_SIDE = r"[1-9]\d{0,3}"
_FRACTION = r"\.\d{1,4}|1|1\.0"

# word: (pattern of its value, whether the value is optional, an example)
VOCABULARY: dict[str, tuple[str, bool, str]] = {
    "pad": (_SIDE, False, "pad4"),
    "crop": (_SIDE, True, "crop, crop28"),
    "flip": ("", True, "flip"),
    "vflip": ("", True, "vflip"),
    "dflip": ("", True, "dflip"),
    "altflip": ("", True, "altflip"),
    "resize": (_SIDE, False, "resize256"),
    "centercrop": (_SIDE, True, "centercrop, centercrop224"),
    "resizedcrop": (_SIDE, True, "resizedcrop, resizedcrop224"),
    "zoom": (r"[1-9](\.\d{1,3})?", False, "zoom1.5"),
    "jitter": (_FRACTION, False, "jitter.4"),
    "grayscale": (_FRACTION, True, "grayscale, grayscale.2"),
    "rot90": ("", True, "rot90"),
    "rotate": (r"[1-9]\d?|1[0-7]\d|180", False, "rotate15, up to rotate180"),
    "brightness": (_FRACTION, False, "brightness.2"),
    "noise": (_FRACTION, False, "noise.1"),
    "randaugment": (r"\d|[12]\d|30", True, "randaugment, randaugment9, up to randaugment30"),
    "trivialaugment": ("", True, "trivialaugment"),
    "autoaugment": ("", True, "autoaugment"),
    "cutout": (_SIDE, False, "cutout8"),
    "gain": (r"[1-9]\d?", False, "gain6"),
    "shift": (_FRACTION, False, "shift.1"),
    "speed": (r"\.[0-4]\d{0,3}|\.5", False, "speed.1, up to speed.5"),
    "tilt": (r"[1-9]\d?", False, "tilt6"),
    "freqmask": (_SIDE, False, "freqmask8"),
    "timemask": (_SIDE, False, "timemask20"),
    "worddrop": (_FRACTION, False, "worddrop.2"),
    "erase": (_FRACTION, False, "erase.25"),
}
# words that only sound has
SOUND = frozenset({"gain", "shift", "speed", "tilt", "freqmask", "timemask"})
# words that only texts have
TEXT = frozenset({"worddrop"})
# words that act on normalised batches
NORMALISED = frozenset({"cutout", "erase", "freqmask", "timemask"})
# words that only move windows on stored images, which is possible for whole batches
BATCHED = frozenset({"pad", "crop", "flip", "vflip", "altflip", "cutout", "erase"})
# policies of torchvision, which do not transform boxes and masks
PIXELS_ONLY = frozenset({"randaugment", "trivialaugment", "autoaugment"})
SIZING = frozenset({"resize", "resizedcrop", "zoom"})
# words whose output has the size that they state
CUTTING = frozenset({"crop", "centercrop", "resizedcrop"})


@dataclass(frozen=True, slots=True)
class Word:
    """One step of an augmentation; `value` is None if the word has none."""

    kind: str
    value: float | None = None
    text: str = ""

    @property
    def side(self) -> int | None:
        """The value as a number of pixels."""
        return None if self.value is None else int(self.value)

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=256)
def parse_augment(
    text: str, allowed: Collection[str] | None = None, inputs: str = ""
) -> tuple[Word, ...]:
    """Parse an augmentation; an empty one is valid and does nothing.

    allowed: the words that are available for these inputs; None: all
    Raises UserError with the sentence, the word and the nearest valid word.
    """
    words = tuple(
        _word(token, text, number, allowed, inputs) for number, token in enumerate(text.split(), 1)
    )
    late = False
    for number, word in enumerate(words, 1):
        if late and word.kind not in NORMALISED:
            last = sorted(NORMALISED if allowed is None else NORMALISED & frozenset(allowed))
            raise error_at(text, number, word.text, f"{_listed(last)} come last")
        late = late or word.kind in NORMALISED
    return words


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def error_at(sentence: str, number: int, token: str, reason: str) -> UserError:
    """Return the error about a word of a sentence."""
    return UserError(f"in {sentence!r}, at {token!r} (word {number}): {reason}")


def _word(
    token: str, sentence: str, number: int, allowed: Collection[str] | None, inputs: str
) -> Word:
    parts = [part for part in re.split(r"[,;|/]", token) if part]
    if parts and parts != [token]:
        raise error_at(
            sentence, number, token, f"words are separated by blanks: {' '.join(parts)!r}"
        )
    match = re.match(r"rot90|[a-z]*", token)
    assert match is not None
    kind, value = match.group(), token[match.end() :]
    available = [word for word in VOCABULARY if allowed is None or word in allowed]
    if kind not in VOCABULARY:
        close = difflib.get_close_matches(kind or token, available, 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"the words are {', '.join(available)}"
        raise error_at(sentence, number, token, f"no such word, {hint}")
    if kind not in available:
        reason = f"not available for {inputs}; their words are {', '.join(available)}"
        raise error_at(sentence, number, token, reason)
    pattern, can_be_left_out, example = VOCABULARY[kind]
    if not (re.fullmatch(pattern, value) if value else can_be_left_out):
        raise error_at(sentence, number, token, f"written like {example}")
    return Word(kind, float(value) if value else None, token)
