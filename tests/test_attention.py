"""The study of attention: networks of equal cost, and a difference with its interval per row."""

from dataclasses import replace

import pytest

from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.models import create_model
from plusx.recipe import load_recipe
from plusx.run import build
from plusx.study.attention import ATTENTION, at_equal_cost, network
from plusx.study.runner import study


KINDS = ("se", "eca", "cbam", "nonlocal", "mhsa", "hybrid")


@pytest.mark.parametrize(("size", "channels"), [(14, 1), (32, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_multiply_adds_agree_within_2_percent(kind: str, size: int, channels: int) -> None:
    def sized(net: Net) -> Net:
        return replace(net, size=size, in_channels=channels)

    cost = measure(sized(network("none", 14))).multiply_adds
    net = at_equal_cost(sized(network(kind, 14)), cost)
    assert measure(net).multiply_adds == pytest.approx(cost, rel=0.02)
    built = create_model(net, seed=0)
    assert sum(p.numel() for p in built.parameters()) == measure(net).parameters


def test_kinds_have_their_words() -> None:
    words = {
        kind: {
            word.kind
            for stage in network(kind, 14).stages
            for block in stage.blocks
            for word in parse(block.body).words
        }
        for kind in ("none", *KINDS)
    }
    assert "attn" not in words["none"]
    assert all("attn" in words[kind] for kind in ("nonlocal", "mhsa", "hybrid"))
    assert {"se", "eca", "cbam"} == {kind for kind in ("se", "eca", "cbam") if kind in words[kind]}


def test_the_recipe_has_a_row_for_none_and_every_kind() -> None:
    recipe = load_recipe("attention", ["data.kind=digits", "data.train=default"])
    assert recipe.study is not None
    trials = ATTENTION.trials(recipe, recipe.study, build.open_sets(recipe).train)
    assert [trial.name for trial in trials] == ["none", *KINDS]


@pytest.mark.slow
def test_rows_have_a_difference_to_none(tmp_path) -> None:
    recipe = load_recipe(
        "attention",
        ["data.kind=digits", "data.train=default", "data.size=default", "steps=4", "study.depth=8",
         "study.kinds=[eca]", "study.seeds=[0,1]"],
    )  # fmt: skip
    with (tmp_path / "progress").open("w") as stream:
        none, eca = study(recipe, tmp_path / "out", jobs=1, progress=stream)["rows"]
    assert "difference" not in none
    gap = eca["difference"]
    mean = eca["error"]["mean"] - none["error"]["mean"]
    assert gap["difference"] == pytest.approx(mean)
    assert gap["low"] is None or gap["low"] <= gap["difference"] <= gap["high"]
