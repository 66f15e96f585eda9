"""Who is in the fleet, what clients are told of it, and who sends clients elsewhere."""

from __future__ import annotations

import random

from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet.members import BEAT, CROWDED, FORGOTTEN, LEAST_LOAD, REMEMBERED_GONE, SERVERS, SHED, SILENT, Members
from tunnel.rendezvous.fleet.records import ServerRecord, encode
from tunnel.rendezvous.fleet.seal import Seal
from tunnel.units import Address, Instant

SEAL = Seal(b"a key that all servers of the fleet have")
NOW = Instant(100.0)


def record(index: int, *, beat: int = 1, load: int = 0, drains: bool = False, instance: int = 0, places: int = 1) -> ServerRecord:
    at = tuple(messages.pack_address(Address(f"2001:db8::{index:x}:{place:x}", 24_531)) for place in range(places))
    return ServerRecord(index, instance or 1000 + index, beat, 0, at, drains, load, load, 1000, 0, 0, 0)


def entries(*records: ServerRecord) -> dict[bytes, bytes]:
    fields = [b"%d" % each.index for each in records]
    return {field: SEAL.close(SERVERS + field, encode(each)) for field, each in zip(fields, records, strict=True)}


def members(instance: int = 1) -> Members:
    at = (messages.pack_address(Address("192.0.2.1", 24_531)),)
    return Members(SEAL, instance, at, random.Random(1).randbytes)


def test_a_server_is_there_as_long_as_its_record_grows() -> None:
    seen = members()
    seen.hear(NOW, entries(record(5)))
    assert len(seen) == 1
    for beats in range(1, 4):
        seen.hear(Instant(NOW + BEAT * beats), entries(record(5, beat=1 + beats)))
    assert len(seen) == 1
    silent = Instant(NOW + 3 * BEAT + SILENT)
    assert seen.hear(silent, entries(record(5, beat=4))) == []
    assert len(seen) == 0
    assert 1005 in seen.gone
    assert seen.hear(Instant(NOW + 3 * BEAT + FORGOTTEN), entries(record(5, beat=4))) == [b"5"]


def test_records_of_somebody_else_or_in_another_place_are_no_servers() -> None:
    seen = members()
    good = entries(record(5))
    forged = Seal(b"k" * 32).close(SERVERS + b"6", encode(record(6)))
    seen.hear(NOW, {b"6": forged, b"7": good[b"5"], b"x": b"", b"9": b"\xc1" * 40, b"70": entries(record(70))[b"70"]})
    assert len(seen) == 0
    assert seen.rejected == 5


def test_a_server_that_comes_back_takes_the_index_that_it_had() -> None:
    seen = members()
    before = ServerRecord(17, 77, 9, 0, (messages.pack_address(Address("192.0.2.1", 24_531)),), False, 0, 0, 1000, 0, 0, 0)
    seen.hear(NOW, entries(before, record(5)))
    assert seen.index == 17


def test_of_two_that_took_one_index_the_lower_instance_keeps_it() -> None:
    lower, higher = members(1), members(9)
    for each in (lower, higher):
        each.hear(NOW, {})
    assert lower.index == higher.index is not None
    assert lower.index is not None
    for each, other in ((lower, 9), (higher, 1)):
        each.close(record(lower.index))
        each.hear(Instant(NOW + 0.3), entries(record(lower.index, instance=other)))
    assert (lower.index == higher.index, higher.is_settled) == (False, False)


def test_of_two_servers_with_one_address_each_has_an_index_and_both_know() -> None:
    """One may be the former self of the other, which says nothing more; so both must have been heard of twice."""
    first, second = members(1), members(9)
    store: dict[bytes, bytes] = {}
    beats = 0
    for turn in range(12):
        now = Instant(NOW + turn * BEAT)
        for seen in (first, second):
            seen.hear(now, dict(store))
            beats += 1
            assert seen.index is not None
            own = record(seen.index, beat=beats, instance=seen._instance)
            own = ServerRecord(own.index, own.instance, beats, 0, seen._at, False, 0, 0, 1000, 0, 0, 0)
            field, value = seen.close(own)
            store[field] = value
    assert first.index != second.index
    assert (first.has_twin(now), second.has_twin(now)) == (True, True)
    assert (first.is_settled, second.is_settled) == (True, True)
    for later in (Instant(now + BEAT), Instant(now + BEAT + FORGOTTEN)):  # the second one says nothing more
        first.hear(later, dict(store))
    assert not first.has_twin(later)


