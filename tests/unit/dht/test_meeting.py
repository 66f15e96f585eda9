"""What two sides say to each other once addresses are known, and what strangers can make them say."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tunnel.core.trace import Drops
from tunnel.dht.checks import HOST_SIZE, MAC_SIZE, MAILBOX_SIZE, MAX_BODY, NONCE_SIZE, TAG_SIZE, Keys, tag_of
from tunnel.dht.ledger import Ledger
from tunnel.dht.meeting import (
    CHECK_TIMES,
    DETOUR_WAIT,
    FRESH_CHECKS,
    KEPT,
    MAX_CANDIDATES,
    MAX_CHECKS,
    MAX_CHECKS_IN_WINDOW,
    MAX_HEARD,
    MAX_PATHS,
    MAX_PORTS,
    MAX_TOLD,
    MAX_UNSENT,
    MAX_VOICES,
    MESSAGE_LIFETIME,
    Heard,
    Meeting,
    Opened,
)
from tunnel.errors import MalformedPacket
from tunnel.units import Address, Instant, SocketId

S = SocketId(0)
START = Instant(100.0)
SECRET = bytes(32)
HOME, FRIEND = Address("44.1.1.1", 4_001), Address("44.2.2.2", 4_002)
NODE = "44.9.9.9"
BOX = bytes(MAILBOX_SIZE)


def meeting(side: int, secret: bytes = SECRET) -> Meeting:
    ledger = Ledger(MAX_CHECKS, MAX_CHECKS_IN_WINDOW)
    host = (HOME, FRIEND)[side].host
    return Meeting(
        secret, side, entropy=random.Random(side).randbytes, ledger=ledger, drops=Drops(), own_host=lambda _socket: host
    )


def out(each: Meeting, now: Instant) -> Iterator[tuple[Address, bytes]]:
    each.handle_timeout(now)
    while (ready := each.poll_transmit()) is not None:
        yield ready[1:]


def exchange(home: Meeting, friend: Meeting, now: Instant) -> int:
    """Until both are silent at `now`; how many datagrams it took."""
    count = 0
    while True:
        pairs = [(friend, HOME, each) for each in out(home, now)] + [(home, FRIEND, each) for each in out(friend, now)]
        for to, source, (_, data) in pairs:
            to.handle_datagram(now, (S, source), data)
        if not pairs:
            return count
        count += len(pairs)


def opened() -> tuple[Meeting, Meeting]:
    home, friend = meeting(0), meeting(1)
    friend.found(START, S, HOME, NODE)
    assert exchange(home, friend, START) < 8
    assert list(home.events) == [Opened((S, FRIEND))]
    assert list(friend.events) == [Opened((S, HOME))]
    home.events.clear()
    friend.events.clear()
    return home, friend


def test_a_path_is_open_when_both_sides_have_echoed_the_other() -> None:
    home, friend = opened()
    assert home.open_ways == [(S, FRIEND)]
    assert friend.open_ways == [(S, HOME)]
    assert exchange(home, friend, START) == 0  # nobody answers answers


def test_a_message_is_repeated_until_its_receipt_and_told_once() -> None:
    home, friend = opened()
    friend.say(START, (S, HOME), BOX, b"hello")
    ((_, first),) = out(friend, START)  # lost
    later = Instant(START + 1.0)
    exchange(home, friend, later)
    home.handle_datagram(later, (S, FRIEND), first)
    assert list(home.events) == [Heard((S, FRIEND), BOX, b"hello")]
    assert not friend._unsent


def test_a_message_that_nobody_receipts_ends() -> None:
    _, friend = opened()
    friend.say(START, (S, HOME), BOX, b"hello")
    for tick in range(int(MESSAGE_LIFETIME)):
        list(out(friend, Instant(START + tick)))
        assert friend._unsent
    list(out(friend, Instant(START + MESSAGE_LIFETIME)))
    assert not friend._unsent


def test_a_key_of_another_secret_opens_nothing() -> None:
    home, other = meeting(0), meeting(1, bytes(31) + b"\1")
    other.keys.tag = home.keys.tag
    other.found(START, S, HOME, NODE)
    for _, data in list(out(other, START)):
        home.handle_datagram(START, (S, FRIEND), data)
    assert home._drops["meeting datagram not authentic"] > 0
    assert list(out(home, START)) == []


def test_what_one_side_says_is_not_taken_back_from_a_mirror() -> None:
    home = meeting(0)
    home.found(START, S, FRIEND, NODE)
    for _, data in list(out(home, START)):
        home.handle_datagram(START, (S, FRIEND), data)
    assert home._drops["meeting datagram not authentic"] > 0
    assert not home.open_ways


def test_datagrams_have_a_shortest_and_a_longest() -> None:
    keys = Keys(SECRET, 0)
    assert tag_of(keys.seal(2, BOX + b"\1" + bytes(MAX_BODY))) == keys.tag
    for wrong in (b"", bytes(1 + TAG_SIZE + MAC_SIZE), keys.seal(2, BOX + b"\1" + bytes(MAX_BODY + 1))):
        with pytest.raises(MalformedPacket):
            tag_of(wrong)


def test_a_host_that_says_nothing_gets_few_checks_whatever_is_told_of_it() -> None:
    home = meeting(0)
    count = 0
    for tick in range(300):
        now = Instant(START + tick)
        for port in range(20):
            home.found(now, S, Address("45.9.9.9", 2_000 + 20 * tick + port), f"44.{port}.1.1")
        count += sum(1 for _ in out(home, now))
    assert count == MAX_CHECKS


def test_of_one_host_a_few_ports_are_checked() -> None:
    home = meeting(0)
    for port in range(100):
        home.found(START, S, Address("45.9.9.9", 2_000 + port), NODE)
    assert len(home._candidates) == MAX_PORTS


def test_what_many_nodes_tell_of_goes_before_what_one_node_makes_up() -> None:
    home = meeting(0)
    for number in range(2 * MAX_TOLD):
        home.found(START, S, Address(f"45.{number >> 8}.{number & 255}.1", 4_000), NODE)
    assert len(home._candidates) == MAX_CANDIDATES
    assert len(home._voices) == MAX_TOLD
    for node in range(2 * MAX_VOICES):
        home.found(START, S, FRIEND, f"44.{node}.1.1")
    assert (S, FRIEND) in home._candidates
    assert len(home._voices[S, FRIEND]) == MAX_VOICES
    assert len(home._candidates) == MAX_CANDIDATES


def test_who_was_checked_in_vain_gives_way() -> None:
    home = meeting(0)
    for number in range(MAX_CANDIDATES):
        home.found(START, S, Address(f"45.{number}.1.1", 4_000), NODE)
    for tick in range(20):
        list(out(home, Instant(START + CHECK_TIMES[-1] * tick)))
    home.found(Instant(START + 200), S, FRIEND, NODE)
    assert (S, FRIEND) in home._candidates


def test_addresses_that_speak_with_the_right_key_have_an_end() -> None:
    home, friend = opened()
    friend.found(START, S, HOME, NODE)
    check = friend.keys.seal(1, bytes(2 * NONCE_SIZE + HOST_SIZE))
    for number in range(2 * MAX_PATHS):
        home.handle_datagram(START, (S, Address(f"46.{number >> 8}.{number & 255}.1", 4_000)), check)
    assert len(home._paths) == MAX_PATHS
    assert home.open_ways == [(S, FRIEND)]  # what is open is no newcomer's


def test_messages_on_their_way_and_messages_known_have_an_end() -> None:
    home, friend = opened()
    for number in range(2 * MAX_UNSENT):
        friend.say(START, (S, HOME), number.to_bytes(MAILBOX_SIZE, "big"), b"x")
    assert len(friend._unsent) == MAX_UNSENT
    for _, data in list(out(friend, START)):
        home.handle_datagram(START, (S, FRIEND), data)
    assert len(home._heard) <= MAX_HEARD
    friend.forget((2 * MAX_UNSENT - 1).to_bytes(MAILBOX_SIZE, "big"))
    assert len(friend._unsent) == MAX_UNSENT - 1


def test_a_host_that_answers_gets_no_flood() -> None:
    home, friend = opened()
    count = 0
    for number in range(300):
        home.handle_datagram(START, (S, FRIEND), friend.keys.seal(1, number.to_bytes(16, "big")))
        count += sum(1 for _ in out(home, START))
    assert count <= MAX_CHECKS_IN_WINDOW


def test_whoever_comes_back_at_another_port_is_checked_though_older_ports_are_known() -> None:
    home, now = meeting(0), START
    for visit in range(8):
        friend, port = meeting(1), Address(FRIEND.host, FRIEND.port + 100 * visit)
        home.found(now, S, port, NODE)
        checks = [data for target, data in out(home, now) if target == port]
        assert checks, visit
        friend.handle_datagram(now, (S, HOME), checks[0])
        for _, data in list(out(friend, now)):
            home.handle_datagram(now, (S, port), data)
        for tick in range(1, 600):  # and it goes
            list(out(home, Instant(now + tick)))
        now = Instant(now + 600)


@pytest.mark.parametrize("finders", [[HOME], [FRIEND], [HOME, FRIEND]])
@pytest.mark.parametrize("lost", range(5))
def test_whichever_datagram_is_lost_both_sides_open_soon(lost: int, finders: list[Address]) -> None:
    """Also the one answer that would open the path for the other."""
    sides = {HOME: meeting(0), FRIEND: meeting(1)}
    under_way: list[tuple[float, Address, Address, bytes]] = []
    for each in finders:
        sides[each].found(START, S, FRIEND if each == HOME else HOME, NODE)
    count = 0
    for tick in range(200):
        now = Instant(START + tick / 100)
        while under_way and under_way[0][0] <= now:
            _, source, target, data = under_way.pop(0)
            sides[target].handle_datagram(now, (S, source), data)
        for source, side in sides.items():
            for target, data in out(side, now):
                if count != lost:
                    under_way.append((now + 0.03, source, target, data))
                count += 1
    assert (sides[HOME].open_ways, sides[FRIEND].open_ways) == ([(S, FRIEND)], [(S, HOME)])


@pytest.mark.parametrize("lost", range(1, 4))
def test_whoever_dials_again_is_heard_though_answers_are_lost(lost: int) -> None:
    home, friend = opened()
    later = Instant(START + 60.0)
    friend.look_again(later)
    count = 0
    for tick in range(20):
        now = Instant(later + tick / 10)
        for target, data in list(out(friend, now)):
            if target == HOME:
                home.handle_datagram(now, (S, FRIEND), data)
        for _, data in list(out(home, now)):
            if count >= lost:
                friend.handle_datagram(now, (S, HOME), data)
            count += 1
    assert friend.open_ways == [(S, HOME)]


STRANGER = Address("44.6.6.6", 4_006)


def test_a_path_over_a_stranger_who_forwards_opens_only_where_no_straight_one_does() -> None:
    home, friend = meeting(0), meeting(1)
    for each in (home, friend):
        each.found(START, S, STRANGER, NODE)

    def forward(now: Instant) -> int:
        """Between the two, as the stranger likes it; how many datagrams."""
        pairs = [(friend, each) for each in out(home, now)] + [(home, each) for each in out(friend, now)]
        for to, (_, data) in pairs:
            to.handle_datagram(now, (S, STRANGER), data)
        return len(pairs)

    now = START
    while now < START + DETOUR_WAIT - 0.01:
        for _ in range(20):
            if not forward(now):
                break
        else:
            pytest.fail("the two answer answers")
        assert not home.open_ways
        assert not friend.open_ways
        now = Instant(now + 0.1)
    friend.found(now, S, HOME, NODE)
    home.found(now, S, FRIEND, NODE)
    exchange(home, friend, now)
    for _ in range(20):
        now = Instant(now + 0.1)
        forward(now)
    assert (home.open_ways, friend.open_ways) == ([(S, FRIEND)], [(S, HOME)])


def test_a_host_that_changes_on_the_way_is_met_after_a_while() -> None:
    """As behind a NAT with many addresses."""
    home, friend = meeting(0), meeting(1)
    friend.found(START, S, HOME, NODE)
    for tick in range(60):
        now = Instant(START + tick / 10)
        for _ in range(8):
            pairs = [(friend, HOME, each) for each in out(home, now)] + [(home, STRANGER, each) for each in out(friend, now)]
            for to, source, (_, data) in pairs:
                to.handle_datagram(now, (S, source), data)
    assert (home.open_ways, friend.open_ways) == ([(S, STRANGER)], [(S, HOME)])
    assert tick / 10 > DETOUR_WAIT


def test_checks_are_kept_for_the_port_that_is_told_of_last() -> None:
    friend = meeting(1)
    for number in range(MAX_PORTS):
        friend.found(START, S, Address(HOME.host, 5_000 + number), NODE)
    now, sent = START, 0
    while now < START + 9.0:
        sent += sum(target.host == HOME.host for target, _ in out(friend, now))
        now = Instant(now + 0.1)
    assert MAX_CHECKS - KEPT <= sent <= MAX_CHECKS - 2 * FRESH_CHECKS
    friend.found(now, S, HOME, NODE)
    fresh = 0
    for tick in range(30):
        fresh += sum(target == HOME for target, _ in out(friend, Instant(now + tick / 10)))
    assert fresh == FRESH_CHECKS
    friend.found(now, S, Address(HOME.host, 5_000), NODE)  # gave way, and is not taken for a new one
    assert (S, Address(HOME.host, 5_000)) not in friend._candidates
