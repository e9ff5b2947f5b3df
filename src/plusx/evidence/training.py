"""Claims about errors: networks trained by the papers' protocols, or published weights.

Nothing is selected: the schedule is fixed in advance, and every finished run is evaluated on the
test set once. Runs are ordinary run folders, PROTOCOL-DATA/NETWORK-seedN, and resume from their
last checkpoint. Claims about the same networks with the same training share them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plusx import run, store
from plusx.data.sets.download import data_folders
from plusx.errors import UserError
from plusx.evidence.claim import PROTOCOLS, Claim, default_seeds
from plusx.evidence.verdict import Options, Outcome
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.recipe import Recipe, load_recipe, to_toml
from plusx.report.history import read_history
from plusx.run.folder import load_weights_as
from plusx.run.probing import probe
from plusx.study.results import epochs_to, incomparable, versions_and_machine
from plusx.tasks.tta import Tta
from plusx.zoo import ZOO


THRESHOLD = 0.9  # accuracy of the metric "epochs to 90 %"
QUICK = 2.5e11  # MACs of a quick training run, less than a minute on one core
_QUICK_EPOCHS, _DIGITS, _FEWEST = 6, 1_200, 100
_SIZES = (8, 16, 32, 64)


def train(claim: Claim, options: Options) -> Outcome:
    """Train with every seed, and evaluate each finished run once. Raises UserError if the data is
    missing, or a folder was begun with another recipe."""
    names = [name for name in (claim.network, claim.against) if name]
    seeds = range(1 if options.quick else options.seeds or default_seeds(claim))
    recipes = {
        (name, seed): quick_recipe(claim, name, seed)
        if options.quick
        else recipe(claim, name, seed)
        for seed in seeds
        for name in names
    }
    folders = {
        (name, seed): options.work / _work_name(claim, name, options.quick) / f"{name}-seed{seed}"
        for name, seed in recipes
    }
    for number, (key, run_recipe) in enumerate(recipes.items(), 1):
        if not (folders[key] / "result.json").is_file():
            options.progress(
                f"run {number} of {len(recipes)}: {key[0]}, seed {key[1]}, in {folders[key]}"
            )
        run.train(run_recipe, folders[key])
    excluded = incomparable({folder: str(key[1]) for key, folder in folders.items()})
    usable_seeds = [
        seed for seed in seeds if not any(folders[name, seed] in excluded for name in names)
    ]
    if not usable_seeds:
        reasons = "; ".join(f"{folder.name}: {reasons}" for folder, reasons in excluded.items())
        raise RuntimeError(
            f"{claim.id}: no seed is left, because the runs in {options.work} differ in version, "
            f"machine or data ({reasons}); move the runs to be repeated away"
        )
    metric_name = claim.metric.partition(" of ")[0]
    metric = METRICS[QUICK_METRICS.get(metric_name, metric_name) if options.quick else metric_name]
    metrics = {key: metric(folders[key]) for key in recipes if key[1] in usable_seeds}
    values = [_difference([metrics[name, seed] for name in names]) for seed in usable_seeds]
    first_recipe = next(iter(recipes.values()))
    shown = [f"{name}, seed {seed}: {value:.4f}" for (name, seed), value in metrics.items()]
    shown += [f"not in the mean: {folder.name}: {reasons}" for folder, reasons in excluded.items()]
    return Outcome(
        values=tuple(values),
        exact=False,
        seeds=tuple(usable_seeds),
        shown=tuple(shown),
        recipe=_without_path(first_recipe),
        smaller=_smaller(claim, first_recipe) if options.quick else "",
        unsettled=_unreached([[folders[name, seed] for name in names] for seed in usable_seeds])
        if metric_name == "epochs to 90 %"
        else "",
        environment=versions_and_machine(folders[names[0], usable_seeds[0]]),
    )


def published(claim: Claim, options: Options) -> Outcome:
    """The accuracy of torchvision's weights on ImageNet's validation images."""
    if options.quick:
        raise UserError(f"{claim.id}: all 50,000 images are evaluated; there is no quick version")
    accuracy = published_metrics(claim.network)["accuracy"]
    return Outcome(values=(accuracy,), shown=("torchvision's IMAGENET1K_V1, all images, one crop",))


def published_metrics(network: str) -> dict[str, Any]:
    """Return the metrics of torchvision's weights. Raises UserError if ImageNet is missing."""
    folder = imagenet()
    loaded = load_weights_as(network, "IMAGENET1K_V1")
    return run.evaluate(loaded, data=folder, split="validation")


def imagenet() -> Path:
    """Return the folder of ImageNet's images. Raises UserError, with the expected folder, if it is
    missing."""
    roots = [folder / "imagenet" for folder in data_folders()]
    for folder in roots:
        if (folder / "val").is_dir():
            return folder
    raise UserError(
        "ImageNet is missing, and its licence forbids redistribution: put its images at "
        f"{roots[0]}/train/CLASS/... and {roots[0]}/val/CLASS/... (PLUSX_DATA names the folder)"
    )


def recipe(claim: Claim, network: str, seed: int) -> Recipe:
    """Return the protocol's recipe for one network and seed."""
    protocol = PROTOCOLS[claim.protocol]
    overrides = [f"net.base={network}", *protocol.overrides]
    if claim.data == "imagenet":
        overrides.append(f"data.path={imagenet()}")
    elif protocol.recipe != claim.data:
        overrides.append(f"data.kind={claim.data}")
    overrides += _overrides(claim, network)
    loaded = load_recipe(protocol.recipe, [*overrides, f"seed={seed}"])
    return replace(loaded, compare=None, study=None)


