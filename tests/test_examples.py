"""Every example runs as it stands, says what it promises to say, and stays short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parent.parent / "examples"
# file: what it prints at the end, and the least that the figure in it has to reach
SAYS = {
    "build_your_own_block.py": (r"validation accuracy ([\d.]+)%", 90.0),
    "compare_plain_and_residual.py": (r"resnet56 .*\n *validation accuracy ([\d.]+)%", 60.0),
    "features_for_another_task.py": (r"by the network's embedding: ([\d.]+)%", 85.0),
    "resume_after_a_crash.py": (r"(\d+) of \1 tensors are bit-identical.*\n\1 of \1", 116.0),
    "train_digits.py": (r"test accuracy ([\d.]+)%", 95.0),
}


def test_five_examples_have_at_most_80_lines_and_usage():
    examples = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert set(examples) == set(SAYS)
    for name, text in examples.items():
        assert len(text.splitlines()) <= 80, name
        assert f"python examples/{name}" in text
        compile(text, name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_from_any_folder_without_a_network(name, tmp_path):
    # A proxy that is not there: whoever asks the network for anything fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=tmp_path,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    pattern, least = SAYS[name]
    match = re.search(pattern, run.stdout)
    assert match, run.stdout
    assert float(match[1]) >= least
    assert list(tmp_path.iterdir()) == []
