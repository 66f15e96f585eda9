"""`serve --check`: the sentence for each thing that can be wrong with a server's certificate, clock, machine and ports."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.driver.tls import make_certificate
from tunnel.doors.tls.certificates import read_certificate
from tunnel.doors.udp.base import RECEIVE_BUFFER
from tunnel.doors.udp.socket import open_socket
from tunnel.host.clock import is_synchronised
from tunnel.shell import server_check
from tunnel.shell.outside import View
from tunnel.shell.serve import TlsConfig
from tunnel.shell.server_check import (
    RENEWAL,
    Finding,
    State,
    check_access,
    check_certificate,
    check_clock,
    check_machine,
    check_outside,
    check_tls_outside,
)

VIEW = View("0.0.0.0:24531", "198.51.100.1:24531", "203.0.113.5:24531", True, True, 0.2)


def only(found: list[Finding]) -> Finding:
    [finding] = found
    return finding


def test_a_good_certificate_is_told_by_its_names_and_its_end(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "rv.example.net", "203.0.113.5", days=100)
    config = TlsConfig(certificate=made.certificate, key=made.key)
    os.chmod(made.key, 0o600)
    shown = read_certificate(made.certificate)
    assert shown.names == ("rv.example.net", "203.0.113.5")
    found = only(check_certificate(config, shown.ends_at - RENEWAL - 60))
    assert found.state is State.FAILED, "it begins later than that"
    found = only(check_certificate(config, shown.begins_at))
    assert found.state is State.WARNING, "three days are left of it"


@pytest.mark.parametrize(
    ("days", "state", "word"), [(-5, State.FAILED, "ended on"), (5, State.FAILED, "begins on"), (0, State.WARNING, "2 days")]
)
def test_a_certificate_is_good_from_its_first_day_to_its_last(tmp_path: Path, days: int, state: State, word: str) -> None:
    made = make_certificate(tmp_path, "rv.example.net", days=days)
    os.chmod(made.key, 0o600)
    found = only(check_certificate(TlsConfig(certificate=made.certificate, key=made.key), time.time() - 3600))
    assert (found.what, found.state) == ("certificate", state)
    assert word in found.message


def test_a_certificate_that_cannot_be_used_says_which_file_is_wrong(tmp_path: Path) -> None:
    one, other = make_certificate(tmp_path, "a.example"), make_certificate(tmp_path, "b.example", stem="other")
    for certificate, key, word in (
        (str(tmp_path / "none.pem"), one.key, "cannot be read"),
        (one.certificate, other.key, "no certificate with its key"),
        (one.key, None, "no certificate with its key"),
    ):
        found = only(check_certificate(TlsConfig(certificate=certificate, key=key), time.time()))
        assert found.state is State.FAILED
        assert word in found.message


def test_a_key_that_everybody_can_read_is_told_with_the_command_that_helps(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "rv.example.net")
    os.chmod(made.key, 0o644)
    found = check_certificate(TlsConfig(certificate=made.certificate, key=made.key), time.time())
    assert [each.state for each in found] == [State.WARNING, State.WARNING]
    assert f"chmod o-r {made.key}" in found[1].message


def test_the_clock_is_compared_with_the_server_that_was_asked() -> None:
    assert check_clock([VIEW]).state is State.OK
    for ahead, word in ((3 * 3600.0, "ahead of"), (-86_400.0, "behind")):
        found = check_clock([VIEW._replace(clock_off_s=ahead)])
        assert found.state is State.WARNING
        assert word in found.message


@pytest.mark.parametrize(("says", "state"), [(True, State.OK), (False, State.WARNING), (None, State.UNKNOWN)])
def test_else_the_clock_is_as_the_kernel_says(says: bool | None, state: State) -> None:
    assert check_clock([], lambda: says).state is state
    assert check_clock([VIEW._replace(clock_off_s=None)], lambda: says).state is state
    assert is_synchronised() in (True, False, None)


def test_a_small_receive_buffer_and_too_few_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        receive_buffer = 212_992

    class Large:
        receive_buffer = RECEIVE_BUFFER

    monkeypatch.setattr(server_check, "most_descriptors", lambda: 1024)
    buffer, files = check_machine([Small(), Large()], has_tls=True)  # type: ignore[list-item]
    assert (buffer.what, buffer.state) == ("receive_buffer", State.WARNING)
    assert f"net.core.rmem_max={RECEIVE_BUFFER}" in buffer.message
    assert (files.what, files.state) == ("open_files", State.WARNING)
    assert "1,024" in files.message
    monkeypatch.setattr(server_check, "most_descriptors", lambda: None)
    assert [each.state for each in check_machine([Large()], has_tls=True)] == [State.OK]  # type: ignore[list-item]
    sock = open_socket("127.0.0.1", 0)
    try:
        assert check_machine([sock], has_tls=False)[0].what == "receive_buffer"
    finally:
        sock.close()


@pytest.mark.parametrize(
    ("view", "own", "state", "word"),
    [
        (VIEW, "203.0.113.5", State.OK, "is reached from outside, at 203.0.113.5:24531."),
        (VIEW, "10.0.0.4", State.OK, "translates 10.0.0.4"),
        (VIEW._replace(is_reached=False), "203.0.113.5", State.FAILED, "the firewall, here or at the provider"),
        (VIEW._replace(is_reached=False), "10.0.0.4", State.FAILED, "the router before this machine"),
        (VIEW._replace(seen="203.0.113.5:4711", is_reached=True), "10.0.0.4", State.FAILED, "forward UDP port 24531"),
        (VIEW._replace(has_second=False, is_reached=False), "203.0.113.5", State.UNKNOWN, "no second port"),
        (VIEW._replace(seen=None, is_reached=False), None, State.UNKNOWN, "does not answer"),
        (
            View("[::]:24531", "[2001:db8::1]:24531", "[2001:db8::5]:24531", True, True, None),
            "2001:db8::5", State.OK, "reached from outside, at [2001:db8::5]:24531.",
        ),
        (View("[2001:db8::5]:24531", "[2001:db8::1]:24531", "[2001:db8::5]:24531", True, False, None), None, State.FAILED, "not"),
    ],
)  # fmt: skip
def test_what_another_server_sees_becomes_one_sentence(view: View, own: str | None, state: State, word: str) -> None:
    found = only(check_outside([view], "HOST", own=lambda _server: own))
    assert (found.what, found.state) == ("outside", state)
    assert word in found.message


def test_what_cannot_be_known_from_here_is_said_so_with_what_would_tell() -> None:
    for found in (only(check_outside(None, "rv.example.net")), check_tls_outside(443, "rv.example.net")):
        assert found.state is State.UNKNOWN
        assert "ptunnel doctor --server rv.example.net" in found.message
    assert only(check_outside([], "HOST")).state is State.UNKNOWN


def test_an_access_list_is_read(tmp_path: Path) -> None:
    path = tmp_path / "access"
    path.write_text("198.51.100.0/24\n", encoding="utf-8")
    assert check_access(str(path)).state is State.OK
    path.write_text("token short\n", encoding="utf-8")
    found = check_access(str(path))
    assert found.state is State.FAILED
    assert "line 1" in found.message
