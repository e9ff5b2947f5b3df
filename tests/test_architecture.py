"""The rooms of the package and the doors between them, read from the source.

docs/architecture.md draws the same arrows. Every rule is a function from modules to complaints; it
has to have none about the package, and some about a module that breaks it.
"""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import plusx
from source_tree import Module, modules, parse_module


# What each room may import. "data.batch" is one module of a room.
DOORS: dict[str, set[str]] = {
    "errors": set(),
    "shipped": set(),
    "grammar": set(),
    "overrides": set(),
    "store": set(),
    "statistics": set(),
    "zoo": {"grammar"},
    "describe": {"grammar", "overrides", "zoo"},
    "recipe": {"data.readers.layouts", "grammar", "overrides", "shipped"},
    "nn": {"grammar"},
    "data": {"store"},
    "metrics": {"data.batch", "data.prediction", "data.tokenizer"},
    "tasks": {
        "nn", "data.batch", "data.command_grammar", "data.prediction", "data.tokenizer", "metrics",
    },
    "train": {"tasks", "data.batch", "store"},
    "attack": {"data", "metrics", "tasks", "train"},
    "continual": {"data", "metrics", "nn", "tasks", "train"},
    "selfsupervised": {"data", "grammar", "metrics", "nn", "tasks"},
    "weights": {"grammar", "zoo", "nn", "store"},
    "models": {"grammar", "zoo", "nn", "weights"},
    "export": {"grammar", "nn", "store"},
    "memory": {"grammar", "nn"},
    "report": {"statistics", "store"},
    "run": {
        "attack", "continual", "data", "export", "grammar", "memory", "metrics", "models", "nn",
        "recipe", "report", "selfsupervised", "statistics", "store", "tasks", "train", "weights",
        "zoo",
    },
    "study": {
        "data", "grammar", "models", "nn", "recipe", "report", "run", "statistics", "store",
        "tasks", "train", "weights", "zoo",
    },
    "explain": {
        "data", "grammar", "nn", "report", "run", "statistics", "store", "study", "tasks", "train",
    },
    "evidence": {
        "data", "explain", "grammar", "metrics", "models", "nn", "recipe", "report", "run",
        "statistics", "store", "study", "tasks", "train", "zoo",
    },
    "bench": {
        "data", "evidence", "grammar", "memory", "metrics", "models", "nn", "report", "run",
        "statistics", "store", "tasks", "train", "zoo",
    },
    "cli": {
        "bench", "data", "describe", "evidence", "explain", "export", "grammar", "models", "recipe",
        "report", "run", "shipped", "statistics", "store", "study", "tasks", "weights", "zoo",
    },
    "__main__": {"cli"},
    "__init__": {  # names that are imported when they are first used
        "data", "errors", "explain", "grammar", "memory", "models", "run", "store", "tasks",
        "train", "weights",
    },
}  # fmt: skip

# Rooms that may import nothing but the standard library, or nothing but what is said.
OUTSIDE = {"grammar": set(), "zoo": set(), "overrides": set(), "describe": set(),
           "recipe": {"pydantic"}}  # fmt: skip

# Who may write files besides the store, and why.
WRITERS = {
    "weights/fetch.py": (
        {"os.open", "os.unlink"},
        "a folder is opened to be locked; the download goes once our own file is made from it",
    ),
    "report/charts.py": ({"plot.savefig"}, "into memory, for the page that the store writes"),
    "evidence/bookkeeping.py": (
        {"tempfile.TemporaryDirectory"},
        "two runs are compared in a folder that goes afterwards",
    ),
    "bench/memory.py": (
        {"clear_refs.write_text"},
        "Linux is told to begin anew with the highest memory of the process that measures it",
    ),
    "export/quantise.py": (
        {"tempfile.TemporaryDirectory"},
        "onnxruntime.quantization writes its result to a file, which is read and goes",
    ),
    "cli/__init__.py": ({"os.open"}, "the null device in the place of a closed standard output"),
}

# Who may print besides run, study, explain, evidence, bench and cli, and why.
PRINTERS = {"weights/foreign.py": "a program of its own, whose standard error the parent reads"}

