"""What the code must not do, read from the source and watched while it is imported."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from source_tree import Module, argument, modules, parse_module


# The one program that opens pickles: run by path in a process of its own, tensors only.
CONVERTER = "weights/foreign.py"

MODULES = {
    "pickle": CONVERTER,  # for the type of its error
    "cPickle": None, "_pickle": None, "dill": None, "cloudpickle": None, "joblib": None,
    "shelve": None, "marshal": None, "telnetlib": None, "xmlrpc": None, "code": None,
    "yaml": "data/readers/yolo.py",  # for data.yaml, by safe_load
    "torch.package": None, "torch.hub": None, "torch.jit": None, "ctypes": None,
}  # fmt: skip

CALLS = {
    "eval", "exec", "compile", "__import__", "input", "breakpoint",
    "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "os.startfile",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package.PackageImporter",
    "torch.serialization.add_safe_globals", "torch.save",
    "tempfile.mktemp", "PIL.ImageMath.eval", "PIL.ImageMath.unsafe_eval", "ImageMath.unsafe_eval",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all",
    "ssl._create_unverified_context", "shutil.unpack_archive", "importlib.reload",
    "xml.etree.ElementTree.parse", "xml.etree.ElementTree.fromstring", "logging.config.listen",
}  # fmt: skip

# Annotations, of which those that declare entities are refused before.
GUARDED = {("data/readers/voc.py", "xml.etree.ElementTree.fromstring")}

METHODS = {"extractall", "extract", "unsafe_eval"}

# Who opens connections: published files, checked against their digest.
DOWNLOADERS = {"store/download.py"}

# Who listens: where the processes of a run meet, on the loopback, where torch by itself would
# listen on every interface.
LISTENER = "run/distributed.py"
LISTENING = ("socket.create_server", "socket.if_nameindex")

# Who starts processes: the converter's child, the runs of a comparison, the run that is killed for
# the claim that it goes on, the processes that share one run, those whose memory is measured, the
# speech synthesiser.
STARTERS = {
    "weights/convert.py", "study/workers.py", "evidence/bookkeeping.py", "run/launching.py",
    "bench/memory.py", "data/sets/voice_commands.py",
}  # fmt: skip

Rule = Callable[[list[Module]], list[str]]


def modules_banned(tree: list[Module]) -> list[str]:
    """Nothing that runs code from data is imported."""
    return [
        f"{module.path} imports {name}"
        for module in tree
        for name in module.imports()
        for banned, allowed in MODULES.items()
        if f"{name}.".startswith(f"{banned}.") and module.path != allowed
    ]


def calls_banned(tree: list[Module]) -> list[str]:
    """Nothing that runs code from data, or a shell, is called."""
    return [
        f"{module.where(call)} calls {name}"
        for module in tree
        for name, call in module.calls
        if (name.replace("np.", "numpy.", 1) in CALLS and (str(module.path), name) not in GUARDED)
        or (name.rpartition(".")[2] in METHODS and "." in name)
        or argument(call, "shell") is True
    ]


def pickles(tree: list[Module]) -> list[str]:
    """torch.load stands in the converter's child alone, for tensors only; numpy opens no pickle."""
    wrong = []
    for module in tree:
        for name, call in module.calls:
            if name == "torch.load":
                keywords = {keyword.arg for keyword in call.keywords}
                alone = module.path == CONVERTER and argument(call, "weights_only") is True
                if not alone or "pickle_module" in keywords:
                    wrong.append(f"{module.where(call)} calls {name}")
            elif name == "numpy.load" and argument(call, "allow_pickle") is not False:
                wrong.append(f"{module.where(call)} lets numpy open pickles")
            elif name.endswith((".load_url", "load_state_dict_from_url")):
                wrong.append(f"{module.where(call)} loads from an address")
    return wrong


def the_converter_stands_alone(tree: list[Module]) -> list[str]:
    """The program that opens pickles imports nothing of ours, and is called by no one."""
    wrong = []
    for module in tree:
        if module.path == CONVERTER:
            wrong += [
                f"{module.path} imports {n}" for n in module.imports() if n.startswith("plusx")
            ]
            continue
        for name, call in module.calls:
            if name.startswith(("plusx.weights.foreign", "foreign.")):
                wrong.append(f"{module.where(call)} calls {name} in this process")
    return wrong


def images(tree: list[Module]) -> list[str]:
    """Pillow opens the formats that are named, and its guards stay up."""
    wrong = []
    for module in tree:
        for name, call in module.calls:
            if name in ("PIL.Image.open", "Image.open") and not any(
                keyword.arg == "formats" for keyword in call.keywords
            ):
                wrong.append(f"{module.where(call)} opens any format")
        for node in module.nodes:
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                assigned = ast.unparse(target)
                if "Image.MAX_IMAGE_PIXELS" in assigned and module.path == "data/image_file.py":
                    continue  # while it decodes, whose own limit is checked before
                if "MAX_IMAGE_PIXELS" in assigned or "LOAD_TRUNCATED_IMAGES" in assigned:
                    wrong.append(f"{module.where(node)} sets {assigned}")
    return wrong


