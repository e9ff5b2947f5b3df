"""Errata of the texts that need more than a count."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from statistics import mean

import torch
from torch import Tensor, nn

from plusx.data.loader import batches
from plusx.errors import UserError
from plusx.evidence.claim import SEEDS, Claim, spec
from plusx.evidence.training import imagenet, published_metrics
from plusx.evidence.verdict import Check, Options, Outcome
from plusx.grammar.arithmetic import each_dimension
from plusx.grammar.spec import Net
from plusx.grammar.twins import without_norm
from plusx.models import create_model
from plusx.nn.build import build
from plusx.nn.init import initialise
from plusx.statistics import mean_interval
from plusx.study.consistency import check, confirm, network_count
from plusx.study.gradients import BlockGradient, block_gradients, gradient_ratio
from plusx.study.printed import read_tables
from plusx.tasks.classify import Classify
from plusx.train.loop import fit
from plusx.train.schedule import constant
from plusx.train.state import State


TABLES = "text1.toml"
IMAGES = 64  # for which gradients are measured
RATE, BATCH = 0.05, 64  # of the few training steps
ROUNDS, REPEATS = 8, 3  # of time measurements
TIMED_SIZE = 160  # of images of networks for larger ones, whose time is measured


def gradient_ratios(claim: Claim, options: Options) -> Outcome:
    """log10 of the gradient at the first block's output over that at the last block's, by seed.

    The inputs are the first digits if the claim's data is digits, else random images of CIFAR's
    shape; the loss is the cross-entropy.
    """
    images = IMAGES // 4 if options.quick else IMAGES
    ratios = [gradient_ratio(gradients) for gradients in _gradients(claim, images)]
    return Outcome(
        values=tuple(map(_log10, ratios)),
        exact=False,
        seeds=tuple(range(len(ratios))),
        shown=(f"first over last block, by seed: {', '.join(map(_ratio, ratios))}",),
        smaller=f"{images} images in place of {IMAGES}" if options.quick else "",
    )


def first_gradient(claim: Claim, options: Options) -> Outcome:
    """The number of seeds with a gradient other than 0 in the output of the first block."""
    norms = [gradients[0].outputs for gradients in _gradients(claim, IMAGES)]
    shown = f"gradient at the first block, by seed: {', '.join(f'{norm:.3g}' for norm in norms)}"
    return Outcome(values=(float(sum(norm > 0 for norm in norms)),), shown=(shown,))


def cheaper_networks(claim: Claim, options: Options) -> Outcome:
    """The number of networks in `beside` that take fewer MACs than `against`. The claim's network
    is shown and not counted."""
    limit = network_count(claim.against, "multiply_adds")
    names = (claim.against, *claim.beside, claim.network)
    shown, cheaper = [], 0
    for name in names:
        count = network_count(name, "multiply_adds")
        cheaper += name in claim.beside and count < limit
        shown.append(f"{name}: {count:,} multiply-adds, {count / limit:.2f} times")
    return Outcome(values=(float(cheaper),), shown=tuple(shown))


def seconds_ratio(claim: Claim, options: Options) -> Outcome:
    """Processor seconds of a training step of one network over those of another, on one thread. The
    values are those of the rounds; a round takes the quickest of a few steps of each, which
    alternate."""
    names, images = (claim.network, claim.against), claim.settings.images
    rounds = 5 if options.quick else ROUNDS
    with _one_thread():
        steps = [_step(name, images) for name in names]
        for step in steps:
            step()
        seconds = []
        for _ in range(rounds):
            repeats = [[_seconds(step) for step in steps] for _ in range(REPEATS)]
            seconds.append([min(column) for column in zip(*repeats, strict=True)])
    shown = [
        f"{name}: {min(row[i] for row in seconds):.3f} s at best" for i, name in enumerate(names)
    ]
    ratios = [first / second for first, second in seconds]
    interval = mean_interval(ratios)
    ends = "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    return Outcome(
        values=tuple(ratios),
        exact=False,
        shown=(
            *shown,
            f"ratio {mean(ratios):.3f}{ends}, {rounds} rounds",
            f"processor time of one thread, {images} image{'' if images == 1 else 's'} a step",
        ),
        smaller=f"{rounds} rounds in place of {ROUNDS}" if options.quick else "",
    )


def _step(name: str, images: int) -> Callable[[], None]:
    """Return a training step of a network: forward and backward on random images."""
    net = spec(name)
    size = min(max(each_dimension(net.size, net.ndim)), TIMED_SIZE)
    model = create_model(name, seed=0).train()
    x = torch.randn(images, net.in_channels, size, size)
    targets = torch.zeros(images, dtype=torch.int64)

    def step() -> None:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), targets).backward()

    return step


def _seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _network(claim: Claim, seed: int) -> nn.Module:
    """Return the claim's network with its settings, initialised from the seed."""
    net: Net = replace(spec(claim.network), act=claim.settings.act)
    if claim.data == "digits":
        net = replace(net, in_channels=1)
    if claim.settings.norm == "none":
        net = without_norm(net)
    torch.manual_seed(seed)
    model: nn.Module = build(net, initialised=False)
    initialise(model, claim.settings.init)
    return model


