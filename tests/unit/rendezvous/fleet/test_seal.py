"""The fleet's key: names that say nothing, records that only it makes, tickets for numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.rendezvous.fleet import records
from tunnel.rendezvous.fleet.records import Kind, Note, NumberRecord, RoomRecord, ServerRecord, decode, encode
from tunnel.rendezvous.fleet.seal import MARK_SIZE, NAME_SIZE, SEAL_SIZE, FleetTicket, Seal
from tunnel.rendezvous.messages import MAX_NAMEPLATE, MAX_TICKET

SEAL = Seal(b"a key that all servers of the fleet have")
OTHER = Seal(b"a key that another fleet's servers have.")
TICKET = FleetTicket(1_700_000_600, 2, b"markmark")


def test_the_name_of_a_room_says_nothing_about_it_and_is_another_one_under_another_key() -> None:
    room = b"r" * 16
    name = SEAL.name(b"room", room)
    assert name.startswith(b"ptunnel:room:")
    assert len(name) == len(b"ptunnel:room:") + NAME_SIZE
    assert room not in name
    assert len({name, SEAL.name(b"code", room), SEAL.name(b"room", b"s" * 16), OTHER.name(b"room", room)}) == 4


def test_a_record_is_good_in_its_place_and_under_its_key_only() -> None:
    data = SEAL.close(b"here", b"body")
    assert SEAL.open(b"here", data) == b"body"
    assert SEAL.open(b"there", data) is None
    assert OTHER.open(b"here", data) is None
    assert SEAL.open(b"here", data[:-1]) is None
    assert SEAL.open(b"her", b"e" + data) is None
    assert SEAL.open(b"here", data[: SEAL_SIZE - 1]) is None


def test_a_ticket_is_for_one_number_until_it_ends() -> None:
    data = SEAL.ticket(731, TICKET)
    assert len(data) <= MAX_TICKET
    assert SEAL.open_ticket(TICKET.ends_at - 1, 731, data) == TICKET
    assert SEAL.open_ticket(TICKET.ends_at, 731, data) is None
    assert SEAL.open_ticket(0, 732, data) is None
    assert OTHER.open_ticket(0, 731, data) is None
    assert SEAL.open_ticket(0, MAX_NAMEPLATE + 1, data) is None
    for wrong in (b"", data[:-1], data + b"\0", data[:4] + b"\xff\xff" + data[6:]):
        assert SEAL.open_ticket(0, 731, wrong) is None


RECORDS = [
    ServerRecord(3, 2**64 - 1, 7, 1_700_000_000, (b"a" * 6,), False, 1000, 5, 32_768, 2, 1, 2**40, "ptunnel"),
    RoomRecord(True, False, 1_700_000_000),
    NumberRecord(b"m" * MARK_SIZE, 3, 1_700_000_000),
    Note(Kind.GUESS, 1, 2, b"w" * NAME_SIZE, b"m" * MARK_SIZE, ("192.0.2.1", "192.0.2")),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_survive_the_store(record: ServerRecord | RoomRecord | NumberRecord | Note) -> None:
    assert decode(type(record), encode(record)) == record
    assert decode(type(record), None) is None


@given(st.one_of(st.binary(max_size=80), st.sampled_from([encode(each) for each in RECORDS])))
def test_any_bytes_are_a_record_or_none(body: bytes) -> None:
    for kind in (ServerRecord, RoomRecord, NumberRecord, Note):
        found = decode(kind, body)
        assert found is None or isinstance(found, kind)


def test_a_load_beyond_all_and_a_mark_of_another_size_are_no_record() -> None:
    assert decode(NumberRecord, encode(NumberRecord(b"m", 0, 0))) is None
    beyond = ServerRecord(3, 1, 7, 1, (b"a" * 6,), False, records.FULL + 1, 5, 5, 2, 1, 0)
    assert decode(ServerRecord, encode(beyond)) is None
