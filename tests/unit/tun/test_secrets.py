"""What is secret in the environment is taken out of it at the start, and no child gets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tunnel import settings as settings_module
from tunnel.cli import main
from tunnel.doors.tun import process
from tunnel.settings import TABLE, load, take_secrets

ENVIRONMENT = {"PTUNNEL_CODE": "731-zoo-zoo", "PTUNNEL_ACCESS_TOKEN": "token", "PTUNNEL_SERVER": "rv.example.net"}
PRINT = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]


@pytest.fixture(autouse=True)
def _nothing_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "_taken", {})


def test_secrets_leave_the_environment_and_the_settings_know_them() -> None:
    environ = dict(ENVIRONMENT)
    take_secrets(environ)
    assert environ == {"PTUNNEL_SERVER": "rv.example.net"}
    settings = load({}, environ)
    assert (settings.code, settings.access_token, settings.server) == ("731-zoo-zoo", "token", "rv.example.net")
    assert load({}, {**environ, "PTUNNEL_CODE": "1-able-able"}).code == "1-able-able"


def test_every_secret_setting_has_its_variable_in_the_list() -> None:
    assert {row.variable for row in TABLE.values() if row.is_secret} == set(process.SECRETS)


def test_the_program_takes_them_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    seen: list[dict[str, str]] = []

    def run(arguments: list[str]) -> int:
        seen.append(json.loads(subprocess.run(PRINT, capture_output=True, check=True, timeout=10).stdout))
        return 3

    monkeypatch.setattr(main, "run", run)
    monkeypatch.setattr(sys, "stdout", sys.stderr)  # the program gives it up at its end
    with pytest.raises(SystemExit, match="3"):
        main.main()
    assert {name for name in ENVIRONMENT if name in seen[0]} == {"PTUNNEL_SERVER"}


def test_a_child_of_a_library_that_has_them_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    child = process.spawn(PRINT, [], stdout=subprocess.PIPE)
    said, _ = child.communicate(timeout=10)
    assert {name for name in ENVIRONMENT if name in json.loads(said)} == {"PTUNNEL_SERVER"}
