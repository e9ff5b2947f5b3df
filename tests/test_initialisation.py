"""Parameters are initialised by the rule of a recipe, and a recipe may use a part of the images."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from plusx import cli
from plusx.models import create_model
from plusx.nn.gates import ShortcutGate
from plusx.recipe import Recipe, load_recipe
from plusx.run import build


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe("digits-resnet20", overrides)


def test_by_default_a_run_is_initialised_like_create_model() -> None:
    net, _ = build.make_net(recipe_of("seed=3", "net.size=8"))
    theirs = create_model("resnet20", seed=3)
    for (name, ours), other in zip(net.state_dict().items(), theirs.state_dict().values()):
        assert torch.equal(ours, other), name


@pytest.mark.parametrize(
    ("rule", "spread"), [("he", (2 / 144) ** 0.5), ("normal0.01", 0.01), ("pytorch", 1 / 432**0.5)]
)
def test_the_init_rule_of_the_recipe_initialises_convolutions(rule: str, spread: float) -> None:
    net, _ = build.make_net(recipe_of(f'init.rule="{rule}"'))
    weight = net.get_parameter("layer1.0.conv1.weight")
    assert float(weight.detach().std()) == pytest.approx(spread, rel=0.05)


def test_last_gamma_and_gates_are_initialised_as_in_the_recipe() -> None:
    net, _ = build.make_net(recipe_of("init.zero_last_gamma=true"))
    assert not net.get_parameter("layer2.1.bn2.weight").any()
    assert net.get_parameter("layer2.1.bn1.weight").all()
    for name in ("resnet110_shortcut_gate", "resnet110_exclusive_gate"):
        for bias in (-6.0, 0.0):
            net, _ = build.make_net(recipe_of(f"net.base={name}", f"init.gate_bias={bias}"))
            gates = [
                module.conv.bias if isinstance(module, ShortcutGate) else module.gate[-1].bias
                for module in net.modules()
                if isinstance(module, ShortcutGate) or getattr(module, "gate", None) is not None
            ]
            assert gates
            assert all(bool((gate == bias).all()) for gate in gates)


def test_an_external_module_keeps_its_initialisation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "digits-resnet20", "net.base=resnet8_keras", "init.rule=he"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 2
    assert "is an external module with its own initialisation" in capsys.readouterr().err


@pytest.mark.parametrize(("train", "count"), [("100", 100), ("0.5", 600), ("1200", 1200)])
def test_a_subset_has_the_same_number_of_images_of_each_class(train: str, count: int) -> None:
    source = build.open_split(recipe_of(f"data.train={train}"), "train")
    counts = Counter(source.labels.tolist())
    assert len(source) == count
    assert len(counts) == 10
    assert max(counts.values()) - min(counts.values()) <= max(2, count // 100)
    reopened = build.open_split(recipe_of(f"data.train={train}"), "train")
    assert reopened.fingerprint() == source.fingerprint()
    held = build.open_split(recipe_of(f"data.train={train}"), "validation")
    assert held.fingerprint() == build.open_split(recipe_of(), "validation").fingerprint()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_subset_depends_on_the_seed(seed: int) -> None:
    ours = build.open_split(recipe_of("data.train=100", f"seed={seed}"), "train")
    other = build.open_split(recipe_of("data.train=100", f"seed={seed + 2}"), "train")
    assert ours.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("train", ["0", "1201", "1.0", "-1"])
def test_an_invalid_subset_size_is_refused(
    train: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "digits-resnet20", f"data.train={train}", "--out", str(tmp_path / "out")]
    assert cli.run(words) == 2
    assert "train" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
