"""What docs/architecture.md says of adding something: in a copy of the package, in those files.

A word, a network, a named set, a kind of data, a modality, a word of augmentation, a task, an
optimizer, a schedule, a method of explanation and a command are added to the copy. It is then used
from outside, by its command line.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plusx


PACKAGE = Path(plusx.__file__).parent

MODALITY = '''
"""Depth maps in metres, as NumPy writes them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from plusx.data.image_file import Verdict, content_digest
from plusx.data.modality.grid import GridModality
from plusx.data.transforms.steps import Setting
from plusx.data.transforms.transform import Transform


@dataclass(frozen=True)
class DepthModality(GridModality):
    kind: ClassVar[str] = "depth"
    noun: ClassVar[str] = "depth map"
    words: ClassVar[frozenset[str]] = frozenset()

    def read_file(self, path, limit=0, decoder="pillow"):
        return torch.from_numpy(np.load(path))[None]

    decode = read_file

    def examine(self, source):
        return Verdict(None, content=content_digest(open(source, "rb").read()))

    def transform(self, augment, *, train, annotated=False, stored=False, channels_last=False):
        return Transform((), Setting(self.size), self.size)
'''

READER = '''
"""A folder of class folders of depth maps; every fifth one validates."""

from pathlib import Path

import torch

from plusx.data.dataset import Dataset, FileItems
from plusx.data.modality.depth import DepthModality


def open_depth(path, split):
    names = sorted(folder.name for folder in Path(path).iterdir())
    files = sorted(Path(path).glob("*/*.npy"))
    files = [f for i, f in enumerate(files) if (i % 5 == 0) == (split == "validation")]
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    modality = DepthModality((8, 8), 1, (0.5,), (0.25,), 0, 10)
    items = FileItems([str(file) for file in files])
    return Dataset(
        name="depth", split=split, classes=tuple(names), labels=labels, modality=modality,
        items=items, root=str(path),
    )


def recognise_depth(path):
    return "depth maps" if any(Path(path).glob("*/*.npy")) else ""
'''

TASK = '''
"""Regression of the class number."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from plusx.data.prediction import Prediction
from plusx.metrics.meter import Meter
from plusx.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Values(Prediction):
    values: Tensor

    def rows(self, class_names):
        return [{"value": value} for value in self.values.tolist()]

    def class_scores(self, num_classes):
        raise NotImplementedError


class MeanError(Meter):
    def record(self, prediction, batch):
        targets = batch.known_targets.cpu().numpy()
        return {"errors": np.abs(prediction.values.cpu().numpy() - targets)}

    def compute(self):
        errors = np.concatenate([record["errors"] for record in self.records])
        return {"mean_error": float(errors.mean()), "count": len(errors)}


class Regress(Task):
    metrics = ("mean_error",)

    def __init__(self, net, scale):
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, batch):
        return (self.scale * self.net(batch.inputs)[:, 0] - batch.known_targets).square().mean()

    def predict(self, batch):
        return Values(self.scale * self.net(batch.inputs)[:, 0])

    def meters(self):
        return [MeanError()]
'''

TABLES = """
@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Regress:
    kind: Literal["regress"] = "regress"
    scale: Rate = 1.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Adagrad:
    kind: Literal["adagrad"] = "adagrad"
    lr: Rate
    clip: Rate | None = None
    accumulation_steps: Positive = 1
    ema: float = 0.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Linear:
    kind: Literal["linear"] = "linear"
    warmup: Positive = 1
    warmup_until: None = None


"""

DATA_TABLE = """
@dataclass(frozen=True, kw_only=True, config=CONFIG)
class DepthData:
    kind: Literal["depth"] = "depth"
    path: str
    validation: None = None
    augment: str = ""
    mix: NoMix = NoMix()
    sampler: Literal["uniform"] = "uniform"
    samples_per_class: Positive = 4
    workers: Count = 0


"""

TASK_KIND = """    "regress": TaskKind(
        use=lambda table, net, class_names: Regress(net, table.scale),
        train=lambda recipe, net, dataset: Regress(net, recipe.task.scale),
        outputs=lambda recipe, dataset: 1,
        has_classes=False,
    ),
"""

MEAN_ERROR = """    "mean_error": Metric("mean error", lower_is_better=True, unit="", maximum=inf),
"""

DATA_IMPORTS = """from plusx.data.readers.depth import open_depth
from plusx.recipe.sets import DepthData
"""

DATA_KIND = """    "depth": DataKind(
        DepthData, lambda recipe, data, split: open_depth(data.path, split)
    ),
"""

LAYOUT = """    "depth": Layout(
        "depth maps", "classes", recognise_depth, lambda path: ("train", "validation")
    ),
"""

ADAGRAD = """    "adagrad": lambda recipe, task: torch.optim.Adagrad(
        task.parameters(), lr=recipe.optim.lr
    ),
