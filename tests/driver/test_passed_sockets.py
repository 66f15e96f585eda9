"""Sockets that a service manager has opened: used for the forward that has their port, and nothing goes unused in silence."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.driver.programs import Lab, echo_through
from tunnel.errors import ConfigurationError
from tunnel.ports.passed import Passed
from tunnel.ports.serve import Listeners
from tunnel.ports.spec import parse_forwards

FIRST = 700  # a place for descriptors in a row, which pytest does not use


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def passed(*sockets: socket.socket, pid: int | None = None) -> tuple[Passed, dict[str, str]]:
    """As if these were our only descriptors behind the standard ones."""
    for place, sock in enumerate(sockets, FIRST):
        number = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, place)
        os.set_inheritable(number, True)
        assert number == place
        sock.close()
    environment = {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    try:
        return Passed.from_environment(environment, FIRST), environment
    except BaseException:
        assert environment == {"HOME": "/"}
        for place, _ in enumerate(sockets, FIRST):
            with suppress(OSError):
                os.close(place)
        raise


def listener(family: int = socket.AF_INET, place: object = ("127.0.0.1", 0), kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.bind(place)  # type: ignore[arg-type]
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def test_each_forward_takes_the_socket_of_its_port_or_path(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    tcp, udp, unix = listener(), listener(kind=socket.SOCK_DGRAM), listener(socket.AF_UNIX, path)
    ports = [sock.getsockname()[1] for sock in (tcp, udp)]
    given, environment = passed(tcp, udp, unix)
    assert environment == {"HOME": "/"}  # for no child
    with Listeners(parse_forwards([f"{ports[1]}:53/udp", f"unix:{path}:22", f"{ports[0]}:80", "0:81"]), given) as listeners:
        binds = [each.bind for each in listeners.ready]
        assert binds[:3] == [f"127.0.0.1:{ports[1]}", f"unix:{path}", f"127.0.0.1:{ports[0]}"]
        assert not any(os.get_inheritable(place) for place in range(FIRST, FIRST + 3))
        assert not any(os.get_blocking(place) for place in range(FIRST, FIRST + 3))
    assert Path(path).exists()  # it is the service manager's


def test_a_port_of_the_other_protocol_is_another_one() -> None:
    tcp = listener()
    port = tcp.getsockname()[1]
    given, _ = passed(tcp)
    with pytest.raises(ConfigurationError, match=rf"listens at 127\.0\.0\.1:{port}, and no --forward does"):
        Listeners(parse_forwards([f"{port}:53/udp"]), given)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(FIRST)


@pytest.mark.parametrize(
    ("bind", "is_meant"), [("127.0.0.1:", True), ("", True), ("*:", False), ("[::1]:", False), ("127.0.0.2:", False)]
)
def test_an_address_that_was_said_is_that_of_the_socket(bind: str, is_meant: bool) -> None:
    tcp = listener()
    port = tcp.getsockname()[1]
    given, _ = passed(tcp)
    if is_meant:
        Listeners(parse_forwards([f"{bind}{port}:80"]), given).close()
        return
    with pytest.raises(ConfigurationError, match=rf"listens at 127\.0\.0\.1:{port}, and the forward says .*: write the same"):
        Listeners(parse_forwards([f"{bind}{port}:80"]), given)


def test_a_socket_on_all_addresses_is_what_a_star_says() -> None:
    tcp = listener(place=("0.0.0.0", 0))
    port = tcp.getsockname()[1]
    given, _ = passed(tcp)
    Listeners(parse_forwards([f"*:{port}:80"]), given).close()


def test_what_another_process_was_given_is_not_ours() -> None:
    with listener() as tcp:
        assert (
            Passed.from_environment({"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}, tcp.fileno()).take(
                parse_forwards([str(tcp.getsockname()[1])])[0]
            )
            == []
        )
        tcp.getsockname()


@pytest.mark.parametrize("count", ["", "x", "-1", "٣"])
def test_a_senseless_count_is_none(count: str) -> None:
    Passed.from_environment({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}, FIRST).require_none_left()


def test_a_connection_and_a_file_get_a_sentence_each(stack: ExitStack) -> None:
    one, other = socket.socketpair()
    stack.callback(other.close)
    with pytest.raises(ConfigurationError, match="passes a connection: write Accept=no there"):
        passed(one)
    with pytest.raises(ConfigurationError, match=r"Descriptor 700 is no socket"):
        Passed.from_environment({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, FIRST)


LAUNCH = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_connection_that_came_before_the_program_is_served(tmp_path: Path) -> None:
    """As socket activation does it: who connects has started it."""
    lab = Lab(tmp_path)
    try:
        with listener() as placeholder:
            port = placeholder.getsockname()[1]
        exposing = lab.expose(str(lab.port))
        code = exposing.wait("code")["code"]
        options = ("--server", lab.server, "--forward", f"{port}:{lab.port}")
        connecting = lab.run(
            lab.connector, "connect", *options, wrapper=(sys.executable, "-c", LAUNCH, str(port)), PTUNNEL_CODE=code
        )
        connecting.wait("forward", bind=f"127.0.0.1:{port}", binds=[f"127.0.0.1:{port}"])
        assert echo_through(f"127.0.0.1:{port}", b"hello") == b"hello"
    finally:
        lab.close()
