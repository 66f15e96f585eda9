"""What the project's files may not contain, and how change fragments are named."""

from __future__ import annotations

import re
import subprocess

from tests.style.source import ROOT, project_files
from tests.thorough import LIST, choose

# Written in pieces, so that this file does not find itself.
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:wo" r"rk|ro" r"ot|Us" r"ers|ho" r"me/[a-z]\w*|tmp/pl" r"an)/\w")

KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security", "docs", "internal")


def texts() -> list[tuple[str, str]]:
    found = []
    for path in project_files():
        try:
            found.append((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_no_paths_of_one_machine() -> None:
    wrong = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert wrong == []


def test_change_fragments_are_named_topic_dot_kind() -> None:
    pattern = re.compile(rf"[a-z0-9][a-z0-9-]*\.(?:{'|'.join(KINDS)})\.md")
    folder = ROOT / "docs" / "changes"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    assert [name for name in names if not pattern.fullmatch(name) and name not in {"README.md", ".gitkeep"}] == []
    assert [name for name in names if not (folder / name).read_text(encoding="utf-8").strip() and name != ".gitkeep"] == []


def test_scripts_can_be_run_and_parse() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        if not path.is_file() or path.suffix:
            continue
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        assert first.startswith("#!"), f"{path.name}: no #! line"
        assert path.stat().st_mode & 0o111, f"{path.name}: no run bit"
        if "bash" in first:
            subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)


def test_what_the_quick_run_leaves_out_exists() -> None:
    gone = []
    for name in LIST.read_text(encoding="utf-8").split():
        file, _, function = name.partition("::")
        path = ROOT / file
        if not path.is_file() or (function and not re.search(rf"def {re.escape(function)}\(", path.read_text(encoding="utf-8"))):
            gone.append(name)
    assert gone == []
    assert choose(["0.2 0.2 a.py::long[1]", "0.05 0.1 a.py::short", "0.01 2.0 a.py::waits", "9 9 b.py::x"]) == [
        "a.py::long",
        "a.py::waits",
        "b.py",
    ]
