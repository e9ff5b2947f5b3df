"""Errata of the texts that take more than a count to show."""

import math
from importlib import resources

import torch

from plusx.grammar.twins import without_norm
from plusx.models import initialised
from plusx.study.consistency import check
from plusx.study.gradient import block_gradients, gradient_ratio
from plusx.study.outcome import Asked, Check, Outcome
from plusx.study.printed import read_tables
from plusx.study.trained import imagenet, published_figures
from plusx.zoo.claims import SEEDS, Claim
from plusx.zoo.claims.claim import spec


TABLES = "text1.toml"


def plain_gradients(claim: Claim, asked: Asked) -> Outcome:
    """Gradients of plain networks at the start, over seeds, with and without batch norm.

    The inputs are random images of CIFAR's shape; the loss is the cross-entropy.
    """
    count = 16 if asked.quick else 64
    names = (claim.network,) if asked.quick else ("plain20", claim.network, "plain110")
    shown, judged = [], []
    for name in names:
        bare = without_norm(spec(name))
        for said, net, rule in (
            ("with batch norm", spec(name), "he"),
            ("without, He's initialisation", bare, "he"),
            ("without, PyTorch's initialisation", bare, "pytorch"),
        ):
            ratios = []
            for seed in SEEDS:
                torch.manual_seed(seed)
                model = initialised(net, rule)
                x = torch.randn(count, 3, 32, 32)
                gradients = block_gradients(model, x, torch.arange(count) % 10, seed=seed)
                ratios.append(gradient_ratio(gradients))
            if name == claim.network and not judged:
                judged = [_log10(ratio) for ratio in ratios]
            shown.append(f"{name} {said}: first to last block {', '.join(map(_said, ratios))}")
    return Outcome(
        values=tuple(judged),
        exact=False,
        seeds=SEEDS,
        shown=tuple(shown),
        smaller=f"{count} images and {claim.network} alone" if asked.quick else "",
    )


def vgg19(claim: Claim, asked: Asked) -> Outcome:
    """ResNet-34 beside VGG-19: measured where ImageNet is there, else as torchvision publishes."""
    shown = [f"published by {who}: top-5 {100 * value:.2f} %" for who, value in claim.others]
    try:
        imagenet()
    except ValueError as missing:
        (_, first), (_, second), *_ = claim.others
        return Outcome(
            values=(first - second,),
            shown=tuple(shown),
            unsettled=f"the figures are published ones, not measured here: {missing}",
        )
    names = (claim.network, claim.against, *claim.beside)
    found = {name: float(published_figures(name)["top5"]) for name in names}
    shown += [f"measured here: {name}: top-5 {100 * value:.2f} %" for name, value in found.items()]
    return Outcome(values=(found[names[0]] - found[names[1]],), shown=tuple(shown))


def tables_about(column: str) -> Check:
    """A check of the text's own tables: what the checker complains about in one column, or, for
    "rows", about rows that are missing."""

    def complaints(claim: Claim, asked: Asked) -> Outcome:
        with resources.as_file(resources.files("plusx.zoo.claims") / TABLES) as path:
            found = check(read_tables(path))
        about = [str(each) for each in found if (each.column or "rows") == column]
        return Outcome(values=(float(len(about)),), shown=tuple(about))

    return complaints


def _log10(ratio: float | None) -> float:
    return math.nan if ratio is None or ratio <= 0 else math.log10(ratio)


def _said(ratio: float | None) -> str:
    return "none at either end" if ratio is None else f"{ratio:.3g}"
