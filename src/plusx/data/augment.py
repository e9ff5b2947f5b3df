"""Augmentation is a sentence of words, done in their order: `pad4 crop flip cutout8`.

| word | meaning |
|---|---|
| `pad4` | 4 black pixels on each side |
| `crop` `crop28` | a window at a random place: of the set's size, or 28 x 28 |
| `flip` `vflip` | mirrored left to right, top to bottom, every second time |
| `altflip` | mirrored left to right in every second epoch, half of the images first (Jordan 2024) |
| `resize256` | the shorter side to 256 |
| `centercrop` `centercrop224` | the window in the middle |
| `resizedcrop` `resizedcrop224` | a window of 8 to 100 % of the area and 3:4 to 4:3, scaled |
| `zoom1.5` | at 1/1.5 to 1.5 times the size at which all of it just fits, at a random place |
| `jitter.4` | brightness, contrast and saturation times 0.6 to 1.4, in a random order |
| `grayscale` `grayscale.2` | to grey, always or with probability 0.2 |
| `turn` | by none, one, two or three quarters of a turn |
| `rotate15` | turned by -15 to 15 degrees, black outside |
| `randaugment` `randaugment9` | two random operations of RandAugment, of magnitude 9 |
| `trivialaugment` | one random operation of TrivialAugment, of a random strength |
| `autoaugment` | AutoAugment's policy for ImageNet, or for CIFAR-10 at 32 x 32 and below |
| `cutout8` | a square of 8 x 8 around a random pixel becomes the mean (DeVries and Taylor 2017) |
| `erase.25` | with probability 0.25 a random rectangle becomes the mean (Zhong et al. 2017) |

`cutout` and `erase` act on normalised pixels and come last. Where images are files and the
sentence does not begin by bringing them to a size (`resize`, `resizedcrop`, `zoom`), it is
preceded by what evaluation does: the shorter side to size / 0.875, then the window in the middle.

Images with boxes or masks are not cut by evaluation: without such a word, all of the image is
scaled so that it just fits into the size. The words of photometry and geometry then act on image
and truth together (see on_scene); `randaugment`, `trivialaugment` and `autoaugment` do not.

Every word acts on sets in memory and on files alike. Sentences of the words BATCHED are done by
the batch, on the device; any other is done image by image, in the loader's workers.
"""

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from plusx.errors import UserError


_SIDE = r"[1-9]\d{0,3}"
_SHARE = r"\.\d{1,4}|1|1\.0"

# word: (how its value is written, whether it can be left out, an example)
VOCABULARY: dict[str, tuple[str, bool, str]] = {
    "pad": (_SIDE, False, "pad4"),
    "crop": (_SIDE, True, "crop, crop28"),
    "flip": ("", True, "flip"),
    "vflip": ("", True, "vflip"),
    "altflip": ("", True, "altflip"),
    "resize": (_SIDE, False, "resize256"),
    "centercrop": (_SIDE, True, "centercrop, centercrop224"),
    "resizedcrop": (_SIDE, True, "resizedcrop, resizedcrop224"),
    "zoom": (r"[1-9](\.\d{1,3})?", False, "zoom1.5"),
    "turn": ("", True, "turn"),
    "jitter": (_SHARE, False, "jitter.4"),
    "grayscale": (_SHARE, True, "grayscale, grayscale.2"),
    "rotate": (r"[1-9]\d?|1[0-7]\d|180", False, "rotate15, up to rotate180"),
    "randaugment": (r"\d|[12]\d|30", True, "randaugment, randaugment9, up to randaugment30"),
    "trivialaugment": ("", True, "trivialaugment"),
    "autoaugment": ("", True, "autoaugment"),
    "cutout": (_SIDE, False, "cutout8"),
    "erase": (_SHARE, False, "erase.25"),
}
BATCHED = frozenset({"pad", "crop", "flip", "vflip", "altflip", "cutout", "erase"})
NORMALISED = frozenset({"cutout", "erase"})
_SIZING = frozenset({"resize", "resizedcrop", "zoom"})
# drawn by torchvision for pixels alone
_OF_PIXELS = frozenset({"randaugment", "trivialaugment", "autoaugment"})
# words that leave windows of one size, where they say it
_CUTTING = frozenset({"crop", "centercrop", "resizedcrop"})


@dataclass(frozen=True, slots=True)
class Word:
    """One step of an augmentation; value None where the word carries none."""

    kind: str
    value: float | None = None
    text: str = ""

    @property
    def side(self) -> int | None:
        """The value as a number of pixels."""
        return None if self.value is None else int(self.value)

    def __str__(self) -> str:
        return self.text


