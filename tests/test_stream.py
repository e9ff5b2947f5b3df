"""`plusx stream`: the matrix and its metrics, buffers, streams of every scenario, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import small_run
from page_reader import Page
from plusx import cli, store
from plusx.continual import metrics
from plusx.continual.buffer import balanced, reservoir, with_replay
from plusx.continual.method import Memory
from plusx.data.concat import concat
from plusx.data.dataset import Dataset, FileItems, MemoryItems
from plusx.data.modality import ImageModality
from plusx.data.readers.open import open_data
from plusx.errors import UserError
from plusx.recipe import load_recipe, to_toml
from plusx.run import load_run, train
from plusx.run.continual import read_memory, write_memory


MATRIX = [[0.9, 0.1, 0.2], [0.6, 0.8, 0.3], [0.7, 0.5, 0.95]]
TASKS = '[["0", "1"], ["2", "3"], ["4", "5"]]'
RECIPE = small_run.recipe(
    4, 24, data='classes = ["0", "1", "2", "3", "4", "5"]\nper_class = 16'
).replace("num_classes = 10", "num_classes = 6")


def recipe_file(folder: Path, *, stream: str = "", method: str = 'kind = "naive"') -> Path:
    path = folder / "stream.toml"
    stream = stream or f'scenario = "class"\ntasks = {TASKS}'
    path.write_text(
        f"{RECIPE}\n[stream]\n{stream}\n\n[method]\n{method}\n\n"
        "[evaluate]\nevery = 0\ntrain_set = false\n"
    )
    return path


def stream(*words: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.run(["stream", *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["stream", *map(str, words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("plusx: seed ") for line in lines[:-1])  # finished tasks
    return str(lines[-1])


def samples(labels: list[int], classes: int = 2) -> Dataset:
    """Images of one pixel, whose value is their number."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return Dataset(
        name="made",
        split="train",
        classes=tuple(map(str, range(classes))),
        labels=torch.tensor(labels),
        modality=ImageModality((1, 1), 1, (0.5,), (0.5,)),
        items=MemoryItems(images),
    )


def test_metrics_are_those_computed_by_hand():
    assert metrics.average_accuracy(MATRIX) == pytest.approx((0.7 + 0.5 + 0.95) / 3)
    # task 1: best 0.9, last 0.7; task 2: best of 0.1 and 0.8, last 0.5
    assert metrics.forgetting(MATRIX) == pytest.approx((0.2 + 0.3) / 2)
    assert metrics.backward_transfer(MATRIX) == pytest.approx((0.7 - 0.9 + 0.5 - 0.8) / 2)
    assert metrics.forward_transfer(MATRIX, [0.5, 0.2, 0.1]) == pytest.approx((-0.1 + 0.2) / 2)


def test_a_task_that_gets_better_is_not_forgotten():
    matrix = [[0.5, 0.0], [0.7, 0.9]]
    assert metrics.forgetting(matrix) == pytest.approx(-0.2)
    assert metrics.backward_transfer(matrix) == pytest.approx(0.2)


def test_a_reservoir_holds_every_sample_equally_often():
    tasks = [samples([0] * 40), samples([1] * 60)]
    counts: Counter[tuple[int, int]] = Counter()
    trials, size = 2000, 10
    for seed in range(trials):
        buffer = reservoir(tasks, size, seed)
        assert sum(map(len, buffer)) == size
        counts.update((task, number) for task, numbers in enumerate(buffer) for number in numbers)
    expected = trials * size / 100
    # chi-squared with 99 degrees of freedom: 148 is at p = 0.001; a binomial spread is below it
    statistic = sum((counts[key] - expected) ** 2 for key in counts) / expected
    assert len(counts) == 100
    assert 55 < statistic < 148


def test_a_buffer_takes_samples_of_the_one_before_and_of_the_new_task_only():
    tasks = [samples([0] * 30), samples([1] * 30), samples([0] * 30)]
    for choose in (reservoir, balanced):
        before, after = choose(tasks[:2], 12, 5), choose(tasks, 12, 5)
        assert all(set(new) <= set(old) for old, new in zip(before, after))
        assert after[2]
        assert choose(tasks, 12, 5) == after
        assert choose(tasks, 12, 6) != after


