"""The site of the documents: it is built without a warning, and its reference has what the code has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tunnel
from tests.style.source import ROOT
from tunnel.cli import main as cli
from tunnel.cli.manual import commands
from tunnel.settings import TABLE

PATIENCE_S = 240
pytestmark = pytest.mark.time_limit(300)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    subprocess.run([sys.executable, ROOT / "scripts" / "site" / "pages.py", folder], check=True, timeout=PATIENCE_S)
    return folder


def test_the_site_is_built_without_a_warning_and_every_page_is_in_its_menu(pages: Path, tmp_path: Path) -> None:
    options = [
        "--quiet",
        "--fail-on-warning",
        "--keep-going",
        "-c",
        str(ROOT / "scripts" / "site"),
        "-d",
        str(tmp_path / "doctrees"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, pages, tmp_path / "html"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    front = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    for page in pages.rglob("*.md"):
        name = page.relative_to(pages).with_suffix(".html").as_posix()
        assert (tmp_path / "html" / name).is_file()
        assert f'href="{name}"' in front or name == "index.html", f"{name} is in no menu"


def test_the_reference_has_every_command_setting_exit_code_and_public_name(pages: Path) -> None:
    reference = {path.stem: path.read_text(encoding="utf-8") for path in (pages / "reference").iterdir()}
    assert set(re.findall(r"^##+ (.+)$", reference["commands"], re.MULTILINE)) == {name for name, _ in commands(cli.group)}
    for name, each in commands(cli.group):
        section = re.split(rf"^##+ {name}$", reference["commands"], flags=re.MULTILINE)[1]
        for option in each.params:
            if option.opts[0].startswith("--"):
                assert f"{option.opts[0]}" in re.split(r"^##+ ", section, flags=re.MULTILINE)[0], f"{name} {option.opts[0]}"
    assert {key for key in TABLE if f"`{key}`" in reference["settings"]} == {key for key, row in TABLE.items() if row.is_in_file}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", reference["exit-codes"], re.MULTILINE)} >= {
        code for _kind, code, _name in cli.TABLE
    }
    assert set(re.findall(r"^## tunnel\.(\w+)$", reference["library"], re.MULTILINE)) == set(tunnel.__all__)