"""

LINEAR = """    "linear": lambda table, lr, warmup, total: lambda step: lr * (1 - step / total),
"""

NOTHING = """    "nothing": Method(
        title="Nothing",
        source="nobody",
        networks=0,
        captum=False,
        maps=lambda net, x, classes, stage: x.mean(1),
    ),
"""

INVERT = """    "invert": lambda sample, word, rng, setting: replace(
        sample, input=255 - sample.tensor
    ),
"""

SHUFFLED = """    "shuffled8": Entry(
        net(Block(body="conv3s norm act shuffle4 conv3 norm + act", shortcut="conv1s norm"), 1),
        "He 2015, section 4.2",
    ),
"""

GREET = """

@app.command(group=INSPECT)
def greet() -> None:
    \"\"\"Say hello.\"\"\"
    print("hello")
"""

FORGETFUL = '''
"""A method that makes the weights smaller before every task."""

from dataclasses import dataclass

import torch

from plusx.continual.method import Method


@dataclass(frozen=True)
class Forgetful(Method):
    factor: float

    def wrap(self, task, memory, position):
        with torch.no_grad():
            for weight in task.net.parameters():
                weight *= self.factor
        return task
'''

FORGETFUL_TABLE = """
@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Forgetful:
    kind: Literal["forgetful"] = "forgetful"
    factor: Rate = 0.5


"""

RECIPE = """
epochs = 2
batch_size = 8
net = {{ base = "shuffled8" }}
data = {data}
task = {task}
optim = {{ kind = "adagrad", lr = 0.05 }}
schedule = {{ kind = "linear", warmup = 1 }}
device = {{ kind = "cpu", precision = "float32", threads = 1 }}
"""

# what is added: (file, where, text); where is a dictionary, a line's beginning, "end" or "new"
WORD = [
    (
        "grammar/words.py",
        "VOCABULARY",
        '    "shuffle": (r"shuffle(?P<value>[1-9])", "shuffle4"),\n',
    ),
    ("grammar/arithmetic.py", "ARITHMETIC", '    "shuffle": lambda shape, word, context: shape,\n'),
    (
        "nn/layers.py",
        "LAYERS",
        '    "shuffle": lambda word, shape, context: nn.ChannelShuffle(int(word.value)),\n',
    ),
]
NETWORK = [("zoo/cifar.py", "CIFAR", SHUFFLED)]
NAMED_SET = [
    ("data/sets/__init__.py", "NAMED_SETS", '    "dark-digits": open_digits,\n'),
    ("recipe/sets.py", '        "digits",\n', '        "dark-digits",\n'),
    ("run/datasets.py", "DATA", '    "dark-digits": _NAMED,\n'),
]
AUGMENTATION = [
    ("data/transforms/words.py", "VOCABULARY", '    "invert": ("", True, "invert"),\n'),
    ("data/transforms/steps.py", "STEPS", INVERT),
]
NEW_MODALITY = [
    ("data/modality/depth.py", "new", MODALITY),
    (
        "data/modality/__init__.py",
        "from plusx.data.modality.image",
        "from plusx.data.modality.depth import DepthModality\n",
    ),
    ("data/modality/__init__.py", "MODALITIES", '    "depth": DepthModality,\n'),
]
KIND_OF_DATA = [
    ("data/readers/depth.py", "new", READER),
    ("recipe/sets.py", "Data = ", DATA_TABLE),
    ("recipe/sets.py", "Data = ", "DepthData | "),
    (
        "run/datasets.py",
        "from plusx.data.readers.people",
        DATA_IMPORTS,
    ),
    ("run/datasets.py", "DATA", DATA_KIND),
    (
        "data/readers/layouts.py",
        "from plusx.data.readers.folder",
        "from plusx.data.readers.depth import recognise_depth\n",
    ),
    ("data/readers/layouts.py", "LAYOUTS", LAYOUT),
]
NEW_TASK = [
    ("tasks/regress.py", "new", TASK),
    ("recipe/tables.py", "TaskTable = Annotated[", TABLES),
    ("recipe/tables.py", "TaskTable = Annotated[", "Regress | "),
    (
        "run/task_factory.py",
        "from plusx.tasks.classify",
        "from plusx.tasks.regress import Regress\n",
    ),
    ("run/task_factory.py", "TASKS", TASK_KIND),
    ("report/metrics.py", "METRICS", MEAN_ERROR),
]
OPTIMIZER = [
    ("recipe/tables.py", "optim: Annotated[", "Adagrad | "),
    ("run/optim.py", "OPTIMIZERS", ADAGRAD),
]
SCHEDULE = [
    ("recipe/tables.py", "schedule: Annotated[", "Linear | "),
    ("run/optim.py", "SCHEDULES", LINEAR),
]
EXPLANATION = [("explain/explain.py", "METHODS", NOTHING)]
COMMAND = [("cli/inspect.py", "end", GREET)]
CONTINUAL_METHOD = [
    ("continual/forget.py", "new", FORGETFUL),
    (
        "continual/__init__.py",
        "from plusx.continual.icarl",
        "from plusx.continual.forget import Forgetful\n",
    ),
    ("continual/__init__.py", "METHODS", '    "forgetful": Forgetful,\n'),
    ("recipe/continual.py", "ContinualMethod = ", FORGETFUL_TABLE),
    ("recipe/continual.py", "ContinualMethod = ", "Forgetful | "),
]
ADDITIONS = {
    "a continual method": CONTINUAL_METHOD,
    "a word": WORD,
    "a network": NETWORK,
    "a named data set": NAMED_SET,
    "a kind of data": KIND_OF_DATA,
    "a modality": NEW_MODALITY,
    "a word of augmentation": AUGMENTATION,
    "a task": NEW_TASK,
    "an optimizer, a schedule, an update": OPTIMIZER + SCHEDULE,
    "an attribution method": EXPLANATION,
    "a command": COMMAND,
}


def add(file: Path, where: str, text: str) -> None:
    """Put a text into a file: into a dictionary or union, before a line, or at the end."""
    if where == "new":
        file.write_text(text)
        return
    source = file.read_text()
    if where == "end":
        changed = source + text
    elif where.isupper():
        entries = re.compile(rf"^{where}\b[^\n]*\{{\n", re.MULTILINE)
        changed = entries.sub(lambda match: match[0] + text, source, count=1)
    elif text.endswith("\n"):
        changed = source.replace(where, text + where, 1)
    else:
        changed = source.replace(where, where + text, 1)
    assert changed != source, f"{file} has no {where}"
    file.write_text(changed)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which everything is added."""
    copy = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, copy / "plusx", ignore=ignored)
    for additions in ADDITIONS.values():
        for name, where, text in additions:
            add(copy / "plusx" / name, where, text)
    return copy