def connections(tree: list[Module]) -> list[str]:
    """One module fetches published files; no other opens a connection or listens."""
    banned = {"urllib.request", "http.client", "http.server", "requests", "httpx", "aiohttp",
              "ftplib", "smtplib", "socketserver", "asyncio", "huggingface_hub"}  # fmt: skip
    wrong = []
    for module in tree:
        if module.path not in DOWNLOADERS:
            wrong += [f"{module.path} imports {n}" for n in module.imports() if n in banned]
        wrong += [
            f"{module.where(call)} calls {name}"
            for name, call in module.calls
            if name.startswith("socket.")
            and name != "socket.gethostname"
            and not (module.path == LISTENER and name.startswith(LISTENING))
        ]
    return wrong


def processes(tree: list[Module]) -> list[str]:
    """Processes are started in few places, by lists of arguments."""
    wrong = []
    for module in tree:
        for name in module.imports():
            started = name.partition(".")[0] in ("subprocess", "multiprocessing", "pty")
            started |= name.startswith(("torch.distributed.launcher", "torch.multiprocessing"))
            if started and module.path not in STARTERS:
                wrong.append(f"{module.path} imports {name}")
        for name, call in module.calls:
            if name.startswith("subprocess.") and call.args:
                if isinstance(call.args[0], ast.Constant | ast.JoinedStr):
                    wrong.append(f"{module.where(call)} starts a line of text")
            elif name in ("os.fork", "os.forkpty"):
                wrong.append(f"{module.where(call)} forks")
    return wrong


def names_from_data(tree: list[Module]) -> list[str]:
    """No module or attribute is looked up by a name that a file could hold."""
    return [
        f"{module.where(call)} imports by name"
        for module in tree
        if module.path != "__init__.py"  # its names are its own table
        for name, call in module.calls
        if name in ("importlib.import_module", "importlib.util.spec_from_file_location",
                    "runpy.run_path", "runpy.run_module", "pkgutil.resolve_name",
                    "importlib.metadata.entry_points")
    ]  # fmt: skip


def shared_places(tree: list[Module]) -> list[str]:
    """No file has a name in /tmp that others could guess."""
    return [
        f"{module.where(node)} says {node.value!r}"
        for module in tree
        for node in module.nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(("/tmp", "/var/tmp", "/dev/shm"))
        # the folder itself, of which the free bytes are asked for
        and (module.path, node.value) != ("data/loader.py", "/dev/shm")
    ]


BREAKS: dict[Rule, list[Module]] = {
    modules_banned: [
        parse_module("nn/x.py", "import pickle"),
        parse_module("weights/x.py", "def f():\n    from pickle import loads"),
        parse_module("data/x.py", "import dill as d"),
        parse_module("recipe/x.py", "import yaml"),
        parse_module("weights/x.py", "import torch.jit"),
        parse_module("weights/x.py", "from torch.package import PackageImporter"),
        parse_module("store/x.py", "import shelve"),
    ],
    calls_banned: [
        parse_module("x.py", "eval('1')"),
        parse_module("x.py", "exec(text)"),
        parse_module("x.py", "compile(text, '', 'exec')"),
        parse_module("x.py", "__import__(name)"),
        parse_module("x.py", "from os import system as s\ns('ls')"),
        parse_module("x.py", "import subprocess\nsubprocess.run('ls', shell=True)"),
        parse_module("x.py", "import torch\ntorch.export.load(p)"),
        parse_module("x.py", "import torch\ntorch.jit.load(p)"),
        parse_module("x.py", "from PIL import ImageMath\nImageMath.unsafe_eval('1')"),
        parse_module("x.py", "members.extractall(p)"),
        parse_module("data/readers/yolo.py", "import yaml\nyaml.unsafe_load(text)"),
        parse_module("x.py", "import tempfile\ntempfile.mktemp()"),
    ],
    pickles: [
        parse_module("weights/x.py", "import torch\ntorch.load(p, weights_only=True)"),
        parse_module(CONVERTER, "import torch\ntorch.load(p)"),
        parse_module(CONVERTER, "import torch\ntorch.load(p, weights_only=False)"),
        parse_module(CONVERTER, "import torch\ntorch.load(p, weights_only=flag)"),
        parse_module(CONVERTER, "from torch import load\nload(p)"),
        parse_module(CONVERTER, "import torch\ntorch.load(p, weights_only=True, pickle_module=x)"),
        parse_module("data/x.py", "import numpy as np\nnp.load(p)"),
        parse_module("data/x.py", "import numpy as np\nnp.load(p, allow_pickle=True)"),
    ],
    the_converter_stands_alone: [
        parse_module(CONVERTER, "from plusx import store"),
        parse_module("weights/x.py", "from plusx.weights.foreign import read_torch\nread_torch(p)"),
        parse_module("weights/x.py", "from plusx.weights import foreign\nforeign.main(p)"),
    ],
    images: [
        parse_module("data/x.py", "from PIL import Image\nImage.open(p)"),
        parse_module("data/x.py", "from PIL import Image\nImage.MAX_IMAGE_PIXELS = None"),
        parse_module(
            "data/x.py", "from PIL import ImageFile\nImageFile.LOAD_TRUNCATED_IMAGES = True"
        ),
    ],
    connections: [
        parse_module("models.py", "import urllib.request"),
        parse_module("nn/x.py", "import requests"),
        parse_module("data/sets/download.py", "import socket\nsocket.create_connection(a)"),
        parse_module("run/x.py", "import socket\nsocket.create_server(a)"),
        parse_module(LISTENER, "import socket\nsocket.create_connection(a)"),
    ],
    processes: [
        parse_module("nn/x.py", "import subprocess"),
        parse_module("data/x.py", "from multiprocessing import Pool"),
        parse_module("train/x.py", "from torch.distributed.launcher.api import launch_agent"),
        parse_module("weights/convert.py", "import subprocess\nsubprocess.run('ls -l')"),
        parse_module("run/x.py", "import os\nos.fork()"),
    ],
    names_from_data: [
        parse_module("run/x.py", "import importlib\nimportlib.import_module(name)"),
        parse_module("run/x.py", "from importlib import import_module\nimport_module(name)"),
    ],
    shared_places: [parse_module("run/x.py", "p = '/tmp/plusx'")],
}


