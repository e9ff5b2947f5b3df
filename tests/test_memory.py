"""Plans that keep less for the backward pass: the same training, in the memory that is told."""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import plusx
from plusx.grammar import sizes
from plusx.grammar.heads import Fcos, UNet
from plusx.grammar.memory import PLANS, saved_bytes
from plusx.grammar.reversible import REVNET38, REVNET110, Reversible, reversible_bytes
from plusx.grammar.spec import Net
from plusx.grammar.toml import from_dict
from plusx.memory import SavedBytes, save_memory
from plusx.nn.network import Network
from plusx.nn.reversible import ReversibleNetwork
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import parse_recipe
from plusx.run import memory, train
from plusx.run.trainer import Trainer
from plusx.zoo import ZOO, find
from plusx.zoo.memory_report import family
from sentences import plans
from test_run import TINY
from zoo_digest import inputs, small
from zoo_shrunken import shrunken


# every kind of sentence in the zoo
REPRESENTATIVE = (
    *("resnet18", "resnet50", "resnet50_d", "resnetblur50", "preact_resnet18", "resnext50_32x4d"),
    *("densenet121", "densenet40_12", "densenet_bc100_12", "se_resnet50", "eca_resnet18"),
    *("cbam_resnet50", "nonlocal_resnet50", "botnet50", "vgg11", "vgg16_bn", "convnext_tiny"),
    *("vit_base_patch16_gap", "resnet20", "resnet20_b", "resnet32_c", "plain32", "resnet164"),
    *("preact_resnet20", "preact_resnet164", "resnet110_constant", "resnet110_exclusive_gate"),
    *("resnet110_shortcut_gate", "resnet110_dropout_shortcut", "resnet110_act_before", "wrn16_4"),
    *("highway19", "vgg16_cifar", "res8", "quartznet15x5", "resnet18_1d", "vdcnn9", "r3d_18"),
)
COUNTED = (
    *("resnet18", "resnet50", "resnetblur50", "preact_resnet18", "densenet40_12", "se_resnet50"),
    *("cbam_resnet50", "botnet50", "vgg16_bn", "convnext_tiny", "vit_base_patch16_gap"),
    *("resnet110_exclusive_gate", "resnet110_dropout_shortcut", "highway19", "vdcnn9"),
)
# whose gates make values that only their own operations need
APART = ("resnet110_exclusive_gate", "resnet110_dropout_shortcut", "highway19", "vdcnn9")
REVERSIBLE = Reversible(units=(2, 2, 3), stem_width=8, widths=(8, 16, 24))


def shrunken_spec(name: str, depth: int = 4) -> Net:
    spec = small(find(name))
    assert isinstance(spec, Net)
    return replace(shrunken(spec, width=32, depth=depth), drop_path=0.0)


def step(net: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The gradient of a training step in one row, and the bytes that it held."""
    net.train().zero_grad()
    targets = torch.zeros(len(x), dtype=torch.long)
    torch.manual_seed(5)
    with SavedBytes(net) as saved:
        F.cross_entropy(net(x), targets, reduction="none").mean().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]), saved.peak


def given_inputs(spec: Net, count: int = 3) -> Tensor:
    return inputs(spec, count).clone()  # the numbers are a part of a long table


def assert_same_as_plain(net: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Two ways to train one network in float64 agree to rounding; statistics agree exactly."""
    ours, _ = step(net, x)
    theirs, _ = step(other, x)
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()
    for a, b in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("plan", ["recompute", "segments"])
def test_a_plan_changes_no_gradient_and_holds_less(plan: str) -> None:
    spec = replace(shrunken_spec("resnet20", depth=2), size=8)
    net = plusx.create_model(spec, seed=0).double()
    other = deepcopy(net)
    assert save_memory(net, plan) is net
    x = given_inputs(spec)
    assert_same_as_plain(net, other, x)
    assert step(net, x)[1] < 0.75 * step(other, x)[1]
    save_memory(net, "keep")
    assert torch.equal(step(net, x)[0], step(other, x)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_saved_memory_equals_the_computed_one(name: str) -> None:
    spec = shrunken_spec(name, depth=3)
    net, x = Network(spec), given_inputs(spec, 2)
    x = x if x.dtype == torch.long else x.float()
    for plan in PLANS:
        _, held = step(save_memory(net, plan), x)
        # a plan's peak has what is only there while an operation runs, which is not counted
        rel = 0.02 if plan == "keep" and name != "vdcnn9" else 0.15 if name not in APART else 0.45
        assert saved_bytes(spec, plan, 2) == pytest.approx(held, rel=rel), plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("resnet50", 64), ("densenet121", 32), ("resnet110", 16)]
)
def test_saved_memory_of_networks_equals_the_computed_one(name: str, size: int) -> None:
    spec = replace(find(name), size=size)
    net, x = Network(spec), torch.randn(2, 3, size, size)
    for plan in PLANS:
        _, held = step(save_memory(net, plan), x)
        rel = 0.07 if plan == "keep" else 0.1
        assert saved_bytes(spec, plan, 2) == pytest.approx(held, rel=rel), plan


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_sentence_trains_alike_under_every_plan(name: str) -> None:
    spec = shrunken_spec(name, depth=2)
    net = plusx.create_model(spec, seed=0).double()
    x = given_inputs(spec)
    for plan in PLANS[1:]:
        assert_same_as_plain(save_memory(deepcopy(net), plan), deepcopy(net), x)


