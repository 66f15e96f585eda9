"""A stranger at one address and the TLS door of a server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversary.reproduction.programs import PATIENCE_S, Lab
from tests.adversary.reproduction.wire import HELLO, RETRY, read_response, request
from tests.driver.tls import make_certificate

CONNECTIONS = 128
TRIES = 5
JUNK_S = 90.0  # three times what a stranger gets


def hello() -> bytes:
    """The beginning of a TLS handshake that is never finished."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        unverified().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Strangers:
    """So many connections from one address of loopback that say `words` and no more; one that is closed is made anew."""

    def __init__(self, port: int, words: bytes) -> None:
        self._port = port
        self._words = words
        self._selector = selectors.DefaultSelector()
        self._is_over = threading.Event()
        for _ in range(CONNECTIONS):
            self._connect()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S, source_address=("127.0.0.3", 0))
            connection.sendall(self._words)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)

    def _hold(self) -> None:
        while not self._is_over.is_set():
            for key, _ in self._selector.select(0.05):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    with contextlib.suppress(ConnectionError):
                        if connection.recv(65_536):
                            continue
                    self._selector.unregister(connection)
                    connection.close()
                    self._connect()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(PATIENCE_S)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def framed(datagram: bytes) -> bytes:
    return len(datagram).to_bytes(2, "big") + datagram


def says_hello(port: int) -> bool:
    """From another address: a handshake, a Hello behind its length, and the Retry that answers it."""
    question = request(1, bytes(16), [HELLO])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=("127.0.0.2", 0)) as plain,
            unverified().wrap_socket(plain) as connection,
        ):
            connection.sendall(framed(question))
            answer = b""
            while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2], "big"):
                part = connection.recv(4_096)
                if not part:
                    return False
                answer += part
    except OSError:
        return False
    return bool(read_response(answer[2:])[1][0] == RETRY)


@contextlib.contextmanager
def door(folder: Path) -> Iterator[int]:
    """A server with TLS; its port."""
    certificate = make_certificate(folder, "127.0.0.1")
    with Lab(folder) as lab:
        program, _ = lab.serve("--tls-cert", certificate.certificate, "--tls-key", certificate.key, "--tls-port", "0")
        port = int(str(program.wait("listening", "tls")["bind"]).rpartition(":")[2])
        assert says_hello(port)
        yield port


@pytest.mark.parametrize("words", [b"", hello()], ids=["silent", "unfinished"])
def test_a_stranger_that_never_shakes_hands_cannot_close_the_door_to_others(tmp_path: Path, words: bytes) -> None:
    with door(tmp_path) as port:
        strangers = Strangers(port, words)
        try:
            answered = sum(says_hello(port) for _ in range(TRIES))
        finally:
            strangers.end()
    assert answered == TRIES, f"{answered} of {TRIES} got in beside {CONNECTIONS} connections of another address"


@pytest.mark.thorough
@pytest.mark.time_limit(200)
def test_junk_keeps_no_connection_open(tmp_path: Path) -> None:
    """A stranger has shaken hands and sends what no client sends, every two seconds."""
    with (
        door(tmp_path) as port,
        socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain,
        unverified().wrap_socket(plain) as connection,
    ):
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
