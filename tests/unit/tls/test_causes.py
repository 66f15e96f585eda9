"""What is said where no TLS connection comes about: the system's reason, not the text of a library around it."""

from __future__ import annotations

import errno
import ssl

import pytest

from tunnel.doors.tls.client import _cause

BY_TRIO = "Error connecting to ('203.0.113.77', 443): Network is unreachable"


def of_several(*errors: OSError) -> OSError:
    """As trio raises it where no address of a name is reached."""
    error = OSError("all attempts to connect to rv.example.net:443 failed")
    error.__cause__ = ExceptionGroup("multiple connection attempts failed", errors)
    return error


@pytest.mark.parametrize("error", [
    OSError(errno.ENETUNREACH, BY_TRIO), of_several(OSError(errno.ENETUNREACH, BY_TRIO)),
    of_several(OSError(errno.ENETUNREACH, BY_TRIO), OSError(errno.EHOSTUNREACH, BY_TRIO)),
])  # fmt: skip
def test_an_address_that_is_not_reached_has_the_systems_reason(error: OSError) -> None:
    cause = _cause(error)
    assert (cause.errno, cause.strerror) == (errno.ENETUNREACH, "Network is unreachable")


def test_an_error_of_tls_is_passed_on_as_it_is() -> None:
    error = ssl.SSLError(1, "no TLS")
    assert _cause(error) is error
    assert isinstance(_cause(of_several(ConnectionRefusedError(errno.ECONNREFUSED, BY_TRIO))), ConnectionRefusedError)
