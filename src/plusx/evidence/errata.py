"""Errata of the texts that need more than a count."""

import itertools
import math
from importlib import resources

import torch

from plusx.data.loader import batches
from plusx.evidence.claim import SEEDS, Claim, find_claim, spec
from plusx.evidence.properties import unrolling
from plusx.evidence.training import imagenet, published_metrics
from plusx.evidence.verdict import Check, Options, Outcome
from plusx.grammar.twins import without_norm
from plusx.models import create_model
from plusx.nn.build import build
from plusx.nn.init import initialise
from plusx.study.consistency import check
from plusx.study.gradients import BlockGradient, block_gradients, gradient_ratio
from plusx.study.printed import read_tables
from plusx.tasks.classify import Classify
from plusx.train.loop import fit
from plusx.train.schedule import constant
from plusx.train.state import State


TABLES = "text1.toml"
SETTLED = 60  # training steps after which gradients are measured again


def plain_gradients(claim: Claim, options: Options) -> Outcome:
    """The gradient ratio of plain networks at initialisation, over seeds, with and without batch
    norm. The inputs are random images of CIFAR's shape; the loss is the cross-entropy."""
    count = 16 if options.quick else 64
    names = (claim.network,) if options.quick else ("plain20", claim.network, "plain110")
    shown: list[str] = []
    values: list[float] = []
    for name in names:
        without_batch_norm = without_norm(spec(name))
        for description, net, rule in (
            ("with batch norm", spec(name), "he"),
            ("without, He's initialisation", without_batch_norm, "he"),
            ("without, PyTorch's initialisation", without_batch_norm, "pytorch"),
        ):
            ratios = []
            for seed in SEEDS:
                torch.manual_seed(seed)
                model = build(net, initialised=False)
                initialise(model, rule)
                x = torch.randn(count, 3, 32, 32)
                gradients = block_gradients(model, x, torch.arange(count) % 10, seed=seed)
                ratios.append(gradient_ratio(gradients))
            if name == claim.network and not values:
                values = [_log10(ratio) for ratio in ratios]
            shown.append(
                f"{name} {description}: first to last block {', '.join(map(_ratio, ratios))}"
            )
    if not options.quick:
        ratio = gradient_ratio(_gradients_after(claim.network, SETTLED))
        shown.append(
            f"{claim.network} with batch norm, after {SETTLED} steps on digits: {_ratio(ratio)}"
        )
    shown += unrolling(find_claim("preactivation-unrolling"), options).shown
    shown.append("worse with depth all the same: plusx reproduce degradation-plain-digits")
    return Outcome(
        values=tuple(values),
        exact=False,
        seeds=SEEDS,
        shown=tuple(shown),
        smaller=f"{count} images and {claim.network} alone" if options.quick else "",
    )


def _gradients_after(network: str, steps: int) -> list[BlockGradient]:
    """Return the gradients at the blocks of a network after `steps` steps on the digits."""
    net = create_model(network, in_channels=1, seed=0)
    task = Classify(net)
    state = State(task, torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9))
    epochs = (batches("digits", batch_size=64, epoch=epoch) for epoch in itertools.count())
    stream = itertools.chain.from_iterable(epochs)
    for _ in fit(state, itertools.islice(stream, steps), constant(0.05)):
        pass
    batch = next(iter(batches("digits", batch_size=64)))
    return block_gradients(net, batch.inputs, batch.known_targets)


def vgg19(claim: Claim, options: Options) -> Outcome:
    """The top-5 difference of ResNet-34 and VGG-19: measured if ImageNet is available, else as
    published."""
    shown = [f"published by {who}: top-5 {100 * value:.2f} %" for who, value in claim.others]
    try:
        imagenet()
    except ValueError:
        (_, first), (_, second), *_ = claim.others
        return Outcome(
            values=(first - second,),
            shown=tuple(shown),
            # no path in it, so that the record is the same on every machine
            unsettled="the values are published, not measured: ImageNet was not available",
        )
    names = (claim.network, claim.against, *claim.beside)
    top5 = {name: float(published_metrics(name)["top5"]) for name in names}
    shown += [f"measured here: {name}: top-5 {100 * value:.2f} %" for name, value in top5.items()]
    return Outcome(values=(top5[names[0]] - top5[names[1]],), shown=tuple(shown))


def tables_about(column: str) -> Check:
    """Return a check of the tables of text 1: the complaints about one column, or, for "rows",
    about missing rows."""

    def check_tables(claim: Claim, options: Options) -> Outcome:
        with resources.as_file(resources.files("plusx.evidence") / TABLES) as path:
            all_complaints = check(read_tables(path))
        complaints = [
            str(complaint) for complaint in all_complaints if (complaint.column or "rows") == column
        ]
        return Outcome(values=(float(len(complaints)),), shown=tuple(complaints))

    return check_tables


def _log10(ratio: float | None) -> float:
    return math.nan if ratio is None or ratio <= 0 else math.log10(ratio)


def _ratio(ratio: float | None) -> str:
    return "none at either end" if ratio is None else f"{ratio:.3g}"