def test_many_former_selves_are_remembered_no_longer_than_needed() -> None:
    seen = members(1)
    for number in range(3 * REMEMBERED_GONE):
        former = ServerRecord(17, 100 + number, 9, 0, seen._at, False, 0, 0, 1000, 0, 0, 0)
        seen.hear(NOW, entries(former))
        assert len(seen._twins) <= REMEMBERED_GONE
    assert not seen.has_twin(NOW)


def test_a_fleet_that_is_full_takes_no_more() -> None:
    seen = members()
    seen.hear(NOW, entries(*(record(index) for index in range(messages.MAX_SERVERS))))
    assert seen.index is None


def test_the_list_for_a_client_fits_its_answer_and_differs_between_clients_of_a_large_fleet() -> None:
    for places in (1, messages.MAX_PLACES):
        seen = members()
        seen.hear(NOW, entries(*(record(index, places=places) for index in range(1, messages.MAX_SERVERS))))
        own = record(0, instance=1, places=places)
        told = [seen.answer(own, bytes((0, 0, 0, number)) + bytes(12)) for number in range(20)]
        assert all(len(messages.encode_response(1, each)) <= messages.MIN_REQUEST for each in told)
        assert all(each.servers[0].index == each.index == 0 for each in told)
        assert len({server.index for each in told for server in each.servers}) > 20


def test_all_servers_tell_the_same_epoch_of_the_same_list() -> None:
    records = [record(index) for index in range(3)]
    epochs = set()
    for own in records:
        seen = members(own.instance)
        seen.hear(NOW, entries(*records))
        epochs.add(seen.epoch(own))
    assert len(epochs) == 1
    seen = members(1000)
    seen.hear(NOW, entries(*records[:2]))
    assert seen.epoch(records[0]) not in epochs | {0}


def test_a_server_that_is_gone_is_remembered_among_a_bounded_number() -> None:
    seen = members()
    for number in range(REMEMBERED_GONE + 5):
        now = Instant(NOW + number)
        seen.hear(now, entries(record(5, instance=2000 + number)))
    assert len(seen.gone) == REMEMBERED_GONE


def test_a_crowded_server_sends_a_few_elsewhere_and_most_of_them_where_there_is_most_room() -> None:
    seen = members()
    seen.hear(NOW, entries(record(1, load=100), record(2, load=200), record(3, load=0, drains=True)))
    own = 600.0
    mean = (600 + 100 + 200) / 3
    assert seen.mean(own) == mean
    assert seen.is_crowded(own)
    assert seen.excess(own, 1000) == int(1000 * SHED)
    even = 300.0 / 2
    assert seen.is_crowded(even * CROWDED * 1.1)
    assert not seen.is_crowded(even * 1.05)
    chosen = [seen.choose(own) for _ in range(150)]
    counts = [sum(each is not None and each.record.index == index for each in chosen) for index in (1, 2, 3)]
    assert counts[0] > counts[1] > 0 == counts[2]


def test_little_load_is_sent_nowhere_however_unequal() -> None:
    seen = members()
    seen.hear(NOW, entries(record(1, load=0), record(2, load=0)))
    assert not seen.is_crowded(LEAST_LOAD - 1)
    assert seen.excess(LEAST_LOAD - 1, 1000) == 0


def test_a_server_that_drains_sends_to_all_that_do_not() -> None:
    seen = members()
    seen.hear(NOW, entries(record(1, load=900), record(2, load=100), record(3, drains=True)))
    chosen = {each.record.index for _ in range(100) if (each := seen.choose(None)) is not None}
    assert chosen == {1, 2}
    seen.hear(NOW, entries(record(3, drains=True, beat=2)))
    assert seen.choose(None) is None
