"""Opening a run, and reading the files in its folder."""

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
from plusx.nn.build import build_on_meta
from plusx.nn.with_head import NetworkWithHead
from plusx.recipe import Recipe, parse_recipe
from plusx.run.build import blank_net
from plusx.run.environment import has_exact_int8
from plusx.run.file_names import DATA, ENVIRONMENT, RECIPE, RESULT, TEST_USES, WEIGHTS
from plusx.run.task_factory import TASKS, open_task
from plusx.run.task_factory import from_dict as task_from_dict
from plusx.tasks.classify import Classify
from plusx.tasks.embed import Embed
from plusx.tasks.represent import Represent
from plusx.tasks.task import Task
from plusx.weights import open_network
from plusx.weights.convert import SOURCE_DEFAULTS, usual_classes, usual_preprocessing, usual_resize
from plusx.weights.fetch import find_weights
from plusx.weights.files import FORMAT, Weights, from_metadata, kind_of, model_of


_MAX_RECIPE = 1_000_000
UNFINISHED = "the run is not finished; its newest checkpoint is used"
_GREY_MEAN, _GREY_STD = 0.449, 0.226  # of ImageNet, averaged over channels


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained network with its task, classes and preprocessing.

    net: a Backbone, or a session of ONNX Runtime
    recipe: None for a weight file
    finished: whether the training is finished
    named: False if the class names are unknown and replaced by numbers
    assumed: True if the preprocessing is not stated and a default is used
    source: the library that a weight file is from, if it is stated
    data: the name of the training data, "" if unknown
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
        """Whether the network is a torch module with parameters, not an ONNX session."""
        return any(True for _ in self.net.parameters())

    @property
    def classifies(self) -> bool:
        """Whether the task is classification."""
        return isinstance(self.task, Classify)

    @property
    def sized(self) -> bool:
        """Whether all images are resized to one size."""
        return not self.preprocessing.varies

    @property
    def embeds(self) -> bool:
        """Whether predictions are embeddings."""
        return isinstance(self.task, Embed | Represent)

    @property
    def multilabel(self) -> bool:
        """Whether an input can have several class labels."""
        return isinstance(self.task, Classify) and self.task.multilabel


def load_run(path: str | Path) -> Run:
    """Open a run's folder, or a weight file or ONNX file that plusx wrote, in eval mode.

    An unfinished run is opened at its newest checkpoint. Raises UserError if the path is none of
    these, or the metadata is incomplete.
    """
    path = Path(path)
    if path.is_file():
        is_onnx = path.suffix == ".onnx" or kind_of(path) == "an ONNX file"
        return _from_onnx(path) if is_onnx else _from_weights(path)
    if not path.exists():
        raise UserError(f"{path}: no such run, weight file or ONNX file")
    if not (path / RECIPE).is_file():
        runs = sorted(recipe.parent.name for recipe in path.glob(f"*/{RECIPE}"))
        hint = f"; did you mean {path / runs[0]}?" if runs else ""
        raise UserError(f"{path} is not a run's folder: it has no {RECIPE}{hint}")
    recipe = read_recipe(path)
    data = read_data(path)
    classes = tuple(map(printable, data["classes"]))
    net: nn.Module
    if (path / WEIGHTS).is_file():
        net, weights = open_network(path / WEIGHTS)
        if weights.classes is not None and weights.classes != classes:
            raise UserError(
                f"{path}: the {len(classes)} classes of {DATA} are not the {len(weights.classes)} "
                f"of {WEIGHTS}"
            )
        task = open_task(recipe.task, net, classes)
    else:
        net = blank_net(recipe, len(classes))
        task = open_task(recipe.task, net, classes)
        saved = store.load_checkpoint(path / store.CHECKPOINTS)
        if saved is None:
            raise UserError(f"{path}: the run has no checkpoint yet")
        tensors = saved.tensors.get("ema", saved.tensors["weights"])
        # in half precision, the task is trained inside a wrapper
        named = {name.removeprefix("task."): tensor for name, tensor in tensors.items()}
        # the task for training can have more tensors, such as those of a projector
        expected = task.state_dict()
        task.load_state_dict({name: named[name] for name in named if name in expected})
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
    """Return a zoo network with a weight file, or with torchvision's weights of that name.

    Raises UserError if the weights are for another network, OSError if they cannot be downloaded.
    """
    stored = find_weights(model, weights)
    net = create_model(model, weights=weights).eval()
    defaults = SOURCE_DEFAULTS["torchvision"]
    preprocessing = stored.preprocessing or usual_preprocessing(net, defaults)
    if preprocessing is None and (net.style.ndim, net.in_channels) == (2, 1):
        size = list(each_dimension(net.spec.size, 2))
        preprocessing = {
            "size": size,
            "resize": usual_resize(size),
            "channels": 1,
            "mean": [_GREY_MEAN],
            "std": [_GREY_STD],
        }
    if preprocessing is None or not net.num_classes:
        raise UserError(f"{weights} does not state the preprocessing of {model}")
    classes = stored.classes or usual_classes(net.num_classes, defaults)
    completed = replace(stored, preprocessing=preprocessing, classes=classes)
    return replace(
        _with_task(Path(weights), net, completed, net.num_classes),
        assumed=stored.preprocessing is None,
    )


