"""A room between real kernels: what one ordinary datagram, and one secret of the environment, must not do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.adversary.reproduction.tree import TREE
from tests.netns.kernel import Namespace, python_module, why_no_tap, why_unavailable
from tests.netns.lab import Lab, eventually
from tests.netns.programs import SERVER_PORT, Program, environment
from tests.netns.rooms import Member, open_socket

pytestmark = [pytest.mark.netns, pytest.mark.time_limit(240)]

START_S = 60.0  # for the start of a process, and until members reach each other
PORT = 4_446
TOKEN = "a-secret-of-the-server"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    reason = why_unavailable() or why_no_tap()
    if reason is not None:
        pytest.skip(reason)
    with Lab(tmp_path) as lab:
        yield lab


def run(lab: Lab, space: Namespace, name: str, *words: str, **secrets: str) -> Program:
    """The version under trial, in there."""
    chosen = {"PYTHONPATH": str(TREE), "PYTHONSAFEPATH": "1", **secrets}
    return Program(lab, space, name, python_module("tunnel", *words), env=environment(lab.folder / f"home-{name}", **chosen))


def said(program: Program, event: str) -> dict[str, object]:
    """The first such event."""

    def found() -> dict[str, object] | None:
        for line in program.said().splitlines():
            if line.startswith("{") and line.endswith("}") and (read := json.loads(line)).get("event") == event:
                return dict(read)
        return None

    eventually(f"{event} of {program.name}", lambda: found() is not None or program.process.poll() is not None, START_S)
    if (event_ := found()) is None:
        raise program.trouble(f"no {event}")
    return event_


def serve(lab: Lab) -> str:
    """The server's address."""
    server = f"{lab.server.address}:{SERVER_PORT}"
    said(run(lab, lab.server.host, "server", "serve", "--listen", server, "--json"), "listening")
    return server


def test_a_datagram_of_any_size_ends_nobodys_program(lab: Lab) -> None:
    """Its last fragment may be a few bytes short: games send 1,400 bytes, and the interface carries some thirty more."""
    server = serve(lab)
    members = [Member(lab, lab.add_site(name, "prc", hosts=2), name) for name in ("ada", "bora")]
    creator = run(lab, members[0].space, "ada", "lan", "create", "--name", "game", "--server", server, "--json")
    code = str(said(creator, "code")["code"])
    joiner = run(lab, members[1].space, "bora", "lan", "join", "--server", server, "--json", PTUNNEL_CODE=code)
    for member in members:
        eventually(f"the interface of {member.name}", member.look, START_S, 0.2)
    ada, bora = members
    eventually("they reach each other", partial(ada.reaches, bora.ipv4), START_S, 0.2)
    with open_socket(ada.space) as near, open_socket(bora.space, socket.AF_INET, PORT) as far:
        for sock in (near, far):
            sock.settimeout(0.5)
        arrived = 0
        for size in (*range(1_380, 1_440), *range(2_800, 2_860)):
            for _ in range(3):  # what the first leaves behind is a fast path for those after it
                near.sendto(bytes(size), (bora.ipv4, PORT))
                try:
                    arrived += len(far.recv(65_536)) == size
                except TimeoutError:
                    break
            for program in (creator, joiner):
                assert program.process.poll() is None, program.trouble(f"after a datagram of {size} bytes")
        assert arrived > 300
    assert bora.reaches(ada.ipv4, count=3, wait=2)


def test_the_code_of_a_room_and_the_token_of_a_server_are_not_in_the_environment_of_the_command(lab: Lab) -> None:
    server = serve(lab)
    ada, bora = (Member(lab, lab.add_site(name, "prc", hosts=2), name) for name in ("ada", "bora"))
    creator = run(lab, ada.space, "ada", "lan", "create", "--name", "game", "--server", server, "--json")
    code = str(said(creator, "code")["code"])
    words = ("exec", "--server", server, "--as", "bora", "--", "sh", "-c", "env; echo that was all")
    command = run(lab, bora.space, "bora", *words, PTUNNEL_CODE=code, PTUNNEL_ACCESS_TOKEN=TOKEN)
    command.wait_said("that was all", START_S)
    assert "PTUNNEL_HOME=" in command.said()
    assert (code in command.said(), TOKEN in command.said()) == (False, False)