@pytest.mark.slow
@given(fields=plans(), plan=st.sampled_from(PLANS[1:]))
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_any_network_trains_alike(fields: dict, plan: str) -> None:
    spec = from_dict(fields)
    net = plusx.create_model(spec, seed=0).double()
    x = torch.randn(3, 2, *[fields["size"]] * fields["ndim"], dtype=torch.float64)
    assert_same_as_plain(save_memory(deepcopy(net), plan), deepcopy(net), x)
    assert saved_bytes(spec, plan) > 0


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["recompute", "segments"])
@pytest.mark.parametrize("name", ["alexnet", "googlenet", "resnet8_keras"])
def test_external_networks_train_alike(name: str, plan: str) -> None:
    net = plusx.create_model(name, num_classes=3, seed=0).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    other = deepcopy(net)
    assert_same_as_plain(save_memory(net, plan), other, x)
    assert step(net, x)[1] < step(other, x)[1]


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["recompute", "segments"])
@pytest.mark.parametrize("kind", ["masks", "boxes", "volumes"])
def test_networks_with_heads_and_volumes_train_alike(kind: str, plan: str) -> None:
    spec = shrunken_spec("r3d_18" if kind == "volumes" else "resnet18", depth=2)
    head = Fcos(width=8) if kind == "boxes" else UNet(width=4)
    net = NetworkWithHead(plusx.create_model(spec, seed=0), head, 2).double().train()
    x = torch.randn(2, spec.in_channels, *[32] * spec.ndim, dtype=torch.float64)
    other = deepcopy(net)
    save_memory(net, plan)
    gradients, held = [], []
    for model in (net, other):
        with SavedBytes(model) as saved:
            outputs = model(x)
            maps = outputs if isinstance(outputs, list) else [outputs]
            torch.stack([out.square().mean() for out in maps]).sum().backward()
        held.append(saved.peak)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-9 * gradients[1].norm()
    for a, b in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)
    assert held[0] < held[1]


@pytest.mark.parametrize("plan", ["recompute", "segments"])
def test_x2_an_output_that_is_overwritten_is_refused_or_right(plan: str) -> None:
    spec = replace(shrunken_spec("resnet20", depth=2), size=8)
    net = plusx.create_model(spec, seed=0).double()
    other, x = deepcopy(net), given_inputs(spec)
    save_memory(net, plan)

    for stage in range(3):
        net.zero_grad()
        other.zero_grad()
        maps, expected = net.features(x), other.features(x)
        with torch.no_grad():
            maps[stage].sub_(5)
        shifted = [out - 5 * (i == stage) for i, out in enumerate(expected)]
        sum(out.square().sum() for out in shifted).backward()
        try:
            sum(out.square().sum() for out in maps).backward()
        except RuntimeError:
            continue
        torch.testing.assert_close(net.conv1.weight.grad, other.conv1.weight.grad)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "row"])
