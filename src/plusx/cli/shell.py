"""What the commands have in common: the app, arguments that several take, and what they print."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

import plusx
from plusx.errors import UserError, counted, printable


app = App(
    name="plusx",
    help="Residual learning, y = F(x) + x: build, train, compare, evaluate and use networks.",
    help_format="plaintext",
    help_epilogue="`plusx COMMAND --help` shows examples. `--debug` prints tracebacks.",
    version=plusx.__version__,
    suppress_keyboard_interrupt=False,
)
# the groups of `plusx --help`, in this order
TRAIN, USE, INSPECT, RESEARCH = (
    Group(name, sort_key=place)
    for place, name in enumerate(("Train", "Use", "Inspect", "Research"))
)
app["--help"].group = app["--version"].group = Group("Other", sort_key=9)


def about(text: str) -> Any:
    return Parameter(help=text)


def output_folder(text: str) -> Any:
    """An option that names the folder to write: whether it can be is asked before the work."""
    return Parameter(help=text, validator=_refuse_folder)


def output_file(text: str) -> Any:
    """An option that names the file to write."""
    return Parameter(help=text, validator=_refuse_file)


def _refuse_folder(hint: Any, path: str | Path | None) -> None:
    from plusx.store import refuse_as_folder

    if path is not None:
        refuse_as_folder(path)


def _refuse_file(hint: Any, path: str | Path | None) -> None:
    from plusx.store import refuse_as_file

    if path is not None:
        refuse_as_file(path)


Json = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        help="Print one JSON object on standard output, nothing else.",
    ),
]
RecipeName = Annotated[str, about("The name of a recipe (see `plusx recipes`), or a TOML file.")]
Overrides = Annotated[str, about("KEY=VALUE overrides a field: seed=1 epochs=5 optim.lr=0.05 ...")]
TtaOption = Annotated[
    Literal["none", "flip", "flip-shift"] | None,
    about(
        "Test-time augmentation. flip: the mean over an image and its mirror image. flip-shift: "
        "also over both moved by a pixel, six views in all. Default: that of the recipe."
    ),
]
OnUnreadable = Annotated[
    Literal["error", "skip"],
    about("What to do with unreadable files: stop, or skip and list them."),
]
Device = Annotated[str, about("auto, cpu, cuda, cuda:1 or mps.")]
BatchSize = Annotated[int, about("Batch size.")]
Workers = Annotated[int, about("Data loader processes.")]
Trained = Annotated[
    str, Parameter(name="RUN", help="A run's folder, a safetensors or ONNX file, or a name.")
]
Differentiable = Annotated[str, Parameter(name="RUN", help="A run's folder or a safetensors file.")]
WeightsOption = Annotated[
    str | None, about("With a network's name: its file, or the name of torchvision's weights.")
]
ImagePaths = Annotated[str, about("Images, and folders of images.")]


def print_json(result: dict[str, Any]) -> None:
    import json

    print(json.dumps(result, ensure_ascii=True, allow_nan=False))


def opened(trained: str, weights: str | None) -> Any:
    """The run, the file of weights, or the network of that name with `weights`."""
    from plusx.zoo import ZOO, find

    if weights is None:
        if trained in ZOO and not Path(trained).exists():
            raise UserError(
                f"{trained} is a network without weights: name a run or a file of weights, or "
                "with evaluate add --weights"
            )
        from plusx.run import load_run

        return load_run(trained)
    find(trained)
    from plusx.run.folder import load_weights_as

    return load_weights_as(trained, weights)


def figures_line(figures: dict[str, Any], scores: Sequence[str] = ()) -> str:
    """Figures in a line; `scores` are the keys of those that are no classifier's."""
    if "averaging" not in figures:
        from plusx.report.metrics import metrics_line, with_measures

        line = metrics_line(figures, with_measures(figures, scores), intervals=True)
        return f"{line}, {counted(figures['count'], 'image')}"
    several = scores[:1] == ["auroc"] and figures.get("auroc") is not None
    area = f"AUROC {_with_interval(figures)}, " if several else ""
    return (
        f"{area}accuracy {figures['accuracy']:.2%}, precision {figures['precision']:.3f}, "
        f"recall {figures['recall']:.3f}, F1 {figures['f1']:.3f} ({figures['averaging']}), "
        f"loss {figures['loss']:.4f}, {counted(figures['count'], 'image')}"
    )


def _with_interval(figures: dict[str, Any]) -> str:
    """The area under the ROC curve, and its interval of 95 % if there is one."""
    interval = figures.get("auroc_interval")
    sure = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"{figures['auroc']:.3f}{sure}"


def run_name(recipe: str, overrides: tuple[str, ...]) -> str:
    """A folder's name that is the same for the same command, so that it goes on there."""
    import re

    stem = Path(recipe).name.removesuffix(".toml")
    name = ",".join([stem, *overrides])
    name = re.sub(r"[^\w.=,+-]+", "_", name).lstrip(".-") or "run"
    if len(name.encode()) > 120:
        from hashlib import sha256

        name = f"{name[:80]}-{sha256(name.encode()).hexdigest()[:12]}"
    return name


def say_marked(marked: Sequence[dict[str, Any]]) -> None:
    """Name the runs that stand in no mean."""
    for row in marked:
        seeds = row.get("seeds") or [row["seed"]]
        trial = f"{row['name']} seed {', '.join(map(str, seeds))}"
        print(f"plusx: {trial} is in no mean: {row['why']}", file=sys.stderr)


def terminal_width() -> int | None:
    """The width of the terminal that we write to; None where it is none."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_line(line: str) -> None:
    print(f"plusx: {printable(line)}", file=sys.stderr, flush=True)


@contextmanager
def data_progress() -> Iterator[None]:
    """Print what plusx.data logs of long work, to standard error."""
    import logging

    class Printer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print_line(record.getMessage())

    log, handler = logging.getLogger("plusx.data"), Printer(logging.INFO)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def tell_warnings(result: dict[str, Any]) -> None:
    """Print the warnings of a result, and the files that cannot be used."""
    for failed in result.get("failed", ()):
        print_line(f"{failed['path']}: {failed['reason']}")
    for warning in result.get("warnings", ()):
        print_line(warning)


def command() -> str:
    return shlex.join(["plusx", *sys.argv[1:]])
