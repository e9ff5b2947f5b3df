"""The command stream: continual learning, one task after another."""

from pathlib import Path
from typing import Annotated, Literal

from plusx.cli.shell import (
    TRAIN,
    Json,
    Overrides,
    RecipeName,
    about,
    app,
    command,
    output_folder,
    print_line,
    print_result,
    run_name,
)
from plusx.errors import UserError


@app.command(
    group=TRAIN,
    help_epilogue="Examples:\n  plusx stream digits-stream\n"
    "  plusx stream digits-stream method.kind=replay method.buffer=100\n"
    "  plusx stream digits-stream method.kind=ewc stream.scenario=task --seeds 0,1,2,3,4\n"
    "  plusx stream fashion-stream method.kind=joint --split test --json",
)
def stream(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    seeds: Annotated[
        str | None, about("Seeds, with commas. Default: those of the recipe's [stream].")
    ] = None,
    split: Annotated[
        Literal["validation", "test"], about("An evaluation on test is recorded.")
    ] = "validation",
    out: Annotated[
        Path | None, output_folder("The folder. Default: runs/stream- and the names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network on one task after another, and measure forgetting. Run the same command again
    to resume."""
    from plusx.recipe import load_recipe

    numbers = [] if seeds is None else _seeds(seeds)
    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"stream-{run_name(recipe, overrides)}"
    from plusx.report.stream import stream_text
    from plusx.run.sequence import stream as run_stream

    result = run_stream(
        loaded, folder, seeds=numbers, split=split, command=command(), progress=print_line
    )
    print_result(result, folder, "stream.html", stream_text, as_json=as_json)


def _seeds(text: str) -> list[int]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
        raise UserError(f"--seeds {text}: whole numbers with commas, none twice, such as 0,1,2")
    return [int(number) for number in numbers]
