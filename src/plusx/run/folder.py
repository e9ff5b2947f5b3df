"""The files of a run's folder, and opening a run for use."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from plusx import store
from plusx.data.modality import Modality, modality_from_dict
from plusx.errors import UserError, printable
from plusx.grammar.arithmetic import each_dimension
from plusx.models import create_model
from plusx.recipe import Recipe, parse_recipe
from plusx.run.build import blank_net
from plusx.run.environment import exact_eight_bits
from plusx.run.task_factory import TASKS, open_task
from plusx.run.task_factory import from_dict as task_from_dict
from plusx.tasks.classify import Classify
from plusx.tasks.embed import Embed
from plusx.tasks.task import Task
from plusx.weights import open_network
from plusx.weights.convert import SOURCE_DEFAULTS, usual_classes, usual_preprocessing, usual_resize
from plusx.weights.fetch import find_weights
from plusx.weights.files import FORMAT, Weights, described, kind_of, sketch


RECIPE = "recipe.toml"
ENVIRONMENT = "environment.json"
DATA = "data.json"
LOG = "log.jsonl"
TIMING = "timing.jsonl"
RESULT = "result.json"
WEIGHTS = "model.safetensors"
TEST_USES = "test_uses.jsonl"
_MAX_RECIPE = 1_000_000
UNFINISHED = "the run is not finished; this is its newest checkpoint"
_GREY = (0.449, 0.226)  # ImageNet's mean and deviation, the mean over its colours


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained network with everything that is needed to use it.

    net: a Backbone, or a session of ONNX Runtime.
    recipe: None for a file of weights.
    finished: whether training has reached its end.
    named: False where the names of the classes are unknown, and numbers stand in for them.
    assumed: True where the preprocessing is not stated, and the usual one is taken.
    source: where weights come from, of a file that says so.
    data: the name of the data that it was trained on; "" where it is not stated.
    """

    path: Path
    net: Any
    task: Task
    classes: tuple[str, ...]
    preprocessing: Modality
    recipe: Recipe | None
    finished: bool
    named: bool = True
    assumed: bool = False
    source: str = ""
    data: str = ""

    @property
    def has_gradients(self) -> bool:
        """Whether torch computes the network, as explanations need."""
        return any(True for _ in self.net.parameters())

    @property
    def classifies(self) -> bool:
        """Whether it predicts one of the classes, or some of them."""
        return isinstance(self.task, Classify)

    @property
    def sized(self) -> bool:
        """Whether images are scaled to one size for masks and boxes."""
        return not self.preprocessing.varies

    @property
    def embeds(self) -> bool:
        """Whether it predicts embeddings."""
        return isinstance(self.task, Embed)

    @property
    def multilabel(self) -> bool:
        """Whether an input can have several labels."""
        return isinstance(self.task, Classify) and self.task.multilabel


def load_run(path: str | Path) -> Run:
    """Open a run's folder, or a file of weights or an ONNX file that plusx wrote, for evaluation.

    A run that is not finished is opened at its newest checkpoint. UserError: it is neither, or
    does not say what it takes to be used.
    """
    path = Path(path)
    if path.is_file():
        is_onnx = path.suffix == ".onnx" or kind_of(path) == "an ONNX file"
        return _from_onnx(path) if is_onnx else _from_weights(path)
    if not path.exists():
        raise UserError(f"{path}: no such run, file of weights or ONNX file")
    if not (path / RECIPE).is_file():
        inside = sorted(found.parent.name for found in path.glob(f"*/{RECIPE}"))[:3]
        hint = f"; did you mean {path / inside[0]}?" if inside else ""
        raise UserError(f"{path} is not a run's folder: it has no {RECIPE}{hint}")
    recipe = read_recipe(path)
    data = read_data(path)
    classes = tuple(map(printable, data["classes"]))
    net: nn.Module
    if (path / WEIGHTS).is_file():
        net, weights = open_network(path / WEIGHTS)
        if weights.classes is not None and weights.classes != classes:
            raise UserError(
                f"{path}: {DATA} names {len(classes)} classes, which are not the "
                f"{len(weights.classes)} of {WEIGHTS}"
            )
        task = open_task(recipe.task, net, classes)
    else:
        net = blank_net(recipe, len(classes))
        task = open_task(recipe.task, net, classes)
        saved = store.load_checkpoint(path / store.CHECKPOINTS)
        if saved is None:
            raise UserError(f"{path}: the run has no checkpoint yet")
        tensors = saved.tensors.get("ema", saved.tensors["weights"])
        # In half precision the task was trained inside a wrapper.
        task.load_state_dict({name.removeprefix("task."): t for name, t in tensors.items()})
    return Run(
        path=path,
        net=net,
        task=task.eval(),
        classes=classes,
        preprocessing=modality_from_dict(data["preprocessing"]),
        recipe=recipe,
        finished=(path / RESULT).is_file(),
        data=printable(str(data.get("name", ""))),
    )