def run(extended: Path, *arguments: str) -> str:
    """The output of a command of the extended package."""
    done = subprocess.run(
        [sys.executable, "-m", "plusx", *arguments],
        env={**os.environ, "PYTHONPATH": str(extended)},
        cwd=extended,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ADDITIONS)
def test_the_table_names_the_files(kind: str) -> None:
    text = (PACKAGE.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {kind} |")]
    for name, _, _ in ADDITIONS[kind]:
        file = Path(name)
        inside = f"{file.parent}/__init__.py" if file.name == "__init__.py" else name
        assert file.name in row or inside in row or f"{file.parent}/" in row, f"{name} of {row}"


def test_a_word_a_network_and_a_command_can_be_added(extended: Path) -> None:
    assert "shuffle4" in run(extended, "describe", "shuffled8")
    assert run(extended, "greet") == "hello\n"


@pytest.mark.slow
def test_a_continual_method(extended: Path, tmp_path: Path) -> None:
    words = ["method.kind=forgetful", "method.factor=0.9", "epochs=1", "data.per_class=8"]
    out = ["--out", str(tmp_path / "out"), "--seeds", "0", "--json"]
    assert '"method": "forgetful"' in run(extended, "stream", "digits-stream", *words, *out)


@pytest.mark.slow
def test_a_kind_of_data_a_modality_and_a_task(extended: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number, name in enumerate(("near", "far")):
        (tmp_path / "depth" / name).mkdir(parents=True)
        for index in range(20):
            values = generator.uniform(0, 2, (8, 8)) + 7 * number
            np.save(tmp_path / "depth" / name / f"{index}.npy", values.astype(np.float32))
    recipe, out = tmp_path / "depth.toml", str(tmp_path / "run")
    data = f'{{ path = "{tmp_path}/depth" }}'
    recipe.write_text(RECIPE.format(data=data, task='{ kind = "regress", scale = 2.0 }'))
    assert "mean_error" in run(extended, "train", str(recipe), "--out", out, "--json")
    file = str(tmp_path / "depth" / "far" / "0.npy")
    assert '"value"' in run(extended, "predict", out, file, "--json")
    assert "mean_error" in run(extended, "evaluate", out, "--json")


@pytest.mark.slow
def test_a_named_set_an_augmentation_and_an_explanation(extended: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "dark.toml", str(tmp_path / "run")
    recipe.write_text(
        RECIPE.format(
            data='{ kind = "dark-digits", augment = "invert" }', task='{ kind = "classify" }'
        )
    )
    run(extended, "train", str(recipe), "--out", out, "data.train=64")
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    command = ("explain", out, str(image), "--method", "nothing", "--checked", "0")
    run(extended, *command, "--out", str(tmp_path / "why"))
    assert (tmp_path / "why" / "explain.html").is_file()