@pytest.mark.parametrize("plan", ["recompute", "segments"])
def test_dropped_blocks_and_dropout_are_the_same(plan: str, mode: str) -> None:
    spec = replace(shrunken_spec("wrn16_4"), drop_path=0.5, drop_mode=mode)
    net = plusx.create_model(spec, seed=0).double()
    assert_same_as_plain(save_memory(deepcopy(net), plan), net, given_inputs(spec))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["recompute", "segments"])
def test_half_precision_and_channels_last_hold_less_too(plan: str) -> None:
    spec = shrunken_spec("resnet20")
    net = plusx.create_model(spec, seed=0).to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    steps = []
    for model in (save_memory(deepcopy(net), plan), net):
        with torch.autocast("cpu", torch.bfloat16):
            steps.append(step(model, x))
    (ours, held), (theirs, all_held) = steps
    # bfloat16 has 8 bits: an activation near 0 may fall on the other side of it
    assert (ours - theirs).norm() <= 0.1 * theirs.norm()
    assert held < 0.8 * all_held


def test_a_frozen_part_and_a_second_backward_pass() -> None:
    spec = replace(shrunken_spec("resnet20", depth=2), size=8)
    net = plusx.create_model(spec, seed=0).double()
    for parameter in net.layer1.parameters():
        parameter.requires_grad_(False)
    other, x = deepcopy(net), given_inputs(spec)
    assert_same_as_plain(save_memory(net, "segments"), other, x)
    loss = net(x).square().sum()
    first = torch.autograd.grad(loss, net.fc.weight, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, net.fc.weight)[0], first)


@pytest.mark.slow
def test_a_failed_forward_pass_leaks_no_memory() -> None:
    net = save_memory(plusx.create_model("resnet20", seed=0), "recompute")
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 5, 8, 8))
    with torch.no_grad():
        assert net(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    x = torch.randn(3, requires_grad=True)
    assert x.relu().grad_fn is not None


@pytest.mark.parametrize(
    ("net", "plan", "message"),
    [
        ("resnet20", "recmpute", "did you mean recompute"),
        ("revnet38", "recompute", "they recompute activations already"),
    ],
)
def test_invalid_plans_are_refused(net: str, plan: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_memory(plusx.create_model(net), plan)


@pytest.mark.slow
def test_the_plans_of_resnet50_meet_their_budgets() -> None:
    whole = find("resnet50")
    assert saved_bytes(whole) == pytest.approx(86.0e6, rel=0.005)  # counted by hand of PyTorch's
    shares = [saved_bytes(whole, plan) / saved_bytes(whole) for plan in PLANS]
    assert shares[1] <= 0.44
    assert shares[2] <= 0.205
    assert reversible_bytes(REVNET110) <= 0.11 * saved_bytes(find("resnet110"))


@pytest.mark.slow
def test_every_network_of_the_zoo_has_a_plan_that_holds_less() -> None:
    for name in ("resnet18", "wrn28_10", "convnext_tiny", "res15"):
        net = find(name)
        shares = [saved_bytes(net, plan) / saved_bytes(net) for plan in PLANS]
        assert 1 == shares[0] > shares[1] > shares[2], name


# reversible networks


def reversible(dtype: torch.dtype) -> ReversibleNetwork:
    torch.manual_seed(0)
    return ReversibleNetwork("small", REVERSIBLE).to(dtype)


def test_a_reversible_network_trains_as_if_activations_were_stored() -> None:
    net = reversible(torch.float64)
    other = deepcopy(net)
    other.reverses = False
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_same_as_plain(net, other, x)
    assert step(net, x)[1] < 0.5 * step(other, x)[1]


@pytest.mark.slow
def test_reversing_does_not_add_to_the_error_of_float32() -> None:
    exact, ours = reversible(torch.float64), reversible(torch.float32)
    stored = deepcopy(ours)
    stored.reverses = False
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    truth, _ = step(exact, x)
    errors = [(step(net, x.float())[0] - truth).norm() / truth.norm() for net in (ours, stored)]
    # an activation near 0 may fall on its other side in either way: a few parts in a thousand
    assert errors[0] <= 3 * errors[1] + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [REVERSIBLE, REVNET38, REVNET110])
@pytest.mark.parametrize("reverses", [True, False])
def test_a_reversible_network_holds_what_arithmetic_says(
    architecture: Reversible, reverses: bool
) -> None:
    net = ReversibleNetwork("some", architecture)
    net.reverses = reverses
    _, held = step(net, torch.randn(2, 3, 32, 32))
    assert reversible_bytes(architecture, 2, reverses=reverses) == pytest.approx(held, rel=0.1)


def test_a_unit_can_be_reversed() -> None:
    """x2 = y2 - G(y1), x1 = y1 - F(x2): equations 8 of Gomez et al. 2017."""
    unit = reversible(torch.float64).eval().layer1[1]
    x1, x2 = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64).unbind(0)
    y1, y2 = unit(x1, x2)
    recomputed = y2 - unit.g(y1)
    torch.testing.assert_close(recomputed, x2)
    torch.testing.assert_close(y1 - unit.f(recomputed), x1)


