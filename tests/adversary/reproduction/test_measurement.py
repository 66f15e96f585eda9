"""Measurements, which a person asks for on the control socket: of a peer that lies, and with a fault of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversary.reproduction.programs import Lab, echo_through

LIAR = Path(__file__).with_name("lying_measurer.py")
FAULTY = Path(__file__).with_name("faulty_measurement.py")


@pytest.mark.parametrize("lie", ["stream", "datagrams"])
def test_the_figures_of_a_peer_that_is_measured_end_no_process(tmp_path: Path, lie: str) -> None:
    with Lab(tmp_path) as lab:
        _, server = lab.serve()
        options = ("--server", server)
        liar = lab.run("evil", "expose", str(lab.port), *options, "--name", "evil", script=LIAR, LIE_ABOUT=lie)
        code = liar.wait("code")["code"]
        honest = lab.run("friend", "connect", *options, "--forward", f"0:{lab.port}", "--name", "friend", PTUNNEL_CODE=code)
        bind = str(honest.wait("forward")["bind"])
        assert echo_through(bind, b"before") == b"before"
        measured = lab.ask("friend", "bench", "--time", "0.3")
        said = measured.stdout + measured.stderr
        assert echo_through(bind, b"after") == b"after", f"connect has ended: {honest.last_words()}"
        assert honest.process.poll() is None
        assert "bug" not in said, said.splitlines()[-1]


def test_a_conversation_on_the_control_socket_ends_no_process(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        _, server = lab.serve()
        options = ("--server", server)
        exposing = lab.run("home", "expose", str(lab.port), *options, "--name", "home")
        code = exposing.wait("code")["code"]
        words = ("connect", *options, "--forward", f"0:{lab.port}", "--name", "friend")
        connecting = lab.run("friend", *words, script=FAULTY, PTUNNEL_CODE=code)
        bind = str(connecting.wait("forward")["bind"])
        assert echo_through(bind, b"before") == b"before"
        assert lab.ask("friend", "bench", "--time", "0.3").returncode != 0
        assert echo_through(bind, b"after") == b"after", f"connect has ended: {connecting.last_words()}"
        assert connecting.process.poll() is None
        assert lab.ask("friend", "status").returncode == 0
