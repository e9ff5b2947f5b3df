"""Updates against NumPy, the loop against what it promises."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

import plusx
from plusx.data.batch import Batch
from plusx.metrics.meter import Meter
from plusx.tasks.classify import Classify
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.train.loop import fit, reseed
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant, steps
from plusx.train.state import State
from plusx.train.update import GradientStep, Scaling, with_ema


class Line(Task):
    """Least squares in one layer: its gradient is known by hand."""

    def __init__(self, width: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.net = nn.Linear(width, 1, bias=False, dtype=dtype)
        self.net.weight.data.copy_(torch.linspace(-1, 1, width)[None])
        self.steps_seen = 0

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        return (self.net(batch.inputs)[:, 0] - batch.targets).square().mean()

    def predict(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def meters(self) -> list[Meter]:
        return []

    def after_step(self) -> None:
        self.steps_seen += 1


def sample(step: int, n: int = 6, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(n, 3, generator=generator, dtype=dtype)
    return Batch(x, x.sum(1) + torch.randn(n, generator=generator, dtype=dtype))


def slope(w: np.ndarray, batch: Batch) -> np.ndarray:
    x, y = batch.inputs.numpy(), batch.targets.numpy()
    return 2 * x.T @ (x @ w - y) / len(y)


def weights(task: Task) -> np.ndarray:
    return task.net.weight.detach().numpy()[0].copy()


def begin(kind: str = "sgd", task: Task | None = None, **options) -> State:
    task = task or Line()
    return State(task, make_optimizer(task, kind, **options))


def convolutional(seed: int = 0, norm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(4 * 36, 3),
    )


def images(step: int = 0, n: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(
        torch.randn(n, 2, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator)
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_its_definition(nesterov):
    state = begin(momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    w, v = weights(state.task), np.zeros(3)
    for report in fit(state, (sample(s) for s in range(6)), steps(0.1, [3])):
        g = slope(w, sample(report.step - 1)) + 0.01 * w
        v = 0.9 * v + g
        w = w - (0.1 if report.step <= 3 else 0.01) * (g + 0.9 * v if nesterov else v)
        np.testing.assert_allclose(weights(state.task), w, rtol=1e-12)


def test_adamw_is_that_of_the_paper():
    state = begin("adamw", weight_decay=0.1, betas=(0.8, 0.95))
    w, m, v = weights(state.task), np.zeros(3), np.zeros(3)
    for report in fit(state, (sample(s) for s in range(6)), constant(0.05)):
        g, t = slope(w, sample(report.step - 1)), report.step
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        change = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        w = w - 0.05 * (change + 0.1 * w)
        np.testing.assert_allclose(weights(state.task), w, rtol=1e-10)


def test_lars_is_that_of_the_paper():
    """Algorithm 1 of You et al. 2017: the local rate, and the rate inside of the momentum."""
    state = begin("lars", weight_decay=0.1, momentum=0.8, trust=0.02)
    w, v = weights(state.task), np.zeros(3)
    for report in fit(state, (sample(s) for s in range(6)), steps(2.0, [3])):
        g = slope(w, sample(report.step - 1))
        norm, rate = np.linalg.norm, 2.0 if report.step <= 3 else 0.2
        local = 0.02 * norm(w) / (norm(g) + 0.1 * norm(w))
        v = 0.8 * v + rate * local * (g + 0.1 * w)
        w = w - v
        np.testing.assert_allclose(weights(state.task), w, rtol=1e-10)


def test_lamb_is_that_of_the_paper():
    """Algorithm 2 of You et al. 2020."""
    state = begin("lamb", weight_decay=0.1, betas=(0.8, 0.95))
    w, m, v = weights(state.task), np.zeros(3), np.zeros(3)
    for report in fit(state, (sample(s) for s in range(6)), constant(0.05)):
        g, t = slope(w, sample(report.step - 1)), report.step
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        u = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6) + 0.1 * w
        w = w - 0.05 * np.linalg.norm(w) / np.linalg.norm(u) * u
        np.testing.assert_allclose(weights(state.task), w, rtol=1e-10)


@pytest.mark.parametrize("kind", ["lars", "lamb"])
def test_biases_and_norms_keep_the_rate_and_weights_of_zero_move(kind):
    task = Classify(convolutional())
    optimizer = make_optimizer(task, kind, lr=0.1, weight_decay=0.1, decay_norms=False)
    filters, others = optimizer.param_groups
    assert all(p.ndim > 1 for p in filters["params"])
    assert all(p.ndim == 1 for p in others["params"])
    assert (filters["adapt"], others["adapt"], others["weight_decay"]) == (True, False, 0.0)
    with torch.no_grad():
        for p in task.parameters():
            p.zero_()
            p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.isfinite(p).all() and p.abs().min() > 0 for p in task.parameters())


def test_a_clipped_gradient_has_the_norm_allowed_and_a_short_one_is_left_alone():
    for limit in (0.5, 1e6):
        state = begin(momentum=0.0, weight_decay=0.0)
        before = weights(state.task)
        g = slope(before, sample(0))
        next(fit(state, [sample(0)], constant(0.1), GradientStep(clip=limit)))
        expected = g * min(1, limit / np.linalg.norm(g))
        np.testing.assert_allclose((before - weights(state.task)) / 0.1, expected, rtol=1e-5)


def test_the_average_is_the_exponential_one_of_weights_and_statistics():
    task = Classify(convolutional())
    state = State(task, make_optimizer(task))
    names = ["net.0.weight", "net.1.running_mean", "net.1.running_var"]
    expected = {n: task.state_dict()[n].double().numpy().copy() for n in names}
    for report in fit(
        state, (images(s) for s in range(5)), constant(0.1), with_ema(GradientStep(), 0.3)
    ):
        d = min(0.3, report.step / (report.step + 9))
        for n in names:
            now = task.state_dict()[n].double().numpy()
            expected[n] = d * expected[n] + (1 - d) * now
            np.testing.assert_allclose(state.ema.state_dict()[n], expected[n], rtol=2e-5, atol=1e-7)
    assert int(state.ema.state_dict()["net.1.num_batches_tracked"]) == 5
    assert not any(p.requires_grad for p in state.ema.parameters())


@pytest.mark.parametrize("accumulation", [2, 5, 50])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(accumulation):
    gradients, losses, errors = [], [], []
    for count in (1, accumulation):
        task = Classify(convolutional(norm=False), class_weights=[1.0, 2.0, 0.5])
        state = State(task, make_optimizer(task, momentum=0.0, weight_decay=0.0))
        before = [p.detach().clone() for p in task.parameters()]
        report = next(fit(state, [images()], constant(1.0), GradientStep(accumulation_steps=count)))
        gradients.append([b - p.detach() for b, p in zip(before, task.parameters())])
        losses.append(report.loss)
        errors.append(report.scalars["error"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert errors[1] == pytest.approx(errors[0])
    largest = max(float(g.abs().max()) for g in gradients[0])
    # Read off the weights, so a rounding of theirs comes on top of the documented 1e-6.
    for whole, summed in zip(*gradients):
        assert float((whole - summed).abs().max()) <= 2e-6 * max(largest, 1)


def test_fused_optimizers_keep_to_the_memory_format():
    """They walk through memory; in another format than the weights the sum would be nonsense."""
    results = []
    for channels_last in (False, True):
        task = prepare(Classify(convolutional()), device="cpu", channels_last=channels_last)
        state = State(task, make_optimizer(task, nesterov=True))
        list(fit(state, (images(s) for s in range(2)), constant(0.1)))
        tensors, values = state.state_dict()
        tensors = {g: {k: t.contiguous().clone() for k, t in n.items()} for g, n in tensors.items()}
        state.load_state_dict(tensors, values)
        list(fit(state, (images(s) for s in range(2, 4)), constant(0.1)))
        results.append([p.detach().clone() for p in task.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("channels_last", [False, True])
def test_sgd_is_torchs_to_the_bit_in_either_layout(momentum, channels_last):
    results = []
    for other in (False, True):
        task = prepare(Classify(convolutional()), device="cpu", channels_last=channels_last)
        optimizer = make_optimizer(task, momentum=momentum, nesterov=momentum > 0)
        if other:
            optimizer = torch.optim.SGD(
                task.parameters(), 0.1, momentum, weight_decay=1e-4, nesterov=momentum > 0,
                fused=True,
            )  # fmt: skip
        list(fit(State(task, optimizer), (images(s) for s in range(3)), constant(0.1)))
        results.append([p.detach().clone() for p in task.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_gradient_in_another_layout_than_its_parameter_is_brought_into_it():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        task = prepare(Classify(convolutional()), device="cpu")
        optimizer = make_optimizer(task)
        for p in task.parameters():
            p.grad = torch.arange(p.numel()).reshape(p.shape).float()
            if p.ndim == 4:
                p.grad = p.grad.contiguous(memory_format=layout)
        optimizer.step()
        results.append([p.detach().clone() for p in task.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_norm_in_evaluation_mode_stays_frozen_but_not_a_task_in_it():
    task = Classify(convolutional())
    norms = [part for part in task.modules() if isinstance(part, nn.BatchNorm2d)]
    norms[0].eval()
    before = norms[0].running_mean.clone()
    reports = fit(State(task, make_optimizer(task)), (images(s) for s in range(3)), constant(0.1))
    next(reports)
    task.eval()  # undone by the next step, for the frozen one too
    assert len(list(reports)) == 2
    assert torch.equal(norms[0].running_mean, before)
    assert not norms[0].training
    assert all(part.training for part in task.modules() if part is not norms[0])
    task.net.eval()
    list(fit(State(task, make_optimizer(task)), [images()], constant(0.1)))
    assert norms[0].training
    assert not torch.equal(norms[0].running_mean, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "update",
    [GradientStep(), GradientStep(clip=1.0, accumulation_steps=2), with_ema(GradientStep())],
)
def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(bad, update):
    state = begin(momentum=0.9)
    list(fit(state, (sample(s) for s in range(2)), constant(0.1), update))
    before, moved = weights(state.task), state.optimizer.state[state.task.net.weight]
    velocity = moved["momentum_buffer"].clone()
    batch = sample(2)
    batch.targets[4] = bad
    with pytest.raises(FloatingPointError, match=r"step 3, rate 0.1: the loss is (nan|inf)"):
        next(fit(state, [batch], constant(0.1), update))
    assert weights(state.task).tobytes() == before.tobytes()
    assert torch.equal(moved["momentum_buffer"], velocity)
    assert state.step == 2
    assert state.task.net.weight.grad is None
    # The run can go on from here.
    assert next(fit(state, [sample(2)], constant(0.1), update)).step == 3


def test_a_gradient_that_is_not_finite_is_not_clipped_into_the_weights():
    class Root(Line):
        def forward(self, batch: Batch) -> Float[Tensor, ""]:
            return (self.net.weight.sum() * 0).sqrt()  # 0, with an infinite slope

    state = begin(task=Root())
    before = weights(state.task)
    with pytest.raises(FloatingPointError, match="norm of the gradient"):
        next(fit(state, [sample(0)], constant(0.1), GradientStep(clip=1.0)))
    assert weights(state.task).tobytes() == before.tobytes()


def test_scaling_does_not_change_a_finite_gradient():
    results = []
    for update in (GradientStep(clip=1e6), GradientStep(clip=1e6, scaling=Scaling())):
        state = begin(task=Line(dtype=torch.float32))
        list(fit(state, (sample(s, dtype=torch.float32) for s in range(4)), constant(0.1), update))
        results.append(weights(state.task).tobytes())
    assert results[0] == results[1]


def test_scaling_halves_on_overflow_leaves_the_step_out_and_doubles_after_patience():
    state = begin(task=Line(dtype=torch.float32), weight_decay=0.0)
    update = GradientStep(scaling=Scaling(start=2.0**120, patience=3))
    huge = Batch(torch.full((2, 3), 100.0), torch.full((2,), 1e6))
    before = weights(state.task)
    reports = fit(state, [huge] * 60, constant(1e-9), update)
    report = next(reports)
    assert np.isfinite(report.loss)
    assert state.loss_scale == 2.0**119
    assert weights(state.task).tobytes() == before.tobytes()

    scales = []
    for _ in range(40):
        next(reports)
        scales.append(state.loss_scale)
    assert weights(state.task).tobytes() != before.tobytes()
    turn = scales.index(min(scales))
    # Found a scale that works, kept it for three steps, tried the next and came back.
    assert scales[turn : turn + 4] == [scales[turn]] * 3 + [2 * scales[turn]]

    values = state.state_dict()[1]
    restored = begin(task=Line(dtype=torch.float32))
    restored.load_state_dict(*state.state_dict())
    assert (restored.loss_scale, restored.clean_steps) == (
        values["loss_scale"],
        values["clean_steps"],
    )


def test_scaling_ends_with_an_error_at_the_smallest_scale():
    class Root(Line):
        def forward(self, batch: Batch) -> Float[Tensor, ""]:
            return (self.net.weight.sum() * 0).sqrt()

    state = begin(task=Root())
    before = weights(state.task)
    with pytest.raises(FloatingPointError, match="not finite at a loss scale of"):
        list(fit(state, [sample(0)] * 99, constant(0.1), GradientStep(scaling=Scaling())))
    assert weights(state.task).tobytes() == before.tobytes()
    assert state.step < 40


def test_float16_learns_on_this_machine():
    task = prepare(Classify(convolutional()), device="cpu", precision="float16")
    state = State(task, make_optimizer(task))
    losses = [
        r.loss for r in fit(state, [images()] * 15, constant(0.05), GradientStep(scaling=Scaling()))
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_reports_have_step_rate_and_scalars():
    task = Classify(convolutional())
    state = State(task, make_optimizer(task))
    reports = list(fit(state, (images(s) for s in range(4)), steps(0.1, [2])))
    assert [r.step for r in reports] == [1, 2, 3, 4]
    assert [r.lr for r in reports] == [0.1, 0.1, 0.01, 0.01]
    assert all(
        set(r.scalars) == {"error"} and isinstance(r.scalars["error"], float) for r in reports
    )
    assert state.step == 4


def test_after_step_is_called_once_a_step_and_evaluation_in_between_is_undone():
    state = begin()
    for report in fit(state, (sample(s) for s in range(3)), constant(0.1)):
        state.task.eval()
        assert state.task.steps_seen == report.step
    assert state.task.training is False
    next(fit(state, [sample(3)], constant(0.1)))
    assert state.task.training is True


def test_dropout_depends_on_seed_and_step_alone():
    def outcome(seed: int, disturb: bool) -> bytes:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        task = Classify(net)
        state = State(task, make_optimizer(task), seed=seed)
        batch = Batch(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
        for _ in fit(state, [batch] * 3, constant(0.1)):
            if disturb:
                torch.rand(17)
        return net[0].weight.detach().numpy().tobytes()

    assert outcome(1, False) == outcome(1, True)
    assert outcome(1, False) != outcome(2, False)
    assert outcome(1, False) != outcome(1 + 2**32, False)


def test_neighbouring_seeds_and_steps_draw_differently():
    draws = set()
    for seed in range(30):
        for step in range(30):
            reseed(seed, step, torch.device("cpu"))
            draws.add(float(torch.rand((), dtype=torch.float64)))
    assert len(draws) == 900


def test_what_does_not_decay_is_norms_biases_and_scales():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(4, 1, 1))
            self.position = nn.Parameter(torch.ones(4, 6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma + self.position

    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), Scaled(),
        nn.LayerNorm((6, 6)), nn.Flatten(), nn.Linear(144, 1),
    )  # fmt: skip
    task = Classify(net)
    optimizer = make_optimizer(task, weight_decay=0.1, decay_norms=False)
    names = {p: n for n, p in task.named_parameters()}
    decays, spared = optimizer.param_groups
    assert (decays["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {names[p] for p in decays["params"]} == {
        "net.0.weight",
        "net.3.position",
        "net.6.weight",
    }
    assert len(spared["params"]) == len(names) - 3
    assert len(make_optimizer(task, weight_decay=0.1).param_groups) == 1


def test_frozen_parameters_are_left_out():
    task = Classify(convolutional())
    task.net[0].requires_grad_(False)
    frozen = task.net[0].weight.clone()
    state = State(task, make_optimizer(task))
    list(fit(state, [images()], constant(0.1)))
    assert torch.equal(task.net[0].weight, frozen)
    restored = State(task, make_optimizer(task))
    restored.load_state_dict(*state.state_dict())
    assert restored.step == 1


def test_an_optimizer_of_another_network_is_refused():
    task = plusx.Classify(plusx.create_model("resnet20", seed=0))
    other = plusx.create_model("resnet20", seed=0)
    with pytest.raises(plusx.UserError, match="parameters that are not the task's"):
        plusx.State(task, torch.optim.SGD(other.parameters(), lr=0.1))


def test_a_state_of_other_parameters_is_refused():
    task = Classify(convolutional())
    state = State(task, make_optimizer(task))
    saved = state.state_dict()
    other = Classify(convolutional(norm=False))
    with pytest.raises(
        ValueError,
        match=r"net.1.bias, net.1.weight are not in this task; none is not in the saved state",
    ):
        State(other, make_optimizer(other)).load_state_dict(*saved)
    with pytest.raises(ValueError, match="was decay_norms changed"):
        State(task, make_optimizer(task, decay_norms=False)).load_state_dict(*saved)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GradientStep(clip=0.0), "clip is 0.0"),
        (lambda: GradientStep(accumulation_steps=0), "accumulation_steps is 0"),
        (lambda: with_ema(GradientStep(), 1.0), "decay is 1.0"),
        (lambda: make_optimizer(Line(), "adam"), "'adam'; allowed are sgd, adamw, lars, lamb"),
        (lambda: make_optimizer(Line().requires_grad_(False)), "nothing can be trained"),
    ],
)
def test_invalid_updates_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


MISUSE = """
import plusx, torch
net = plusx.create_model("resnet20", num_classes=2, seed=0)
task = plusx.Classify(net)
sgd = torch.optim.SGD(task.parameters(), lr=0.1)
plusx.save(net, "net.safetensors", classes=["a", "b"], preprocessing={
    "size": [8, 8], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3})
predictor = plusx.load("net.safetensors")
for call in (
    lambda: plusx.State(net, sgd),
    lambda: plusx.evaluate(net, []),
    lambda: plusx.prepare(net),
    lambda: plusx.State(task, None),
    lambda: plusx.State(task, torch.optim.LBFGS(task.parameters())),
    lambda: predictor(3.5),
    lambda: predictor([None]),
):
    try:
        call()
    except plusx.UserError as error:
        print(error)
"""


def test_arguments_of_another_type_are_named(tmp_path):
    """In a process of its own: here the types of all arguments are checked before."""
    done = subprocess.run(
        [sys.executable, "-c", MISUSE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    expected = [
        *["Network is not a Task: plusx.Classify(net) is one"] * 3,
        "State takes an optimizer, not NoneType",
        "LBFGS needs a closure",
        "an input of the type float",
        "an input of the type NoneType",
    ]
    for line, start in zip(done.stdout.splitlines(), expected, strict=True):
        assert line.startswith(start)