def test_a_balanced_buffer_has_equally_many_of_each_class():
    tasks = [samples([0] * 30 + [1] * 5, 4), samples([2] * 20 + [3] * 90, 4)]
    buffer = balanced(tasks, 16, 0)
    labels = [tasks[t].label(i) for t, numbers in enumerate(buffer) for i in numbers]
    assert Counter(labels) == {0: 4, 1: 4, 2: 4, 3: 4}


def test_replayed_samples_are_half_and_copies_have_numbers_of_their_own():
    tasks = [samples([0] * 10), samples([1] * 8)]
    mixed = with_replay(tasks, ((3, 7), ()))
    assert len(mixed) == 16
    values = [int(mixed.read(i).tensor) for i in range(8, 16)]
    assert values == [3, 7] * 4
    assert with_replay(tasks[:1], ()) is tasks[0]


def test_joined_sets_read_and_subset_like_their_parts(tmp_path):
    from PIL import Image

    paths = []
    for number in range(5):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("L", (1, 1), number * 10).save(paths[-1])
    files = FileItems(paths[:3]), FileItems(paths[3:])
    tasks = [
        Dataset(
            name="files",
            split="train",
            classes=("a", "b"),
            labels=torch.zeros(len(items), dtype=torch.int64),
            modality=ImageModality((1, 1), 1, (0.5,), (0.5,)),
            items=items,
        )
        for items in files
    ]
    joined = concat(tasks)
    assert joined.paths == paths
    chosen = joined.subset([4, 0, 1, 3, 4])
    assert chosen.paths == [paths[i] for i in (4, 0, 1, 3, 4)]
    assert [joined.describe(i) for i in (0, 4)] == [paths[0], paths[4]]
    assert chosen.fingerprint() == joined.subset([4, 0, 1, 3, 4]).fingerprint()
    assert chosen.fingerprint() != joined.subset([4, 0, 1, 4, 3]).fingerprint()
    with pytest.raises(UserError, match="other classes"):
        concat([tasks[0], samples([0], 3)])


@pytest.mark.parametrize(
    ("stream_table", "message"),
    [
        ('scenario = "class"\ntasks = [["0", "1"], ["1", "2"]]', "tasks 1 and 2 share the class"),
        ('scenario = "class"\ntasks = [["0", "1", "2"], ["3", "4"]]', "no task has the class '5'"),
        (f'scenario = "class"\ntasks = {TASKS.replace("5", "zero")}', "has the class 'zero'"),
        ('scenario = "class"\ntasks = [["0", "1"]]', "at least two tasks"),
        ('scenario = "class"\ntasks = 1', "at least two tasks"),
        ('scenario = "class"\ntasks = 4', "6 classes cannot be divided into 4"),
        ('scenario = "class"\ntasks = [["0"], []]', "task 2 has no classes"),
        ('scenario = "class"\ntasks = "0,1"', "a list of the classes of every task"),
        ('scenario = "classes"\ntasks = 3', "did you mean class?"),
        ('scenario = "domain"\ntasks = 3', "needs either transform or paths"),
        (f'scenario = "domain"\ntasks = {TASKS}', "tasks is a number"),
        ('scenario = "domain"\ntasks = 3\npaths = ["a"]', "1 paths for 3 tasks"),
        ('scenario = "class"\ntasks = 3\ntransform = "rotate"', 'is for scenario = "domain"'),
        ('scenario = "class"\ntasks = 3\nseeds = [1, 1]', "no seed twice"),
        (
            'scenario = "task"\ntasks = [["0"], ["1", "2", "3", "4", "5"]]',
            "task 1 has a single class",
        ),
    ],
)
def test_a_stream_that_cannot_be_is_refused_in_one_line(stream_table, message, capsys, tmp_path):
    path = recipe_file(tmp_path, stream=stream_table)
    assert message in refused(path, "--out", tmp_path / "out", capsys=capsys)
    assert not (tmp_path / "out" / "seed-0").exists()


