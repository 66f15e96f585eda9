"""What a peer may reach, as it is told: its own grants, without where they lead, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.cli.offers import forwards_for
from tunnel.errors import MalformedPacket
from tunnel.node.shares import MAX_MORE, MAX_SHARES, Shares, decode_shares, encode_shares
from tunnel.pairing.grants import Grant, GrantSet
from tunnel.transport.connection.control import MAX_MESSAGE


def test_the_bytes_are_those_of_the_protocol_page() -> None:
    grants = GrantSet.parse("22", "nas=192.168.1.5:445")
    assert encode_shares(grants).hex() == "92c39294a37463701616c094a3746370cd01bdcd01bda36e6173"


def test_what_is_told_reads_as_it_is_forwarded_and_names_no_address() -> None:
    told = decode_shares(encode_shares(GrantSet.parse("22", "53/udp", "5000-5010", "nas=192.168.1.5:445", "web=intern:80-81")))
    assert [str(each) for each in told.shares] == ["tcp/22", "udp/53", "tcp/5000-5010", "tcp/nas", "tcp/web:80-81"]
    assert b"192.168" not in encode_shares(GrantSet.parse("nas=192.168.1.5:445"))


@pytest.mark.parametrize(
    ("protocol", "target", "allowed"),
    [
        ("tcp", 22, True),
        ("udp", 22, False),
        ("tcp", 23, False),
        ("tcp", "nas", True),
        ("tcp", "NAS:445", True),
        ("tcp", "nas:1", False),
    ],
)
def test_it_is_known_what_would_be_refused(protocol: str, target: int | str, allowed: bool) -> None:
    told = decode_shares(encode_shares(GrantSet.parse("22", "nas=a:445")))
    assert told.refused([(protocol, target)]) == ([] if allowed else [(protocol, target)])


def test_thousands_of_grants_fit_one_message_and_then_nothing_is_said_to_be_refused() -> None:
    name = "n" * 27
    many = GrantSet(
        Grant(protocol="tcp", name=f"{name}{number:05}", host="a", first=65_534, last=65_535) for number in range(4 * MAX_SHARES)
    )
    body = encode_shares(many)
    assert len(body) < MAX_MESSAGE
    told = decode_shares(body)
    assert (len(told.shares), told.is_all) == (MAX_SHARES, False)
    assert told.refused([("udp", 53)]) == []


def test_a_socket_without_a_name_is_told_behind_what_older_peers_read() -> None:
    import msgspec

    grants = GrantSet.parse("22", "unix:/run/app.sock", "pg=unix:/run/postgresql/.s.PGSQL.5432")
    body = encode_shares(grants)
    assert msgspec.msgpack.decode(body)[:2] == [True, [["tcp", 22, 22, None], ["tcp", 5432, 5432, "pg"]]]
    assert b"/run/postgresql" not in body
    told = decode_shares(body)
    assert told.texts == ["tcp/22", "tcp/pg", "tcp/unix:/run/app.sock"]
    wanted: list[tuple[str, int | str]] = [
        ("tcp", "unix:/run/app.sock"),
        ("tcp", "pg"),
        ("tcp", "unix:/run/b.sock"),
        ("tcp", 5432),
    ]
    assert told.refused(wanted) == wanted[2:]
    assert forwards_for(told.usable) == ["2222:22", "5432:pg", "10001:unix:/run/app.sock"]


def test_hundreds_of_sockets_fit_one_message_beside_everything_else() -> None:
    name, path = "n" * 27, "unix:/" + "p" * 103
    ports = [
        Grant(protocol="tcp", name=f"{name}{number:05}", host="a", first=65_534, last=65_535) for number in range(MAX_SHARES)
    ]
    sockets = [Grant(protocol="tcp", host=f"{path}{number:03}", first=1, last=1) for number in range(2 * MAX_MORE)]
    body = encode_shares(GrantSet((*ports, *sockets)))
    assert len(body) < MAX_MESSAGE
    told = decode_shares(body)
    assert (len(told.shares), len(told.more), told.is_all) == (MAX_SHARES, MAX_MORE, False)


@pytest.mark.parametrize("name", ["\x1b[2J", "a b", "", "9x", "x" * 33, "a\n"])
def test_a_name_that_would_change_a_terminal_is_refused(name: str) -> None:
    import msgspec

    with pytest.raises(MalformedPacket):
        decode_shares(msgspec.msgpack.encode([True, [["tcp", 1, 1, name]]]))
    if set(name) & set("\x1b\n") or not name:
        with pytest.raises(MalformedPacket):
            decode_shares(msgspec.msgpack.encode([True, [], [name]]))


@given(st.binary(max_size=200))
def test_any_bytes_are_shares_or_malformed(data: bytes) -> None:
    try:
        told = decode_shares(data)
    except MalformedPacket:
        return
    assert isinstance(told, Shares)
    assert len(told.shares) <= MAX_SHARES


def test_more_than_may_be_told_is_malformed_and_further_elements_are_left_for_later_versions() -> None:
    import msgspec

    one = ["tcp", 1, 1, None]
    with pytest.raises(MalformedPacket):
        decode_shares(msgspec.msgpack.encode([True, [one] * (MAX_SHARES + 1)]))
    assert decode_shares(msgspec.msgpack.encode([True, [[*one, "later"]], [], "later"])).refused([("tcp", 1)]) == []