def quick_recipe(claim: Claim, network: str, seed: int) -> Recipe:
    """Return a recipe that takes less than a minute: scikit-learn's digits, few epochs."""
    size, multiply_adds = _quick_size(network)
    affordable = int(QUICK / (3 * multiply_adds))
    images = max(min(affordable, _DIGITS), _FEWEST)
    epochs = max(min(affordable // _DIGITS, _QUICK_EPOCHS), 1)
    train_images = [] if images == _DIGITS else [f"data.train={images}"]
    overrides = [f"net.base={network}", f"data.size={size}", f"epochs={epochs}", *train_images]
    overrides += _overrides(claim, network)
    loaded = load_recipe(PROTOCOLS[claim.protocol].quick, [*overrides, f"seed={seed}"])
    return replace(loaded, compare=None)


def _without_path(recipe: Recipe) -> str:
    """Return the recipe as TOML, with the name of the images' folder instead of its path."""
    path = getattr(recipe.data, "path", None)
    return to_toml(recipe) if path is None else to_toml(recipe).replace(path, Path(path).name)


def _overrides(claim: Claim, network: str) -> tuple[str, ...]:
    """Return what the claim overrides in the protocol's recipe for this network."""
    only = claim.network_overrides if network == claim.network else ()
    return (*claim.overrides, *only)


def _work_name(claim: Claim, network: str, quick: bool) -> str:
    """Return the folder name of all runs that are trained like that network of the claim."""
    names = ["quick"] if quick else [claim.protocol, claim.data]
    overrides = _overrides(claim, network)
    return "-".join([*names, *(override.replace("=", "") for override in overrides)])


def _quick_size(network: str) -> tuple[int, int]:
    """Return the smallest image size of a network, and its MACs for one image."""
    net = ZOO[network].net
    if not isinstance(net, Net):
        return 64, net.multiply_adds // 8
    for size in _SIZES:
        try:
            return size, measure(replace(net, size=size, in_channels=1)).multiply_adds
        except ValueError:
            continue
    raise UserError(f"{network} needs images larger than {_SIZES[-1]} pixels")


def _smaller(claim: Claim, recipe: Recipe) -> str:
    size = getattr(recipe.data, "size", None)
    images = getattr(recipe.data, "train", None)
    where = "" if claim.data == "digits" else f" in place of {claim.data}"
    of_images = f" {images:,} of" if isinstance(images, int) else ""
    epochs = f"{recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'}"
    return (
        f"one seed, {epochs} of{of_images} {_DIGITS:,} digits of {size} x {size}{where}, evaluated "
        "on the validation digits"
    )


def _difference(values: Sequence[float]) -> float:
    return values[0] - values[1] if len(values) == 2 else values[0]


def _test_error(folder: Path) -> float:
    """Return the error on the test images, which are evaluated once."""
    file = folder / "test.json"
    if not file.is_file():
        store.write_json(file, run.evaluate(run.load_run(folder), split="test"))
    return 1.0 - float(store.read_json(file)["accuracy"])


def _linear_accuracy(folder: Path, split: str = "test") -> float:
    """Return the accuracy of a linear probe; images of the test split are evaluated once."""
    file = folder / f"probe-{split}.json"
    if not file.is_file():
        images = 10**9  # all training images
        store.write_json(file, probe(run.load_run(folder), split=split, images=images))
    return float(store.read_json(file)["linear"]["accuracy"])


def _result(folder: Path) -> Any:
    return store.read_json(folder / "result.json")


def _validation(folder: Path, tta: Tta, metric: str = "accuracy") -> float:
    """Return a metric of the validation images with test-time augmentation, computed once."""
    file = folder / f"validation-{tta}.json"
    if not file.is_file():
        store.write_json(file, run.evaluate(run.load_run(folder), split="validation", tta=tta))
    return float(store.read_json(file)[metric])


def _unreached(seeds: Sequence[Sequence[Path]]) -> str:
    """Return a reason if no network reached the accuracy for some seed, else an empty string."""

    def reached(folder: Path) -> bool:
        return epochs_to(read_history(folder / "log.jsonl"), THRESHOLD) is not None

    if all(any(map(reached, folders)) for folders in seeds):
        return ""
    return f"with some seed no network reached {100 * THRESHOLD:.0f} %"


def _epochs(folder: Path) -> float:
    """Return the epochs until the accuracy was reached, or one more than were trained."""
    points = read_history(folder / "log.jsonl")
    return float(epochs_to(points, THRESHOLD) or len(points) + 1)


METRICS: dict[str, Callable[[Path], float]] = {
    "test error": _test_error,
    "linear accuracy": _linear_accuracy,
    "validation linear accuracy": lambda folder: _linear_accuracy(folder, "validation"),
    "validation error": lambda folder: 1.0 - _result(folder)["validation"]["accuracy"],
    "validation top-5 error": lambda folder: 1.0 - _result(folder)["validation"]["top5"],
    "ten-crop validation error": lambda folder: 1.0 - _validation(folder, "ten-crop"),
    "ten-crop validation top-5 error": lambda folder: 1.0 - _validation(folder, "ten-crop", "top5"),
    "multi-scale validation error": lambda folder: 1.0 - _validation(folder, "multi-scale"),
    "multi-scale validation top-5 error": lambda folder: (
        1.0 - _validation(folder, "multi-scale", "top5")
    ),
    "train error": lambda folder: float(_result(folder)["train_error"]),
    "gap": lambda folder: (
        1.0 - _result(folder)["validation"]["accuracy"] - _result(folder)["train_error"]
    ),
    "epochs to 90 %": _epochs,
}
# metrics of quick runs, which leave test images alone
QUICK_METRICS = {"test error": "validation error", "linear accuracy": "validation linear accuracy"}
