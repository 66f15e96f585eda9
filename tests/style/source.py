"""The sources of ptunnel as the style tests see them: parsed, with every import and where it stands."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module; `from tunnel.core import wire` counts as `tunnel.core.wire` where that is a module."""

    target: str
    line: int
    at_module_level: bool  # runs when the module is imported
    for_typing: bool  # under `if TYPE_CHECKING:`
    guarded: bool  # under `if sys.platform ...:` or in a try that catches ImportError


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    path: Path
    text: str
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def relative(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


def _module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _catches_import_error(node: ast.Try) -> bool:
    for handler in node.handlers:
        for name in ast.walk(handler.type) if handler.type is not None else ():
            if isinstance(name, ast.Name) and name.id in {"ImportError", "ModuleNotFoundError"}:
                return True
    return False


def _find_imports(body: list[ast.stmt], package: str, *, top: bool, typing: bool, guarded: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, top, typing, guarded)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                target = full if base.split(".")[0] == "tunnel" and _is_module(full) else base
                yield Import(target, node.lineno, top, typing, guarded)
        elif isinstance(node, ast.If):
            test = ast.unparse(node.test)
            is_typing = "TYPE_CHECKING" in test
            is_guard = "sys.platform" in test or "os.name" in test
            yield from _find_imports(node.body, package, top=top, typing=typing or is_typing, guarded=guarded or is_guard)
            yield from _find_imports(node.orelse, package, top=top, typing=typing, guarded=guarded or is_guard)
        elif isinstance(node, ast.Try):
            caught = _catches_import_error(node)
            yield from _find_imports(node.body, package, top=top, typing=typing, guarded=guarded or caught)
            for part in (*[handler.body for handler in node.handlers], node.orelse, node.finalbody):
                yield from _find_imports(part, package, top=top, typing=typing, guarded=guarded)
        else:
            inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody"):
                inner = getattr(node, field, None)
                if isinstance(inner, list):
                    yield from _find_imports(inner, package, top=inside, typing=typing, guarded=guarded)
            for case in getattr(node, "cases", ()):
                yield from _find_imports(case.body, package, top=inside, typing=typing, guarded=guarded)


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted((ROOT / "tunnel").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
        name = _module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imports = tuple(dict.fromkeys(_find_imports(tree.body, package, top=True, typing=False, guarded=False)))
        found.append(Module(name, path, text, tree, imports))
    return tuple(found)


def constants(module: Module) -> dict[str, int]:
    """The constants that it defines (names in capitals), with the line of each."""
    found: dict[str, int] = {}
    for node in module.tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", name.id):
                    found[name.id] = node.lineno
    return found


@cache
def reads() -> frozenset[tuple[str, str]]:
    """(module, name) of every module-level name that the product reads, in its own module or elsewhere.

    Naming it in an import or in `__all__` is not reading.  An attribute `x.NAME` counts for NAME in every module, as "*".
    """
    origin: dict[tuple[str, str], tuple[str, str]] = {}
    loaded: set[tuple[str, str]] = set()
    found: set[tuple[str, str]] = set()
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Load):
                    loaded.add((module.name, node.id))
            elif isinstance(node, ast.Attribute):
                if isinstance(node.ctx, ast.Load):
                    found.add(("*", node.attr))
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                origin.update({(module.name, alias.asname or alias.name): (node.module, alias.name) for alias in node.names})
    for place in loaded:
        while place not in found:
            found.add(place)
            place = origin.get(place, place)
    return frozenset(found)


@cache
def project_files() -> tuple[Path, ...]:
    """Every file of the project: what git knows, or without git whatever is not made by a tool."""
    made = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "dist", "build"}
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout.decode()
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.SubprocessError):
        paths = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in paths if path.is_file()))