@pytest.mark.parametrize("override", ["stream.task=1", "stream.previous=nosuch"])
def test_keys_of_a_single_run_are_refused_in_one_line(override, capsys, tmp_path):
    error = refused(recipe_file(tmp_path), override, "--out", tmp_path / "out", capsys=capsys)
    key = override.partition("=")[0].removeprefix("stream.")
    assert f"[stream] {key} is for a single run" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_stream_of_another_recipe_is_refused(capsys, tmp_path):
    path, run = recipe_file(tmp_path), tmp_path / "out" / "seed-1" / "task-1"
    recipe = load_recipe(str(path), ["seed=1", "stream.task=1"])
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(to_toml(recipe))
    error = refused(
        path, "stream.scenario=task", "--seeds", "2", "--out", tmp_path / "out", capsys=capsys
    )
    assert 'another recipe (stream.scenario: "class" -> "task")' in error
    assert not (tmp_path / "out" / "seed-2").exists()


def test_a_memory_is_of_the_weights_it_was_written_with(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    write_memory(tmp_path, Memory(((1, 2), ()), {}))
    assert read_memory(tmp_path).buffer == ((1, 2), ())
    weights.write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"model\.safetensors is not what memory\.json describes"):
        read_memory(tmp_path)


@pytest.mark.parametrize("tasks", [None, "2", 3])
def test_a_memory_without_its_number_of_tasks_is_refused(tasks, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_memory(tmp_path, Memory(((1, 2), ()), {}))
    manifest = store.read_json(tmp_path / "memory.json")
    del manifest["tasks"]
    store.write_json(
        tmp_path / "memory.json", manifest | ({} if tasks is None else {"tasks": tasks})
    )
    with pytest.raises(UserError, match=rf"memory\.json: tasks = {tasks}, but .* the buffer of 2"):
        read_memory(tmp_path)


def test_methods_that_cannot_be_are_refused_in_one_line(capsys, tmp_path):
    path, out = recipe_file(tmp_path), tmp_path / "out"
    error = refused(path, "method.kind=repaly", "--out", out, capsys=capsys)
    assert "did you mean replay?" in error
    error = refused(path, "method.kind=nonsense", "--out", out, capsys=capsys)
    assert "er-ace or adapters" in error
    assert "simclr" not in error  # for pretrain, which has no [stream]
    error = refused(path, "method.kind=replay", "method.buffer=96", "--out", out, capsys=capsys)
    assert "96 training images" in error
    assert "joint" in error
    error = refused("digits-resnet20", "--out", out, capsys=capsys)
    assert "digits-stream" in error
    error = refused("digits-resnet20", "method.kind=ewc", "--out", out, capsys=capsys)
    assert error
    error = refused(path, "--seeds", "1,a", "--out", out, capsys=capsys)
    assert "--seeds 1,a" in error
    assert cli.run(["train", str(path), "--out", str(out)]) == 2
    assert "plusx stream" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_is_a_matrix_of_ordinary_runs(capsys, tmp_path):
    path, out = recipe_file(tmp_path, method='kind = "replay"\nbuffer = 20'), tmp_path / "out"
    result = stream(path, "--seeds", "0,1", "--out", out, capsys=capsys)
    assert result["method"] == "replay"
    assert [len(row) for row in result["matrix"]] == [3, 3, 3]
    for key in ("average_accuracy", "forgetting", "backward_transfer", "forward_transfer"):
        assert len(result[key]["seeds"]) == 2
    assert result["average_accuracy"]["mean"] == pytest.approx(sum(result["matrix"][2]) / 3)
    row = json.loads((out / "seed-1" / "task-3" / "accuracies-validation.json").read_text())
    seed_0 = json.loads((out / "seed-0" / "task-3" / "accuracies-validation.json").read_text())
    mean = [(a + b) / 2 for a, b in zip(row["accuracies"], seed_0["accuracies"])]
    assert result["matrix"][2] == pytest.approx(mean)
    run = load_run(out / "seed-0" / "task-2")
    assert run.classes == ("0", "1", "2", "3", "4", "5")
    data = json.loads((out / "seed-0" / "task-2" / "data.json").read_text())
    assert data["train"]["count"] == 64  # 32 new and 32 replayed ones
    page = Page((out / "stream.html").read_text())
    assert "Two seeds" in page.text
    # the same call computes nothing again
    model = out / "seed-0" / "task-1" / "model.safetensors"
    written = model.stat().st_mtime_ns
    second = stream(path, "--seeds", "0,1", "--out", out, capsys=capsys)
    assert second["matrix"] == result["matrix"]
    assert model.stat().st_mtime_ns == written
    tested = stream(path, "--seeds", "0", "--split", "test", "--out", out, capsys=capsys)
    assert tested["split"] == "test"
    uses = out / "seed-0" / "task-3" / "test_uses.jsonl"
    assert uses.read_text().count("\n") == 1
    stream(path, "--seeds", "0", "--split", "test", "--out", out, capsys=capsys)
    assert uses.read_text().count("\n") == 1
    # weights that are not those that the next task began with
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    error = refused(path, "--seeds", "0", "--out", out, capsys=capsys)
    assert f"{model} is not what memory.json describes" in error
    model.write_bytes(content)
    # accuracies that are none
    first_row = "task-1/accuracies-validation.json"
    for name, value in ((first_row, 1.5), (first_row, True), ("untrained-validation.json", "0.5")):
        accuracies = out / "seed-0" / name
        content = accuracies.read_bytes()
        accuracies.write_text(json.dumps({"accuracies": [0.5, value, 0.5]}))
        error = refused(path, "--seeds", "0", "--out", out, capsys=capsys)
        assert f"{accuracies} is not what plusx wrote" in error
        accuracies.write_bytes(content)
    # another method in the same folder, also with a seed that is not there yet
    written_result = (out / "stream.json").read_bytes()
    for words in (["method.buffer=10", "--seeds", "7"], ["data.per_class=15", "--seeds", "7"]):
        assert "another recipe" in refused(path, *words, "--out", out, capsys=capsys)
    assert (out / "stream.json").read_bytes() == written_result
    assert not (out / "seed-7").exists()
    assert "another recipe" in refused(path, "method.kind=naive", "--out", out, capsys=capsys)
    # a memory that is not what was written
    memory = out / "seed-0" / "task-1" / "memory.safetensors"
    memory.write_bytes(memory.read_bytes()[:-1] + b"\x01")
    assert "restore the files" in refused(path, "--seeds", "0", "--out", out, capsys=capsys)


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["permute", "rotate"])
def test_domains_have_the_same_classes_of_other_images(transform, capsys, tmp_path):
    table = f'scenario = "domain"\ntasks = 2\ntransform = "{transform}"'
    path = recipe_file(tmp_path, stream=table, method='kind = "replay"\nbuffer = 20')
    result = stream(path, "--seeds", "0", "--out", tmp_path / "out", capsys=capsys)
    assert result["tasks"] == [list("012345")] * 2


