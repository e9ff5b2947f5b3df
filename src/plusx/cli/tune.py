"""The command tune: a search over values of a recipe's keys, and the rate finder."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from plusx.cli.shell import (
    TRAIN,
    Json,
    Overrides,
    RecipeName,
    about,
    app,
    command,
    output_folder,
    print_json,
    run_name,
    terminal_width,
)
from plusx.errors import UserError


@app.command(
    group=TRAIN,
    help_epilogue="Examples:\n  plusx tune digits-tune\n"
    "  plusx tune digits-tune --trials 40 --jobs 2 --out search\n"
    "  plusx tune photos.toml data.path=photos tune.sampler=random\n"
    "  plusx tune digits-resnet20 --rate\n"
    "  plusx train search/best.toml",
)
def tune(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    trials: Annotated[
        int | None,
        about("Trials in all, with those of earlier commands. Default: that of the recipe."),
    ] = None,
    jobs: Annotated[int | None, about("Runs at a time. Default: one for each core.")] = None,
    out: Annotated[
        Path | None, output_folder("The folder. Default: runs/tune- and the names.")
    ] = None,
    rate: Annotated[
        bool,
        Parameter(
            negative="",
            help="Only raise the learning rate over 200 steps, and suggest one from the losses.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Search better values for keys of a recipe, on the validation split: table [tune].

    Trial 0 is the recipe as it is. An interrupted search resumes with the same command.
    OUT/best.toml is the best recipe, OUT/tune.html the report.
    """
    from plusx.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"tune-{run_name(recipe, overrides)}"
    if rate:
        if trials is not None or jobs is not None:
            raise UserError("--rate trains once: leave --trials and --jobs out")
        from plusx.study.rate_finder import find_rate

        result = find_rate(loaded, folder, name=recipe, command=command())
    else:
        from plusx.study.tuning import tune as search

        result = search(loaded, folder, name=recipe, trials=trials, jobs=jobs, command=command())
    if as_json:
        print_json({"out": str(folder), **result})
        return
    if rate:
        print(f"{result['finding']}\n\n{folder / 'rate.html'}")
        return
    from plusx.report.tune import tune_text

    print(tune_text(result, terminal_width()))
    print(f"\n{result['finding']}\n\nplusx train {result['recipe']}\n{folder / 'tune.html'}")
