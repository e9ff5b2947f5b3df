"""What lies in a run's folder, and opening one for use."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from plusx import store
from plusx.data.modality import ImageModality, Modality, modality_from_dict
from plusx.data.modality.image import Resize
from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension
from plusx.models import create_model
from plusx.nn.network import Network
from plusx.recipe import Recipe, parse_recipe
from plusx.run.environment import exact_eight_bits
from plusx.run.networks import blank_net
from plusx.run.task_factory import from_dict as task_from_dict
from plusx.run.task_factory import open_task
from plusx.tasks.classify import Classify
from plusx.tasks.embed import Embed
from plusx.tasks.task import Task
from plusx.weights import open_network
from plusx.weights.convert import SOURCE_DEFAULTS, usual_classes, usual_preprocessing
from plusx.weights.fetch import find_weights
from plusx.weights.files import FORMAT, described, kind_of, sketch_with_head
from plusx.weights.load import outputs_of


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
_RESIZE: dict[str | None, Resize] = {
    "whole": "stretch",
    "middle": "center_crop",
    "stored": "none",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained network with all that is needed to use it.

    `recipe` is None for a bare file of weights; `finished` says whether training came to its end.
    `named` is False where numbers stand in for classes whose
    names nobody knows, `assumed` is True where the preprocessing is what is usual.
    """

    path: Path
    net: nn.Module
    task: Task
    classes: tuple[str, ...]
    preprocessing: Modality
    recipe: Recipe | None
    finished: bool
    named: bool = True
    assumed: bool = False

    @property
    def has_gradients(self) -> bool:
        """Whether torch computes the network: what asks how answers come about needs that."""
        return any(True for _ in self.net.parameters())

    @property
    def classifies(self) -> bool:
        """Whether its answer is one of the classes, or some of them."""
        return isinstance(self.task, Classify)

    @property
    def sized(self) -> bool:
        """Whether masks and boxes are told of an image scaled to one size, or as large as it is."""
        return not self.preprocessing.varies

    @property
    def embeds(self) -> bool:
        """Whether its answer is a vector, which is near those of the same person or class."""
        return isinstance(self.task, Embed)

    @property
    def multilabel(self) -> bool:
        """Whether an image can have several labels."""
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
    known = store.read_json(path / DATA)
    classes, preprocessing = (
        tuple(known["classes"]),
        modality_from_dict(known["preprocessing"]),
    )
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
        preprocessing=preprocessing,
        recipe=recipe,
        finished=(path / RESULT).is_file(),
    )


def load_weights_as(model: str, weights: str) -> Run:
    """A network of the zoo with a file of weights, or with torchvision's of that name.

    UserError: the weights are not for that network. OSError: they cannot be fetched.
    """
    found = find_weights(model, weights)
    net = create_model(model, weights=weights).eval()
    outputs = outputs_of(net)
    expected = found.preprocessing or usual_preprocessing(net, SOURCE_DEFAULTS["torchvision"])
    if (
        expected is None
        and isinstance(net, Network)
        and (net.spec.ndim, net.spec.in_channels)
        == (
            2,
            1,
        )
    ):
        size = list(each_dimension(net.spec.size, 2))
        expected = {"size": size, "channels": 1, "mean": [_GREY[0]], "std": [_GREY[1]]}
    if expected is None or not outputs:
        raise UserError(f"{weights} does not say how the inputs of {model} are to be prepared")
    named = found.classes or usual_classes(outputs, SOURCE_DEFAULTS["torchvision"])
    classes = named or tuple(map(str, range(outputs)))
    return Run(
        path=Path(weights),
        named=bool(named),
        assumed=found.preprocessing is None,
        net=net,
        task=open_task(task_from_dict(found.task, found.multilabel), net, classes).eval(),
        classes=classes,
        preprocessing=prepared_as(expected, found.view),
        recipe=None,
        finished=True,
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
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a run needs a folder")
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
    outputs = outputs_of(net)
    if not outputs:
        raise UserError(f"{path} has no classes: its network has no head")
    classes = weights.classes or tuple(map(str, range(outputs)))
    try:
        task = open_task(task_from_dict(weights.task, weights.multilabel), net, classes)
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    return Run(
        path=path,
        named=bool(weights.classes),
        net=net,
        task=task.eval(),
        classes=classes,
        preprocessing=prepared_as(weights.preprocessing, weights.view),
        recipe=None,
        finished=True,
    )


def _from_onnx(path: Path) -> Run:
    """The network is a session of ONNX Runtime; all else is as with a file of weights."""
    from plusx.export import OnnxNetwork, read_onnx

    file = read_onnx(path)
    try:
        weights = described({}, {**file.metadata, "format": FORMAT})
        if weights.preprocessing is None:
            raise UserError("it does not say how images are to be prepared")
        preprocessing = prepared_as(weights.preprocessing, weights.view)
        outputs = file.num_outputs or weights.head_classes
        classes = weights.classes or tuple(map(str, range(outputs)))
        fixed = 0 not in file.sizes and preprocessing.ndim == 2
        if file.tokens or (
            fixed
            and file.sizes != (preprocessing.channels, *preprocessing.size)
            and weights.view != "stored"
        ):
            raise UserError(
                f"its input is {file.sizes}, and its preprocessing {weights.preprocessing}"
            )
        if len(classes) != outputs or not classes:
            raise UserError(f"it names {len(classes)} classes for {outputs} outputs")
        net = OnnxNetwork(file.content, sketch_with_head(weights))
        table = task_from_dict(weights.task, weights.multilabel)
        task = open_task(table, net, None if table.kind == "embed" else classes)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    _warn_of_saturation(path, file.metadata.get("int8", ""))
    return Run(
        path=path,
        named=bool(weights.classes),
        net=net,
        task=task.eval(),
        classes=classes,
        preprocessing=preprocessing,
        recipe=None,
        finished=True,
    )


def _warn_of_saturation(path: Path, int8: str) -> None:
    """Weights of eight full bits need a processor that adds their products in 32."""
    if '"full_range": true' in int8 and not exact_eight_bits():
        warnings.warn(
            f"{path} was quantised for a processor with VNNI, which this one has not: its sums can "
            "saturate and its answers be wrong; export it again here",
            stacklevel=3,
        )


def prepared_as(values: dict[str, Any], view: str | None) -> Modality:
    """How inputs are prepared; `view` is what files of before 0.9 say of images of another size."""
    modality = modality_from_dict(values)
    if "resize" in values or view not in _RESIZE or not isinstance(modality, ImageModality):
        return modality
    return replace(modality, resize=_RESIZE[view])


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