def read_data(folder: Path) -> dict[str, Any]:
    """Read and check the data.json of a run. Raises UserError if it is invalid."""
    data = store.read_json_part(folder / DATA)
    if isinstance(data, dict):
        classes, splits = data.get("classes"), [data.get(name) for name in ("train", "validation")]
        valid_splits = all(
            split is None or (isinstance(split, dict) and isinstance(split.get("fingerprint"), str))
            for split in splits
        )
        valid_classes = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        tables = [data.get(name) for name in ("preprocessing", "train")]
        are_tables = all(isinstance(table, dict) for table in tables) and "validation" in data
        if valid_classes and valid_splits and are_tables:
            return data
    raise UserError(
        f"{folder / DATA} is invalid: it needs classes, preprocessing, train and "
        "validation; restore the file, or use model.safetensors alone"
    )


def read_recipe(folder: Path) -> Recipe:
    """Read the resolved recipe in a run's folder."""
    try:
        text = store.read_part(folder / RECIPE, _MAX_RECIPE).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{folder / RECIPE} is not UTF-8 text: restore the file") from None
    return parse_recipe(text, where=str(folder / RECIPE))


def read_environment(folder: Path) -> dict[str, Any]:
    """Read the environment.json of a run. Raises UserError if it is not a JSON object."""
    values = store.read_json_part(folder / ENVIRONMENT)
    if not isinstance(values, dict):
        raise UserError(f"{folder / ENVIRONMENT} is not what plusx wrote: restore the file")
    return values


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result.json of a run. Raises UserError if its values are not those of a result."""
    result = store.read_json_part(folder / RESULT)
    keys: dict[str, Any] = {
        "name": str,
        "parameters": int,
        "steps": int,
        "train_error": float | int | None,
        "validation": dict | None,
    }
    if isinstance(result, dict) and all(
        key in result and isinstance(result[key], kind) for key, kind in keys.items()
    ):
        return result
    raise UserError(
        f"{folder / RESULT} is not the result of a run: it needs {', '.join(keys)}; "
        "restore the file, or train again with another --out"
    )


def test_uses(folder: Path) -> int:
    """Return how often the test set was used with this run."""
    path = folder / TEST_USES
    return store.read_bytes(path).count(b"\n") if path.is_file() else 0


def record_test_use(folder: Path, use: Mapping[str, Any]) -> int:
    """Append a line to test_uses.jsonl; return the number of uses, including this one."""
    with store.Log(folder / TEST_USES) as uses:
        uses.append({"date": now(), **use})
        uses.sync()
    return test_uses(folder)


def now() -> str:
    """Return the date and time in UTC in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def refuse_foreign(folder: Path) -> None:
    """Raise UserError for a file, or a folder with files that are not those of a run."""
    store.refuse_as_folder(folder)
    if not folder.is_dir() or (folder / RECIPE).is_file():
        return
    run_files = {store.LOCK, ENVIRONMENT, DATA}
    others = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in run_files and not re.fullmatch(r"\.plusx-.*\.tmp", entry.name)
    )
    if others:
        raise UserError(
            f"{folder} is not empty and not a run's folder: {_first(others)}; choose another one"
        )


def _from_weights(path: Path) -> Run:
    net, weights = open_network(path)
    if weights.preprocessing is None:
        raise UserError(f"{path} does not state its preprocessing")
    represents = (weights.task or {}).get("kind") == "represent"
    if not net.num_classes and not represents:
        raise UserError(f"{path} has no classes, since its network has no head")
    try:
        run = _with_task(path, net, weights, net.num_classes or net.embed_width)
        spec: Any = net.backbone.spec if isinstance(net, NetworkWithHead) else net.spec
        modality = run.preprocessing
        takes = spec.ndim, spec.takes_tokens, net.in_channels
        if takes != (modality.ndim, modality.tokens, modality.channels):
            raise UserError(f"its preprocessing, of {modality.inputs}, is not that of its network")
        return run
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def _from_onnx(path: Path) -> Run:
    """Open an ONNX file, whose metadata is that of a weight file."""
    from plusx.export import OnnxNetwork, read_onnx

    file = read_onnx(path)
    try:
        weights = from_metadata({}, {**file.metadata, "format": FORMAT})
        if weights.preprocessing is None:
            raise UserError("it does not state its preprocessing")
        outputs = file.num_outputs or weights.head_classes
        detector: Any = None if weights.head is None else build_on_meta(model_of(weights))
        net = OnnxNetwork(file.content, detector)
        run = _with_task(path, net, weights, outputs)
        fixed = 0 not in file.sizes and run.preprocessing.ndim == 2
        sizes = run.preprocessing.input_shape
        if file.tokens != run.preprocessing.tokens or (fixed and run.sized and file.sizes != sizes):
            raise UserError(
                f"its input {file.sizes} does not fit its preprocessing {weights.preprocessing}"
            )
        if len(run.classes) != outputs or not outputs:
            raise UserError(f"it has {len(run.classes)} class names for {outputs} outputs")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None
    _warn_of_saturation(path, file.metadata.get("int8", ""))
    return run


def _with_task(path: Path, net: nn.Module, weights: Weights, outputs: int) -> Run:
    """Return a run with the task, classes and preprocessing of a weight file."""
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
    """Warn of a file quantised with full range on a processor whose int8 sums saturate."""
    if '"full_range": true' in int8 and not has_exact_int8():
        warnings.warn(
            f"{path} was quantised for a processor with VNNI, which this machine lacks: sums can "
            "saturate and predictions be wrong; export it again on this machine",
            stacklevel=3,
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
