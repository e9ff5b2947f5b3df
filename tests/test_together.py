"""Networks that train together learn what each learns alone."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import plusx
from plusx.nn.together import Together
from plusx.train.optim import make_optimizer
from plusx.train.schedule import cosine
from plusx.train.together import fit_together
from plusx.train.update import Descend, Scaling
from zoo_shrunken import shrunken


COUNT, RATE = 3, cosine(0.05, 20)


def small(name: str) -> plusx.Net:
    """A network of the zoo with few channels, for small grey images."""
    net = shrunken(plusx.find(name), width=16, depth=1)
    return replace(net, size=8, in_channels=1, num_classes=10)


def begun(seed: int, spec: plusx.Net) -> plusx.State:
    """In float64, where learning from noise does not make roundings large in a few steps."""
    net = plusx.create_model(spec, seed=seed).double()
    task = plusx.prepare(plusx.Classify(net), device="cpu")
    return plusx.State(task, make_optimizer(task, lr=0.05), seed)


def batches(seed: int, steps: int, start: int = 0) -> Iterator[plusx.Batch]:
    for step in range(start, steps):
        random = torch.Generator().manual_seed(1000 * seed + step)
        inputs = torch.randn(8, 1, 8, 8, generator=random, dtype=torch.float64)
        yield plusx.Batch(inputs, torch.randint(10, (8,), generator=random))


def learn(
    states: list[plusx.State], steps: int, start: int = 0, update: Descend = plusx.descend
) -> list[list[float]]:
    """The losses of each state."""
    given = zip(*(batches(state.seed, steps, start) for state in states), strict=True)
    told = list(fit_together(states, given, RATE, update))
    return [[report.loss for report in each] for each in zip(*told, strict=True)]


def tensors(state: plusx.State) -> dict[str, Tensor]:
    kept, _ = state.state_dict()
    return {f"{g}.{n}": t.clone() for g, named in kept.items() for n, t in named.items()}


def check_as_alone(states: list[plusx.State], losses: list[list[float]], update: Descend) -> None:
    for state, said in zip(states, losses, strict=True):
        alone = begun(state.seed, state.task.net.spec)
        reports = list(plusx.fit(alone, batches(state.seed, len(said)), RATE, update))
        assert said == pytest.approx([report.loss for report in reports], rel=1e-6)
        for name, tensor in tensors(alone).items():
            torch.testing.assert_close(tensors(state)[name], tensor, rtol=1e-6, atol=1e-6)
        assert state.task.seen["error"] == reports[-1].seen["error"]
        assert state.step == reports[-1].step


@pytest.mark.parametrize("name", ["resnet20", "plain20"])
def test_each_learns_what_it_learns_alone(name: str) -> None:
    states = [begun(seed, small(name)) for seed in range(COUNT)]
    check_as_alone(states, learn(states, 3), plusx.descend)


@pytest.mark.slow
def test_twenty_steps_together_are_twenty_steps_alone() -> None:
    states = [begun(seed, small("resnet20")) for seed in range(COUNT)]
    check_as_alone(states, learn(states, 20), plusx.descend)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet20_b", "preact_resnet56", "se_resnet20", "resnext29_4x64d", "resnet34_a", "resnet50_d"],
)
def test_every_make_that_can_learns_what_it_learns_alone(name: str) -> None:
    states = [begun(seed, small(name)) for seed in range(COUNT)]
    check_as_alone(states, learn(states, 3), plusx.descend)


def test_a_gradient_is_clipped_for_each_by_itself() -> None:
    states, update = [begun(seed, small("plain20")) for seed in range(COUNT)], Descend(clip=0.1)
    check_as_alone(states, learn(states, 3, update=update), update)


@pytest.mark.slow
def test_what_was_saved_goes_on_to_the_bit() -> None:
    spec = small("resnet20")
    states = [begun(seed, spec) for seed in range(COUNT)]
    whole = learn(states, 4)
    halves = [begun(seed, spec) for seed in range(COUNT)]
    first = learn(halves, 2)
    others = [begun(seed + 7, spec) for seed in range(COUNT)]
    for half, other in zip(halves, others, strict=True):
        kept, values = half.state_dict()
        other.load_state_dict(
            {g: {n: t.clone() for n, t in m.items()} for g, m in kept.items()}, values
        )
    second = learn(others, 4, start=2)
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    for state, other in zip(states, others, strict=True):
        found = tensors(other)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors(state).items())


def test_a_network_is_used_alone_while_it_is_part_of_all() -> None:
    states = [begun(seed, small("resnet20")) for seed in range(COUNT)]
    given = zip(*(batches(seed, 3) for seed in range(COUNT)), strict=True)
    reports = fit_together(states, given, RATE)
    next(reports)
    images = next(batches(9, 1)).inputs
    before = [state.task.eval().predict(images) for state in states]
    assert len(list(reports)) == 2  # evaluation mode in between is undone
    assert states[0].task.training
    for state, answers in zip(states, before, strict=True):
        assert not torch.allclose(state.task.eval().predict(images), answers)
    joined = Together([state.task.net for state in states]).eval()
    with torch.no_grad():
        answers = joined([images] * COUNT)
        for state, each in zip(states, answers, strict=True):
            torch.testing.assert_close(each, state.task.net.eval()(images))


def test_a_frozen_norm_and_frozen_weights_stay() -> None:
    states = [begun(seed, small("resnet20")) for seed in range(COUNT)]
    for state in states:
        state.task.net.bn1.eval()
        state.task.net.conv1.weight.requires_grad_(False)
    before = [tensors(state) for state in states]
    learn(states, 2)
    for state, old in zip(states, before, strict=True):
        new = tensors(state)
        for name in ("bn1.running_mean", "bn1.num_batches_tracked", "conv1.weight"):
            assert torch.equal(new[f"weights.net.{name}"], old[f"weights.net.{name}"])
        count = "weights.net.layer1.0.bn1.num_batches_tracked"
        assert new[count] == old[count] + 2


def test_one_loss_that_is_not_finite_stops_all_before_the_update() -> None:
    states = [begun(seed, small("plain20")) for seed in range(COUNT)]
    before = [tensors(state) for state in states]
    given = [next(batches(seed, 1)) for seed in range(COUNT)]
    given[1].inputs[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 1, .* loss of seed 1 is not finite"):
        next(fit_together(states, [given], RATE))
    for state, old in zip(states, before, strict=True):
        new = tensors(state)
        assert all(torch.equal(new[n], t) for n, t in old.items() if n.endswith("weight"))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("densenet40_12", {}, "concatenates"),
        ("resnet20", {"drop_path": 0.5}, "dropped at random"),
        ("resnet20", {"norm": "layer"}, "ChannelLayerNorm looks at all channels"),
        ("eca_resnet20", {}, "EfficientChannelAttention looks at all channels"),
    ],
)
def test_what_cannot_be_put_together_is_named(
    name: str, changes: dict[str, str | float], words: str
) -> None:
    spec = replace(small(name), **changes)
    with pytest.raises(ValueError, match=words):
        learn([begun(seed, spec) for seed in range(2)], 1)


def test_what_does_not_belong_together_is_refused() -> None:
    one, other = begun(0, small("resnet20")), begun(1, small("plain20"))
    with pytest.raises(ValueError, match="different specs"):
        learn([one, other], 1)
    later = begun(1, small("resnet20"))
    later.step = 1
    with pytest.raises(ValueError, match="stand at one step"):
        learn([one, later], 1)
    for update in (Descend(parts=2), Descend(scaling=Scaling())):
        with pytest.raises(ValueError, match="parts of a batch"):
            learn([one], 1, update=update)
    joined = Together([begun(seed, small("resnet20")).task.net for seed in range(2)])
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="1 batches for 2 networks"):
        joined([images])
    with pytest.raises(ValueError, match="one shape"):
        joined([images, images[:1]])
    with pytest.raises(ValueError, match="no networks"):
        Together([])