# Who may read the environment besides run, study, explain, evidence, bench and cli, and why.
ENVIRONMENT = {
    "export/runtime.py": "onnxruntime's telemetry is switched off by a variable",
    "data/sets/download.py": "PLUSX_DATA says where published sets lie",
    "store/cache.py": "PLUSX_CACHE says where what can be fetched again lies",
}

# Who may take keywords that it does not name, and why.
KEYWORDS = {
    "memory/save.py": "torch hands the keywords of every operation to a checkpoint's policy"
}

PROMISED = {
    "create_model", "list_models", "find", "parse", "Block", "Stage", "Net", "measure",
    "Batch", "Dataset", "Loader", "batches",
    "Task", "Classify", "Segment", "Detect", "Embed", "Generate", "prepare",
    "State", "fit", "evaluate", "GradientStep", "Patience", "make_optimizer", "schedule",
    "with_ema", "log_mel", "load_checkpoint", "save_checkpoint",
    "Predictor", "load", "save", "grad_cam", "save_memory", "UserError",
}  # fmt: skip

# Rooms that may print and read the environment.
SPEAKERS = ("run", "study", "evidence", "bench", "cli")

Rule = Callable[[list[Module]], list[str]]


def doors(tree: list[Module]) -> list[str]:
    """Imports follow the arrows."""
    wrong = []
    for module in tree:
        if module.room not in DOORS:
            wrong.append(f"{module.path}: no arrow leads to {module.room}")
            continue
        allowed = DOORS[module.room]
        for name in module.imports():
            first, _, rest = name.partition(".")
            if first != "plusx" or not rest or rest == "__version__":
                continue
            room = rest.partition(".")[0]
            if room == "errors":  # the one error type, which every room may raise
                continue
            exact = any(rest == way or rest.startswith(f"{way}.") for way in allowed)
            if room != module.room and not exact:
                wrong.append(f"{module.path} imports {name}")
    return wrong


def outside(tree: list[Module]) -> list[str]:
    """The rooms without torch have none."""
    return [
        f"{module.path} imports {name}"
        for module in tree
        if module.room in OUTSIDE
        for name in module.imports()
        if (first := name.partition(".")[0]) not in sys.stdlib_module_names
        and first not in {"plusx", *OUTSIDE[module.room]}
    ]


WRITING_MODES = set("wax+")
WRITING = {
    "os.rename", "os.replace", "os.unlink", "os.remove", "os.rmdir", "os.removedirs", "os.mkdir",
    "os.makedirs", "os.link", "os.symlink", "os.truncate", "os.ftruncate", "os.mkfifo", "os.chmod",
    "torch.save", "numpy.save", "numpy.savez", "numpy.savetxt", "safetensors.torch.save_file",
    "json.dump", "tempfile.mkdtemp", "tempfile.mkstemp", "tempfile.NamedTemporaryFile",
    "tempfile.TemporaryDirectory", "tempfile.mktemp", "logging.FileHandler",
}  # fmt: skip
WRITING_METHODS = {
    "write_text", "write_bytes", "mkdir", "unlink", "touch", "rmdir", "symlink_to", "hardlink_to",
    "rename", "savefig", "extract", "extractall", "chmod", "to_csv", "tofile",
}  # fmt: skip


