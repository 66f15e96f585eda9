"""`ptunnel config`: the file is shown, changed line by line, and named when it stands in the wrong place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as some

from tunnel.cli.main import group as cli
from tunnel.errors import ConfigurationError, StateError
from tunnel.state.config_file import read_config, with_setting

WRITTEN = '# mine\nname = "ada"  # as on the door\n\n[other]\nserver = "not this one"\n'


def run(home: Path, *words: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["config", *words], env={"PTUNNEL_HOME": str(home), **environment}, catch_exceptions=True)


def test_a_server_is_set_shown_and_taken_out_again(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert f"Nothing is set in {tmp_path / 'config.toml'}, which is not there." in done.stderr
    assert run(tmp_path, "server", "rv.example.net").stderr == "server = rv.example.net\n"
    assert run(tmp_path, "tls-port", "off").exit_code == 0
    assert (tmp_path / "config.toml").read_text() == 'server = "rv.example.net"\ntls_port = "off"\n'
    assert (tmp_path / "config.toml").stat().st_mode & 0o777 == 0o600
    shown = run(tmp_path).stderr
    assert "server = rv.example.net" in shown
    assert str(tmp_path / "config.toml") in shown
    assert run(tmp_path, "server", "--unset").stderr == "server is not set.\n"
    assert (tmp_path / "config.toml").read_text() == 'tls_port = "off"\n'


def test_what_is_no_setting_or_no_value_of_it_changes_nothing(tmp_path: Path) -> None:
    for words in (("sever", "x"), ("server", "a b c:99999999"), ("path", "sideways"), ("--unset",), ("server", "x", "--unset")):
        done = run(tmp_path, *words)
        assert done.exit_code != 0, words
        assert not (tmp_path / "config.toml").exists()
    (tmp_path / "config.toml").write_text("server = ")
    assert run(tmp_path, "server", "rv.example.net").exit_code != 0
    assert (tmp_path / "config.toml").read_text() == "server = "


def test_bytes_that_are_no_text_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for words in (("qlog", "/tmp/a\udcff"), ("access_token", "a-token-of-sixteen\udcff"), ("name", "\udcff")):
        done = run(tmp_path, *words)
        assert isinstance(done.exception, ConfigurationError), words
        assert not (tmp_path / "config.toml").exists()


def test_a_secret_is_set_and_not_shown(tmp_path: Path) -> None:
    done = run(tmp_path, "access_token", "a-token-of-sixteen")
    assert "a-token-of-sixteen" not in done.output + done.stderr
    assert "Everybody on this machine could read that secret on the command line" in done.stderr
    assert str(tmp_path / "config.toml") in done.stderr
    assert "Everybody" not in run(tmp_path, "access_token", "--unset").stderr + run(tmp_path, "name", "ada").stderr
    run(tmp_path, "name", "--unset")
    assert run(tmp_path, "access_token", "a-token-of-sixteen", "--json").stderr == ""
    told = [json.loads(line) for line in run(tmp_path, "--json").stdout.splitlines()]
    assert [(each["event"], each["name"], each["value"], each["is_set"]) for each in told] == [
        ("setting", "access_token", None, True)
    ]


def test_every_other_line_stays_as_a_person_has_written_it() -> None:
    assert with_setting(WRITTEN, "server", "rv") == WRITTEN.replace("\n\n[other]", '\n\nserver = "rv"\n[other]')
    assert with_setting(WRITTEN, "name", "bo") == WRITTEN.replace('name = "ada"  # as on the door', 'name = "bo"')
    assert with_setting(WRITTEN, "name", None) == WRITTEN.replace('name = "ada"  # as on the door\n', "")
    assert with_setting('name = "ada"', "path", "relay") == 'name = "ada"\npath = "relay"\n'
    with pytest.raises(StateError, match="by hand"):
        with_setting('name = """\nada"""\n', "name", "bo")


@given(some.text(some.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was_set(value: str) -> None:
    assert read_config(with_setting(WRITTEN, "qlog", value).encode(), "config.toml")["qlog"] == value


def test_a_file_where_other_programs_have_theirs_is_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xdg" / "ptunnel").mkdir(parents=True)
    (tmp_path / "xdg" / "ptunnel" / "config.toml").touch()
    monkeypatch.setattr("tunnel.state.home.default_path", lambda: tmp_path / "home")
    monkeypatch.delenv("PTUNNEL_HOME", raising=False)
    places = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "PTUNNEL_HOME": ""}
    for words in (("config",), ("connect", "nobody")):
        said = CliRunner().invoke(cli, list(words), env=places).stderr
        assert f"{tmp_path / 'xdg/ptunnel/config.toml'} is not read: move it to {tmp_path / 'home/config.toml'}." in said
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "config.toml").touch()
    assert "is not read" not in CliRunner().invoke(cli, ["config"], env=places).stderr