def load_weights_as(model: str, weights: str) -> Run:
    """A network of the zoo with a file of weights, or with torchvision's of that name.

    UserError: the weights are not for that network. OSError: they cannot be fetched.
    """
    stored = find_weights(model, weights)
    net = create_model(model, weights=weights).eval()
    usual = SOURCE_DEFAULTS["torchvision"]
    preprocessing = stored.preprocessing or usual_preprocessing(net, usual)
    if preprocessing is None and (net.style.ndim, net.in_channels) == (2, 1):
        size = list(each_dimension(net.spec.size, 2))
        preprocessing = {
            "size": size,
            "resize": usual_resize(size),
            "channels": 1,
            "mean": [_GREY[0]],
            "std": [_GREY[1]],
        }
    if preprocessing is None or not net.num_classes:
        raise UserError(f"{weights} does not say how the inputs of {model} are to be prepared")
    classes = stored.classes or usual_classes(net.num_classes, usual)
    completed = replace(stored, preprocessing=preprocessing, classes=classes)
    return replace(
        _with_task(Path(weights), net, completed, net.num_classes),
        assumed=stored.preprocessing is None,
    )


def read_data(folder: Path) -> dict[str, Any]:
    """Return what data.json of a run's folder says. Raises UserError if no run wrote it."""
    data = store.read_json(folder / DATA)
    if isinstance(data, dict):
        classes, splits = data.get("classes"), [data.get(name) for name in ("train", "validation")]
        described = all(
            split is None or (isinstance(split, dict) and isinstance(split.get("fingerprint"), str))
            for split in splits
        )
        named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        if named and described and isinstance(data.get("preprocessing"), dict):
            return data
    raise UserError(
        f"{folder / DATA} is not what a run writes: it needs classes, preprocessing, train and "
        "validation; restore the file, or use model.safetensors alone"
    )


def read_recipe(folder: Path) -> Recipe:
    """The expanded recipe that a run's folder holds."""
    text = store.read_bytes(folder / RECIPE, _MAX_RECIPE).decode("utf-8")
    return parse_recipe(text, where=str(folder / RECIPE))


def test_uses(folder: Path) -> int:
    """How many times the test set was looked at with this run."""
    path = folder / TEST_USES
    return store.read_bytes(path).count(b"\n") if path.is_file() else 0


def record_test_use(folder: Path, what: Mapping[str, Any]) -> int:
    """Append to test_uses.jsonl; the number of uses so far, this one included."""
    with store.Log(folder / TEST_USES) as uses:
        uses.append({"date": now(), **what})
        uses.sync()
    return test_uses(folder)


def now() -> str:
    """The date and time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def refuse_foreign(folder: Path) -> None:
    """UserError for a path that is a file, or a folder with things in it that no run put there."""
    store.refuse_as_folder(folder)
    if not folder.is_dir() or (folder / RECIPE).is_file():
        return
    ours = {store.LOCK, ENVIRONMENT, DATA}
    others = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in ours and not re.fullmatch(r"\.plusx-.*\.tmp", entry.name)
    )
    if others:
        raise UserError(
            f"{folder} is not empty and not a run's folder: {_first(others)}; choose another one"
        )


def _from_weights(path: Path) -> Run:
    net, weights = open_network(path)
    if weights.preprocessing is None:
        raise UserError(f"{path} does not say how images are to be prepared")
    if not net.num_classes:
        raise UserError(f"{path} has no classes: its network has no head")
    try:
        return _with_task(path, net, weights, net.num_classes)
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def _from_onnx(path: Path) -> Run:
    """A session of ONNX Runtime as the network; everything else is as with a file of weights."""
    from plusx.export import OnnxNetwork, read_onnx

    file = read_onnx(path)
    try:
        weights = described({}, {**file.metadata, "format": FORMAT})
        if weights.preprocessing is None:
            raise UserError("it does not say how images are to be prepared")
        outputs = file.num_outputs or weights.head_classes
        detector: Any = None if weights.head is None else sketch(weights)
        net = OnnxNetwork(file.content, detector)
        run = _with_task(path, net, weights, outputs)
        fixed = 0 not in file.sizes and run.preprocessing.ndim == 2
        sizes = (run.preprocessing.channels, *run.preprocessing.size)
        if file.tokens or (fixed and run.sized and file.sizes != sizes):
            raise UserError(
                f"its input is {file.sizes}, and its preprocessing {weights.preprocessing}"
            )
        if len(run.classes) != outputs or not outputs:
            raise UserError(f"it names {len(run.classes)} classes for {outputs} outputs")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    _warn_of_saturation(path, file.metadata.get("int8", ""))
    return run


def _with_task(path: Path, net: nn.Module, weights: Weights, outputs: int) -> Run:
    """A network with the task, the classes and the preprocessing that a file of weights states."""
    assert weights.preprocessing is not None
    classes = weights.classes or tuple(map(str, range(outputs)))
    table = task_from_dict(weights.task, weights.multilabel)
    has_classes = TASKS[table.kind].has_classes
    return Run(
        path=path,
        named=bool(weights.classes),
        net=net,
        task=open_task(table, net, classes if has_classes else None).eval(),
        classes=classes,
        preprocessing=modality_from_dict(weights.preprocessing),
        recipe=None,
        finished=True,
        source=weights.source,
        data=weights.data,
    )


def _warn_of_saturation(path: Path, int8: str) -> None:
    """Weights of eight full bits need a processor that adds their products in 32."""
    if '"full_range": true' in int8 and not exact_eight_bits():
        warnings.warn(
            f"{path} was quantised for a processor with VNNI, which this one has not: its sums can "
            "saturate and its answers be wrong; export it again here",
            stacklevel=3,
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
