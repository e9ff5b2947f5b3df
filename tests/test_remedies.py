"""The study of remedies: each network differs from the plain one in what its name says."""

import pytest

from plusx.grammar.spec import Net
from plusx.grammar.words import parse
from plusx.recipe import load_recipe
from plusx.run import build
from plusx.study.remedies import REMEDIES, network
from plusx.study.runner import study


def traits(net: Net) -> tuple[bool, bool, str]:
    """Whether it has skips, whether it has norms, and its activation."""
    sentences = [parse(block.body) for stage in net.stages for block in stage.blocks]
    norms = [word for sentence in sentences for word in sentence.words if word.kind == "norm"]
    return {s.merge for s in sentences} == {"add"}, bool(norms), net.act


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        ("none", (False, False, "relu")),
        ("tanh", (False, False, "tanh")),
        ("orthogonal", (False, False, "relu")),
        ("tanh-orthogonal", (False, False, "tanh")),
        ("batch-norm", (False, True, "relu")),
        ("skips", (True, False, "relu")),
        ("fixup", (True, False, "relu")),
        ("rezero", (True, False, "relu")),
        ("skipinit", (True, False, "relu")),
        ("skips-batch-norm", (True, True, "relu")),
    ],
)
def test_a_remedy_changes_what_its_name_says(remedy, expected):
    assert traits(network(remedy, 56)) == expected


def test_every_trial_has_its_initialisation():
    recipe = load_recipe("remedies")
    assert recipe.study is not None
    trials = REMEDIES.trials(recipe, recipe.study, build.open_sets(recipe).train)
    rules = {trial.name: trial.recipe.init.rule for trial in trials}
    assert rules["orthogonal"] == "orthogonal_relu"
    assert rules["tanh-orthogonal"] == "orthogonal"
    assert rules["tanh"] == "he"
    assert rules["fixup"] is None  # the default of its words


@pytest.mark.slow
def test_rows_have_a_difference_to_none(tmp_path):
    recipe = load_recipe(
        "remedies", ["epochs=1", "study.seeds=[0]", "study.remedies=[none,batch-norm]"]
    )
    with (tmp_path / "progress").open("w") as stream:
        none, other = study(recipe, tmp_path / "out", jobs=1, progress=stream)["rows"]
    assert "difference" not in none
    gap = other["train_error"]["mean"] - none["train_error"]["mean"]
    assert other["difference"]["difference"] == pytest.approx(gap)
    assert none["trained"] == "0 of 1"
