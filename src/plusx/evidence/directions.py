"""Claims about what residual networks cannot do by themselves: they forget, are fooled, need labels
and tuning. Each is measured with a recipe on scikit-learn's digits, on validation images."""

from collections.abc import Callable, Sequence
from pathlib import Path

from plusx import run, store
from plusx.evidence.claim import SEEDS, Claim, default_seeds
from plusx.evidence.verdict import Options, Outcome
from plusx.recipe import load_recipe, to_toml
from plusx.run.attacking import attack_run
from plusx.run.folder import Run, load_run
from plusx.run.probing import probe
from plusx.run.sequence import stream
from plusx.study.results import incomparable, recorded_environment, versions_and_machine
from plusx.study.tuning import tune as search


EPS, STEPS = 32 / 255, 20  # of the attack
QUICK = "one seed, one epoch"


def forgetting(claim: Claim, options: Options) -> Outcome:
    """The forgetting of training on five tasks of two digits, with nothing against it."""
    recipe = load_recipe("digits-stream", ["method.kind=naive", *_shorter(options)])
    seeds = SEEDS[:1] if options.quick else SEEDS
    result = stream(recipe, _work(options, "digits-stream"), seeds=seeds, progress=options.progress)
    matrix = [[f"{value:.2f}" for value in row] for row in result["matrix"]]
    return Outcome(
        values=tuple(result["forgetting"]["seeds"]),
        exact=False,
        seeds=seeds,
        shown=tuple(f"after task {i}: {', '.join(row)}" for i, row in enumerate(matrix, 1)),
        recipe=to_toml(recipe),
        smaller=QUICK if options.quick else "",
        environment=recorded_environment(result["machine"]),
    )


def fooled(claim: Claim, options: Options) -> Outcome:
    """The accuracy that a classifier loses under PGD."""

    def lost(trained: Run) -> tuple[float, str]:
        result = attack_run(trained, kinds=["pgd"], eps=[EPS], steps=STEPS, checked=0)
        clean, attacked = result["clean"]["value"], result["rows"][0]["value"]
        return clean - attacked, f"clean {clean:.4f}, attacked {attacked:.4f}"

    return _over_seeds(claim, "digits-resnet20", lost, options)


def without_labels(claim: Claim, options: Options) -> Outcome:
    """The accuracy of a linear probe on SimCLR's embeddings minus that before training."""

    def gained(trained: Run) -> tuple[float, str]:
        result = probe(trained)
        learned, random = result["linear"]["accuracy"], result["random"]["linear"]["accuracy"]
        return learned - random, f"pretrained {learned:.4f}, untrained {random:.4f}"

    return _over_seeds(claim, "digits-simclr", gained, options)


def tuned(claim: Claim, options: Options) -> Outcome:
    """The accuracy of the best recipe of a search minus that of its default."""
    trials = ["tune.trials=3", *_shorter(options)] if options.quick else []
    recipe = load_recipe("digits-tune", trials)
    work = _work(options, "digits-tune")
    result = search(recipe, work, name="digits-tune")
    confirmed = result["confirmation"]
    if confirmed is None:
        raise RuntimeError(f"{claim.id}: no trial was better than the default")
    if confirmed["failed"]:
        raise RuntimeError(f"{claim.id}: {'; '.join(confirmed['failed'])}")
    compared = confirmed["best"]["seeds"], confirmed["default"]["seeds"]
    pairs = list(zip(*compared, strict=True))
    return Outcome(
        values=tuple(best - default for best, default in pairs),
        exact=False,
        seeds=tuple(confirmed["seeds"]),
        compared=compared,
        shown=tuple(f"best {best:.4f}, default {default:.4f}" for best, default in pairs),
        recipe=to_toml(recipe),
        smaller="3 trials of one epoch" if options.quick else "",
        environment=versions_and_machine(next(iter(sorted((work / "trials").iterdir())))),
    )


def _over_seeds(
    claim: Claim, name: str, measured: Callable[[Run], tuple[float, str]], options: Options
) -> Outcome:
    """Train a recipe with every seed; `measured` returns the value of a run, and it as text, which
    is computed once and stored in the run's folder. Runs of another version, machine or data are
    shown and excluded."""
    recipe = load_recipe(name, _shorter(options))
    folders = {seed: _work(options, name) / f"seed{seed}" for seed in _seeds(claim, options)}
    for seed, folder in folders.items():
        if not (folder / "result.json").is_file():
            options.progress(f"{name}, seed {seed}, in {folder}")
        run.train(load_recipe(name, [*_shorter(options), f"seed={seed}"]), folder)
    excluded = incomparable({folder: str(seed) for seed, folder in folders.items()})
    values, shown = {}, []
    for seed, folder in folders.items():
        if folder in excluded:
            shown.append(f"not in the mean: seed {seed}: {excluded[folder]}")
            continue
        file = folder / f"{claim.check}.json"
        if not file.is_file():
            value, text = measured(load_run(folder))
            store.write_json(file, {"value": value, "text": text})
        result = store.read_json(file)
        values[seed] = float(result["value"])
        shown.append(f"seed {seed}: {result['text']}")
    return Outcome(
        values=tuple(values.values()),
        exact=False,
        seeds=tuple(values),
        shown=tuple(shown),
        recipe=to_toml(recipe),
        smaller=QUICK if options.quick else "",
        environment=versions_and_machine(folders[next(iter(values))]),
    )


def _seeds(claim: Claim, options: Options) -> tuple[int, ...]:
    return tuple(range(1 if options.quick else options.seeds or default_seeds(claim)))


def _shorter(options: Options) -> Sequence[str]:
    return ["epochs=1"] if options.quick else []


def _work(options: Options, name: str) -> Path:
    return options.work / (f"quick-{name}" if options.quick else name)
