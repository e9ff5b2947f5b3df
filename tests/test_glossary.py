"""Pages and help use the field's words: no word of AVOID, each of which has a plainer one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cyclopts import App

from plusx.cli import app


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "plusx"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# whole words to avoid, as a regular expression: the words to use
AVOID = {
    r"tells?|telling|told": "predicts, prediction; states, contains",
    r"said": "the thing's own name; is stated",
    r"(?<!ground )truth": "ground truth, annotations, targets",
    r"judged?|judges|judging": "evaluated; ignored",
    r"figures(?! \d)": "metrics, results; charts",
    r"looked at|looks at|looking at": "used, processed, evaluated",
    r"goes on|go on|going on|went on": "resumes, continues",
    r"in ruins|ruined|damaged?": "unreadable, corrupt",
    r"notices|noticed": "warnings; detects",
    r"strangers?": "impostors",
    r"quarter turns?": "rot90; rotations by 90 degrees",
    r"pictures?": "images",
    r"made (?:sets?|images|volumes|data)": "synthetic data sets",
    r"shares? of|(?:a|an|the|each|its|their|own|equal|what) shares?": "fraction, part",
    r"network sees|sees|seen by": "the network's input",
    r"answers?|answered": "predicts, prediction",
    r"multiply-adds?": "MACs",
    r"yes|yeses|noes": "positives, negatives",
    r"alike": "the same, equally",
    r"mine|of one's own": "your own",
    r"surest|surer": "of the highest score",
    r"as large": "of the same size",
    r"use of the test|use of test": "evaluation on the test set",
    r"stands? (?:on|in|beside|behind|there|together)": "is in, is on, is beside",
    r"kept back|keeps? back": "held out",
    r"in the place of": "instead of, in place of",
    r"so many": "this number of",
    r"things?": "objects",
    r"left over": "background",
    r"but for": "except for, up to",
    r"hold(?:s|ing)? (?:it|them) to": "compares with, checks",
    r"a peer|the peer": "the other library",
    r"legal": "valid, allowed",
    r"inflated?": "adapt_input_conv",
    r"(?:pixels|positions|voxels) a (?:side|dimension)": "per side, per dimension",
    r"(?:images|samples|numbers) a (?:batch|second|vector|class|step)": "per batch, per second",
    r"folder a (?:person|class)": "one folder per person",
    r"one a (?:core|class|dimension|side|line)": "one per core",
}
# keys of recipes and of test-time augmentation that have new names
RETIRED = {
    r"views = |evaluate\.views": "tta",
    r"sampling = |data\.sampling|^sampling$": "sampler",
    r"^accumulate\b|optim\.accumulate\b|^accumulate = ": "accumulation_steps",
    r"depth_rate": "layer_decay",
    r"optim\.average|^average = ": "ema",
    r"on_damage|data\.damaged": "on_unreadable",
    r"task\.most\b|^most = \d": "max_detections",
    r"strangers": "impostors",
    r"position_accuracy": "pixel_accuracy",
    r"^quarter\b|^turn\d|^gain\.": "rot90, rotate, brightness",
}
# names that do not say what a value is
EMPTY_NAMES = {
    *("said", "told", "found", "made", "kept", "seen", "known", "wanted", "own", "each", "place"),
    *("judge", "judged", "mine", "ours", "theirs"),
}
_AVOID = [(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), use) for words, use in AVOID.items()]
_RETIRED = [(re.compile(words), use) for words, use in RETIRED.items()]
_GENERATED = re.compile(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", re.DOTALL)
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\([^)]*\)")


class Text(NamedTuple):
    place: str
    text: str


def _blank(match: re.Match[str]) -> str:
    """Nothing, on as many lines."""
    return "\n" * match[0].count("\n")


def prose(page: Path) -> Iterator[Text]:
    """The lines of a page outside of code, links, generated tables and lists of JSON keys."""
    text = page.read_text(encoding="utf-8")
    for pattern in (_GENERATED, _FENCE, _CODE):
        text = pattern.sub(_blank if pattern is not _CODE else "`", text)
    keys = page.name == "exit-codes.md"
    for number, line in enumerate(_LINK.sub("]", text).split("\n"), 1):
        if line.startswith("    ") or (keys and line.startswith("| `")):
            continue
        yield Text(f"{page.relative_to(ROOT)}:{number}", line)


def inline_code(page: Path) -> Iterator[Text]:
    text = _GENERATED.sub(_blank, page.read_text(encoding="utf-8"))
    for number, line in enumerate(text.split("\n"), 1):
        for code in _CODE.findall(line):
            yield Text(f"{page.relative_to(ROOT)}:{number}", code.strip("`"))


def help_texts(command: App, name: str = "plusx") -> Iterator[Text]:
    """The help of a command, of its parameters and of the commands below it."""
    yield Text(f"{name} --help", command.help or "")
    if command.default_command is not None:
        for argument in command.assemble_argument_collection():
            where = f"{name} {argument.name}"
            yield Text(f"{where}, in --help", argument.parameter.help or "")
    for inner in command:
        if not inner.startswith("-"):
            yield from help_texts(command[inner], f"{name} {inner}")


def messages(file: Path) -> Iterator[Text]:
    """The texts of the errors that a module raises, and of the lines that it logs."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        call = node.exc if isinstance(node, ast.Raise) else node
        logged = isinstance(call, ast.Call) and ast.unparse(call.func).startswith("_log.")
        if not isinstance(call, ast.Call) or not (isinstance(node, ast.Raise) or logged):
            continue
        # a string with {values} in it is one text
        literals = [
            "".join(
                part.value
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                else "x"
                for part in (text.values if isinstance(text, ast.JoinedStr) else [text])
            )
            for argument in call.args
            for text in ast.walk(argument)
            if isinstance(text, ast.JoinedStr | ast.Constant)
        ]
        for part in literals:
            yield Text(f"{file.relative_to(PACKAGE)}:{call.lineno}", part)


def complaints(texts: Iterator[Text], rules: list[tuple[re.Pattern[str], str]]) -> list[str]:
    return [
        f"{location}: {match[0]!r} -> {use}"
        for location, text in texts
        for pattern, use in rules
        for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_uses_the_words_of_the_field(page: Path) -> None:
    violations = complaints(prose(page), _AVOID)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_keys_by_their_present_names(page: Path) -> None:
    violations = complaints(inline_code(page), _RETIRED)
    assert not violations, "\n".join(violations)


def test_help_uses_the_words_of_the_field() -> None:
    texts = list(help_texts(app))
    assert len(texts) > 100, "every command and every parameter"
    violations = complaints(iter(texts), _AVOID)
    assert not violations, "\n".join(violations)


def test_messages_use_the_words_of_the_field() -> None:
    texts = [text for file in sorted(PACKAGE.rglob("*.py")) for text in messages(file)]
    assert len(texts) > 500, "every error that is raised and every line that is logged"
    violations = list(dict.fromkeys(complaints(iter(texts), _AVOID)))
    assert not violations, "\n".join(violations)


def test_names_say_what_a_value_is() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100, "every module"
    empty = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {getattr(node, field)}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for field in ("id", "arg", "name")
        if getattr(node, field, None) in EMPTY_NAMES
    ]
    assert not empty, "\n".join(empty)


def test_violations_name_the_line_and_the_word_to_use() -> None:
    texts = iter([Text("page.md:3", "What a network tells, and the ground truth."), Text("b", "")])
    assert complaints(texts, _AVOID) == [
        "page.md:3: 'tells' -> predicts, prediction; states, contains"
    ]
