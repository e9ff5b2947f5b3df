"""The loss around the weights, along directions that are normalised filter by filter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from plusx.study.surface import line, plane, random_direction
from test_gradient_study import BASIC, built, small, some_batch, state_of


def loss(net: nn.Module) -> float:
    inputs, targets = some_batch()
    return F.cross_entropy(net(inputs), targets).item()


@settings(max_examples=5)
@given(seed=st.integers(0, 999))
def test_filters_of_a_direction_have_the_norms_of_the_networks_filters(seed: int) -> None:
    net = built(small(BASIC))
    direction = random_direction(net, seed)
    parameters = dict(net.named_parameters())
    assert set(direction) == {name for name, p in parameters.items() if p.ndim > 1}
    assert "fc.weight" in direction
    assert not [name for name in direction if "bn" in name or "bias" in name]
    for name, along in direction.items():
        for random_filter, weights in zip(along, parameters[name], strict=True):
            assert random_filter.norm().item() == pytest.approx(weights.norm().item(), rel=1e-9)
    repeated = random_direction(net, seed)
    assert all(torch.equal(direction[name], repeated[name]) for name in direction)
    other = random_direction(net, seed + 1000)
    flat, another = (torch.cat([t.flatten() for t in d.values()]) for d in (direction, other))
    assert abs(float(flat @ another / flat.norm() / another.norm())) < 0.2


def test_a_filter_of_zero_does_not_move() -> None:
    net = built(small(BASIC))
    nn.init.zeros_(net.layer1[0].conv2.weight)
    assert random_direction(net, 0)["layer1.0.conv2.weight"].abs().sum() == 0


def test_the_loss_is_that_of_the_moved_weights_and_all_is_put_back() -> None:
    net = built(small(BASIC)).train()
    directions = (random_direction(net, 0), random_direction(net, 1))
    before = state_of(net)
    losses = plane(net, loss, directions, [-0.5, 0.0, 1.0], [0.0, 0.25])
    along = line(net, loss, directions[0], [-0.5, 0.0, 1.0])
    assert state_of(net) == before
    assert losses[0] == along
    net.eval()
    assert losses[0][1] == pytest.approx(loss(net), rel=1e-12)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in directions[0]:
                parameter += directions[0][name] + 0.25 * directions[1][name]
    assert losses[1][2] == pytest.approx(loss(net), rel=1e-9)
    assert losses[1][2] != pytest.approx(losses[0][2], rel=1e-3)


def test_a_quadratic_has_its_parabola() -> None:
    """|w + a d|^2 with d as long as w, and nothing else to move."""
    net = nn.Linear(6, 1, bias=False).double()
    direction = random_direction(net, 0)
    w, d = net.weight.detach(), direction["weight"]

    def square(net: nn.Module) -> float:
        return net.weight.square().sum().item()

    steps = [-1.0, -0.5, 0.0, 2.0]
    expected = [float(w.square().sum() * (1 + a * a) + 2 * a * (w * d).sum()) for a in steps]
    assert line(net, square, direction, steps) == pytest.approx(expected, rel=1e-12)


def test_weights_are_put_back_when_an_evaluation_fails() -> None:
    net = built(small(BASIC))
    before = state_of(net)

    def fails(_net: nn.Module) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        line(net, fails, random_direction(net, 0), [1.0])
    assert state_of(net) == before


def test_a_direction_of_another_network_is_refused() -> None:
    other = random_direction(built(small(BASIC, depth=4)), 0)
    with pytest.raises(ValueError, match=r"does not match the network: parameter layer1\.3"):
        line(built(small(BASIC)), loss, other, [0.0])
