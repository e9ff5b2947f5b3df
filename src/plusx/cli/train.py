"""Commands for training: train, compare, pack and convert."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from plusx.cli.shell import (
    TRAIN,
    Json,
    OnUnreadable,
    Overrides,
    RecipeName,
    about,
    app,
    command,
    data_progress,
    metrics_text,
    output_file,
    output_folder,
    print_excluded,
    print_json,
    print_warnings,
    run_name,
    terminal_width,
)
from plusx.errors import UserError, counted


if TYPE_CHECKING:
    from plusx.recipe import Recipe


@app.command(
    group=TRAIN,
    help_epilogue="Examples:\n  plusx train digits-resnet20\n"
    "  plusx train images data.path=photos --out runs/photos\n"
    "  plusx train boxes data.path=BCCD --out runs/cells\n"
    "  plusx train text data.path=reviews.csv\n"
    "  plusx train commands data.path=recordings\n"
    "  plusx train cifar10-resnet20 seed=1 --out runs/cifar10-1\n"
    "  plusx train imagenet.toml --processes 8 --restarts 3",
)
def train(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    out: Annotated[
        Path | None, output_folder("The run's folder. Default: runs/ and the names.")
    ] = None,
    exact: Annotated[
        bool,
        Parameter(
            negative="", help="Refuse to resume unless the result stays bit for bit the same."
        ),
    ] = False,
    allow_data_change: Annotated[
        bool, Parameter(negative="", help="Resume although the data has changed.")
    ] = False,
    processes: Annotated[
        int, about("Processes (ranks) on this machine that share every batch; one for each GPU.")
    ] = 1,
    restarts: Annotated[int, about("Restarts after a process has died.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a recipe. Run the same command again to resume an unfinished run."""
    from plusx.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / run_name(recipe, overrides)
    if processes < 1 or restarts < 0:
        raise UserError(f"--processes {processes} --restarts {restarts}: at least 1 and 0")
    if processes > 1:
        if os.environ.get("WORLD_SIZE") not in (None, "", "1"):
            raise UserError(f"--processes {processes}: torchrun has started them already")
        from plusx.run.launching import launch

        flags = {"--exact": exact, "--allow-data-change": allow_data_change, "--json": as_json}
        options = [flag for flag, enabled in flags.items() if enabled]
        arguments = ["train", recipe, *overrides, "--out", str(folder), *options]
        raise SystemExit(launch(arguments, processes, restarts))
    _train(loaded, folder, exact=exact, allow_data_change=allow_data_change, as_json=as_json)


def _train(
    recipe: "Recipe", folder: Path, *, exact: bool, allow_data_change: bool, as_json: bool
) -> None:
    """Train a recipe in a folder, and print the result."""
    from plusx import run
    from plusx.run.distributed import is_first

    complete = (folder / "result.json").is_file()
    result = run.train(recipe, folder, exact=exact, allow_data_change=allow_data_change)
    if not is_first():
        return
    from plusx.report import write_report
    from plusx.report.metrics import METRICS

    report = write_report(folder)
    if as_json:
        print_json({"out": str(folder), **result})
        return
    print(f"{folder}: {'already complete' if complete else 'done'}")
    print(f"  network        {result['name']}, {result['parameters']:,} parameters")
    error, auroc = result["train_error"], result.get("train", {}).get("auroc")
    title, trained = "trained", ""
    if error is not None:
        title, trained = "train error", METRICS["train_error"].text(error, decimals=2) + ", "
    if auroc is not None:  # several labels: almost every image has a wrong one
        title, trained = "train AUROC", f"{auroc:.3f}, "
    print(f"  {title:14} {trained}{counted(result['steps'], 'step')}")
    if result["validation"] is not None:
        line = metrics_text(
            result["validation"],
            result.get("metrics", ()),
            result.get("noun", "image"),
            chosen=bool(result.get("best_epoch")),
        )
        print(f"  validation     {line}")
    print(f"  report         {report}")


