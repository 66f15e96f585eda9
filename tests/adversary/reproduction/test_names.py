"""NAME=HOST: whoever answers for the name HOST does not lead the peer back to this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversary.reproduction.programs import Lab, echo_through

pytestmark = pytest.mark.time_limit(180)

#: What a name server says, put in the place of the system's in a process of the version under trial.
ANSWERS = """
import socket
asked = socket.getaddrinfo
def answer(host, port, *more, **options):
    name = host.decode() if isinstance(host, bytes) else host
    return asked("127.0.0.1" if name == "nas.example.net" else host, port, *more, **options)
socket.getaddrinfo = answer
import runpy, sys
sys.argv[0] = "tunnel"
runpy.run_module("tunnel", run_name="__main__", alter_sys=False)
"""


def test_whoever_answers_for_a_name_cannot_lead_the_peer_to_a_service_of_this_machine(tmp_path: Path) -> None:
    script = tmp_path / "answers.py"
    script.write_text(ANSWERS)
    with Lab(tmp_path) as lab:
        _, server = lab.serve()
        words = (f"nas=nas.example.net:{lab.port}", "--server", server, "--name", "home")
        exposing = lab.run("home", "expose", *words, script=script)
        code = str(exposing.wait("code")["code"])
        connecting = lab.run("friend", "connect", "--server", server, "--forward", "0:nas", PTUNNEL_CODE=code)
        answer = echo_through(connecting.wait("forward")["bind"], b"who is there?")
        assert answer == b"", "a service of this machine answered"
