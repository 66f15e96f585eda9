"""A stranger at one address and the TLS door of a server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversary.reproduction.door import CONNECTIONS, TRIES, Place, connect, framed, hello, says_hello, tries, unverified
from tests.adversary.reproduction.programs import Lab
from tests.driver.tls import make_certificate

JUNK_S = 90.0  # three times what a stranger gets
HONEST, STRANGER = "127.0.0.2", "127.0.0.3"


@contextlib.contextmanager
def door(folder: Path) -> Iterator[Place]:
    """Of a server on loopback."""
    certificate = make_certificate(folder, "127.0.0.1")
    with Lab(folder) as lab:
        program, _ = lab.serve("--tls-cert", certificate.certificate, "--tls-key", certificate.key, "--tls-port", "0")
        place = "127.0.0.1", int(str(program.wait("listening", "tls")["bind"]).rpartition(":")[2])
        assert says_hello(place, HONEST)
        yield place


@pytest.mark.parametrize("words", [b"", hello()], ids=["silent", "unfinished"])
def test_a_stranger_that_never_shakes_hands_cannot_close_the_door_to_others(tmp_path: Path, words: bytes) -> None:
    with door(tmp_path) as place:
        answered = tries(place, words, [STRANGER], HONEST)
    assert answered == TRIES, f"{answered} of {TRIES} got in beside {CONNECTIONS} connections of another address"


@pytest.mark.thorough
@pytest.mark.time_limit(200)
def test_junk_keeps_no_connection_open(tmp_path: Path) -> None:
    """A stranger has shaken hands and sends what no client sends, every two seconds."""
    with door(tmp_path) as place, connect(place, STRANGER) as plain, unverified().wrap_socket(plain) as connection:
        connection.settimeout(2.0)
        end = time.monotonic() + JUNK_S
        while time.monotonic() < end:
            try:
                connection.sendall(framed(b"\x55junk"))
                if not connection.recv(100):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    raise AssertionError(f"a connection that says nothing but junk is open after {JUNK_S:.0f} s")