@app.command(
    group=TRAIN,
    help_epilogue="Examples:\n  plusx pretrain digits-simclr\n"
    "  plusx pretrain digits-simclr method.kind=byol --out runs/byol\n"
    "  plusx probe runs/byol\n"
    "  plusx train digits net.base=resnet8_keras net.weights=runs/byol data.train=0.1",
)
def pretrain(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    out: Annotated[
        Path | None, output_folder("The run's folder. Default: runs/ and the names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe's embeddings without labels, by its [method]. Run the same command again to
    resume an unfinished run."""
    from plusx.recipe import load_recipe
    from plusx.run.selfsupervised import require_method

    loaded = load_recipe(recipe, overrides)
    require_method(loaded, recipe)
    folder = out or Path("runs") / run_name(recipe, overrides)
    _train(loaded, folder, exact=False, allow_data_change=False, as_json=as_json)


@app.command(
    group=TRAIN,
    help_epilogue="Examples:\n  plusx compare digits --out demo\n"
    "  plusx compare digits compare.networks=[plain20,resnet20] compare.seeds=[0,1]\n"
    "  plusx compare digits compare.networks=[my-network.toml,resnet20]",
)
def compare(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    out: Annotated[
        Path | None, output_folder("The folder. Default: runs/compare- and the names.")
    ] = None,
    jobs: Annotated[int | None, about("Runs at a time. Default: one for each core.")] = None,
    split: Annotated[
        Literal["validation", "test"],
        about("An evaluation on test is recorded."),
    ] = "validation",
    as_json: Json = False,
) -> None:
    """Train several networks with several seeds each: a table, charts, report.html."""
    from plusx.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"compare-{run_name(recipe, overrides)}"
    from plusx.study.runner import compare as compare_networks

    result = compare_networks(loaded, folder, jobs=jobs, split=split, command=command())
    if as_json:
        print_json({"out": str(folder), **result})
        return
    from plusx.report.text_table import study_tables

    print(study_tables(result, terminal_width()))
    print_excluded(result["marked"])
    print("\n".join(["", result["finding"], *result["notes"], "", str(folder / "report.html")]))


@app.command(
    group=TRAIN,
    help_epilogue="Examples:\n  plusx pack photos --out photos.plusx\n"
    "  plusx pack photos --out small.plusx --size 160\n"
    "  plusx train images data.path=photos.plusx",
)
def pack(
    folder: Annotated[str, Parameter(name="FOLDER", help="A folder of class folders.")],
    /,
    *,
    out: Annotated[Path, output_file("The file to write; a file of that name is replaced.")],
    size: Annotated[int, about("Pixels per side of the network's input.")] = 224,
    side: Annotated[
        int | None,
        about("Pixels of the shorter side that is stored. Default: --size / 0.875."),
    ] = None,
    on_unreadable: OnUnreadable = "error",
    threads: Annotated[int, about("Decoder threads (0: one for each core).")] = 0,
    as_json: Json = False,
) -> None:
    """Pack the images of a folder into one file that is read without decoding."""
    from plusx.data.readers.packing import pack as pack_folder

    with data_progress():
        result = pack_folder(
            folder, out, size=size, side=side, on_unreadable=on_unreadable, threads=threads or None
        )
    print_warnings(result)
    if as_json:
        print_json(result)
        return
    print(
        f"{result['file']}: {counted(result['images'], 'image')} of {result['classes']:,} classes, "
        f"{result['side']} pixels on the shorter side"
    )
    print(
        f"  {result['bytes']:,} bytes from {result['source_bytes']:,}; checked in "
        f"{result['checking_seconds']:.1f} s, packed in {result['seconds']:.1f} s "
        f"({result['images_per_second']:,.0f} images per second)"
    )


@app.command(
    group=TRAIN,
    help_epilogue="Examples:\n"
    "  plusx convert resnet20.th --as resnet20 --source akamaster --out resnet20.safetensors",
)
def convert(
    file: Annotated[str, Parameter(name="FILE", help="The weight file of another library.")],
    /,
    *,
    model: Annotated[str, Parameter(name="--as", help="The name of the network.")],
    source: Annotated[str, about("akamaster, torchvision, timm or keras.")],
    out: Annotated[str, output_file("The safetensors file to write.")],
    key: Annotated[
        str,
        about("Key of the weights in a checkpoint, such as state_dict_ema (default: the usual)."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Convert another library's weights into a safetensors file of plusx."""
    from plusx.weights import convert as convert_weights

    converted = convert_weights(file, model, source, out, key=key)
    if as_json:
        print_json(asdict(converted) | {"to": str(converted.to)})
        return
    print(
        f"{converted.to}: {converted.model or model} from {converted.source}, "
        f"{converted.tensors} tensors, {converted.parameters:,} parameters, "
        f"{converted.num_classes:,} classes"
    )
    if converted.prefix:
        print(f"  removed the prefix {converted.prefix!r} from every name")
    if converted.other_keys:
        others = ", ".join(map(repr, converted.other_keys))
        print(
            f"  weights of {converted.key or 'the top level'!r}; the file has more, which --key "
            f"selects: {others}"
        )