@pytest.fixture(scope="module")
def tree() -> list[Module]:
    return modules()


@pytest.mark.parametrize("rule", BREAKS, ids=lambda rule: rule.__name__)
def test_the_package_calls_no_forbidden_function(tree, rule):
    assert rule(tree) == []


@pytest.mark.parametrize(
    ("rule", "broken"),
    [(rule, module) for rule, cases in BREAKS.items() for module in cases],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_forbidden_call_is_found(rule, broken):
    assert rule([broken]) != []


def test_the_converter_is_the_one_place_that_opens_pickles(tree):
    opening = [module.path for module in tree if any(n == "torch.load" for n, _ in module.calls)]
    assert opening == [CONVERTER]
    (text,) = [module.text for module in tree if module.path == "weights/convert.py"]
    assert "foreign.__file__" in text  # run by path
    assert '"-I"' in text  # without the user's site and PYTHONPATH


# ------------------------------------------------------------------------ watched while imported

WATCH = """
import json, os, sys, threading
seen = []
def watch(event, arguments):
    first = arguments[0] if arguments else ""
    if event == "open":
        path, mode, flags = arguments
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if flags & writes and "__pycache__" not in str(path) and str(path) != os.devnull:
            seen.append(f"{event} {path}")
    elif event.startswith(("socket.", "subprocess.", "os.system", "os.fork", "os.exec", "os.spawn",
                           "os.posix_spawn", "os.remove", "os.rename", "os.mkdir", "shutil.",
                           "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.")):
        seen.append(f"{event} {first}")
sys.addaudithook(watch)
threads = threading.active_count()
MODULES
if threading.active_count() != threads:
    seen.append("threads")
print(json.dumps({"seen": seen, "torch": "torch" in sys.modules,
                  "loaded": sorted(m for m in sys.modules if m.partition(".")[0] == "plusx")}))
"""


def watched(program: str, folder: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", WATCH.replace("MODULES", program)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=str(folder),
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_plusx_opens_no_file_and_no_connection(tmp_path):
    watched_import = watched("import plusx", tmp_path)
    assert watched_import == {"seen": [], "torch": False, "loaded": ["plusx"]}
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_importing_every_module_opens_no_file_and_no_connection(tmp_path):
    names = [
        "plusx." + module.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for module in modules()
        if module.path not in (CONVERTER, "__main__.py", "__init__.py")
    ]
    # What torch and its kind do when they are imported is theirs; they come first, unwatched.
    theirs = sorted(
        {
            name
            for module in modules()
            if module.path != CONVERTER
            for name in module.imports()
            if (first := name.partition(".")[0]) not in ("plusx", *sys.stdlib_module_names)
            and importlib.util.find_spec(first)  # an extra need not be here
        }
    )
    program = "\n".join(f"import {name}" for name in names)
    before = "\n".join(f"import {name}" for name in theirs)
    watched_import = watched(
        f"{before}\nseen.clear()\nthreads = threading.active_count()\n{program}", tmp_path
    )
    assert watched_import["seen"] == []
    assert set(names) <= set(watched_import["loaded"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("deed", "event_name"),
    [
        ("open('x', 'w')", "open x"),
        ("import socket; socket.getaddrinfo('localhost', 80)", "socket.getaddrinfo localhost"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "threads"),
        ("os.mkdir('y')", "os.mkdir y"),
    ],
)
def test_the_audit_hook_detects_every_access(tmp_path, deed, event_name):
    watched_import = watched(deed, tmp_path)
    assert any(event.startswith(event_name) for event in watched_import["seen"])
