"""Lines of the control socket: any bytes are a request or MalformedPacket."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.control.messages import (
    Check,
    Close,
    Forget,
    Ping,
    Remove,
    Request,
    Status,
    decode_answer,
    decode_request,
    encode_line,
)
from tunnel.errors import MalformedPacket


@pytest.mark.parametrize(
    "request_",
    [
        Status(),
        Ping(),
        Ping(peer="home", until_direct=True),
        Check(wait_s=3),
        Forget(peer="home"),
        Remove(member="ben", room="game"),
        Close(),
    ],
)
def test_a_request_survives_the_line(request_: Request) -> None:
    line = encode_line(request_)
    assert line.count(b"\n") == 1
    assert decode_request(line) == request_


@given(st.one_of(st.binary(max_size=100), st.text(max_size=100).map(str.encode)))
def test_any_line_is_read_or_malformed(line: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with contextlib.suppress(MalformedPacket):
            decode(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b'{"do":"reboot"}',
        b'{"do":"forget"}',
        b'{"do":"forget","peer":""}',
        b'{"do":"remove"}',
        b'{"do":"remove","member":"x","room":""}',
        b'{"do":"ping","count":0}',
        b'{"do":"ping","interval_s":0}',
        b'{"do":"check","wait_s":-1}',
        b'{"do":"status"',
        b'{"do":"forget","peer":"\xff"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_request_is_malformed(line: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_request(line)


def test_a_plain_line_as_a_person_types_it_is_a_request() -> None:
    assert decode_request(b'{"do": "check", "peer": "home"}') == Check(peer="home")
