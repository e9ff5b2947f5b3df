"""A word from outside: its line in three tables, and it is parsed, counted, built and trained."""

from pathlib import Path

import pytest
import torch
from torch import nn

import plusx
from plusx.grammar import arithmetic
from plusx.grammar.arithmetic import measure
from plusx.grammar.words import VOCABULARY, parse
from plusx.nn import layers
from plusx.recipe import parse_recipe
from plusx.run import train
from test_run import TINY


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> str:
    """`shuffle4`: a channel shuffle over 4 groups (Zhang et al. 2018)."""
    example = (r"shuffle(?P<value>[1-9]\d{0,5})", "shuffle4")
    monkeypatch.setitem(VOCABULARY, "shuffle", example)
    monkeypatch.setitem(arithmetic.ARITHMETIC, "shuffle", lambda flow, word, setting: flow)
    monkeypatch.setitem(
        layers.LAYERS, "shuffle", lambda word, flow, setting: nn.ChannelShuffle(int(word.value))
    )
    return "conv3s norm act shuffle4 conv3 norm + act"


def test_it_is_printed_counted_built_and_trained(shuffled: str, tmp_path: Path) -> None:
    assert str(parse(shuffled)) == shuffled
    text = TINY.replace("conv3s norm act conv3 norm + act", shuffled)
    assert shuffled in text
    recipe = parse_recipe(text)
    net = plusx.create_model(recipe.net, seed=0)
    assert sum(p.numel() for p in net.parameters()) == measure(recipe.net).parameters
    assert any(isinstance(part, nn.ChannelShuffle) for part in net.modules())
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert "train" in train(recipe, tmp_path / "run", progress=False)
