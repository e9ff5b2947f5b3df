"""The package's source as syntax trees, for the tests that read it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import plusx


PACKAGE = Path(plusx.__file__).parent


@dataclass(frozen=True)
class Module:
    """A module: its path under the package, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return Path(self.path).parts[0].removesuffix(".py")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def imports(self) -> Iterator[str]:
        """Every module that is imported, or name from a package, wherever the statement stands."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: a relative import"
                whole = node.module or ""
                if whole == "plusx":
                    yield from (f"plusx.{alias.name}" for alias in node.names)
                else:
                    yield whole

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def calls(self) -> list[tuple[str, ast.Call]]:
        """What is called, written out with the imported names in full ("os.path.join")."""
        aliases: dict[str, str] = {}
        called = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    aliases[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in self.nodes:
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                first, dot, rest = function.partition(".")
                called.append((aliases.get(first, first) + dot + rest, node))
        return called

    def where(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', '?')}"


def parse_module(path: str, text: str) -> Module:
    return Module(path, text, ast.parse(text, path))


def modules() -> list[Module]:
    """Every module of the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [parse_module(str(p.relative_to(PACKAGE)), p.read_text(encoding="utf-8")) for p in paths]


def argument(call: ast.Call, name: str) -> object:
    """The value of a literal keyword argument; None where it is not given or not literal."""
    for keyword in call.keywords:
        if keyword.arg == name and isinstance(keyword.value, ast.Constant):
            return keyword.value.value
    return None
