"""The command line. A command imports what it needs when it runs, so that help, `models` and
`describe` answer at once. Results go to standard output, all else to standard error.
"""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, TextIO

from cyclopts import App, CycloptsError, Parameter

import plusx


app = App(
    name="plusx",
    help="Residual learning, y = F(x) + x: build, train, compare, evaluate and use networks.",
    help_format="plaintext",
    help_epilogue="`plusx COMMAND --help` shows examples. `--debug` shows where an error arose.",
    version=plusx.__version__,
    suppress_keyboard_interrupt=False,
)
app["--help"].group = app["--version"].group = "Other"


def _about(text: str) -> Any:
    return Parameter(help=text)


Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")
]
RecipeName = Annotated[str, _about("A recipe that comes with plusx, or a TOML file.")]
Overrides = Annotated[str, _about("KEY=VALUE changes a field: seed=1 epochs=5 optim.lr=0.05 ...")]
Views = Annotated[
    Literal["one", "flip"] | None,
    _about("flip: the mean over an image and its mirror image. Default: as the recipe says."),
]
Device = Annotated[str, _about("auto, cpu, cuda, cuda:1 or mps.")]


@app.command(
    help_epilogue="Examples:\n  plusx models\n  plusx models 'resnet*'\n  plusx models --json"
)
def models(
    pattern: Annotated[str, _about("A shell pattern, in quotes so that the shell keeps it.")] = "*",
    /,
    *,
    as_json: Json = False,
) -> None:
    """List the networks that plusx knows, with their parameters and multiply-adds."""
    from plusx.describe import list_networks

    rows = list_networks(pattern)
    if as_json:
        _print_json({"models": rows})
        return
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':{width}} {'parameters':>13} {'multiply-adds':>16} {'depth':>5}  source")
    for row in rows:
        print(
            f"{row['name']:{width}} {row['parameters']:>13,} {row['multiply_adds']:>16,} "
            f"{row['depth']:>5}  {row['source']}"
        )


@app.command(
    help_epilogue="Examples:\n  plusx describe resnet50\n"
    "  plusx describe resnet20 num_classes=100 act=silu\n  plusx describe my-network.toml --json"
)
def describe(
    model: Annotated[str, _about("The name of a network, or a TOML file with a spec.")],
    /,
    *fields: Annotated[str, _about("FIELD=VALUE changes a field: num_classes=100 act=silu ...")],
    as_json: Json = False,
) -> None:
    """Describe a network: its sentences, its stages and what it costs, by arithmetic."""
    from plusx.describe import describe_network, description

    found = describe_network(model, fields)
    if as_json:
        _print_json(found)
    else:
        print(description(found))


