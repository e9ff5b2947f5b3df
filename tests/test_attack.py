"""Attacks stay in their ball, find what is there to find, and leave the network as it was."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plusx.attack import ATTACKS
from plusx.attack.apgd import checkpoints
from plusx.attack.attack import Attack
from plusx.attack.ball import NORMS, Ball
from plusx.attack.goal import Goal
from plusx.attack.pgd import Fgsm, Pgd, ascend
from plusx.attack.square import Square, window_fraction
from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.data.modality.modality import Modality
from plusx.errors import UserError
from plusx.models import create_model
from plusx.tasks.classify import Classify
from plusx.train.loop import fit
from plusx.train.optim import make_optimizer
from plusx.train.state import State


EPS = 0.1  # of digits, whose strokes are coarse
GRADIENTS = [name for name, kind in ATTACKS.items() if kind.needs_gradient]


def attack(name: str, **fields: object) -> Attack:
    steps = {"steps": 10} if "steps" not in fields else {}
    return ATTACKS[name](**{**steps, **fields})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Victim:
    """A network trained on digits, and 96 of its validation images."""

    net: nn.Module
    pixels: Tensor
    labels: Tensor
    batch: Batch
    modality: object

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.net(self.modality.from_pixels(pixels))

    def accuracy(self, pixels: Tensor) -> float:
        with torch.no_grad():
            return float((self(pixels).argmax(1) == self.labels).float().mean())


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.skip = nn.Conv2d(16, 16, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = (x + self.drop(self.skip(x))).relu()
        return self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def victim() -> Victim:
    torch.manual_seed(0)
    state = State(task := Classify(Small()), make_optimizer(task, "sgd", lr=0.1), seed=0)
    with Loader("digits", batch_size=64, seed=0) as loader:
        for epoch in range(8):
            for _ in fit(state, loader.epoch(epoch)):
                pass
    with Loader("digits", split="validation", batch_size=96) as loader:
        modality, batch = loader.dataset.modality, next(iter(loader.epoch(0)))
    task.eval()
    return Victim(task.net, modality.to_pixels(batch.inputs), batch.known_targets, batch, modality)


@st.composite
def linear_victims(draw):
    """A random linear network on pixels, with a batch of random size and some dimensions."""
    shape = draw(st.sampled_from([(1, 4, 4), (3, 5, 2), (2, 7), (1, 3, 2, 4)]))
    n, k = draw(st.integers(1, 4)), draw(st.integers(4, 6))
    generator = rng(draw(st.integers(0, 99)))
    weights = torch.randn(math.prod(shape), k, generator=generator)
    pixels = torch.rand(n, *shape, generator=generator).round(decimals=draw(st.integers(0, 3)))
    labels = torch.randint(k, (n,), generator=generator)
    return (lambda x: x.flatten(1) @ weights), pixels, labels


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=15)
@given(case=linear_victims(), eps=st.sampled_from([0.0, 1 / 255, 8 / 255, 0.5, 2.0]))
def test_a_perturbation_is_inside_the_ball_and_the_range(name, norm, case, eps):
    if norm not in ATTACKS[name].norms:
        pytest.skip("not for this norm")
    logits_of, pixels, labels = case
    before = pixels.clone()
    perturbed = attack(name, norm=norm, eps=eps, steps=6, restarts=2)(
        logits_of, pixels, labels, rng()
    )
    assert perturbed.shape == pixels.shape
    assert torch.equal(pixels, before)
    assert (NORMS[norm].size(perturbed - pixels) <= eps + 1e-7).all()
    assert ((perturbed >= 0) & (perturbed <= 1)).all()
    if eps == 0:
        assert torch.equal(perturbed, pixels)


def test_pixels_outside_the_range_keep_their_value():
    clean = torch.tensor([[-0.2, 0.5, 1.3]])
    moved = Ball("linf", 0.1).project(torch.tensor([[-0.9, 0.9, 1.9]]), clean)
    torch.testing.assert_close(moved, torch.tensor([[-0.2, 0.6, 1.3]]))


@given(
    low=st.integers(-3, 3), levels=st.sampled_from([1, 255, 4095, 65535]), seed=st.integers(0, 99)
)
@settings(max_examples=25)
def test_stored_values_come_back_from_pixels_bit_for_bit(low, levels, seed):
    from plusx.data.modality.bands import BandsModality

    generator = np.random.default_rng(seed)
    mean, std = (tuple(generator.uniform(0.05, 0.9, 2).tolist()) for _ in range(2))
    modality = BandsModality((6, 5), 2, mean, std, low, low + levels)
    values = torch.from_numpy(generator.integers(low, low + levels + 1, (3, 2, 6, 5)))
    inputs = modality.normalise(values.float())
    pixels = modality.to_pixels(inputs)
    assert ((pixels >= 0) & (pixels <= 1)).all()
    assert torch.equal(modality.from_pixels(pixels), inputs)
    # what is not a stored value changes by rounding alone
    noise = inputs + 0.3 / levels
    torch.testing.assert_close(modality.from_pixels(modality.to_pixels(noise)), noise)


def test_texts_have_no_pixels():
    class Words(Modality):
        noun = "text"

    with pytest.raises(UserError, match="texts, which have no pixels"):
        Words().to_pixels(torch.zeros(1, 9))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_network_does_not_change(victim, name):
    victim.net.zero_grad()
    before = {key: value.clone() for key, value in victim.net.state_dict().items()}
    attack(name, eps=EPS)(victim, victim.pixels, victim.labels, rng())
    assert all(torch.equal(before[key], value) for key, value in victim.net.state_dict().items())
    assert not any(module.training for module in victim.net.modules())
    assert all(p.grad is None and p.requires_grad for p in victim.net.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_reproduced_by_its_seed(victim, name):
    first, second = (
        attack(name, eps=EPS)(victim, victim.pixels[:8], victim.labels[:8], rng(5))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_attacks_are_ordered_by_strength(victim):
    def accuracy(name: str, **fields: object) -> float:
        adversarial = attack(name, **fields)(victim, victim.pixels, victim.labels, rng())
        return victim.accuracy(adversarial)

    clean = victim.accuracy(victim.pixels)
    fgsm, pgd, apgd, apgd_t, square = (
        accuracy(name, eps=EPS, steps=200 if name == "square" else 20) for name in ATTACKS
    )
    assert clean > 0.9
    assert pgd <= fgsm < clean
    assert apgd <= pgd + 0.02
    assert apgd_t <= pgd + 0.02
    assert pgd <= square < clean
    # eps 0 is the clean accuracy, exactly, and the accuracy falls with eps, to 0
    by_eps = [accuracy("pgd", eps=eps, steps=20) for eps in (0.0, 0.05, 0.1, 0.2, 1.0)]
    assert by_eps[0] == clean
    assert by_eps == sorted(by_eps, reverse=True)
    assert by_eps[-1] == 0
    assert accuracy("apgd-ce", norm="l2", eps=8.0) == 0
    assert accuracy("pgd", eps=EPS, steps=20, restarts=3) <= pgd


def test_a_planted_adversarial_example_is_found():
    """Only one corner of the ball, of 2 to the power of 12, is predicted wrongly."""
    generator = rng(3)
    corner = torch.randint(2, (12,), generator=generator) * 2.0 - 1
    clean = torch.full((5, 1, 3, 4), 0.5)

    def logits_of(pixels: Tensor) -> Tensor:
        along = ((pixels - 0.5).flatten(1) * corner).sum(1)
        z = torch.stack([torch.zeros_like(along), along - 0.1 * 12 + 1e-3], 1)
        return torch.cat([z, torch.full_like(z, -9.0)], 1)

    labels = torch.zeros(5, dtype=torch.int64)
    random = [Ball("linf", 0.1).random(clean, rng(i)) for i in range(100)]
    assert all((logits_of(pixels).argmax(1) == 0).all() for pixels in random)
    for name in ATTACKS:
        steps = 400 if name == "square" else 20
        perturbed = attack(name, eps=0.1, steps=steps)(logits_of, clean, labels, rng())
        assert (logits_of(perturbed).argmax(1) == 1).all(), name
        torch.testing.assert_close((perturbed - clean).flatten(1), (0.1 * corner).expand(5, -1))
        weaker = attack(name, eps=0.0999, steps=steps)(logits_of, clean, labels, rng())
        assert (logits_of(weaker).argmax(1) == 0).all(), name


def test_a_targeted_attack_leads_to_its_class(victim):
    targets = (victim.labels + 1) % 10
    perturbed = Pgd(eps=0.5, steps=30)(victim, victim.pixels, victim.labels, rng(), targets)
    with torch.no_grad():
        assert (victim(perturbed).argmax(1) == targets).float().mean() > 0.9


def test_fgsm_is_one_step_of_the_sign(victim):
    inputs = victim.batch.inputs.clone().requires_grad_()
    nn.functional.cross_entropy(victim.net(inputs), victim.labels).backward()
    expected = (victim.pixels + EPS * inputs.grad.sign()).clamp(0, 1)
    victim.net.zero_grad()
    is_correct = victim.net(victim.batch.inputs).argmax(1) == victim.labels
    perturbed = Fgsm(eps=EPS)(victim, victim.pixels, victim.labels)
    torch.testing.assert_close(perturbed[is_correct], expected[is_correct])


def test_apgd_adapts_its_step_at_the_iterations_of_the_paper():
    # Croce and Hein 2020, section 3.1, for 100 iterations
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_apgd_halves_its_steps_until_they_are_short_enough():
    """The wrong prediction is in a small ball inside the allowed one, which 2 eps steps over."""
    clean = torch.full((6, 1, 2, 2), 0.5)
    centre = torch.tensor([[[0.53, 0.46], [0.51, 0.52]]])

    def logits_of(pixels: Tensor) -> Tensor:
        inside = 0.004 - (pixels - centre).flatten(1).norm(dim=1)
        return torch.stack([torch.zeros_like(inside), inside], 1)

    labels = torch.zeros(6, dtype=torch.int64)
    perturbed = attack("apgd-ce", eps=0.1, steps=100)(logits_of, clean, labels, rng())
    assert (logits_of(perturbed).argmax(1) == 1).all()


def test_windows_of_square_shrink_as_in_the_paper():
    fractions = [window_fraction(step, 10_000) for step in (0, 10, 11, 51, 201, 8001)]
    assert fractions == [0.8, 0.8, 0.4, 0.2, 0.1, 0.8 / 512]


def test_the_loss_of_a_batch_is_ascended(victim):
    """As for masks and boxes: any loss, of all samples together."""
    task, ball = Classify(victim.net).eval(), Ball("linf", EPS)

    def loss_of(pixels: Tensor) -> Tensor:
        return task(replace(victim.batch, inputs=victim.modality.from_pixels(pixels)))

    perturbed = ascend(loss_of, victim.pixels, victim.pixels, ball, 10, EPS / 4)
    assert loss_of(perturbed).item() > 3 * loss_of(victim.pixels).item()
    assert (NORMS["linf"].size(perturbed - victim.pixels) <= EPS + 1e-7).all()


def test_a_gradient_of_any_scale_gives_a_step_of_norm_1():
    gradient = torch.randn(3, 2, 5, generator=rng())
    for scale in (1e-36, 1.0, 1e30):
        torch.testing.assert_close(
            Ball("l2", 1.0).direction(scale * gradient).flatten(1).norm(dim=1), torch.ones(3)
        )
    assert (Ball("l2", 1.0).direction(torch.zeros(1, 3)) == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": -0.1}, "eps = -0.1: a number of 0 or above"),
        ({"eps": math.nan}, "eps = nan"),
        ({"steps": 0}, "steps = 0: at least 1"),
        ({"restarts": 0}, "restarts = 0: at least 1"),
        ({"norm": "l1"}, "norm = 'l1': allowed are linf and l2"),
    ],
)
@pytest.mark.parametrize("name", ATTACKS)
def test_bad_values_are_named(name, fields, message):
    with pytest.raises(UserError, match=message):
        ATTACKS[name](**fields)


def test_limits_of_attacks_are_named():
    with pytest.raises(UserError, match="Square is for linf"):
        Square(norm="l2")
    with pytest.raises(UserError, match="APGD-T needs at least 4 classes; the network has 3"):
        attack("apgd-t")(lambda x: x[:, :3, 0, 0], torch.rand(2, 3, 1, 1), torch.tensor([0, 1]))


def test_an_attack_is_added_by_one_class():
    @dataclass(frozen=True, kw_only=True)
    class Blank(Attack):
        title = "Blank"

        def search(self, logits_of, clean, goal: Goal, generator):
            pixels = self.ball.project(torch.zeros_like(clean), clean)
            return pixels, goal.reached(logits_of(pixels))

    perturbed = Blank(eps=1.0)(lambda x: x[:, :, 0], torch.eye(2)[:, :, None], torch.tensor([1, 1]))
    # the first is wrong already; the second is predicted as class 0 in a tie
    assert torch.equal(perturbed[:, :, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_networks_of_the_zoo_can_be_attacked():
    net = create_model("resnet20", num_classes=4, seed=0).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=rng())
    with torch.no_grad():
        labels = net(pixels).argmax(1)
    perturbed = Pgd(eps=1.0, steps=20)(net, pixels, labels, rng())
    with torch.no_grad():
        assert (net(perturbed).argmax(1) != labels).all()
