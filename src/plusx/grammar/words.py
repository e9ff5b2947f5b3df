"""A block is one line of text, in the order in which papers draw it.

    basic       conv3s norm act conv3 norm + act
    pre-act     norm act | conv3s norm act conv3 +
    dense       norm act conv1*4 norm act conv3 &
    highway     conv3 norm act conv3 norm ~ act

Words are layers. Of the marks, `+` adds the shortcut, `&` concatenates it, `~` gates it; a sentence
without any of them is a plain block. `|` marks where a projected shortcut branches off.
"""

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from plusx.errors import UserError


Merge = Literal["add", "concat", "gate", "none"]

MARKS: dict[str, Merge] = {"+": "add", "&": "concat", "~": "gate"}

_NUMBER = r"[1-9]\d{0,5}"
_LIST = rf"\({_NUMBER}(?:,{_NUMBER}){{0,2}}\)"
_KERNEL = rf"(?P<kernel>{_NUMBER}|{_LIST})"
_RATIO = rf"(?P<ratio>[*/]{_NUMBER})?"
_STRIDE = rf"(?P<stride>s(?:{_NUMBER}|{_LIST})?)?"
_GROUPS = rf"(?:d(?P<dilation>{_NUMBER}))?(?:g(?P<groups>{_NUMBER})|(?P<depthwise>dw))?"
_COUNT = rf"(?P<value>{_NUMBER})"

# kind: (pattern, an example for the error message)
VOCABULARY: dict[str, tuple[str, str]] = {
    "conv": (rf"conv{_KERNEL}{_RATIO}{_STRIDE}{_GROUPS}(?P<bias>b)?", "conv3, conv1/4, conv3sg32"),
    "norm": ("norm", "norm"),
    "act": ("act", "act"),
    "glu": ("glu", "glu"),
    "maxpool": (rf"maxpool{_KERNEL}{_STRIDE}", "maxpool3s2"),
    "avgpool": (rf"avgpool{_KERNEL}{_STRIDE}", "avgpool2s"),
    "blur": (rf"blur{_KERNEL}{_STRIDE}", "blur3s"),
    "pool": (rf"pool(?P<value>{_NUMBER})?", "pool, pool7"),
    "fc": (rf"fc{_COUNT}", "fc4096"),
    "top": (rf"top{_COUNT}", "top8"),
    "drop": (r"drop(?P<value>\.\d{1,6})", "drop.3"),
    "se": (rf"se/{_COUNT}", "se/16"),
    "eca": ("eca", "eca"),
    "cbam": (rf"cbam/{_COUNT}", "cbam/16"),
    "attn": (rf"attn{_COUNT}{_RATIO}(?P<bias>b)?", "attn4, attn12b, attn1/2b"),
    "scale": (
        r"scale(?P<value>0|1|\.\d{1,6}|[1-9]e-\d{1,2})?",
        "scale, scale1e-4, scale0, scale1, scale.5",
    ),
    "shift": ("shift", "shift"),
    "gate": ("gate", "gate"),
    "pad": (r"pad(?P<ratio>/2)?", "pad, pad/2"),
    "embed": (rf"embed{_COUNT}", "embed16"),
    "pos": ("pos", "pos"),
}

# names of these layers in other libraries, for suggestions
OTHER_NAMES = {
    "batchnorm": "norm",
    "bn": "norm",
    "dense": "fc",
    "dropout": "drop",
    "gelu": "act",
    "layernorm": "norm",
    "linear": "fc",
    "relu": "act",
    "silu": "act",
}

# words that are allowed in one place only
PLACES = {"pool": "tail", "top": "tail", "fc": "tail", "pad": "shortcut", "embed": "stem"}


@dataclass(frozen=True, slots=True)
class Word:
    """One layer of a sentence.

    `stride` None takes the stride of the stage; `groups` 0 is depthwise; `ratio` (numerator,
    denominator) is the output width over the reference width; `learned` distinguishes a learned
    `scale` from a constant one (He et al. 2016).
    """

    kind: str
    kernel: tuple[int, ...] = ()
    ratio: tuple[int, int] = (1, 1)
    stride: int | tuple[int, ...] | None = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    value: float | None = None
    learned: bool = True

    @property
    def has_weights(self) -> bool:
        """Whether the word counts towards a network's depth."""
        return self.kind in ("conv", "fc", "attn")

    def __str__(self) -> str:
        # the value comes before the ratio, or replaces it after a slash
        has_slash = VOCABULARY[self.kind][0].startswith(f"{self.kind}/")
        text = f"{self.kind}{'/' if has_slash else ''}{self._value()}{_list(self.kernel)}"
        numerator, denominator = self.ratio
        text += f"*{numerator}" if numerator > 1 else f"/{denominator}" if denominator > 1 else ""
        if self.stride is None:
            text += "s"
        elif self.stride != 1:
            text += f"s{_list(self.stride)}"
        text += f"d{self.dilation}" if self.dilation > 1 else ""
        text += "dw" if self.groups == 0 else f"g{self.groups}" if self.groups > 1 else ""
        return f"{text}b" if self.bias else text

    def _value(self) -> str:
        if self.value is None:
            return ""
        if self.value and self.value < 1 and self.kind == "scale" and self.learned:
            digit, exponent = f"{self.value:.0e}".split("e")
            return f"{digit}e-{-int(exponent)}"
        if 0 < self.value < 1:
            return f"{self.value:.6f}".strip("0")
        return str(int(self.value))


