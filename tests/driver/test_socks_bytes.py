"""The bytes of the SOCKS door: whatever comes is a request or an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import ConfigurationError
from tunnel.pairing.grants import Grant, GrantSet
from tunnel.ports.open import Reach, decode_open, encode
from tunnel.ports.socks_messages import SocksError, read_greeting, read_request, unwrap
from tunnel.ports.spec import parse_door

# -- bytes


def reader(data: bytes) -> Callable[[int], Any]:
    left = [data]

    async def read(count: int) -> bytes:
        part, left[0] = left[0][:count], left[0][count:]
        if len(part) < count:
            raise SocksError()
        return part

    return read


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    async def run() -> None:
        for read in (read_greeting, read_request):
            found = None
            with suppress(SocksError):
                found = await read(reader(data))
            if found is not None:
                reach = Reach("tcp", found.host, max(1, found.port))
                assert decode_open(encode(reach)[2:]) == reach

    trio.run(run)


@given(st.binary(max_size=300))
def test_any_datagram_is_one_of_socks_or_none(data: bytes) -> None:
    found = unwrap(data)
    if found is not None:
        host, port, header, payload = found
        assert header[3:] + payload == data[3:]
        reach = Reach("udp", host, port, 2)
        assert decode_open(encode(reach)[2:]) == reach


@pytest.mark.parametrize("text", ["1080:80", "1080/udp", "1-2", "x", ""])
def test_a_door_that_makes_no_sense_gets_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_door(text)
    assert "\n" not in str(caught.value)


def test_the_bytes_are_those_of_the_protocol_page() -> None:
    written = "96a57265616368a3746370ab3139322e3136382e312e35500000"
    assert encode(Reach("tcp", "192.168.1.5", 80))[2:].hex() == written


def test_a_network_says_nothing_of_other_protocols() -> None:
    grant = Grant(kind="net", protocol="udp", host="10.0.0.0/8", first=53, last=53)
    assert GrantSet((grant,)).nets("tcp", 53) == []