def test_domains_of_the_digits():
    from plusx.data.domains import permuted, rotated

    digits = open_data("digits", split="validation", seed=0)
    first, second = permuted(digits, 0, 3, 7), permuted(digits, 1, 3, 7)
    assert first.fingerprint() == digits.fingerprint()
    a, b = digits.read(4).tensor, second.read(4).tensor
    assert not torch.equal(a, b)
    assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    half = rotated(digits, 1, 2, 7).read(4).tensor
    assert torch.equal(half, digits.read(4).tensor.rot90(1, (1, 2)))


@pytest.mark.slow
def test_a_killed_stream_resumes_to_the_bit(tmp_path):
    path = recipe_file(tmp_path, method='kind = "replay"\nbuffer = 20')
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "plusx", "stream", str(path), "--seeds", "0", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(whole)], check=True, env=environment, timeout=120)
    for where in ("task-1/memory.safetensors", "task-2/checkpoints"):
        process = subprocess.Popen([*command, str(killed)], env=environment)
        for _ in range(12_000):
            if (killed / "seed-0" / where).exists() or process.poll() is not None:
                break
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(killed)], check=True, env=environment, timeout=120)
    for task in ("task-1", "task-2", "task-3"):
        for name in ("model.safetensors", "memory.safetensors", "accuracies-validation.json"):
            first, second = (folder / "seed-0" / task / name for folder in (whole, killed))
            assert first.read_bytes() == second.read_bytes(), (task, name)


def test_the_recipe_of_a_task_is_that_of_its_run():
    recipe = load_recipe("digits-stream", ["stream.task=6"])
    with pytest.raises(UserError, match="task = 6: there are 5 tasks"):
        train(recipe, "nowhere", progress=False)
