"""Claims about errors: networks trained by the papers' protocols, or published weights.

Nothing is selected: the schedule is fixed beforehand, and every finished run is evaluated on the
test set once. Runs are ordinary run folders, PROTOCOL-DATA/NETWORK-seedN, and resume from their
last checkpoint. Claims about the same networks, trained in the same way, share them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plusx import run, store
from plusx.data.sets.download import places
from plusx.errors import UserError
from plusx.evidence.claim import PROTOCOLS, SEEDS, Claim
from plusx.evidence.verdict import Options, Outcome
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.recipe import Recipe, load_recipe, to_toml
from plusx.report.history import read_history
from plusx.run.folder import load_weights_as
from plusx.study.results import epochs_to, incomparable, versions_and_machine
from plusx.zoo import ZOO


THRESHOLD = 0.9  # the accuracy of "epochs to 90 %"
QUICK = 2.5e11  # multiply-adds of a quick training, less than a minute on one core
_QUICK_EPOCHS, _DIGITS, _FEWEST = 6, 1_200, 100
_SIZES = (8, 16, 32, 64)


def train(claim: Claim, options: Options) -> Outcome:
    """Train with every seed, and evaluate each finished run once.

    UserError: the data is missing, or the folder was begun with another recipe.
    """
    names = [name for name in (claim.network, claim.against) if name]
    seeds = SEEDS[:1] if options.quick else SEEDS
    plan = {
        (name, seed): quick_recipe(claim, name, seed)
        if options.quick
        else recipe(claim, name, seed)
        for seed in seeds
        for name in names
    }
    work = options.work / _work_name(claim, options.quick)
    folders = {key: work / f"{key[0]}-seed{key[1]}" for key in plan}
    for number, (key, planned) in enumerate(plan.items(), 1):
        options.progress(f"run {number} of {len(plan)}: {key[0]}, seed {key[1]}, in {folders[key]}")
        run.train(planned, folders[key])
    odd = incomparable({folder: str(key[1]) for key, folder in folders.items()})
    usable_seeds = [seed for seed in seeds if not any(folders[name, seed] in odd for name in names)]
    if not usable_seeds:
        why = "; ".join(f"{folder.name}: {why}" for folder, why in odd.items())
        raise RuntimeError(
            f"{claim.id}: no seed is left, because no runs in {work} have one version, machine and "
            f"data ({why}); move those to be repeated away"
        )
    measured = claim.metric.partition(" of ")[0]
    quick_error = options.quick and measured == "test error"
    metric = METRICS["validation error" if quick_error else measured]
    metrics = {key: metric(folders[key]) for key in plan if key[1] in usable_seeds}
    values = [_difference([metrics[name, seed] for name in names]) for seed in usable_seeds]
    first = next(iter(plan.values()))
    shown = [f"{name}, seed {seed}: {value:.4f}" for (name, seed), value in metrics.items()]
    shown += [f"not in the mean: {folder.name}: {why}" for folder, why in odd.items()]
    return Outcome(
        values=tuple(values),
        exact=False,
        seeds=tuple(usable_seeds),
        shown=tuple(shown),
        recipe=_without_path(first),
        smaller=_smaller(claim, first) if options.quick else "",
        unsettled=_never([[folders[name, seed] for name in names] for seed in usable_seeds])
        if measured == "epochs to 90 %"
        else "",
        environment=versions_and_machine(folders[names[0], usable_seeds[0]]),
    )


def published(claim: Claim, options: Options) -> Outcome:
    """Torchvision's weights on ImageNet's validation images."""
    if options.quick:
        raise UserError(
            f"{claim.id}: 50,000 images are evaluated or none; there is no quick version"
        )
    accuracy = published_metrics(claim.network)["accuracy"]
    return Outcome(values=(accuracy,), shown=("torchvision's IMAGENET1K_V1, all images, one crop",))


def published_metrics(network: str) -> dict[str, Any]:
    """The metrics of torchvision's weights. UserError: ImageNet is missing."""
    folder = imagenet()
    opened = load_weights_as(network, "IMAGENET1K_V1")
    return run.evaluate(opened, data=folder, split="validation")


def imagenet() -> Path:
    """The folder of ImageNet's images. UserError, with the place to put them: it is missing."""
    looked = [folder / "imagenet" for folder in places()]
    for folder in looked:
        if (folder / "val").is_dir():
            return folder
    raise UserError(
        "ImageNet is missing, and its licence forbids redistribution: put its images at "
        f"{looked[0]}/train/CLASS/... and {looked[0]}/val/CLASS/... (PLUSX_DATA names the folder)"
    )