def _list(numbers: int | tuple[int, ...]) -> str:
    """Return 3, or (1,3,3)."""
    if isinstance(numbers, int):
        return str(numbers)
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    return f"({','.join(map(str, numbers))})"


@dataclass(frozen=True, slots=True)
class Sentence:
    """The layers before a projected shortcut branches off, the branch F, the merge, and the layers
    after the merge."""

    lead: tuple[Word, ...]
    branch: tuple[Word, ...]
    merge: Merge
    after: tuple[Word, ...]

    @property
    def words(self) -> tuple[Word, ...]:
        """All words, in order."""
        return (*self.lead, *self.branch, *self.after)

    def __str__(self) -> str:
        words = [*map(str, self.lead), "|"] if self.lead else []
        words += map(str, self.branch)
        words += [mark for mark, merge in MARKS.items() if merge == self.merge]
        words += map(str, self.after)
        return " ".join(words)


@lru_cache(maxsize=4096)
def parse(text: str) -> Sentence:
    """Parse a sentence; `str()` of the result is the sentence. Raises UserError that quotes the
    sentence and the word, and suggests the nearest word."""
    if len(text) > 2000:
        raise UserError(f"a sentence of {len(text):,} characters, at most 2,000: {text[:60]!r} ...")
    words: dict[str, list[Word]] = {"lead": [], "branch": [], "after": []}
    merge: Merge = "none"
    part, forked = "branch", False
    for position, token in enumerate(re.findall(r"[|+&~]|[^\s|+&~]+", text), 1):
        if token == "|":
            if forked or merge != "none":
                raise _at(text, position, token, "at most one `|`, and before the mark")
            words["lead"], words["branch"], forked = words["branch"], [], True
        elif token in MARKS:
            if merge != "none":
                raise _at(text, position, token, "a sentence has at most one of the marks + & ~")
            merge, part = MARKS[token], "after"
        else:
            words[part].append(_word(token, text, position))
    if forked and merge not in ("add", "gate"):
        raise UserError(f"in {text!r}: `|` marks where a shortcut branches off; no + or ~ follows")
    if forked and not words["lead"]:
        raise UserError(f"in {text!r}: there is nothing before `|`; remove it")
    return Sentence(tuple(words["lead"]), tuple(words["branch"]), merge, tuple(words["after"]))


def _at(sentence: str, position: int, token: str, why: str) -> UserError:
    return UserError(f"in {sentence!r}, at {token!r} (word {position}): {why}")


def _word(text: str, sentence: str, position: int) -> Word:
    for kind, (pattern, _) in VOCABULARY.items():
        if match := re.fullmatch(pattern, text):
            return _from_groups(kind, match.groupdict())
    letters = re.split("[^a-z]", text.lower())[0]
    if letters in VOCABULARY:
        raise _at(sentence, position, text, f"written like {VOCABULARY[letters][1]}")
    if near := difflib.get_close_matches(letters or text, [*VOCABULARY, *OTHER_NAMES], 1):
        word = OTHER_NAMES.get(near[0], near[0])
        raise _at(sentence, position, text, f"no such word, did you mean {word!r}?")
    raise _at(sentence, position, text, f"no such word; the words are {', '.join(VOCABULARY)}")


def _from_groups(kind: str, fields: dict[str, str | None]) -> Word:
    """Return the word of a kind with the groups of its pattern."""
    ratio, stride, value = fields.get("ratio"), fields.get("stride"), fields.get("value")
    number = int(ratio[1:]) if ratio else 1
    return Word(
        kind,
        kernel=_numbers(fields.get("kernel") or "()"),
        ratio=(1, number) if ratio and ratio[0] == "/" else (number, 1),
        stride=1 if not stride else None if stride == "s" else _one_or_more(stride[1:]),
        dilation=int(fields.get("dilation") or 1),
        groups=0 if fields.get("depthwise") else int(fields.get("groups") or 1),
        bias=bool(fields.get("bias")),
        value=float(value) if value else None,
        learned=kind != "scale" or not (value or "").startswith("."),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.strip("()").split(",") if number)


def _one_or_more(text: str) -> int | tuple[int, ...]:
    numbers = _numbers(text)
    return numbers[0] if len(numbers) == 1 else numbers
