"""A stranger at one address and the TLS door of a server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
from pathlib import Path

from tests.adversary.reproduction.programs import PATIENCE_S, Lab
from tests.adversary.reproduction.wire import HELLO, RETRY, read_response, request
from tests.driver.tls import make_certificate

SILENT = 128  # connections that say nothing
TRIES = 5


class Silence:
    """So many connections from one address of loopback; one that is closed is made anew."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._is_over = threading.Event()
        for _ in range(SILENT):
            self._connect()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S, source_address=("127.0.0.3", 0))
            self._selector.register(connection, selectors.EVENT_READ)

    def _hold(self) -> None:
        while not self._is_over.is_set():
            for key, _ in self._selector.select(0.05):
                self._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                self._connect()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(PATIENCE_S)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def says_hello(port: int) -> bool:
    """From another address: a handshake, a Hello behind its length, and the Retry that answers it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    hello = request(1, bytes(16), [HELLO])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=("127.0.0.2", 0)) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(len(hello).to_bytes(2, "big") + hello)
            answer = b""
            while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2], "big"):
                part = connection.recv(4_096)
                if not part:
                    return False
                answer += part
    except OSError:
        return False
    return bool(read_response(answer[2:])[1][0] == RETRY)


def test_a_stranger_that_says_nothing_cannot_close_the_door_to_others(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    options = ("--tls-cert", certificate.certificate, "--tls-key", certificate.key, "--tls-port", "0")
    with Lab(tmp_path) as lab:
        program, _ = lab.serve(*options)
        port = int(str(program.wait("listening", "tls")["bind"]).rpartition(":")[2])
        assert says_hello(port)
        silence = Silence(port)
        try:
            answered = sum(says_hello(port) for _ in range(TRIES))
        finally:
            silence.end()
        assert answered == TRIES, f"{answered} of {TRIES} got in beside {SILENT} silent connections of another address"