def recipe(claim: Claim, network: str, seed: int) -> Recipe:
    """The protocol's recipe for one network and seed."""
    protocol = PROTOCOLS[claim.protocol]
    overrides = [f"net.base={network}", *protocol.overrides]
    if claim.data == "imagenet":
        overrides.append(f"data.path={imagenet()}")
    elif protocol.recipe != claim.data:
        overrides.append(f"data.kind={claim.data}")
    read = load_recipe(protocol.recipe, [*overrides, *claim.overrides, f"seed={seed}"])
    return replace(read, compare=None, study=None)


def quick_recipe(claim: Claim, network: str, seed: int) -> Recipe:
    """A smaller version in less than a minute: scikit-learn's digits, few epochs."""
    size, multiply_adds = _quick_size(network)
    affordable = int(QUICK / (3 * multiply_adds))
    images = max(min(affordable, _DIGITS), _FEWEST)
    epochs = max(min(affordable // _DIGITS, _QUICK_EPOCHS), 1)
    part = [] if images == _DIGITS else [f"data.train={images}"]
    overrides = [f"net.base={network}", f"data.size={size}", f"epochs={epochs}", *part]
    read = load_recipe("digits", [*overrides, *claim.overrides, f"seed={seed}"])
    return replace(read, compare=None)


def _without_path(used: Recipe) -> str:
    """The recipe as TOML, with the name of the images' folder in place of its path."""
    path = getattr(used.data, "path", None)
    return to_toml(used) if path is None else to_toml(used).replace(path, Path(path).name)


def _work_name(claim: Claim, quick: bool) -> str:
    """The folder of all runs trained like those of the claim."""
    parts = ["quick"] if quick else [claim.protocol, claim.data]
    return "-".join([*parts, *(override.replace("=", "") for override in claim.overrides)])


def _quick_size(network: str) -> tuple[int, int]:
    """The smallest images that a network can read, and its multiply-adds for one."""
    net = ZOO[network].net
    if not isinstance(net, Net):
        return 64, net.multiply_adds // 8
    for size in _SIZES:
        try:
            return size, measure(replace(net, size=size, in_channels=1)).multiply_adds
        except ValueError:
            continue
    raise UserError(f"{network} cannot read images of up to {_SIZES[-1]} pixels")


def _smaller(claim: Claim, used: Recipe) -> str:
    size = getattr(used.data, "size", None)
    images = getattr(used.data, "train", None)
    where = "" if claim.data == "digits" else f" in place of {claim.data}"
    part = f" {images:,} of" if isinstance(images, int) else ""
    epochs = f"{used.epochs} epoch{'' if used.epochs == 1 else 's'}"
    return (
        f"one seed, {epochs} of{part} {_DIGITS:,} digits of {size} x {size}{where}, evaluated on "
        "the validation digits"
    )


def _difference(values: Sequence[float]) -> float:
    return values[0] - values[1] if len(values) == 2 else values[0]


def _test_error(folder: Path) -> float:
    """The error on the test images, which are evaluated once."""
    file = folder / "test.json"
    if not file.is_file():
        store.write_json(file, run.evaluate(run.load_run(folder), split="test"))
    return 1.0 - float(store.read_json(file)["accuracy"])


def _result(folder: Path) -> Any:
    return store.read_json(folder / "result.json")


def _never(seeds: Sequence[Sequence[Path]]) -> str:
    """A reason, if with some seed no network reached the accuracy; else empty."""

    def reached(folder: Path) -> bool:
        return epochs_to(read_history(folder / "log.jsonl"), THRESHOLD) is not None

    if all(any(map(reached, folders)) for folders in seeds):
        return ""
    return f"with some seed no network reached {100 * THRESHOLD:.0f} %"


def _epochs(folder: Path) -> float:
    """Epochs until the accuracy was reached; one more than were trained if it never was."""
    points = read_history(folder / "log.jsonl")
    return float(epochs_to(points, THRESHOLD) or len(points) + 1)


METRICS: dict[str, Callable[[Path], float]] = {
    "test error": _test_error,
    "validation error": lambda folder: 1.0 - _result(folder)["validation"]["accuracy"],
    "validation top-5 error": lambda folder: 1.0 - _result(folder)["validation"]["top5"],
    "train error": lambda folder: float(_result(folder)["train_error"]),
    "gap": lambda folder: (
        1.0 - _result(folder)["validation"]["accuracy"] - _result(folder)["train_error"]
    ),
    "epochs to 90 %": _epochs,
}
