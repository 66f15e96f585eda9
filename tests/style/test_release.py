"""What a release is made of: wheel, sdist and the notes."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import tunnel
from tests.style.source import ROOT

PATIENCE_S = 120


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built with what is installed."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    return folder


def test_the_wheel_holds_the_package_with_its_version_and_licence_and_no_tests(built: Path) -> None:
    with zipfile.ZipFile(built / f"ptunnel-{tunnel.__version__}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        points = wheel.read(f"ptunnel-{tunnel.__version__}.dist-info/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"tunnel", f"ptunnel-{tunnel.__version__}.dist-info"}
    assert "tunnel/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    program = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["ptunnel"]
    assert f"ptunnel = {program}" in points
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "tunnel").rglob("*.py")}
    assert modules <= set(names)


def test_the_sdist_can_be_tested_and_released_again(built: Path) -> None:
    with tarfile.open(built / f"ptunnel-{tunnel.__version__}.tar.gz") as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    for wanted in ("scripts/test", "tests/conftest.py", "docs/protocol.md", "SECURITY.md", "CHANGELOG.md", "LICENSE"):
        assert wanted in names


def test_the_notes_of_a_release_have_every_fragment_and_one_heading_a_kind() -> None:
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"]
    notes = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT).stdout
    assert "## 9.9.9 (" in notes
    assert "====" not in notes
    headings = [line for line in notes.splitlines() if line.startswith("### ")]
    assert len(headings) == len(set(headings))
    for path in (ROOT / "docs" / "changes").glob("*.*.md"):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].strip()
        assert first in notes, path.name


DEBIAN = yaml.safe_load((ROOT / "scripts" / "deb" / "nfpm.yaml").read_text(encoding="utf-8"))


def test_the_debian_package_gives_way_to_the_other_program_of_that_name() -> None:
    """tests/programs/test_packages.py installs and uses it; this is what can be seen without building it."""
    assert DEBIAN["name"] == "ptunnel-p2p"
    assert DEBIAN["conflicts"] == ["ptunnel"]
    assert "replaces" not in DEBIAN, "files of another program are never taken over"
    assert "provides" not in DEBIAN, "it does nothing of what that one does"


def test_the_debian_package_depends_on_the_python_that_its_libraries_were_built_for() -> None:
    assert DEBIAN["depends"][:2] == ["python3 (>= 3.${MINOR})", "python3 (<< 3.${NEXT})"]
    filled = (ROOT / "scripts" / "package").read_text(encoding="utf-8")
    for variable in ("VERSION", "ARCH", "ROOT", "MINOR", "NEXT", "LIBC"):
        assert f"${{{variable}}}" in (ROOT / "scripts" / "deb" / "nfpm.yaml").read_text(encoding="utf-8")
        assert re.search(rf"^(export.* )?{variable}\b", filled, re.MULTILINE) or f" {variable}=" in filled


def test_the_debian_package_starts_nothing_and_keeps_state_until_it_is_purged() -> None:
    for name in DEBIAN["scripts"].values():
        text = (ROOT / name).read_text(encoding="utf-8")
        subprocess.run(["sh", "-n", ROOT / name], check=True, timeout=PATIENCE_S)
        assert "set -e" in text
        assert not re.search(r"systemctl (enable|start|restart)", text), name
        if "rm -rf" in text:
            assert text.index("= purge ]") < text.index("rm -rf")
            assert name == DEBIAN["scripts"]["postremove"]
