"""The doctor beside a real server on loopback: TLS is always looked at, clocks are compared, and the right one is blamed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, a_server
from tests.driver.programs import Lab
from tests.driver.test_tls import a_tls_server
from tests.driver.tls import make_certificate
from tests.schema import schema
from tunnel.cli.doctor import _own_link
from tunnel.errors import ServerUnreachableError
from tunnel.nat.report import Findings
from tunnel.server_spec import TlsOptions
from tunnel.shell import endpoint
from tunnel.shell.doctor import CLOCK_TOLERANCE, Examination, TlsFindings, examine, examine_all
from tunnel.state.home import Home as State
from tunnel.units import Address

PATIENCE = 45.0
HOUR = 3_600.0


async def look(server: str, port: int, fingerprint: str | None = None, ahead: float = 0.0) -> Examination:
    with trio.fail_after(PATIENCE):
        options = TlsOptions(port, fingerprint)
        return await examine(server, portmap=False, tls=options, unix_time=lambda: time.time() + ahead)


def tls_of(found: Examination) -> TlsFindings:
    assert found.is_reached
    assert found.tls is not None
    return found.tls


async def test_a_certificate_is_told_though_udp_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1", authority=True)
    async with a_tls_server(certificate) as (_running, server, port):
        untrusted = tls_of(found := await look(server, port))
        assert not untrusted.works
        assert untrusted.words.startswith("The certificate that 127.0.0.1 shows")
        assert "not trusted" in untrusted.words
        assert untrusted.trouble not in found.sentences()  # nothing needs TLS here
        assert tls_of(await look(server, port, certificate.fingerprint)).words == "pinned"
        wrong = tls_of(await look(server, port, "ab" * 32))
        assert "is not the pinned one" in wrong.words
        monkeypatch.setenv("SSL_CERT_FILE", certificate.certificate)
        trusted = tls_of(await look(server, port))
        day = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 2 * 24 * HOUR))
        before = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 2 * 24 * HOUR - PATIENCE))
        assert trusted.words in (f"trusted, valid until {day}", f"trusted, valid until {before}")
        assert trusted.to_dict()["valid_until"] in (day, before)


async def test_where_nothing_listens_tls_is_not_there_and_off_it_is_not_tried(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        free = sock.getsockname()[1]
    async with a_tls_server(certificate) as (_running, server, _port):
        assert tls_of(await look(server, free)).words == "not there"
        with trio.fail_after(PATIENCE):
            assert (await examine(server, portmap=False, tls=TlsOptions(None, None))).tls is None


@pytest.mark.parametrize(("ahead", "words"), [(3 * HOUR, "3 hours ahead of"), (-3 * HOUR, "3 hours behind"), (0.0, "")])
async def test_a_clock_that_is_off_is_said(tmp_path: Path, ahead: float, words: str) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_tls_server(certificate) as (_running, server, port):
        found = await look(server, port, ahead=ahead)
    assert found.clock_off_s == pytest.approx(ahead, abs=CLOCK_TOLERANCE / 2)
    said = [sentence for sentence in found.sentences() if "clock" in sentence]
    assert len(said) == bool(words)
    assert all(words in sentence for sentence in said)


SILENT = Findings(is_ipv6=False, own="192.168.1.2", server=Address("198.51.100.1", 24_531))


def test_a_firewall_may_be_the_servers_own_and_no_network_is_no_firewall() -> None:
    works = TlsFindings(port=443, works=True, is_there=True)
    over_tls = Examination(server="rv.example.net", ipv4=SILENT, ipv6=Findings(is_ipv6=True), portmap=None, tls=works)
    assert over_tls.summary.startswith(
        "No UDP gets through to the server: this network blocks it, or the server's firewall does."
    )
    assert over_tls.can_meet
    reached = replace(SILENT, seen=Address("203.0.113.7", 41_641))
    assert "No UDP" not in replace(over_tls, ipv4=reached).summary
    nowhere = replace(over_tls, ipv4=replace(SILENT, own=None), tls=None)
    assert nowhere.sentences()[0] == "This computer is not connected to a network."


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_the_command_shows_tls_and_where_it_keeps_what_it_knows(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        free = sock.getsockname()[1]
    words = ("doctor", "--server", lab.server, "--tls-port", str(free))
    shown = lab.ask(lab.connector, *words).stdout.splitlines()
    rows = {line[:26].strip(): line[26:] for line in shown[: shown.index("")]}
    assert rows[f"TLS on tcp {free}"] == "not there"
    assert rows["state"] == str(lab.connector)
    assert rows["settings"] == f"{lab.connector / 'config.toml'}, which is not there"
    [found] = map(json.loads, lab.ask(lab.connector, *words, "--json").stdout.splitlines())
    assert (found["tls"]["works"], found["tls"]["pinned"]) == (False, False)
    assert abs(found["clock_off_s"]) <= 30


@pytest.mark.parametrize("behind", [0.0, 2 * HOUR])
async def test_what_a_peer_says_of_our_clock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: float) -> None:
    """The clock was ahead when the two met last."""
    heard = Heard()
    async with a_server() as server, tunnel.expose(["22"], server=server, home=tmp_path / "home", name="home", on_event=heard):
        monkeypatch.setattr(endpoint, "wall_ns", lambda: time.time_ns() + int(behind * 1e9))
        with trio.fail_after(PATIENCE):
            async with tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend", portmap=False):
                pass
            monkeypatch.undo()
            said: list[str] = []
            steps: list[str] = []
            link = await _own_link(State(tmp_path / "friend"), "home", server, TlsOptions(None, None), said, steps.append)
    assert steps[0].startswith("Meeting home, for ")
    assert link["peer"] == "home"
    behind_words = "The clock of this computer is 2 hours behind what it showed home before. Set it, if it is wrong now."
    assert said == ([behind_words] if behind else [])


async def test_of_a_list_the_first_that_answers_is_told_and_of_the_others_whether_they_do() -> None:
    dead = "127.0.0.1:9"
    with trio.fail_after(PATIENCE):
        async with a_server() as first, a_server() as second:
            found = await examine_all((dead, first, f"{second},tls=off"), tls=TlsOptions(None))
        assert found.server == first
        assert [(other.server, other.is_reached) for other in found.others] == [(dead, False), (f"{second},tls=off", True)]
        assert found.sentences()[-2] == "127.0.0.1, another server of the list, does not answer over UDP."
        assert found.sentences()[-1].startswith("127.0.0.1, another server of the list, answers after ")
        assert schema().problems({"event": "doctor", **found.to_dict()}, is_line=False) == []


async def test_of_a_list_that_nobody_knows_the_first_trouble_is_told() -> None:
    with trio.fail_after(PATIENCE), pytest.raises(ServerUnreachableError):
        await examine_all(("one.invalid", "two.invalid"))
