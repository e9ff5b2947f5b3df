"""Commands that train: one run, networks side by side, an experiment."""

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from plusx.cli.shell import (
    Json,
    Overrides,
    RecipeName,
    about,
    app,
    command,
    figures_line,
    print_json,
    run_name,
    say_marked,
    terminal_width,
)
from plusx.errors import UserError


@app.command(
    help_epilogue="Examples:\n  plusx train digits-resnet20\n"
    "  plusx train images data.path=photos --out runs/photos\n"
    "  plusx train cifar10-resnet20 seed=1 --out runs/cifar10-1\n"
    "  plusx train imagenet.toml --processes 8 --restarts 3"
)
def train(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, about("The run's folder. Default: runs/ and the names.")] = None,
    exact: Annotated[
        bool,
        Parameter(negative="", help="Refuse to go on where it would not be the same to the bit."),
    ] = False,
    allow_data_change: Annotated[
        bool, Parameter(negative="", help="Go on although the images are not what they were.")
    ] = False,
    processes: Annotated[
        int, about("Processes of this machine that share every batch; on GPUs, one each.")
    ] = 1,
    restarts: Annotated[int, about("How often they are started again after one has died.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a recipe in a folder. A run that stopped goes on where it was saved."""
    from plusx.recipe import load_recipe

    read = load_recipe(recipe, overrides)
    folder = out or Path("runs") / run_name(recipe, overrides)
    if processes < 1 or restarts < 0:
        raise UserError(f"--processes {processes} --restarts {restarts}: at least 1 and 0")
    if processes > 1:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(f"--processes {processes}: torchrun has started them already")
        from plusx.run.launching import launch

        flags = {"--exact": exact, "--allow-data-change": allow_data_change, "--json": as_json}
        said = [flag for flag, given in flags.items() if given]
        arguments = ["train", recipe, *overrides, "--out", str(folder), *said]
        raise SystemExit(launch(arguments, processes, restarts))
    from plusx import run
    from plusx.run.distributed import is_first

    complete = (folder / "result.json").is_file()
    result = run.train(read, folder, exact=exact, allow_data_change=allow_data_change)
    if not is_first():
        return
    from plusx.report import write_report

    report = write_report(folder)
    if as_json:
        print_json({"out": str(folder), **result})
        return
    print(f"{folder}: {'already complete' if complete else 'done'}")
    print(f"  network        {result['name']}, {result['parameters']:,} parameters")
    wrong, area = result["train_error"], result.get("train", {}).get("auroc")
    title, trained = ("trained", "") if wrong is None else ("train error", f"{wrong:.2%} ")
    if area is not None:  # several labels: nearly every image has one that is wrong
        title, trained = "train AUROC", f"{area:.3f} "
    print(f"  {title:14} {trained}({result['steps']:,} steps)")
    if result["validation"] is not None:
        scores = result.get("metrics", ())
        print(f"  validation     {figures_line(result['validation'], scores)}")
    print(f"  report         {report}")


@app.command(
    help_epilogue="Examples:\n  plusx compare digits --out demo\n"
    "  plusx compare digits compare.networks=[plain20,resnet20] compare.seeds=[0,1]"
)
def compare(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, about("The folder. Default: runs/compare- and the names.")] = None,
    jobs: Annotated[int | None, about("Processes at a time. Default: one a core.")] = None,
    split: Annotated[
        Literal["validation", "test"], about("test: recorded as a use.")
    ] = "validation",
    as_json: Json = False,
) -> None:
    """Train networks with several seeds each and compare them: a table, figures, report.html."""
    from plusx.recipe import load_recipe

    read = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"compare-{run_name(recipe, overrides)}"
    from plusx.study.compare import compare as compare_networks

    result = compare_networks(read, folder, jobs=jobs, split=split, command=command())
    if as_json:
        print_json({"out": str(folder), **result})
        return
    from plusx.report.text_table import comparison_table

    print(comparison_table(result, terminal_width()))
    say_marked(result["marked"])
    print("\n".join(["", result["finding"], *result["notes"], "", str(folder / "report.html")]))


@app.command(
    help_epilogue="Examples:\n  plusx study\n  plusx study degradation --out degradation\n"
    "  plusx study degradation data.kind=cifar10 study.depths=[20,32,44]"
)
def study(
    recipe: Annotated[
        str | None, about("A recipe with a table [study]. Without one, all studies are listed.")
    ] = None,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, about("The folder. Default: runs/study- and the names.")] = None,
    jobs: Annotated[int | None, about("Cells at a time. Default: one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Make an experiment: many runs, what is measured in them, a table, figures, report.html."""
    if recipe is None:
        from plusx.study.catalogue import EXPERIMENTS

        if as_json:
            print_json(
                {"studies": [{"kind": k, "question": s.question} for k, s in EXPERIMENTS.items()]}
            )
            return
        width = max(map(len, EXPERIMENTS))
        for kind, experiment in EXPERIMENTS.items():
            print(f"{kind:{width}}  {experiment.question}")
        return
    from plusx.recipe import load_recipe

    read = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"study-{run_name(recipe, overrides)}"
    from plusx.study.runner import study as make_study

    result = make_study(read, folder, jobs=jobs, command=command())
    if as_json:
        print_json({"out": str(folder), **result})
        return
    from plusx.report.text_table import study_tables

    print(study_tables(result, terminal_width()))
    say_marked(result["marked"])
    print(f"\n{result['finding']}\n\n{folder / 'report.html'}")
