"""The commands: their keys, their exit codes, their one line on standard error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from plusx import cli
from plusx.errors import UserError


PLUSX = Path(sys.executable).with_name("plusx")


class CommandResult(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def plusx(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """A command in this process: the same as from a shell, without the time that starting takes."""

    def run(*arguments: object) -> CommandResult:
        code = cli.run(list(map(str, arguments)))
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    small = ["epochs=1", "data.validation=100", "device.threads=1"]
    assert cli.run(["train", "digits-resnet20", *small, "--out", str(out)]) == 0
    return out


def test_models(plusx: Callable[..., CommandResult]) -> None:
    rows = plusx("models", "resnet*", "--json").json()["models"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["resnet50"]["parameters"] == 25_557_032
    assert by_name["resnet50"]["multiply_adds"] == 4_089_184_256
    assert all(row["name"].startswith("resnet") for row in rows)
    assert "25,557,032" in plusx("models").out


def test_describe(plusx: Callable[..., CommandResult]) -> None:
    result = plusx("describe", "resnet20", "num_classes=100", "--json").json()
    assert {"name", "parameters", "multiply_adds", "depth", "input", "stages", "source"} <= set(
        result
    )
    assert result["parameters"] == 275_572
    assert result["input"] == [3, 32, 32]
    assert result["stages"][1]["sentences"] == [
        {"body": "conv3s norm act conv3 norm + act", "shortcut": "pad"}
    ]
    text = plusx("describe", "densenet121").out
    assert "norm act conv1*4 norm act conv3 &" in text
    assert "7,978,856" in text
    assert plusx("describe", "alexnet", "--json").json()["parameters"] == 61_100_840


def test_describe_names_the_file_and_the_wrong_word_of_a_spec(
    plusx: Callable[..., CommandResult], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'stem = "conv3 norm act"\nstem_width = 8\nsize = 32\nnum_classes = 10\n'
        '[[stages]]\nblock = "conv3s norm act conv3 norm + act"\ndepth = 2\nwidth = 8\n'
    )
    assert plusx("describe", file, "--json").json()["stages"][0]["blocks"] == 2
    file.write_text(file.read_text().replace("conv3s norm", "convv3s norm"))
    result = plusx("describe", file)
    assert result.code == 2
    assert "mine.toml" in result.err
    assert "convv3s" in result.err


REFUSED = [
    (["models", "zzz*"], ["zzz*"]),
    (["describe", "resnet21"], ["resnet21", "did you mean", "resnet20"]),
    (["describe", "resnet20", "clases=10"], ["clases", "num_classes"]),
    (["describe", "resnet20", "act=rleu"], ["rleu", "relu"]),
    (["describe", "resnet20", "num_classes=many"], ["num_classes", "many"]),
    (["describe", "alexnet", "num_classes=3"], ["alexnet", "external module"]),
    (["describe", "none.toml"], ["none.toml"]),
    (["describe"], ["requires an argument"]),
    (["trian", "digits"], ["trian", "train"]),
    (["models", "--jsno"], ["--jsno"]),
    (["train", "digitss"], ["digitss", "did you mean digits"]),
    (["train", "nowhere/mine.toml"], ["nowhere/mine.toml"]),
    (["train", "."], ["folder"]),
    (["train", "digits-resnet20", "optim.learing_rate=1"], ["learing_rate", "optim.lr"]),
    (["train", "digits-resnet20", "net.base=resnet21"], ["resnet21", "resnet20"]),
    (["train", "digits-resnet20", "net.act=rleu"], ["rleu", "relu"]),
    (["train", "digits-resnet20", "data.augment=pad4 corp"], ["corp", "crop"]),
    (["train", "digits-resnet20", "net.in_channels=3"], ["in_channels", "digits"]),
    (["train", "digits-resnet20", "net.num_classes=3"], ["num_classes", "10 classes"]),
    (["train", "digits-resnet20", "device.kind=gpu"], ["gpu", "cpu"]),
    (["train", "digits-resnet20", "data.validation=0", "evaluate.patience=2"], ["validation"]),
    (["train", "digits-resnet20", "task.multilabel=true"], ["multilabel", "one label"]),
    (["train", "images", "data.path=nowhere"], ["nowhere"]),
    (["train", "digits-resnet20", "net.base=alexnet", "net.act=gelu"], ["alexnet", "external"]),
    (["evaluate", "nowhere"], ["nowhere", "no such run"]),
    (["evaluate", "."], ["not a run's folder"]),
    (["evaluate", "resnet20"], ["--weights"]),
    (["evaluate", "resnet21", "--weights", "x.safetensors"], ["resnet21", "resnet20"]),
    (["evaluate", "resnet20", "--weights", "x.safetensors"], ["x.safetensors"]),
    (["predict", "nowhere", "x.jpg"], ["nowhere"]),
    (["predict", "."], ["give images"]),
    (["explain", "nowhere", "x.jpg"], ["nowhere"]),
    (["explain", "."], ["give images"]),
    (["compare", "digits-resnet20"], ["[compare]"]),
    (["compare", "digits", "compare.networks=[resnet21]"], ["resnet21", "resnet20"]),
    (["report", "nowhere"], ["nowhere"]),
    (["report", "."], ["result.json"]),
    (["convert", "x.pth", "--as", "resnet20", "--source", "acamaster", "--out", "y.safetensors"],
     ["acamaster", "akamaster"]),
    (["convert", "x.pth", "--as", "resnet20", "--source", "akamaster", "--out", "y.safetensors"],
     ["x.pth"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_a_wrong_command_prints_one_line_and_writes_no_file(
    plusx: Callable[..., CommandResult],
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = plusx(*arguments)
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("plusx: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err
    assert os.listdir(tmp_path) == []


def test_help_has_examples_for_every_command(plusx: Callable[..., CommandResult]) -> None:
    overview = plusx("--help").out
    with_several = ("models", "describe", "train", "compare", "evaluate", "predict", "explain")
    for name in (*with_several, "convert"):
        assert name in overview
        assert f"Examples:\n  plusx {name}" in plusx(name, "--help").out
    for name in ("report", "info"):
        assert f"plusx {name}" in plusx(name, "--help").out


def test_train_prints_only_json(plusx: Callable[..., CommandResult], tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "digits-resnet20", "steps=2", "device.threads=1", "--out", out, "--json"]
    first = plusx(*command)
    assert first.json()["steps"] == 2
    assert first.json()["out"] == str(out)
    assert "epoch 1/1" in first.err
    second = plusx(*command)
    assert second.json() == first.json()
    assert "epoch" not in second.err
    (out / "result.json").unlink()
    assert "plusx: resuming from step 2 of 2" in plusx(*command).err


def test_fields_of_a_recipe_given_as_options_are_explained(
    plusx: Callable[..., CommandResult],
) -> None:
    result = plusx("train", "digits-resnet20", "--epochs", "5")
    assert result.code == 2
    assert result.err == "plusx: --epochs is a field of the recipe: write epochs=5\n"
    assert "batch_size=64" in plusx("train", "digits-resnet20", "--batch-size=64").err


def test_recipes_are_listed_with_their_first_sentence(plusx: Callable[..., CommandResult]) -> None:
    rows = {row["name"]: row["summary"] for row in plusx("recipes", "--json").json()["recipes"]}
    assert rows["digits-resnet20"].startswith("ResNet-20 on the scikit-learn digits")
    assert all(rows.values())
    assert "images" in plusx("recipes").out


def test_evaluate(plusx: Callable[..., CommandResult], trained: Path) -> None:
    result = plusx("evaluate", trained, "--json").json()
    keys = "data split count loss accuracy precision recall f1 averaging per_class confusion"
    assert set(keys.split()) <= set(result)
    assert (result["data"], result["split"], result["count"]) == ("digits", "validation", 100)
    assert 0 <= result["accuracy"] <= 1
    assert len(result["confusion"]) == 10
    assert not (trained / "test_uses.jsonl").exists()
    for uses in (1, 2):
        tested = plusx("evaluate", trained, "--split", "test", "--json").json()
        assert (tested["split"], tested["count"], tested["test_uses"]) == ("test", 297, uses)
    lines = (trained / "test_uses.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["accuracy"] == tested["accuracy"]
    text = plusx("evaluate", trained, "--tta", "flip").out
    assert "accuracy" in text
    weights = trained / "model.safetensors"
    assert plusx("evaluate", weights, "--data", "digits", "--split", "test", "--json").json()[
        "accuracy"
    ] == pytest.approx(tested["accuracy"])
    named = plusx("evaluate", "resnet20", "--weights", weights, "--data", "digits", "--json")
    assert named.code == 0
    assert "--data" in plusx("evaluate", weights).err


def test_a_run_opened_before_it_is_finished(
    plusx: Callable[..., CommandResult], trained: Path
) -> None:
    moved = trained / "model.safetensors"
    figures = plusx("evaluate", trained, "--json").json()
    content = moved.read_bytes()
    moved.unlink()
    try:
        assert plusx("evaluate", trained, "--json").json()["loss"] == figures["loss"]
    finally:
        moved.write_bytes(content)


def test_report_and_info(plusx: Callable[..., CommandResult], trained: Path) -> None:
    assert plusx("report", trained, "--json").json() == {"report": str(trained / "report.html")}
    result = plusx("info", "--json").json()
    assert result["torch"]
    assert "digits-resnet20" in result["recipes"]
    assert "recipes" in plusx("info").out


def test_debug_prints_a_traceback(plusx: Callable[..., CommandResult]) -> None:
    result = plusx("evaluate", "nowhere", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("wrong"), 2),
        (ValueError("torch says no"), 1),
        (RuntimeError("failed"), 1),
        (OSError(28, "the disk is full"), 1),
        (FloatingPointError("the loss is nan"), 1),
        (KeyError("oops"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    plusx: Callable[..., CommandResult],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("plusx.describe.list_networks", fail)
    result = plusx("models")
    assert result.code == code
    assert result.err.count("\n") == 1


def test_a_closed_output_pipe_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [PLUSX, "models"], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


def test_help_models_and_describe_load_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; from plusx import cli\n"
        "for each in (['--help'], ['models'], ['describe', 'resnet50'], ['train', '--help']):\n"
        "    assert cli.run(each) == 0\n"
        "assert not {'torch', 'pydantic', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["describe", "resnet50"]])
def test_quick_commands_start_within_the_limit(arguments: list[str]) -> None:
    """Seconds of the processor, which is all they wait for: other tests may run beside this one."""
    seconds = []
    for _ in range(10):
        before = os.times()
        subprocess.run([PLUSX, *arguments], check=True, timeout=60, stdout=subprocess.DEVNULL)
        after = os.times()
        used = after.children_user - before.children_user
        seconds.append(used + after.children_system - before.children_system)
    # the least: caches and a core shared with other tests only ever add to it
    assert min(seconds) < 0.3, seconds


def test_the_default_folder_of_a_run_does_not_contain_the_data_path() -> None:
    from plusx.cli.shell import run_name

    assert run_name("text", ("data.path=reviews.csv", "epochs=3")) == "text,epochs=3"
    assert run_name("recipes/mine.toml", ("data.path=a/b",)) == "mine"
