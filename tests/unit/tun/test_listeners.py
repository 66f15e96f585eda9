"""By which address a program hears is known from the kernel."""

from __future__ import annotations

import socket
import sys

import pytest

from tunnel.doors.tun.listeners import is_bound_to

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sock_diag is Linux's")
HERE, ELSEWHERE = socket.inet_aton("127.0.0.1"), socket.inet_aton("192.0.2.1")


@pytest.mark.parametrize(
    ("family", "address", "is_bound"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "", False),
        (socket.AF_INET6, "::ffff:127.0.0.1", True),
        (socket.AF_INET6, "::", False),
    ],
)
def test_a_socket_of_one_address_is_told_from_one_of_any(family: socket.AddressFamily, address: str, is_bound: bool) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as program:
        if family == socket.AF_INET6:
            program.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        program.bind((address, 0))
        port = program.getsockname()[1]
        assert is_bound_to(HERE, port) == is_bound
        assert not is_bound_to(ELSEWHERE, port)
