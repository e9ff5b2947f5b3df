"""What the processes of one run need, one thing at a time, and what many of them would give."""

import importlib
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plusx import store
from plusx.recipe import load_recipe
from plusx.run import build
from plusx.run.distributed import DistributedContext, join_processes
from plusx.run.engines import engine_of
from plusx.run.signals import Signals
from plusx.run.training import train
from plusx.train.state import State


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield importlib.import_module("scale")
    torch.set_num_threads(threads)


def test_one_process_needs_no_communication() -> None:
    world = DistributedContext()
    assert world.first
    assert world.broadcast({"a": 1}) == {"a": 1}
    assert world.sum([1.5]) == [1.5]
    assert world.device("mps") == "mps"
    with Signals() as world.signals:
        assert world.stopping is None
        signal.raise_signal(signal.SIGTERM)
        assert world.stopping == signal.SIGTERM


def test_a_second_signal_does_not_end_a_distributed_process() -> None:
    with Signals(patient=True) as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize(
    ("kind", "message"), [("mps", "2 processes need cpu or cuda"), ("cuda:1", "need cpu or cuda")]
)
def test_a_device_that_processes_cannot_share_is_refused(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributedContext(1, 2, 1).device(kind)


def test_half_of_torchruns_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is not set: start with torchrun"):
        train(load_recipe("digits-resnet20"), "nowhere")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with join_processes("cpu", 1.0) as world:
        assert world.size == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.ema=0.9", "does not support optim.ema"),
        ("net.drop_path=0.5", "does not support net.drop_mode"),
        ("device.memory=segments", "does not support memory"),
    ],
)
def test_options_that_sharded_state_does_not_support_are_refused(
    override: str, message: str
) -> None:
    overrides = ("device.parallel=fsdp", "net.num_classes=10", "net.in_channels=1", "net.size=8")
    recipe = load_recipe("digits-resnet20", [*overrides, override])
    with pytest.raises(ValueError, match=message):
        engine_of(recipe, object.__new__(State), DistributedContext(0, 2))  # nothing looks at it


class _Elsewhere(DistributedContext):
    """A world whose rank 0 was given something else."""

    def broadcast(self, value: Any) -> Any:
        return [value[0] + "# more", value[1]]


def test_processes_with_another_recipe_are_refused() -> None:
    from plusx.run.training import _check_ranks_agree

    recipe = load_recipe("digits-resnet20")
    with pytest.raises(ValueError, match="rank 1 has another recipe than rank 0"):
        _check_ranks_agree(recipe, build.open_sets(recipe), _Elsewhere(1, 2))


@given(processes=st.integers(1, 4096), size=st.integers(1, 10**12))
def test_an_all_reduce_transfers_less_than_two_times_the_data(processes: int, size: int) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        received = importlib.import_module("scale").received
    finally:
        sys.path.remove(str(BENCHMARKS))
    assert received("ddp", size, 1) == 0
    assert received("ddp", size, processes) < 2 * size
    assert received("fsdp", size, processes) == pytest.approx(
        1.5 * received("ddp", size, processes)
    )
    if processes == 2:
        assert received("ddp", size, 2) == size  # each sends half, and gets half twice


def test_projected_speed_grows_sublinearly_with_gpus(scale: ModuleType) -> None:
    rows = [scale.projected(gpus) for gpus in (1, 8, 64)]
    one = rows[0]
    assert one["efficiency"] == one["efficiency_without_overlap"] == 1
    assert one["received_bytes"] == 0
    assert one["gradient_bytes"] == 4 * 25_557_032  # ResNet-50's parameters
    for fewer, more in pairwise(rows):
        assert 0 < more["efficiency_without_overlap"] < more["efficiency"] < fewer["efficiency"]
        assert more["images_per_second"] > fewer["images_per_second"]
        assert more["hours"] < fewer["hours"]
    slow = scale.projected(64, {**scale.ASSUMED, "bytes_per_second_between_nodes": 1e6})
    assert slow["efficiency"] < 0.01


@pytest.mark.slow
def test_many_processes_are_measured_and_recorded(scale: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert scale.main(["--tiny", "--out", str(out)]) == 0
    result = store.read_json(out)
    rows = [row for row in result["rows"] if row["what"] == "bytes"]
    assert {row["engine"] for row in rows} == {"ddp", "fsdp"}
    for row in rows:
        # what goes besides is signs of life and sums; gloo sums whole gradients for fsdp
        assert 1 <= row["counted"] / row["computed"] < 1.5
    assert set(result["value"]) == set(result["spread"])
