"""The commands attack, corrupt and assess, which measure the robustness of a network."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import (
    USE,
    BatchSize,
    DataOption,
    Device,
    Json,
    OnUnreadable,
    Split,
    Trained,
    WeightsOption,
    Workers,
    about,
    app,
    command,
    open_trained,
    output_folder,
    print_line,
    print_result,
    run_name,
    throttled,
)
from plusx.errors import UserError


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx attack runs/digits-resnet20\n"
    "  plusx attack runs/photos --attack pgd --eps 8/255 --steps 50\n"
    "  plusx attack runs/photos --attack apgd-ce,apgd-t,square --eps 2/255,8/255\n"
    "  plusx attack model.onnx --data photos --attack square --json",
)
def attack(
    trained: Trained,
    /,
    *,
    weights: WeightsOption = None,
    data: DataOption = None,
    split: Split = "validation",
    attack: Annotated[
        str | None,
        about(
            "fgsm, pgd, apgd-ce, apgd-t or square, or several with commas. Default: fgsm,pgd,"
            "apgd-ce; of an ONNX file square."
        ),
    ] = None,
    norm: Annotated[str, about("linf or l2.")] = "linf",
    eps: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Size of the perturbation, in units of pixels from 0 to 1; several with commas. "
            "Default: 0,2/255,4/255,8/255; of l2 0,0.25,0.5,1.",
        ),
    ] = None,
    steps: Annotated[
        int | None, about("Iterations. Default: pgd 50, apgd 100, square 1000 queries.")
    ] = None,
    restarts: Annotated[int, about("Starts of each attack.")] = 1,
    images: Annotated[int, about("Samples at most.")] = 1000,
    checked: Annotated[int, about("Samples for the checks (0: none).")] = 100,
    seed: Annotated[int, about("Seed of random starts.")] = 0,
    out: Annotated[
        Path | None, output_folder("The folder. Default: runs/attack- and the name.")
    ] = None,
    on_unreadable: OnUnreadable = "error",
    batch_size: BatchSize = 100,
    workers: Workers = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Attack a network: its accuracy for perturbed inputs, and checks of the attack."""
    from plusx.run.attacking import attack_run, attack_text

    sizes = [] if eps is None else _sizes(eps)
    kinds = [] if attack is None else [kind.strip() for kind in attack.split(",")]
    folder = out or Path("runs") / f"attack-{run_name(Path(trained).resolve().name, ())}"
    result = attack_run(
        open_trained(trained, weights),
        data=data,
        split=split,
        kinds=kinds,
        norm=norm,
        eps=sizes,
        steps=steps,
        restarts=restarts,
        images=images,
        checked=checked,
        seed=seed,
        out=folder,
        on_unreadable=on_unreadable,
        batch_size=batch_size,
        workers=workers,
        device=device,
        command=command(),
        progress=throttled(print_line),
    )
    print_result(result, folder, "attack.html", attack_text, as_json=as_json)


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx corrupt runs/photos\n"
    "  plusx corrupt runs/photos --kinds fog,snow --severities 3,5 --json\n"
    "  plusx corrupt runs/deep --baseline runs/plain --split test",
)
def corrupt(
    trained: Trained,
    /,
    *,
    weights: WeightsOption = None,
    data: DataOption = None,
    split: Split = "validation",
    kinds: Annotated[
        str | None, about("Kinds of corruption, with commas. Default: all 15.")
    ] = None,
    severities: Annotated[str, about("From 1 to 5, with commas.")] = "1,2,3,4,5",
    baseline: Annotated[
        Path | None, about("A run or a file, whose errors divide those of RUN in the mCE.")
    ] = None,
    images: Annotated[int, about("Images at most.")] = 500,
    seed: Annotated[int, about("Seed of the corruptions.")] = 0,
    out: Annotated[
        Path | None, output_folder("The folder. Default: runs/corrupt- and the name.")
    ] = None,
    on_unreadable: OnUnreadable = "error",
    batch_size: BatchSize = 100,
    workers: Workers = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a network on corrupted images: noise, blur, weather, compression."""
    from plusx.run.corrupting import corrupt_run, corruption_text

    folder = out or Path("runs") / f"corrupt-{run_name(Path(trained).resolve().name, ())}"
    result = corrupt_run(
        open_trained(trained, weights),
        baseline=None if baseline is None else open_trained(str(baseline), None),
        data=data,
        split=split,
        kinds=[] if kinds is None else _kinds(kinds),
        severities=_severities(severities),
        images=images,
        seed=seed,
        out=folder,
        on_unreadable=on_unreadable,
        batch_size=batch_size,
        workers=workers,
        device=device,
        command=command(),
        progress=throttled(print_line),
    )
    print_result(result, folder, "corrupt.html", corruption_text, as_json=as_json)


@app.command(
    group=USE,
    help_epilogue="Examples:\n  plusx assess runs/photos\n"
    "  plusx assess runs/deep runs/plain --split test\n"
    "  plusx assess runs/photos --eps 8/255 --json",
)
def assess(
    trained: Trained,
    other: Annotated[
        str | None, Parameter(name="OTHER", help="A second run, for the differences.")
    ] = None,
    /,
    *,
    data: DataOption = None,
    split: Annotated[str, about("validation or test; test is recorded.")] = "validation",
    images: Annotated[int, about("Images at most, for corruptions and the attack.")] = 500,
    eps: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="Size of the attack's perturbation (Linf), in units of pixels from 0 to 1.",
        ),
    ] = "2/255",
    steps: Annotated[int, about("Steps of the attack.")] = 50,
    second_steps: Annotated[
        int, about("Training steps of a second task, to measure forgetting (0: none).")
    ] = 100,
    seed: Annotated[int, about("Seed of corruptions, attack, second task and bootstrap.")] = 0,
    out: Annotated[
        Path | None, output_folder("The folder. Default: runs/assess- and the name.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a classifier in one table: accuracy, calibration, robustness, forgetting, features,
    time, memory and size."""
    from plusx.bench.assessment import assess as assess_runs
    from plusx.bench.assessment import assessment_text

    radius, *others = _sizes(eps)
    if others:
        raise UserError(f"--eps {eps}: assess takes a single size")
    names = [Path(name).resolve().name for name in (trained, other) if name is not None]
    folder = out or Path("runs") / f"assess-{run_name('-'.join(names), ())}"
    result = assess_runs(
        [open_trained(name, None) for name in (trained, other) if name is not None],
        data=data,
        split=split,
        images=images,
        eps=radius,
        steps=steps,
        second_steps=second_steps,
        seed=seed,
        device=device,
        out=folder,
        command=command(),
        progress=throttled(print_line),
    )
    print_result(result, folder, "assess.html", assessment_text, as_json=as_json)


def _kinds(text: str) -> list[str]:
    """Return the names of --kinds."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"--kinds {text!r}: names of corruptions, with commas")
    return names


def _severities(text: str) -> list[int]:
    """Return the numbers of --severities."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--severities {text}: numbers from 1 to 5, with commas") from None


def _sizes(text: str) -> list[float]:
    """Return the numbers of --eps."""
    from plusx.recipe.values import parse_eps

    try:
        return [parse_eps(number) for number in text.split(",")]
    except UserError as error:
        raise UserError(f"--eps {text}: {error}") from None