def written(name: str, call: ast.Call) -> bool:
    """Whether a call writes a file, as far as can be seen."""
    last = name.rpartition(".")[2]
    if last == "open" and name != "os.open":
        # the mode is the second argument of open(path, mode), the first of path.open(mode)
        position = 1 if name in ("open", "io.open", "gzip.open") else 0
        modes = [
            *call.args[position : position + 1],
            *(k.value for k in call.keywords if k.arg == "mode"),
        ]
        return any(
            isinstance(mode, ast.Constant) and bool(WRITING_MODES & set(str(mode.value)))
            for mode in modes
            if not (isinstance(mode, ast.Constant) and len(str(mode.value)) > 3)
        )
    if name == "os.open":
        flags = ast.unparse(call)
        return any(flag in flags for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"))
    if name in WRITING or name.startswith("shutil."):
        return name not in ("shutil.disk_usage", "shutil.get_terminal_size", "shutil.which")
    return last in WRITING_METHODS and "." in name and not name.startswith("plusx.")


def writers(tree: list[Module]) -> list[str]:
    """Nothing but the store writes files."""
    wrong = []
    for module in tree:
        allowed = WRITERS.get(module.path, (set(), ""))[0]
        if module.room == "store":
            continue
        wrong += [
            f"{module.where(call)} writes: {name}"
            for name, call in module.calls
            if name not in allowed and not name.startswith("store.") and written(name, call)
        ]
    return wrong


def printers(tree: list[Module]) -> list[str]:
    """Only run, study, evidence, bench and cli print."""
    return [
        f"{module.where(call)} prints"
        for module in tree
        if module.room not in SPEAKERS and module.path not in PRINTERS
        for name, call in module.calls
        if name in ("print", "sys.stdout.write", "sys.stderr.write", "rich.print")
    ]


def environment(tree: list[Module]) -> list[str]:
    """Only run, study, evidence, bench and cli read the environment."""
    return [
        f"{module.where(node)} reads the environment"
        for module in tree
        if module.room not in SPEAKERS and module.path not in ENVIRONMENT
        for node in module.nodes
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    ]


def networks_name_no_device(tree: list[Module]) -> list[str]:
    """nn knows no file and no kind of device."""
    wrong = []
    for module in tree:
        if module.room != "nn":
            continue
        banned = {"os", "io", "sys", "pathlib", "logging", "json", "safetensors"}
        wrong += [
            f"{module.path} imports {n}" for n in module.imports() if n.split(".")[0] in banned
        ]
        for node in module.nodes:
            if isinstance(node, ast.Constant) and node.value in ("cuda", "mps", "cpu"):
                wrong.append(f"{module.where(node)} names a device")
        wrong += [f"{module.where(c)} calls {n}" for n, c in module.calls if n in ("open", "print")]
    return wrong


def tasks_see_no_optimizer(tree: list[Module]) -> list[str]:
    """A task sees no optimizer, step number, file or logger; prepare alone sees devices."""
    wrong = []
    for module in tree:
        if module.room != "tasks":
            continue
        banned = {"os", "io", "pathlib", "logging", "sys"}
        wrong += [
            f"{module.path} imports {n}" for n in module.imports() if n.split(".")[0] in banned
        ]
        for node in module.nodes:
            names = [getattr(node, "id", ""), getattr(node, "arg", ""), getattr(node, "attr", "")]
            forbidden = {"optim", "optimizer", "step", "epoch", "logger"} & {str(n) for n in names}
            if forbidden and not isinstance(node, ast.Constant):
                wrong.append(f"{module.where(node)} sees {forbidden}")
    return wrong


def names_of_modules(tree: list[Module]) -> list[str]:
    """No module is a home for nothing in particular."""
    banned = {"util", "utils", "helper", "helpers", "common", "misc", "tools", "core", "base"}
    return [
        module.path
        for module in tree
        if banned & {part.removesuffix(".py") for part in module.path.split("/")}
    ]


def keywords(tree: list[Module]) -> list[str]:
    """No function takes keywords that it does not name."""
    return [
        f"{module.where(node)} takes **{node.args.kwarg.arg}"
        for module in tree
        if module.path not in KEYWORDS
        for node in module.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and node.args.kwarg is not None
    ]


def stars(tree: list[Module]) -> list[str]:
    """Nothing imports names that it does not say."""
    return [
        module.where(node)
        for module in tree
        for node in module.nodes
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


BREAKS: dict[Rule, list[Module]] = {
    doors: [
        parse_module("grammar/x.py", "import plusx.zoo"),
        parse_module("nn/x.py", "def f():\n    from plusx.tasks import task"),
        parse_module("nn/x.py", "from plusx import data"),
        parse_module("tasks/x.py", "from plusx.data.loader import batches"),
        parse_module("tasks/x.py", "import plusx.data.batches"),
        parse_module("tasks/x.py", "from plusx.train.state import State"),
        parse_module("train/x.py", "import plusx.run"),
        parse_module("data/x.py", "from plusx.nn.network import Network"),
        parse_module("run/x.py", "from plusx.study import compare"),
        parse_module("store/x.py", "from plusx.train import state"),
        parse_module("newcomer/x.py", ""),
    ],
    outside: [
        parse_module("grammar/x.py", "import torch"),
        parse_module("zoo/x.py", "if True:\n    from numpy import array"),
        parse_module("recipe/x.py", "import torch.nn"),
        parse_module("describe.py", "import pydantic"),
    ],
    writers: [
        parse_module("run/x.py", "open(p, 'w')"),
        parse_module("run/x.py", "open(p, mode='ab')"),
        parse_module("run/x.py", "p.open('x')"),
        parse_module("data/x.py", "from os import replace\nreplace(a, b)"),
        parse_module("data/x.py", "import os as o\no.open(p, o.O_RDONLY | o.O_CREAT)"),
        parse_module("weights/x.py", "import torch\ntorch.save(x, p)"),
        parse_module("weights/x.py", "from safetensors.torch import save_file\nsave_file(x, p)"),
        parse_module("report/x.py", "p.write_text('x')"),
        parse_module("report/x.py", "figure.savefig(p)"),
        parse_module("cli/use.py", "import shutil\nshutil.rmtree(p)"),
        parse_module("study/x.py", "p.mkdir()"),
        parse_module("weights/fetch.py", "import os\nos.rename(a, b)"),
    ],
    printers: [
        parse_module("train/x.py", "print(1)"),
        parse_module("data/x.py", "import sys\nsys.stderr.write('x')"),
    ],
    environment: [
        parse_module("nn/x.py", "import os\nos.environ['X']"),
        parse_module("train/x.py", "import os\nos.getenv('X')"),
    ],
    networks_name_no_device: [
        parse_module("nn/x.py", "from pathlib import Path"),
        parse_module("nn/x.py", "x.to('cuda')"),
        parse_module("nn/x.py", "open('x')"),
    ],
    tasks_see_no_optimizer: [
        parse_module("tasks/x.py", "def f(optimizer): ..."),
        parse_module("tasks/x.py", "import torch\ntorch.optim.SGD"),
        parse_module("tasks/x.py", "state.step"),
        parse_module("tasks/x.py", "import logging"),
    ],
    names_of_modules: [parse_module("nn/utils.py", ""), parse_module("helpers/x.py", "")],
    keywords: [
        parse_module("nn/x.py", "def f(**kwargs): ..."),
        parse_module("x.py", "f = lambda **k: k"),
    ],
    stars: [parse_module("nn/x.py", "from torch import *")],
}


@pytest.fixture(scope="module")
def tree() -> list[Module]:
    return modules()


@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)
def test_imports_of_the_package_follow_the_table(tree, rule):
    assert rule(tree) == []


@pytest.mark.parametrize(
    ("rule", "broken"),
    [(rule, module) for rule, cases in BREAKS.items() for module in cases],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_forbidden_import_is_found(rule, broken):
    assert rule([broken]) != []


def test_the_whole_package_is_read(tree):
    assert len(tree) > 50
    assert {module.room for module in tree} >= {
        "grammar",
        "zoo",
        "nn",
        "data",
        "tasks",
        "train",
        "run",
    }
    assert set(DOORS) - {"__main__"} <= {module.room for module in tree}


def test_the_page_draws_the_same_arrows():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, flags=re.MULTILINE)
    documented = {room: set(re.findall(r"`([\w.]+)`", targets)) for room, targets in rows}
    assert documented == {
        room: targets for room, targets in DOORS.items() if not room.startswith("__")
    }


def test_imports_between_rooms_have_no_cycle():
    done: set[str] = set()
    left = {room: {way.partition(".")[0] for way in ways} for room, ways in DOORS.items()}
    while left:
        free = [room for room, ways in left.items() if ways <= done]
        assert free, f"a circle among {sorted(left)}"
        done.update(free)
        for room in free:
            del left[room]


@pytest.mark.parametrize(
    ("table", "rule"), [(WRITERS, writers), (PRINTERS, printers), (ENVIRONMENT, environment)]
)
def test_every_exception_is_still_needed(tree, monkeypatch, table, rule):
    for path in list(table):
        with monkeypatch.context() as patch:
            patch.delitem(table, path)
            assert rule(tree) != [], f"{path} needs no exception any more"
    assert all(any(module.path == path for module in tree) for path in table)


def test_the_exported_names_are_the_promised_ones():
    assert set(plusx.__all__) == PROMISED | {"__version__"}
    for name in PROMISED:
        assert callable(getattr(plusx, name)) or name == "schedule", name
    assert set(dir(plusx)) >= PROMISED
    with pytest.raises(AttributeError, match="resnet"):
        _ = plusx.resnet