@app.command(
    help_epilogue="Examples:\n  plusx train digits-resnet20\n"
    "  plusx train images data.path=photos --out runs/photos\n"
    "  plusx train cifar10-resnet20 seed=1 --out runs/cifar10-1"
)
def train(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, _about("The run's folder. Default: runs/ and the names.")] = None,
    exact: Annotated[
        bool,
        Parameter(negative="", help="Refuse to go on where it would not be the same to the bit."),
    ] = False,
    allow_data_change: Annotated[
        bool, Parameter(negative="", help="Go on although the images are not what they were.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe in a folder. A run that stopped goes on where it was saved."""
    from plusx.recipe import load_recipe

    read = load_recipe(recipe, overrides)
    folder = out or Path("runs") / _run_name(recipe, overrides)
    from plusx import run

    complete = (folder / "result.json").is_file()
    result = run.train(read, folder, exact=exact, allow_data_change=allow_data_change)
    from plusx.report import write_report

    report = write_report(folder)
    if as_json:
        _print_json({"out": str(folder), **result})
        return
    print(f"{folder}: {'already complete' if complete else 'done'}")
    print(f"  network        {result['name']}, {result['parameters']:,} parameters")
    print(f"  train error    {result['train_error']:.2%} ({result['steps']:,} steps)")
    if result["validation"] is not None:
        print(f"  validation     {_figures(result['validation'])}")
    print(f"  report         {report}")


@app.command(
    help_epilogue="Examples:\n  plusx compare digits --out demo\n"
    "  plusx compare digits compare.networks=[plain20,resnet20] compare.seeds=[0,1]"
)
def compare(
    recipe: RecipeName,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, _about("The folder. Default: runs/compare- and the names.")] = None,
    jobs: Annotated[int | None, _about("Runs at a time. Default: one a core.")] = None,
    split: Annotated[
        Literal["validation", "test"], _about("test: recorded as a use.")
    ] = "validation",
    as_json: Json = False,
) -> None:
    """Train networks with several seeds each and compare them: a table, figures, report.html."""
    from plusx.recipe import load_recipe

    read = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"compare-{_run_name(recipe, overrides)}"
    from plusx.study.compare import compare as compare_networks

    result = compare_networks(read, folder, jobs=jobs, split=split, command=_command())
    if as_json:
        _print_json({"out": str(folder), **result})
        return
    from plusx.study.table import comparison_table

    print(comparison_table(result, _width()))
    _say_marked(result["marked"])
    print(f"\n{result['finding']}\n\n{folder / 'report.html'}")


@app.command(
    help_epilogue="Examples:\n  plusx study\n  plusx study degradation --out degradation\n"
    "  plusx study degradation data.kind=cifar10 study.depths=[20,32,44]"
)
def study(
    recipe: Annotated[
        str | None, _about("A recipe with a table [study]. Without one, all studies are listed.")
    ] = None,
    /,
    *overrides: Overrides,
    out: Annotated[Path | None, _about("The folder. Default: runs/study- and the names.")] = None,
    jobs: Annotated[int | None, _about("Cells at a time. Default: one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Make an experiment: many runs, what is measured in them, a table, figures, report.html."""
    if recipe is None:
        from plusx.study.catalogue import STUDIES

        if as_json:
            _print_json(
                {"studies": [{"kind": k, "question": s.question} for k, s in STUDIES.items()]}
            )
            return
        width = max(map(len, STUDIES))
        for kind, found in STUDIES.items():
            print(f"{kind:{width}}  {found.question}")
        return
    from plusx.recipe import load_recipe

    read = load_recipe(recipe, overrides)
    folder = out or Path("runs") / f"study-{_run_name(recipe, overrides)}"
    from plusx.study.experiment import study as make_study

    result = make_study(read, folder, jobs=jobs, command=_command())
    if as_json:
        _print_json({"out": str(folder), **result})
        return
    from plusx.study.table import study_tables

    print(study_tables(result, _width()))
    _say_marked(result["marked"])
    print(f"\n{result['finding']}\n\n{folder / 'report.html'}")


@app.command(
    help_epilogue="Examples:\n  plusx evaluate runs/digits-resnet20\n"
    "  plusx evaluate runs/digits-resnet20 --split test\n"
    "  plusx evaluate resnet18 --weights IMAGENET1K_V1 --data imagenet/val"
)
def evaluate(
    trained: Annotated[
        str,
        Parameter(name="RUN", help="A run's folder, a safetensors file, or a network's name."),
    ],
    /,
    *,
    weights: Annotated[
        str | None, _about("With a network's name: its file, or the name of torchvision's weights.")
    ] = None,
    data: Annotated[
        str | None, _about("digits, fashion-mnist, cifar10, cifar100, a folder or a CSV.")
    ] = None,
    split: Annotated[str, _about("validation, test, train or all; a use of test is recorded.")] = (
        "validation"
    ),
    views: Views = None,
    damaged: Annotated[
        Literal["error", "skip"], _about("What to do with files in ruins.")
    ] = "error",
    batch_size: Annotated[int, _about("Images at a time.")] = 128,
    workers: Annotated[int, _about("Processes that decode files.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a run, or a network with weights: accuracy, precision, recall, F1 and more."""
    from plusx import run

    opened = _opened(trained, weights)
    result = run.evaluate(
        opened,
        data=data,
        split=split,
        views=views,
        damaged=damaged,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    if as_json:
        _print_json(result)
        return
    print(f"{result['data']} {result['split']}: {_figures(result)}")
    names = max(len(row["label"]) for row in result["per_class"])
    print(f"\n  {'class':{names}} {'precision':>9} {'recall':>7} {'F1':>7} {'images':>7}")
    for row in result["per_class"]:
        print(
            f"  {row['label']:{names}} {row['precision']:9.3f} {row['recall']:7.3f} "
            f"{row['f1']:7.3f} {row['count']:7,}"
        )
    for notice in result.get("notices", ()):
        print(f"plusx: {notice}", file=sys.stderr)
    if "test_uses" in result:
        times = "once" if result["test_uses"] == 1 else f"{result['test_uses']} times"
        print(f"\nThis run has looked at the test set {times} (test_uses.jsonl).")


@app.command(
    help_epilogue="Examples:\n  plusx predict runs/photos holiday.jpg\n"
    "  plusx predict runs/photos new-photos --out answers --views flip\n"
    "  plusx predict model.safetensors *.png --json"
)
def predict(
    trained: Annotated[
        str, Parameter(name="RUN", help="A run's folder or a safetensors file that plusx wrote.")
    ],
    /,
    *paths: Annotated[str, _about("Images, and folders of images.")],
    out: Annotated[Path | None, _about("Where predictions.json and predictions.csv go.")] = None,
    views: Views = None,
    batch_size: Annotated[int, _about("Images at a time.")] = 64,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what is on images. A file that cannot be used is named and stops no other."""
    if not paths:
        raise ValueError("predict: name images or folders of images")
    from plusx import run

    result = run.predict(
        _opened(trained, None), paths, views=views, batch_size=batch_size, device=device
    )
    for each in result["failed"]:
        print(f"plusx: {each['path']}: {each['reason']}", file=sys.stderr)
    written = run.write_predictions(out, result) if out is not None else []
    if as_json:
        _print_json(result)
        return
    width = max(len(row["path"]) for row in result["predictions"])
    label = max(len(row["label"]) for row in result["predictions"])
    for row in result["predictions"]:
        print(f"{row['path']:{width}}  {row['label']:{label}}  {row['probability']:7.2%}")
    for path in written:
        print(f"plusx: wrote {path}", file=sys.stderr)


@app.command(
    help_epilogue="Examples:\n  plusx explain runs/photos new-photos --out why\n"
    "  plusx explain runs/photos cat.jpg --class dog\n"
    "  plusx explain model.safetensors *.png --method occlusion --json"
)
def explain(
    trained: Annotated[
        str, Parameter(name="RUN", help="A run's folder or a safetensors file that plusx wrote.")
    ],
    /,
    *paths: Annotated[str, _about("Images, and folders of images.")],
    out: Annotated[Path | None, _about("The folder. Default: runs/explain- and the name.")] = None,
    method: Annotated[
        Literal["grad-cam", "integrated-gradients", "occlusion"],
        _about("The latter two need the extra: pip install 'plusx[explain]'."),
    ] = "grad-cam",
    class_name: Annotated[
        str | None,
        Parameter(name="--class", help="What to look for. Default: what the network says."),
    ] = None,
    stage: Annotated[
        str | None, _about("Where Grad-CAM looks: layer2, ... Default: what is pooled.")
    ] = None,
    checked: Annotated[int, _about("Images whose maps are put to the test; 0 for none.")] = 32,
    seed: Annotated[int, _about("Of random maps and shuffled weights.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show where in images the network found its answer, and whether to believe that."""
    if not paths:
        raise ValueError("explain: name images or folders of images")
    folder = out or Path("runs") / f"explain-{_run_name(Path(trained).resolve().name, ())}"
    from plusx.study.explain import explain as explain_images

    result = explain_images(
        _opened(trained, None),
        paths,
        folder,
        method=method,
        class_name=class_name,
        stage=stage,
        checked=checked,
        seed=seed,
        device=device,
        command=_command(),
    )
    for each in result["failed"]:
        print(f"plusx: {each['path']}: {each['reason']}", file=sys.stderr)
    if as_json:
        _print_json({"out": str(folder), **result})
        return
    from plusx.study.judgement import told

    print(f"{told(result)}\n\n{folder / 'explain.html'}")


@app.command(
    help_epilogue="Examples:\n"
    "  plusx convert resnet20.th --as resnet20 --source akamaster --to resnet20.safetensors"
)
def convert(
    file: Annotated[str, Parameter(name="FILE", help="What another library wrote.")],
    /,
    *,
    model: Annotated[str, Parameter(name="--as", help="The network that it is for.")],
    source: Annotated[str, _about("akamaster, torchvision, timm or keras.")],
    to: Annotated[str, _about("The safetensors file to write.")],
    as_json: Json = False,
) -> None:
    """Turn another library's weights into a safetensors file of ours."""
    from plusx.weights import convert as convert_weights

    done = convert_weights(file, model, source, to)
    if as_json:
        _print_json(
            {
                "to": str(done.to),
                "model": done.model,
                "source": done.source,
                "tensors": done.tensors,
                "parameters": done.parameters,
                "num_classes": done.num_classes,
                "preprocessing": done.preprocessing,
                "classes": None if done.classes is None else list(done.classes),
            }
        )
        return
    print(
        f"{done.to}: {done.model or model} from {done.source}, {done.tensors} tensors, "
        f"{done.parameters:,} parameters, {done.num_classes:,} classes"
    )


@app.command(
    help_epilogue="Examples:\n  plusx claims\n  plusx claims 'error-*-cifar10'\n"
    "  plusx claims 'erratum-*' --json\n  plusx claims --kind property"
)
def claims(
    pattern: Annotated[str, _about("A claim's name or a shell pattern in quotes.")] = "*",
    /,
    *,
    kind: Annotated[str | None, _about("arithmetic, property or training.")] = None,
    results: Annotated[Path, _about("The folder with what is known of them.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """List what the literature claims, with what came out where it was run."""
    from plusx.study.ledger import ledger, ledger_table

    rows = ledger(pattern, kind, results)
    if as_json:
        _print_json({"claims": rows})
    else:
        print(ledger_table(rows, _width()))


@app.command(
    help_epilogue="Examples:\n  plusx reproduce parameters-resnet110\n"
    "  plusx reproduce gradient-identity\n  plusx reproduce 'erratum-*'\n"
    "  plusx reproduce error-resnet20-cifar10 --quick"
)
def reproduce(
    claim: Annotated[str, Parameter(name="CLAIM", help="A claim's name, or a pattern of several.")],
    /,
    *,
    quick: Annotated[
        bool,
        Parameter(negative="", help="A smaller version, which says in what it is smaller."),
    ] = False,
    kind: Annotated[str | None, _about("With a pattern: only claims of this kind.")] = None,
    out: Annotated[Path, _about("The folder whose claims.json keeps the result.")] = Path(
        "results"
    ),
    work: Annotated[Path, _about("The folder of the runs it takes, which claims share.")] = Path(
        "runs/claims"
    ),
    as_json: Json = False,
) -> None:
    """Run a claim against its number: PASS, MISS or INCONCLUSIVE, and the distance."""
    from plusx.study.ledger import chosen

    names, several = chosen(claim, kind)
    from plusx.study.reproduce import described, reproduce_all
    from plusx.study.reproduce import reproduce as reproduce_one

    if not several:
        record = reproduce_one(
            names[0], quick=quick, out=out, work=work, command=_command(), tell=_tell
        )
        if as_json:
            _print_json(record)
        else:
            print(described(record))
        return
    found = reproduce_all(names, quick=quick, out=out, work=work, tell=_tell)
    if as_json:
        _print_json(found)
    else:
        print("\n".join(described(record) for record in found["claims"]))
    if found["failed"]:
        raise RuntimeError(
            f"{len(found['failed'])} of {len(names)} claims could not be run: "
            + "; ".join(f"{each['id']}: {each['reason']}" for each in found["failed"][:3])
        )


@app.command(
    name="check-tables",
    help_epilogue="Examples:\n  plusx check-tables tables.toml\n"
    "  plusx check-tables runs/study-tables/tables.toml --json",
)
def check_tables(
    file: Annotated[Path, Parameter(name="FILE", help="Tables in TOML, see docs/studies.md.")],
    /,
    *,
    as_json: Json = False,
) -> None:
    """Check whether tables about networks can be true: rounding, averages, units and counts."""
    from plusx.study.consistency import check, described
    from plusx.study.printed import read_tables

    tables = read_tables(file)
    found = check(tables)
    if as_json:
        _print_json({"file": str(file), "complaints": [described(each) for each in found]})
    else:
        print("\n".join(map(str, found)) or f"{file}: nothing contradicts anything else")
    if found:
        raise RuntimeError(
            f"{file}: {len(found)} {'figure or row' if len(found) == 1 else 'figures or rows'} "
            "cannot be as printed"
        )


@app.command(help_epilogue="Examples:\n  plusx report runs/digits-resnet20\n  plusx report demo")
def report(
    folder: Annotated[Path, Parameter(name="DIR", help="A finished run, comparison or study.")],
    /,
    *,
    as_json: Json = False,
) -> None:
    """Write report.html, which needs no network and no other file, into the folder of results."""
    from plusx.report import write_report

    written = write_report(folder)
    if as_json:
        _print_json({"report": str(written)})
    else:
        print(written)


@app.command(help_epilogue="Examples:\n  plusx info\n  plusx info --json")
def info(*, as_json: Json = False) -> None:
    """Show versions, devices, recipes, and where data is looked for."""
    import torch

    from plusx.data.download import places
    from plusx.recipe import shipped_recipes
    from plusx.run.environment import environment
    from plusx.tasks.prepare import find_device

    found = {
        **environment(find_device("auto")),
        "data": [{"path": str(place), "there": place.is_dir()} for place in places()],
        "recipes": shipped_recipes(),
        "cuda": torch.version.cuda,
    }
    if as_json:
        _print_json(found)
        return
    for key, value in found.items():
        if key == "data":
            value = ", ".join(
                f"{each['path']}{'' if each['there'] else ' (none)'}" for each in value
            )
        elif isinstance(value, list):
            value = ", ".join(value)
        print(f"{key:16} {value}")


class _Terminated(BaseException):
    """SIGTERM came while nothing was there to be saved."""


def main() -> NoReturn:
    """Run the command that the shell gave, and exit with a documented code (docs/exit-codes.md)."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _warn
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        code = _stdout_closed()
    raise SystemExit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command, and say what is wrong in one line; the exit code that it earned."""
    debug = "--debug" in arguments
    try:
        app(
            [argument for argument in arguments if argument != "--debug"],
            exit_on_error=False,
            print_error=False,
            help_on_error=False,
            result_action="return_value",
        )
    except BrokenPipeError:
        return _stdout_closed()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _Terminated:
        return _fail("terminated", 143)
    except CycloptsError as error:
        return _fail(str(error), 2)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        stopped_by = getattr(error, "signal_number", None)
        if stopped_by is not None:
            return _fail(str(error), 128 + stopped_by)
        known = isinstance(error, ValueError | RuntimeError | OSError | FloatingPointError)
        name = "" if known and str(error) else f"{type(error).__name__}: "
        return _fail(f"{name}{error}", 2 if isinstance(error, ValueError) else 1)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"plusx: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    print(f"plusx: {' '.join(message.split())}", file=sys.stderr)
    return code


def _stdout_closed() -> int:
    """Who read our output has left, as `head` does: what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _say_marked(marked: Sequence[dict[str, Any]]) -> None:
    """Name the runs that stand in no mean."""
    for row in marked:
        seeds = row.get("seeds") or [row["seed"]]
        said = f"{row['name']} seed {', '.join(map(str, seeds))}"
        print(f"plusx: {said} is in no mean: {row['why']}", file=sys.stderr)


def _print_json(result: dict[str, Any]) -> None:
    import json

    print(json.dumps(result, ensure_ascii=True, allow_nan=False))


def _opened(trained: str, weights: str | None) -> Any:
    """The run, the file of weights, or the network of that name with `weights`."""
    from plusx.zoo import ZOO, find

    if weights is None:
        if trained in ZOO and not Path(trained).exists():
            raise ValueError(
                f"{trained} is a network without weights: name a run or a file of weights, or "
                "with evaluate add --weights"
            )
        from plusx.run import load_run

        return load_run(trained)
    find(trained)
    from plusx.run.folder import load_weights_as

    return load_weights_as(trained, weights)


def _figures(figures: dict[str, Any]) -> str:
    return (
        f"accuracy {figures['accuracy']:.2%}, precision {figures['precision']:.3f}, "
        f"recall {figures['recall']:.3f}, F1 {figures['f1']:.3f} ({figures['averaging']}), "
        f"loss {figures['loss']:.4f}, {figures['count']:,} images"
    )


def _run_name(recipe: str, overrides: tuple[str, ...]) -> str:
    """A folder's name that is the same for the same command, so that it goes on there."""
    import re

    stem = Path(recipe).name.removesuffix(".toml")
    name = ",".join([stem, *overrides])
    name = re.sub(r"[^\w.=,+-]+", "_", name).lstrip(".-") or "run"
    if len(name.encode()) > 120:
        from hashlib import sha256

        name = f"{name[:80]}-{sha256(name.encode()).hexdigest()[:12]}"
    return name


def _width() -> int | None:
    """The width of the terminal that we write to; None where it is none."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _tell(line: str) -> None:
    print(f"plusx: {line}", file=sys.stderr, flush=True)


def _command() -> str:
    import shlex

    return shlex.join(["plusx", *sys.argv[1:]])