def _gradients(claim: Claim, images: int) -> Iterator[list[BlockGradient]]:
    """Yield the gradients at the blocks of the claim's network, seed by seed."""
    for seed in range(claim.settings.seeds):
        model = _network(claim, seed)
        _train(model, claim.settings.steps)
        inputs, targets = _images(claim.data, images)
        yield block_gradients(model, inputs, targets, seed=seed)


def _images(data: str, count: int) -> tuple[Tensor, Tensor]:
    if data == "digits":
        batch = next(iter(batches("digits", batch_size=count)))
        return batch.inputs, batch.known_targets
    return torch.randn(count, 3, 32, 32), torch.arange(count) % 10


def _train(net: nn.Module, steps: int) -> None:
    """Train a network for a few steps on the digits."""
    if not steps:
        return
    task = Classify(net)
    state = State(task, torch.optim.SGD(task.parameters(), lr=RATE, momentum=0.9))
    epochs = (batches("digits", batch_size=BATCH, epoch=epoch) for epoch in itertools.count())
    stream = itertools.chain.from_iterable(epochs)
    for _ in fit(state, itertools.islice(stream, steps), constant(RATE)):
        pass


def blocks_without_gradient(claim: Claim, options: Options) -> Outcome:
    """The number of blocks without a finite gradient other than 0, in a training step."""
    model = _network(claim, SEEDS[0])
    gradients = block_gradients(model, *_images(claim.data, 4))
    norms = [block.outputs for block in gradients]
    without = sum(not (math.isfinite(norm) and norm > 0) for norm in norms)
    shown = f"{len(norms)} blocks, gradients from {min(norms):.3g} to {max(norms):.3g}"
    return Outcome(values=(float(without),), shown=(shown,))


def latency(claim: Claim, options: Options) -> Outcome:
    """Processor seconds of a forward pass for one image, on one thread, by round."""
    net = spec(claim.network)
    model = create_model(claim.network, seed=0).eval()
    x = torch.randn(1, net.in_channels, *each_dimension(net.size, net.ndim))

    def step() -> None:
        with torch.inference_mode():
            model(x)

    with _one_thread():
        step()
        values = [min(_seconds(step) for _ in range(REPEATS)) for _ in range(ROUNDS)]
    shown = f"{ROUNDS} rounds: {', '.join(f'{value:.3f}' for value in values)} s"
    return Outcome(values=tuple(values), exact=False, shown=(shown,))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def top5_difference(claim: Claim, options: Options) -> Outcome:
    """The difference in top-5 accuracy of published weights on ImageNet's 50,000 validation images:
    measured if they are here, else as their publisher prints it."""
    (_, first), (_, second) = claim.others
    shown = [f"{name}: top-5 {100 * top5:.2f} %" for name, top5 in claim.others]
    try:
        imagenet()
    except UserError:
        shown.append("published for all 50,000 images; not measured here, ImageNet is not there")
        return Outcome(values=(first - second,), shown=tuple(shown))
    measured = [float(published_metrics(name)["top5"]) for name in (claim.network, claim.against)]
    shown += [f"measured here: {100 * measured[0]:.2f} % and {100 * measured[1]:.2f} %"]
    return Outcome(values=(measured[0] - measured[1],), shown=tuple(shown))


def tables_about(column: str, beside: str = "") -> Check:
    """Return a check of the tables of text 1: the contradictions in one column, or, for "rows",
    missing rows. What is consistent in that column or in `beside`, and the complaints about
    `beside`, are shown and not counted."""

    def check_tables(claim: Claim, options: Options) -> Outcome:
        with resources.as_file(resources.files("plusx.evidence") / TABLES) as path:
            tables = read_tables(path)
        complaints = check(tables)
        counted = [str(c) for c in complaints if (c.column or "rows") == column]
        others = [str(c) for c in complaints if beside and c.column == beside]
        consistent = [str(c) for c in confirm(tables) if c.column in (column, beside)]
        shown = counted + [f"besides: {line}" for line in others]
        shown += [f"consistent: {line}" for line in consistent]
        return Outcome(values=(float(len(counted)),), shown=tuple(shown))

    return check_tables


def _log10(ratio: float | None) -> float:
    if ratio is None:
        return math.nan
    return -math.inf if ratio == 0 else math.log10(ratio)


def _ratio(ratio: float | None) -> str:
    return "none at either end" if ratio is None else f"{ratio:.3g}"
