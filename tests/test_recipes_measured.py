"""What the headers of the shipped recipes say is what was measured, with the recipe as it is."""

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from plusx.overrides import split_override
from plusx.recipe import differences, load_recipe, parse_recipe
from plusx.shipped import shipped_recipes


ROOT = Path(__file__).parents[1]
KEYS = {"value", "spread", "seeds", "command", "recipe", "versions", "machine", "date"}


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", ROOT / "tools" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_header_has_the_measured_values(measure: ModuleType, name: str) -> None:
    text = (ROOT / "src" / "plusx" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    result = ROOT / "results" / f"{name}.json"
    if not result.is_file():
        assert measure.BEGIN not in text, "a header without the file that it comes from"
        pytest.skip(f"{name} has not been measured")
    record = json.loads(result.read_text(encoding="utf-8"))
    assert set(record) >= KEYS
    assert "\n".join(measure.header(record)) + "\n" in text
    overrides = [word for word in shlex.split(record["command"])[3:] if "=" in word]
    now = differences(parse_recipe(record["recipe"]), load_recipe(name))
    overridden = {".".join(split_override(override)[0]) for override in overrides}
    assert set(now) <= overridden, f"the recipe was changed since it was measured: {now}"


def test_headers_are_replaced_and_nothing_else(measure: ModuleType) -> None:
    text = '# What it is.\n\nseed = 0\nname = "x"  # measured\n'
    once = measure.with_header(text, [measure.BEGIN, "#   1", measure.END])
    assert once.startswith(f"# What it is.\n#\n{measure.BEGIN}\n#   1\n{measure.END}\n\nseed")
    twice = measure.with_header(once, [measure.BEGIN, "#   2", "#   3", measure.END])
    assert twice == once.replace("#   1", "#   2\n#   3")