# runs


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["recompute", "segments"])
def test_a_run_with_a_plan_resumes_bit_for_bit(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(TINY, [f"device.memory={plan}"])
    plain = train(parse_recipe(TINY), tmp_path / "plain", progress=False)
    result = train(recipe, tmp_path / "whole", progress=False)
    assert result["train"]["loss"] == pytest.approx(plain["train"]["loss"], rel=0.05)
    ended = Trainer._end_epoch

    def fail(self: Trainer, display: object) -> None:
        ended(self, display)
        self.save()
        raise KeyError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", fail)
        with pytest.raises(KeyError):
            train(recipe, tmp_path / "broken", progress=False)
    assert train(recipe, tmp_path / "broken", progress=False) == result
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_a_plan_and_a_compiled_network_are_not_both() -> None:
    recipe = parse_recipe(TINY, ["device.memory=segments", "device.compile=true"])
    with pytest.raises(ValueError, match="use one of the two"):
        memory.apply_plan(recipe, plusx.create_model("resnet20"))


# a batch that does not fit


def large(*overrides: str) -> tuple:
    deep = TINY.replace("depth = 1", "depth = 9")
    recipe = parse_recipe(deep, ["batch_size=4096", *overrides])
    return recipe, plusx.create_model(recipe.net, seed=0)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_reported_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, net = large()
    needs = {plan: memory.estimate(recipe, net, plan, 1).total for plan in PLANS}
    assert needs["keep"] > needs["recompute"] > needs["segments"]
    cpu = torch.device("cpu")
    available = needs["keep"]
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    memory.warn(recipe, net, cpu)  # it fits: nothing is said
    for available, message in (
        (needs["recompute"] / 0.89, "4096 samples at a time .* device.memory=recompute needs"),
        (needs["segments"] / 0.89, "device.memory=segments needs"),
        (needs["segments"] / 3, r"device.memory=\w+ optim.accumulation_steps=\d+ needs"),
        (10, "no plan fits: use smaller inputs"),
    ):
        available = int(available)
        with pytest.warns(UserWarning, match=message):
            memory.warn(recipe, net, cpu)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
    ],
)
def test_out_of_memory_errors_name_a_plan_that_fits(error: Exception) -> None:
    recipe, net = large()
    with (
        pytest.raises(RuntimeError, match=r"does not fit in memory.*device\.memory=") as caught,
        memory.explain_exhaustion(recipe, net, torch.device("cpu")),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_a_compiled_network_gets_no_suggested_plan() -> None:
    recipe, net = large("device.compile=true")
    with (
        pytest.raises(RuntimeError, match=r"optim\.accumulation_steps=2") as caught,
        memory.explain_exhaustion(recipe, net, torch.device("cpu")),
    ):
        raise MemoryError
    assert "device.memory" not in str(caught.value)


def test_other_errors_are_unchanged() -> None:
    recipe, net = large()
    with (
        pytest.raises(RuntimeError, match=r"^shapes do not agree$"),
        memory.explain_exhaustion(recipe, net, torch.device("cpu")),
    ):
        raise RuntimeError("shapes do not agree")


def test_external_modules_get_accumulation_steps_suggested() -> None:
    recipe, _ = large()
    net = plusx.create_model("resnet8_keras")
    with (
        pytest.raises(RuntimeError, match=r"try optim\.accumulation_steps=2"),
        memory.explain_exhaustion(recipe, net, torch.device("cpu")),
    ):
        raise MemoryError


def test_this_machine_has_memory_left() -> None:
    left = memory.available_bytes(torch.device("cpu"))
    assert left is None or left > 2**20


LIMITED = """
import resource, sys
import torch
from plusx.cli import run
torch.set_num_threads(1)
torch.randn(8, 8) @ torch.randn(8, 8)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 500 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_a_process_without_memory_ends_with_the_plan_that_fits(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text(TINY)
    done = subprocess.run(
        [
            *(sys.executable, "-c", LIMITED, "train", str(tmp_path / "large.toml")),
            *("net.stem_width=512", "batch_size=1400", "--out", str(tmp_path / "run")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "does not fit in memory" in last
    assert "device.memory=" in last or "optim.accumulation_steps=" in last


# sizes, and what fits


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("512MiB", 2**29),
        ("1.5GB", 1_500_000_000),
        ("8 g", 8 * 10**9),
        ("77000", 77_000),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert sizes.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4XB", "-1GB", "GB", "0", "1e9", "4 G B"])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        sizes.parse_size(text)


@given(st.integers(1, 10**15))
def test_printed_sizes_parse_to_the_same(size: int) -> None:
    assert sizes.parse_size(sizes.format_size(size)) == pytest.approx(size, rel=0.006)


def test_families_differ_in_depth_alone() -> None:
    assert family("resnet50") == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert family("resnet20_b")[-1] == "resnet1202_b"
    assert family("wrn28_10") == ["wrn28_10", "wrn40_10"]
    assert family("highway19") == ["highway19"]
    assert family("alexnet") == ["alexnet"]
    assert family("of my own") == []
    assert all(name in family(name) for name in ZOO)


@pytest.mark.slow
def test_describe_prints_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    from plusx.cli import run

    command = ["describe", "wrn16_4", "--memory", "120MB", "--batch-size", "16"]
    assert run([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["plan"] for row in result["plans"]] == list(PLANS)
    assert [row["fits"] for row in result["plans"]] == [False, True, True]
    assert [row["saved_bytes_per_image"] for row in result["plans"]] == sorted(
        (row["saved_bytes_per_image"] for row in result["plans"]), reverse=True
    )
    assert result["state_bytes"]["weights"] == 4 * result["parameters"]
    by_name = {row["name"]: row["plan"] for row in result["family"]}
    assert by_name == {"wrn16_4": "recompute", "wrn40_4": None}
    assert run(command) == 0
    assert "training a batch of 16 images in 120 MB" in capsys.readouterr().out
    for words, expected in (
        (["describe", "alexnet", "--memory", "4GB"], "memory arithmetic cannot count"),
        (["describe", "resnet20", "--batch-size", "4"], "give both"),
        (["describe", "resnet20", "--memory", "4GB", "--batch-size", "0"], "at least one image"),
    ):
        assert run(words) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_bench_memory_counts_and_draws(tmp_path: Path) -> None:
    from plusx.bench.memory import memory as bench_memory

    result = bench_memory(
        ["resnet20", "revnet38"], tmp_path, batch=2, resident=False, progress=lambda line: None
    )
    rows = {(row["name"], row["plan"]): row for row in result["rows"]}
    assert [plan for _, plan in rows] == [*PLANS, "keep", "reversible"]
    for row in rows.values():
        predicted = row["predicted_bytes_per_image"]
        assert predicted == pytest.approx(row["saved_bytes_per_image"], rel=0.1)
        assert row["resident_bytes"] is None
    assert rows["resnet20", "segments"]["share_of_keep"] < 0.5
    assert json.loads((tmp_path / "memory.json").read_text())["finding"] == result["finding"]
    assert "<svg" in (tmp_path / "memory.html").read_text()
    (alone,) = bench_memory(["resnet8_keras"], batch=2, progress=lambda line: None)["rows"]
    assert alone["resident_bytes"] >= 0
    assert alone["predicted_bytes_per_image"] is None
    with pytest.raises(ValueError, match="unknown network"):
        bench_memory(["resnet21"])
    with pytest.raises(ValueError, match="at least 2"):
        bench_memory(["resnet20"], batch=1)
