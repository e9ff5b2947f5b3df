"""Whatever a data set is: the right counts, a warning that names it, or an error that names it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plusx.cli
from corpus import CORPUS, Case


pytestmark = pytest.mark.slow


def test_the_corpus_is_large_and_its_names_are_different() -> None:
    assert len(CORPUS) >= 150
    assert len({case.name for case in CORPUS}) == len(CORPUS)
    assert sum(case.kind != "" for case in CORPUS) > 100


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_a_data_set_is_valid_or_its_defect_is_named(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    path = os.fspath(case.make(root))
    code = plusx.cli.run(["info", path, "--json"])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    if not case.kind:
        assert code == 2, output.out
        (line,) = output.err.strip().splitlines()
        assert case.says in line
        return
    assert code == 0, output.err
    values = json.loads(output.out)
    assert values["kind"] == case.kind
    if case.splits is not None:
        assert values["splits"] == case.splits
    if case.classes is not None:
        assert tuple(row["name"] for row in values["classes"]) == case.classes
    messages = [values[key] for key in ("problems", "left_out", "warnings")]
    messages.append([finding["message"] for finding in values["findings"]])
    texts = [text for several in messages for text in several]
    assert not case.says or any(case.says in text for text in texts), texts


@pytest.mark.parametrize("name", ["folder", "csv", "masks", "S1 boxes as fractions", "a pipe"])
def test_a_subprocess_gives_the_same_verdicts(name: str, tmp_path: Path) -> None:
    (case,) = [case for case in CORPUS if case.name == name]
    path = os.fspath(case.make(tmp_path))
    command = [sys.executable, "-m", "plusx", "info", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == (0 if case.kind else 2), done.stderr
    assert case.says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
