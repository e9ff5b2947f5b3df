"""The app of the command line, and the arguments and output that commands share."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
    Group(name, sort_key=position)
    for position, name in enumerate(("Train", "Use", "Inspect", "Research"))
)
app["--help"].group = app["--version"].group = Group("Other", sort_key=9)


def about(text: str) -> Any:
    return Parameter(help=text)


def output_folder(text: str) -> Any:
    """Return an option for an output folder, which is checked before the work starts."""
    return Parameter(help=text, validator=_refuse_folder)


def output_file(text: str) -> Any:
    """Return an option for an output file, which is checked before the work starts."""
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
    Literal["none", "flip", "flip-shift", "ten-crop", "multi-scale"] | None,
    about(
        "Test-time augmentation. flip: the mean over an image and its mirror image. flip-shift: "
        "also over both moved by a pixel, six views in all. ten-crop: over the four corners, the "
        "centre and their mirror images. multi-scale: over the whole image with shorter sides of "
        "224, 256, 384, 480 and 640 pixels. Default: that of the recipe."
    ),
]
GrammarOption = Annotated[
    str | None,
    about(
        "Grammar of spoken commands: a TOML file, or home, which comes with plusx. Default: that "
        "of the recipe."
    ),
]
ThresholdOption = Annotated[
    float | None,
    about(
        "Likelihood ratio from which a phrase of the grammar is accepted. Default: that of the "
        "recipe."
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
DataOption = Annotated[
    str | None, about("A set's name (cifar10 ...), a folder or a file (default: the run's data).")
]
Split = Annotated[str, about("validation, test, train or all; test is recorded.")]
WeightsOption = Annotated[
    str | None, about("With a network's name: its file, or the name of torchvision's weights.")
]
InputPaths = Annotated[
    str, about("Images or recordings, and folders of them; texts, and files of texts.")
]


def print_json(result: dict[str, Any]) -> None:
    import json

    print(json.dumps(result, ensure_ascii=True, allow_nan=False))


def open_trained(trained: str, weights: str | None) -> Any:
    """Open a run, a weight file, or the zoo network of that name with `weights`."""
    from plusx.zoo import ZOO, find

    if weights is None:
        if trained in ZOO and not Path(trained).exists():
            raise UserError(
                f"{trained} is a network without weights: give a run or a weight file, or add "
                "--weights (evaluate, probe)"
            )
        from plusx.run import load_run

        return load_run(trained)
    find(trained)
    from plusx.run.folder import load_weights_as

    return load_weights_as(trained, weights)


def metrics_text(
    metrics: dict[str, Any], keys: Sequence[str] = (), noun: str = "image", *, chosen: bool = False
) -> str:
    """Return metrics as one line.

    keys: the metrics of the task, first the main one; noun: what a sample is called
    chosen: whether the epoch was chosen by these metrics, which are then optimistic
    """
    from plusx.report.metrics import METRICS, metrics_line, with_measures
    from plusx.report.run import certainty

    if "averaging" not in metrics:
        line = metrics_line(metrics, with_measures(metrics, keys), intervals=True)
        return f"{line}, {counted(metrics['count'], noun)}"
    multilabel = keys[:1] == ["auroc"] and metrics.get("auroc") is not None
    auroc = f"AUROC {_auroc_text(metrics)}, " if multilabel else ""
    under_attack = "".join(
        f"{METRICS[key].title} {METRICS[key].text(metrics[key], decimals=2)}, "
        for key in ("robust_accuracy", "fgsm_accuracy")
        if key in metrics
    )
    remark = certainty(metrics["accuracy"], metrics["count"], noun, chosen=chosen)
    return (
        f"{auroc}accuracy {METRICS['accuracy'].text(metrics['accuracy'], decimals=2)} ({remark}), "
        f"{under_attack}"
        f"precision {metrics['precision']:.3f}, "
        f"recall {metrics['recall']:.3f}, F1 {metrics['f1']:.3f} ({metrics['averaging']}), "
        f"loss {metrics['loss']:.4f}, {counted(metrics['count'], noun)}"
    )


def _auroc_text(metrics: dict[str, Any]) -> str:
    """Return the AUROC with its 95 % interval, if there is one."""
    interval = metrics.get("auroc_interval")
    bounds = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"{metrics['auroc']:.3f}{bounds}"


def run_name(recipe: str, overrides: tuple[str, ...]) -> str:
    """Return a folder name that is the same for the same command, so that it resumes its run.

    An override of `data.path` does not change it.
    """
    import re

    stem = Path(recipe).name.removesuffix(".toml")
    changes = [override for override in overrides if not override.startswith("data.path=")]
    name = ",".join([stem, *changes])
    name = re.sub(r"[^\w.=,+-]+", "_", name).lstrip(".-") or "run"
    if len(name.encode()) > 120:
        from hashlib import sha256

        name = f"{name[:80]}-{sha256(name.encode()).hexdigest()[:12]}"
    return name


def print_excluded(excluded: Sequence[dict[str, Any]]) -> None:
    """Print the runs that are excluded from means, with the reason."""
    for row in excluded:
        seeds = row.get("seeds") or [row["seed"]]
        trial = f"{row['name']} seed {', '.join(map(str, seeds))}"
        print(f"plusx: {trial} is excluded from means: {row['why']}", file=sys.stderr)


def terminal_width() -> int | None:
    """Return the width of the terminal on standard output; None if it is not a terminal."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_line(line: str) -> None:
    print(f"plusx: {printable(line)}", file=sys.stderr, flush=True)


def throttled(show: Callable[[str], None], seconds: float = 5) -> Callable[[str], None]:
    """Return a function that shows a line at most once in this number of seconds."""
    shown_at = time.monotonic()

    def progress(line: str) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= seconds:
            shown_at = time.monotonic()
            show(line)

    return progress


@contextmanager
def data_progress() -> Iterator[None]:
    """Print the log of plusx.data to standard error."""
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


def print_warnings(result: dict[str, Any]) -> None:
    """Print the warnings of a result, and its unusable files."""
    for failed in result.get("failed", ()):
        print_line(f"{failed['path']}: {failed['reason']}")
    for warning in result.get("warnings", ()):
        print_line(warning)


def print_result(
    result: dict[str, Any], out: Path, page: str, text: Callable[[Any], str], *, as_json: bool
) -> None:
    """Print warnings, and a result: as JSON, or as text with the path of its page in `out`."""
    print_warnings(result)
    if as_json:
        print_json({"out": str(out), **result})
    else:
        print(f"{text(result)}\n\n{out / page}")


def command() -> str:
    return shlex.join(["plusx", *sys.argv[1:]])