class Plan(NamedTuple):
    """A sentence made ready for one set: the words, and the size that comes out of them."""

    words: tuple[Word, ...]
    batched: bool  # whether all of it is done by the batch
    size: tuple[int, int]  # height and width that the network sees


class ScenePlan(NamedTuple):
    """The words for images with boxes or masks, and the sizes (height, width) around them."""

    words: tuple[Word, ...]
    size: tuple[int, int] | None  # that words without a number bring images to
    final: tuple[int, int] | None  # of the batch; None: as its largest image asks for


@lru_cache(maxsize=256)
def parse_augment(text: str) -> tuple[Word, ...]:
    """Read an augmentation; an empty one is legal and does nothing.

    Raises UserError that quotes the sentence, points at the word and suggests the nearest.
    """
    words = tuple(_word(token, text, place) for place, token in enumerate(text.split(), 1))
    late = False
    for place, word in enumerate(words, 1):
        if late and word.kind not in NORMALISED:
            raise _at(text, place, word.text, "cutout and erase come last, nothing follows them")
        late = late or word.kind in NORMALISED
    return words


def plan(text: str, size: tuple[int, int], in_memory: bool) -> Plan:
    """The steps for images of a set whose network sees `size` (height, width).

    Raises UserError where the sentence is wrong, crops more than there is, or leaves images of
    different shapes.
    """
    words = parse_augment(text)
    if not in_memory and not any(word.kind in _SIZING for word in words):
        words = (Word("evaluate", None, "evaluate"), *words)
    # what is known of the shape: all of it, or a least height and width
    exact, least = in_memory, size if in_memory else (0, 0)
    place = 0
    for word in words:
        place += word.kind != "evaluate"
        if not exact and word.kind == "pad":
            raise _at(text, place, word.text, "comes after the images have one size")
        window = size if word.side is None else (word.side, word.side)
        if word.kind in ("evaluate", "resizedcrop", "zoom"):
            exact, least = True, size if word.kind == "zoom" else window
        elif word.kind == "turn":
            exact, least = exact and least[0] == least[1], (min(least), min(least))
        elif word.kind == "resize":
            exact, least = exact and least[0] == least[1], window
        elif word.kind == "pad":
            assert word.side is not None
            least = (least[0] + 2 * word.side, least[1] + 2 * word.side)
        elif word.kind in ("crop", "centercrop"):
            if window[0] > least[0] or window[1] > least[1]:
                had = f"{least[0]} x {least[1]}" if min(least) else "an unknown size"
                raise _at(text, place, word.text, f"{window[0]} x {window[1]} out of {had}")
            exact, least = True, window
        elif word.kind == "cutout" and exact and (word.side or 0) > max(least):
            raise _at(text, place, word.text, f"larger than the {least[0]} x {least[1]} image")
    if not exact:
        raise UserError(
            f"in {text!r}: it leaves images of different shapes; add crop or centercrop"
        )
    return Plan(words, in_memory and all(word.kind in BATCHED for word in words), least)


def scene_plan(text: str, size: tuple[int, int] | None) -> ScenePlan:
    """The steps for images with boxes or masks; size None leaves them as large as they are.

    Raises UserError where the sentence is wrong, or has a word that acts on pixels alone.
    """
    words = parse_augment(text)
    final = size
    for place, word in enumerate(words, 1):
        if word.kind in _OF_PIXELS:
            raise _at(text, place, word.text, "moves pixels, and knows of no boxes and masks")
        sized = word.side is not None and word.kind != "zoom"
        if size is None and (word.kind == "zoom" or (word.kind in _CUTTING and not sized)):
            why = "which size? [data] size says none"
            raise _at(text, place, word.text, why)
        if word.kind in _CUTTING and word.side is not None:
            final = (word.side, word.side)
    if size is not None and not any(word.kind in _SIZING for word in words):
        words = (Word("fit", None, "fit"), *words)
    return ScenePlan(words, size, final)


def _at(sentence: str, place: int, token: str, why: str) -> UserError:
    return UserError(f"in {sentence!r}, at {token!r} (word {place}): {why}")


def _word(token: str, sentence: str, place: int) -> Word:
    kind = re.match("[a-z]*", token)
    assert kind is not None
    name, value = kind.group(), token[kind.end() :]
    if name not in VOCABULARY:
        near = difflib.get_close_matches(name or token, VOCABULARY, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the words are {', '.join(VOCABULARY)}"
        raise _at(sentence, place, token, f"no such word, {hint}")
    pattern, can_be_left_out, example = VOCABULARY[name]
    if not (re.fullmatch(pattern, value) if value else can_be_left_out):
        raise _at(sentence, place, token, f"written like {example}")
    return Word(name, float(value) if value else None, token)
