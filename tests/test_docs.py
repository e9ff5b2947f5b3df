"""The documents say what is: every table, field, command, example, number and link in them."""

import ast
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

import plusx
from plusx.cli import app
from plusx.data.image_file import DEFAULT_LIMIT, FORMATS
from plusx.data.transforms.words import VOCABULARY as AUGMENTATION
from plusx.data.transforms.words import parse_augment
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.toml import from_toml
from plusx.grammar.validate import validate
from plusx.grammar.words import MARKS, VOCABULARY, parse
from plusx.recipe import continual as recipe_continual
from plusx.recipe import load_recipe, parse_recipe
from plusx.recipe import selfsupervised as recipe_methods
from plusx.recipe import sets as recipe_sets
from plusx.recipe import tables as recipe_tables
from plusx.recipe import tuning as recipe_tuning
from plusx.shipped import shipped_recipes
from plusx.weights import SOURCES
from plusx.zoo import HEADED, ZOO
from test_architecture import DOORS


ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
RESULTS = sorted((ROOT / "results").glob("*.json"))
MADE = re.compile(r"<!-- begin [\w-]+ -->\n.*?<!-- end [\w-]+ -->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Line(NamedTuple):
    page: Path
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def rows(page: Path, heading: str = "") -> Iterator[list[str]]:
    """The cells of the tables' rows below a heading, or of the whole page."""
    text = page.read_text(encoding="utf-8")
    if heading:
        text = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("|---"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            yield [cell.strip() for cell in cells]


def quoted(cell: str) -> list[str]:
    return [text.replace("\\|", "|") for text in re.findall(r"`([^`]+)`", cell)]


def commands() -> list[Line]:
    """Every command in a fence or in quotes, on one line."""
    lines = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        texts = [
            line for kind, body in FENCE.findall(text) if kind == "sh" for line in body.split("\n")
        ]
        texts += re.findall(r"`((?:plusx|make|python) (?!weights)[^`]+)`", FENCE.sub("", text))
        pieces = [part for block in texts for part in block.partition("  #")[0].split("&&")]
        lines += [Line(page, part.strip()) for part in pieces if part.strip()]
    return lines


@pytest.mark.slow
def test_generated_blocks_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "render.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tables_list_every_network() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "tools" / "networks.py"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(printed) == len(ZOO) + len(HEADED) + 2
    docs = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8").splitlines()
    assert sorted(line for line in docs if line.startswith("| `")) == sorted(printed[2:])


@pytest.mark.slow
def test_a_changed_number_is_detected(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = text.replace("| 852,730 |", "| 852,731 |")
    assert changed != text
    (tmp_path / "tools").mkdir()
    (tmp_path / "docs").mkdir()
    for path in (ROOT / "tools").glob("*.py"):
        (tmp_path / "tools" / path.name).write_text(path.read_text(encoding="utf-8"))
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    command = [sys.executable, tmp_path / "tools" / "render.py"]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (1, "")
    assert "README.md" in checked.stdout
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("line", commands(), ids=str)
def test_every_documented_command_exists(line: Line) -> None:
    words = shlex.split(line.text)
    match words[0]:
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets
        case "python":
            assert (ROOT / words[1]).is_file()
        case "plusx":
            existing = {name for name in app if not name.startswith("-")}
            if words[1].startswith("-"):
                assert words[1] in ("--help", "--version", "--debug")
                return
            assert words[1] in existing
            names = {
                name
                for argument in app[words[1]].assemble_argument_collection()
                for name in argument.names
            }
            options = [word for word in words if word.startswith("--")]
            assert set(options) <= names
        case _:
            assert words[0] in ("git", "cd", "pip")


@pytest.mark.parametrize(
    "line",
    [line for line in commands() if re.match(r"plusx (train|compare|study|tune) [a-z]", line.text)],
    ids=str,
)
def test_a_recipe_and_its_overrides_are_allowed(line: Line) -> None:
    words = shlex.split(line.text)
    assert load_recipe(words[2], [word for word in words[3:] if "=" in word])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_python_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
            assert float(capsys.readouterr().out.splitlines()[-1]) > 0.5


def test_the_example_of_the_readme_is_of_five_lines() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = [body for kind, body in FENCE.findall(text) if kind == "python"]
    statements = [
        statement for statement in ast.parse(example).body if not isinstance(statement, ast.Import)
    ]
    assert sum(len(ast.unparse(statement).splitlines()) for statement in statements) == 5


def test_examples_in_toml_are_valid() -> None:
    (spec,) = [body for kind, body in _fences("language.md") if kind == "toml"]
    validate(from_toml(spec))
    (recipe,) = [body for kind, body in _fences("recipes.md") if kind == "toml"]
    assert parse_recipe(recipe).epochs == 5


def _fences(name: str) -> list[tuple[str, str]]:
    return FENCE.findall((ROOT / "docs" / name).read_text(encoding="utf-8"))


# section of docs/recipes.md: the tables of a recipe that may stand there
SECTIONS: dict[str, tuple[Any, ...]] = {
    "The recipe itself": (recipe_tables.Recipe,),
    "[net]": (recipe_tables.NetByName,),
    "[init]": (recipe_tables.Init,),
    "[task]": (recipe_tables.Classify,),
    "[task] with kind segment": (recipe_tables.Segment,),
    "[task] with kind detect": (recipe_tables.Detect,),
    "[task] with kind embed": (recipe_tables.Embed,),
    "[task] with kind represent": (recipe_tables.Represent,),
    "[task] with kind translate": (recipe_tables.Translate,),
    "[task] with kind caption": (recipe_tables.Caption,),
    "[data] with kind parallel": (recipe_sets.ParallelData,),
    "[task] with kind transcribe": (recipe_tables.Transcribe,),
    "[task] with kind spoken-command": (recipe_tables.SpokenCommand,),
    "[adversarial]": (
        recipe_tables.PgdTraining,
        recipe_tables.FastTraining,
        recipe_tables.TradesTraining,
    ),
    "[stream]": (recipe_continual.Stream,),
    "[method]": get_args(recipe_continual.ContinualMethod),
    "[method] of self-supervised learning": get_args(recipe_methods.SelfSupervised),
    "[head]": (),  # docs/seeing.md has the fields of each kind
    "[data] with boxes or masks": (recipe_sets.AnnotatedData,),
    "[data] with kind cells": (recipe_sets.CellData,),
    "[data] with kind scenes": (recipe_sets.SceneData,),
    "[data] with kind captions": (recipe_sets.CaptionData,),
    "[data] with kind people": (recipe_sets.PeopleData,),
    "[data] with kind volumes": (recipe_sets.VolumeData,),
    "[data] with kind ellipsoids": (recipe_sets.EllipsoidData,),
    "[data] with kind texts": (recipe_sets.TextData,),
    "[data] with kind recordings": (recipe_sets.RecordingData,),
    "[data] with kind transcripts": (recipe_sets.TranscriptData,),
    "[data] with kind digit-strings": (recipe_sets.DigitStringData,),
    "[data] with kind voice-commands": (recipe_sets.VoiceCommandData,),
    "[data]": (recipe_sets.KnownData, recipe_sets.OwnData),
    "[optim]": (
        recipe_tables.Sgd,
        recipe_tables.AdamW,
        recipe_tables.Lars,
        recipe_tables.Lamb,
        recipe_tables.Muon,
    ),
    "[schedule]": (
        recipe_tables.Constant,
        recipe_tables.Steps,
        recipe_tables.Cosine,
        recipe_tables.OneCycle,
    ),
    "[device]": (recipe_tables.Device,),
    "[evaluate]": (recipe_tables.Evaluate,),
    "[checkpoint]": (recipe_tables.Checkpoint,),
    "[compare]": (recipe_tables.Compare,),
    "[tune]": (recipe_tuning.Tune,),
    "[study]": (),
}


def test_every_table_of_a_recipe_has_its_section() -> None:
    tables = {
        cls
        for module in (recipe_tables, recipe_sets, recipe_continual, recipe_methods)
        for name, cls in vars(module).items()
        if dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
    }
    documented = {cls for classes in SECTIONS.values() for cls in classes}
    assert tables - documented == {recipe_sets.NoMix, recipe_sets.Mix}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_recipe_is_documented_with_its_default(section: str) -> None:
    fields = {
        field.name: field
        for cls in reversed(SECTIONS[section])
        for field in dataclasses.fields(cls)
    }
    if section == "The recipe itself":
        inner = {name.strip("[]") for name in SECTIONS if name.startswith("[") and name[-1] == "]"}
        assert inner < set(fields)
        fields = {name: field for name, field in fields.items() if name not in inner}
    documented = {
        quoted(cells[0])[0]: cells[1]
        for cells in rows(ROOT / "docs" / "recipes.md", section)
        if quoted(cells[0])
    }
    assert set(documented) == set(fields)
    for name, default_text in documented.items():
        value = fields[name].default
        if name == "kind" and section in ("[data]", "[optim]"):
            assert default_text == "required", "which table it is, only the kind says"
            continue
        if value.__class__.__module__.startswith("pydantic"):
            value = value.default
        if value is dataclasses.MISSING or type(value).__name__ == "PydanticUndefinedType":
            assert default_text == "required", name
        elif value is None:
            assert default_text == "none", name
        elif dataclasses.is_dataclass(value):
            assert tomllib.loads(f"x = {default_text.strip('`')}")["x"] == {"kind": "none"}
        else:
            plain = list(value) if isinstance(value, tuple) else value
            assert tomllib.loads(f"x = {default_text.strip('`')}")["x"] == plain, name


def test_every_kind_of_a_recipe_is_documented() -> None:
    for section, classes in SECTIONS.items():
        kinds = [
            kind
            for cls in classes
            for field in dataclasses.fields(cls)
            if field.name == "kind"
            for kind in get_args(field.type)
        ]
        table_rows = rows(ROOT / "docs" / "recipes.md", section)
        documented = [cells[2] for cells in table_rows if quoted(cells[0]) == ["kind"]]
        assert all(kind in text for kind in kinds for text in documented), section


def test_every_shipped_recipe_is_documented() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = re.search(r"\| recipe \| what it trains \|\n(.*?)\n\n", page, re.DOTALL)
    assert table
    assert sorted(re.findall(r"^\| `(.+?)` \|", table[1], re.MULTILINE)) == shipped_recipes()


def test_every_field_of_a_spec_is_documented_with_its_default() -> None:
    told: dict[str, dict[str, str]] = {}
    part = ""
    for cells in rows(ROOT / "docs" / "language.md", "Specs"):
        part = cells[0] or part
        if quoted(cells[1]):
            told.setdefault(part, {})[quoted(cells[1])[0]] = cells[2]
    for cls in (Block, Stage, Net):
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        assert set(told[cls.__name__]) == set(fields)
        for name, default in fields.items():
            said = told[cls.__name__][name]
            if default is dataclasses.MISSING:
                assert said == ""
            elif default is None:
                assert said == "none"
            else:
                assert tomllib.loads(f"x = {said.strip('`')}")["x"] == default, name


def test_documented_words_of_the_language_are_exactly_those_that_exist() -> None:
    page = ROOT / "docs" / "language.md"
    documented = [word for cells in rows(page, "Words") for word in quoted(cells[0])]
    words = [word for word in documented if re.match("[a-z]{2}", word) and word != "dw"]
    kinds = {kind for word in words for kind in (parse(word).words[0].kind,)}
    assert kinds == set(VOCABULARY)
    marks = [quoted(cells[0])[0] for cells in rows(page, "Marks") if quoted(cells[0])]
    assert marks == [*MARKS, "|"]
    bodies = [quoted(cells[1]) for cells in rows(page, "Families")]
    for body in (body for blocks in bodies for body in blocks if "..." not in body):
        assert str(parse(body)) == body


def test_every_sentence_in_the_readme_is_valid() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = [body for _, body in FENCE.findall(text) if "its plain twin" in body]
    for line in example.splitlines():
        assert parse(re.split(r"\s{2,}", line)[1] if "  " in line else line[16:])


def test_every_word_of_augmentation_is_documented() -> None:
    page = ROOT / "docs" / "data.md"
    documented = [word for cells in rows(page, "Augmentation") for word in quoted(cells[0])]
    assert {parse_augment(word)[0].kind for word in documented} == set(AUGMENTATION)


def test_formats_and_limits_are_documented() -> None:
    for name in ("SECURITY.md", "docs/data.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for image_format in FORMATS:
            assert image_format.lower() in text.lower(), (name, image_format)
        assert f"{DEFAULT_LIMIT // 1_000_000} million pixels" in text


def test_sources_of_weights_are_documented() -> None:
    documented = [
        quoted(cells[0])
        for cells in rows(ROOT / "docs" / "weights.md", "Sources")
        if quoted(cells[0])
    ]
    assert {
        words[0] for words in documented if ".th" not in words[0] and ".npz" not in words[0]
    } == (set(SOURCES) - {"plusx"})


def test_exit_codes_are_the_ones_of_the_command_line() -> None:
    codes = {int(cells[0]) for cells in rows(ROOT / "docs" / "exit-codes.md") if cells[0].isdigit()}
    assert codes == {0, 1, 2, 130, 141, 143}
    documented = {
        quoted(cells[0])[0] for cells in rows(ROOT / "docs" / "exit-codes.md") if quoted(cells[0])
    }
    assert documented == {name for name in app if not name.startswith("-")}


def test_the_rooms_and_arrows_are_those_of_the_source() -> None:
    page = ROOT / "docs" / "architecture.md"
    documented = {
        quoted(cells[0])[0]: set(quoted(cells[1]))
        for cells in rows(page, "The arrows")
        if quoted(cells[0])
    }
    assert documented == {
        room: targets for room, targets in DOORS.items() if not room.startswith("__")
    }
    listed = re.findall(r"^  (\w+)/? ", _fences("architecture.md")[0][1], re.MULTILINE)
    assert set(listed) == {*documented, "recipes"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
    for path in re.findall(
        r"`((?:src|tests|tools|docs|benchmarks|examples|results)/[\w./-]+)`", MADE.sub("", text)
    ):
        assert (ROOT / path).exists(), path
    for room, name in re.findall(r"`plusx\.(\w+)\.(\w+)", text):
        assert hasattr(import_module(f"plusx.{room}"), name) or find_spec(f"plusx.{room}.{name}")


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_a_result_has_its_command_and_machine(file: Path) -> None:
    result = json.loads(file.read_text(encoding="utf-8"))
    keys = {"value", "spread", "seeds", "command", "recipe", "versions", "machine", "date"}
    assert keys <= set(result)
    text = file.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert re.findall(r"(?<![\w.$])/(?:root|home|tmp|Users|mnt|var|work)/\S*", text) == []


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^([a-z-]+): *(.*)$", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(fields)
    assert fields["cff-version"] == "1.2.0"
    assert fields["version"] == plusx.__version__ == project["version"]
    assert fields["license"] == project["license"]
    assert plusx.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_t11_dotted_names_of_the_pages_are_there_after_import_plusx() -> None:
    """In a process of its own, where no room of plusx is imported yet."""
    pages = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    dotted = re.compile(r"\bplusx(?:\.[a-z_]+)+\.?[A-Za-z_]*\b(?!\.)")
    names = {name for page in pages for name in dotted.findall(page.read_text())}
    files = {name for name in names if name.endswith((".toml", ".json", ".safetensors"))}
    shallow = {name for name in names - files if name.count(".") <= 2}
    modules = {name for name in shallow if name.count(".") == 2 and find_spec(name) is not None}
    deep = names - files - shallow | modules
    lines = ["import plusx", *sorted(shallow - modules), "import pkgutil"]
    program = "\n".join([*lines, *(f"pkgutil.resolve_name({name!r})" for name in sorted(deep))])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert len(names) > 10
    assert not done.returncode, done.stderr[-500:]
