"""A client of a fleet: it asks for the list, goes where it is led, and moves on when it is told to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from tunnel.rendezvous import messages
from tunnel.rendezvous.client import MAX_MAILBOXES, Client
from tunnel.rendezvous.contact import PROBE_ATTEMPTS
from tunnel.rendezvous.following import MAX_LED, MAX_LISTED, MAX_MET, MAX_TOLD, MET_PERIOD
from tunnel.rendezvous.messages import DRAINS, FleetServer, RefusalCode, Role
from tunnel.rendezvous.seeking import LED_PATIENCE
from tunnel.units import Address, Instant, SocketId

V4, V6 = SocketId(0), SocketId(1)
ROOM = bytes(range(16))
YOU = messages.pack_address(Address("198.51.100.7", 40_000))


def place(number: int) -> Address:
    return Address(f"192.88.99.{number}", 24_531)


class Fleet:
    """A client of which each word is seen, and servers that say what the test says."""

    def __init__(self, *numbers: int, epoch: int = 5) -> None:
        """The name leads to these servers; the first answers first."""
        self.now = Instant(1_000.0)
        self.epoch = epoch
        self.pushes = 0
        self._is_running = False
        self.said: list[tuple[int, messages.RequestMessage]] = []  # server and message, since the last look
        self._transactions: dict[tuple[int, type], int] = {}
        self._noted: set[int] = set()  # transactions, so that a repetition is not noted again
        self.list: tuple[int, ...] = ()  # the answer to Follow; empty: the test gives it
        self.silent: set[int] = set()
        self.greeted: Counter[int] = Counter()
        self.client = Client(
            servers=[(V4, place(number)) for number in numbers],
            now=self.now,
            rng=random.Random(1),
            entropy=random.Random(2).randbytes,
        )
        self.run(0.0)

    def run(self, seconds: float) -> None:
        """Answer what is asked: each Hello and each Refresh; the rest is noted."""
        self._is_running = True
        end = self.now + seconds
        while True:
            while (out := self.client.poll_transmit(self.now)) is not None:
                self._take(*out)
            while self.client.poll_event() is not None:
                pass
            at = self.client.poll_timeout()
            if at is None or at > end:
                break
            self.now = Instant(max(at, self.now))
            self.client.handle_timeout(self.now)
        self.now = Instant(end)
        self._is_running = False

    def _take(self, socket_id: SocketId, target: Address, datagram: bytes) -> None:
        number = int(target.host.rpartition(".")[2])
        self.greeted[number] += datagram[0] == messages.REQUEST and isinstance(
            messages.decode_request(datagram).message, messages.Hello
        )
        if number in self.silent or datagram[0] == messages.PUSH_ACK or target.port != 24_531:
            return
        request = messages.decode_request(datagram)
        message = request.message
        if request.transaction in self._noted:
            return
        self._noted.add(request.transaction)
        if isinstance(message, messages.Hello):
            self.answer(number, request.transaction, messages.Retry(b"cookie", YOU, 0, b"", number, 0, self.epoch))
        elif isinstance(message, messages.Refresh):
            self.answer(number, request.transaction, messages.Welcome(b"cookie", YOU, 90, True, number, "", 0, self.epoch))
        elif isinstance(message, messages.Join):
            self.said.append((number, message))
            self.answer(number, request.transaction, messages.Done((1 << len(message.rooms)) - 1))
        elif isinstance(message, messages.Leave | messages.Rebind | messages.Restore):
            self.said.append((number, message))
            self.answer(number, request.transaction, messages.Done())
        else:
            self._transactions[number, type(message)] = request.transaction
            self.said.append((number, message))
            if self.list and isinstance(message, messages.Follow):
                self.tell(number, *(each for each in self.list if each != number))

    def answer(self, number: int, transaction: int, message: messages.ResponseMessage) -> None:
        self.client.handle_datagram(self.now, V4, place(number), messages.encode_response(transaction, message))

    def answer_to(self, number: int, kind: type, message: messages.ResponseMessage) -> None:
        self.answer(number, self._transactions.pop((number, kind)), message)
        if not self._is_running:
            self.run(0.0)

    def push(self, number: int, message: messages.PushMessage) -> None:
        self.pushes += 1
        self.client.handle_datagram(self.now, V4, place(number), messages.encode_push(self.client._session, self.pushes, message))
        self.run(0.0)

    def tell(self, *numbers: int, epoch: int | None = None, loads: dict[int, int] | None = None) -> None:
        """The first of them answers Follow with all of them, and all do from now on."""
        self.list = numbers
        servers = tuple(FleetServer(n % 100, (loads or {}).get(n, 10), n, (messages.pack_address(place(n)),)) for n in numbers)
        self.answer_to(numbers[0], messages.Follow, messages.Servers(epoch or self.epoch, numbers[0], servers))

    def heard(self, number: int, kind: type[Any]) -> list[Any]:
        """What that server was told of this kind, since the last call."""
        found = [message for at, message in self.said if at == number and isinstance(message, kind)]
        self.said = [each for each in self.said if not (each[0] == number and isinstance(each[1], kind))]
        return found


def servers_of(fleet: Fleet) -> set[int]:
    return {int(address.host.rpartition(".")[2]) for _, address in fleet.client.ways}


def test_outside_of_a_fleet_nobody_is_asked_for_a_list() -> None:
    fleet = Fleet(1, epoch=0)
    fleet.client.listen(fleet.now, [ROOM])
    fleet.run(60)
    assert fleet.heard(1, messages.Follow) == []
    assert not fleet.client._is_fleet


def test_the_list_is_asked_for_once_and_again_when_it_has_changed() -> None:
    fleet = Fleet(1)
    assert len(fleet.heard(1, messages.Follow)) == 1
    fleet.tell(1, 2, 3)
    fleet.run(60)
    assert servers_of(fleet) == {1, 2, 3}
    assert fleet.heard(1, messages.Follow) == []
    assert set(fleet.client.relays(fleet.now)) == {1, 2, 3}
    fleet.epoch, fleet.list = 6, (1, 3, 4)
    fleet.run(10)
    assert len(fleet.heard(1, messages.Follow)) == 1
    assert servers_of(fleet) == {1, 3, 4}


def test_of_a_large_fleet_so_many_are_greeted_those_with_the_least_load() -> None:
    fleet = Fleet(1)
    fleet.tell(*range(1, 40), loads={number: 100 - number for number in range(1, 40)})
    assert servers_of(fleet) == {1, *range(41 - MAX_TOLD, 40)}


def test_addresses_that_a_server_may_not_name_are_not_greeted() -> None:
    fleet = Fleet(1)
    inner = FleetServer(2, 0, 2, (messages.pack_address(Address("192.168.1.1", 24_531)),))
    fleet.answer_to(1, messages.Follow, messages.Servers(5, 1, (inner,)))
    assert servers_of(fleet) == {1}
    assert fleet.client.drops["rendezvous_place"] == 1


def test_who_waits_in_a_fleet_does_so_at_one_server() -> None:
    fleet = Fleet(1)
    fleet.tell(1, 2, 3)
    fleet.client.listen(fleet.now, [ROOM])
    fleet.run(30)
    assert [each.role for each in fleet.heard(1, messages.Join)] == [Role.LISTEN]
    assert fleet.heard(2, messages.Join) == fleet.heard(3, messages.Join) == []


def test_who_dials_goes_where_it_is_led_and_takes_leave_there_too() -> None:
    fleet = Fleet(1)
    fleet.client.dial(fleet.now, [ROOM])
    fleet.run(0)
    assert len(fleet.heard(1, messages.Join)) == 1
    fleet.push(1, messages.Elsewhere(ROOM, 2, (messages.pack_address(place(2)),)))
    assert [(each.role, each.rooms) for each in fleet.heard(2, messages.Join)] == [(Role.DIAL, (ROOM,))]
    fleet.push(2, messages.Introduced(ROOM, b"\xc0" + bytes(7), bytes(16), 1))
    (channel,) = fleet.client.channels
    assert channel.server == place(2)
    fleet.client.leave(fleet.now, [ROOM])
    fleet.run(0)
    assert [each.rooms for each in fleet.heard(1, messages.Leave)] == [(ROOM,)]
    assert [each.rooms for each in fleet.heard(2, messages.Leave)] == [(ROOM,)]
    assert fleet.client.server == place(1)


def test_to_a_room_that_nobody_dials_nobody_is_led() -> None:
    fleet = Fleet(1)
    fleet.push(1, messages.Elsewhere(ROOM, 2, (messages.pack_address(place(2)),)))
    assert servers_of(fleet) == {1}


def test_a_server_can_lead_to_so_many_others_only() -> None:
    fleet = Fleet(1)
    fleet.client.dial(fleet.now, [ROOM])
    for number in range(2, 2 + 2 * MAX_LED):
        fleet.push(1, messages.Elsewhere(ROOM, number, (messages.pack_address(place(number)),)))
    assert len(fleet.client._led) == MAX_LED
    assert len(servers_of(fleet)) <= 1 + MAX_LED


def test_a_server_can_make_us_greet_so_many_addresses_a_minute_a_few_times_each() -> None:
    fleet = Fleet(1)
    fleet.client.dial(fleet.now, [ROOM])
    fleet.silent.update(range(2, 250))
    for number in range(2, 250):
        fleet.push(1, messages.Elsewhere(ROOM, number, (messages.pack_address(place(number)),)))
    fleet.run(MET_PERIOD)
    greeted = {number: count for number, count in fleet.greeted.items() if number != 1}
    assert len(greeted) == MAX_MET
    assert max(greeted.values()) <= PROBE_ATTEMPTS
    assert fleet.client.drops["rendezvous_place"] == 248 - MAX_MET


def test_a_claim_is_made_where_the_code_is_and_what_follows_goes_there() -> None:
    fleet = Fleet(1)
    fleet.client.claim(fleet.now, 731, b"hello")
    fleet.run(0)
    at = (messages.pack_address(place(2)),)
    fleet.answer_to(1, messages.Claim, messages.Refused(RefusalCode.WRONG_SERVER, "elsewhere", 0, at))
    assert [each.nameplate for each in fleet.heard(2, messages.Claim)] == [731]
    fleet.answer_to(2, messages.Claim, messages.ClaimAccepted(bytes(8), b"\xc1" + bytes(7), bytes(16), 1))
    fleet.client.post(fleet.now, bytes(8), b"more")
    fleet.run(0)
    assert [each.body for each in fleet.heard(2, messages.Post)] == [b"more"]
    assert fleet.heard(1, messages.Post) == []
    assert fleet.client.server == place(1)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_claim_that_is_led_to_a_killed_server_is_made_again_where_it_was_until_the_code_is_elsewhere(is_known: bool) -> None:
    fleet = Fleet(1, 2) if is_known else Fleet(1)
    fleet.client.claim(fleet.now, 731, b"hello")
    fleet.run(0)
    fleet.silent.add(2)
    at = (messages.pack_address(place(2)),)
    for _ in range(3):
        assert len(fleet.heard(1, messages.Claim)) == 1
        fleet.answer_to(1, messages.Claim, messages.Refused(RefusalCode.WRONG_SERVER, "elsewhere", 0, at))
        fleet.run(LED_PATIENCE + 0.5)
    fleet.answer_to(1, messages.Claim, messages.ClaimAccepted(bytes(8), b"\xc1" + bytes(7), bytes(16), 1))
    assert not fleet.client._searches


def test_servers_that_lead_a_claim_in_a_circle_are_each_asked_once() -> None:
    fleet = Fleet(1)
    fleet.client.claim(fleet.now, 731, b"hello")
    fleet.run(0)
    for number in (1, 2):
        at = (messages.pack_address(place(3 - number)),)
        fleet.answer_to(number, messages.Claim, messages.Refused(RefusalCode.WRONG_SERVER, "elsewhere", 0, at))
    fleet.run(5)
    assert len(fleet.heard(1, messages.Claim)) == len(fleet.heard(2, messages.Claim)) == 1


def test_mailboxes_at_other_servers_are_remembered_so_many() -> None:
    fleet = Fleet(1, 2)
    home = fleet.client._homes[1]
    for number in range(2 * MAX_MAILBOXES):
        fleet.client._remember_mailbox(number.to_bytes(8, "big"), home)
    assert len(fleet.client._mailboxes) == MAX_MAILBOXES


@pytest.mark.parametrize("is_told", [False, True])
def test_a_server_that_drains_is_left_for_another_with_the_number_of_a_code(is_told: bool) -> None:
    fleet = Fleet(1)
    fleet.client.allocate(fleet.now)
    fleet.client.listen(fleet.now, [ROOM])
    fleet.run(0)
    fleet.answer_to(1, messages.Allocate, messages.Allocated(731, 600, b"ticket"))
    if is_told:
        fleet.tell(1, 2)
    fleet.push(1, messages.MoveOn(30, (messages.pack_address(place(2)),)))
    fleet.run(0)
    assert fleet.client.server == place(2)
    assert [each.rooms for each in fleet.heard(2, messages.Join)] == [(ROOM,)]
    assert [(each.wanted, each.ticket) for each in fleet.heard(2, messages.Allocate)] == [(731, b"ticket")]
    assert len(fleet.heard(2, messages.Follow)) == 1


def test_a_server_that_drains_keeps_its_channels_and_hears_goodbye_when_there_are_none_left() -> None:
    fleet = Fleet(1, 2)
    fleet.tell(1, 2)
    fleet.client.listen(fleet.now, [ROOM])
    fleet.push(1, messages.Introduced(ROOM, b"\xc0" + bytes(7), bytes(16), 0))
    fleet.push(1, messages.MoveOn(30))
    fleet.run(1)
    assert fleet.client.server == place(2)
    (channel,) = fleet.client.channels
    assert channel.server == place(1)
    assert fleet.heard(1, messages.Goodbye) == []
    assert fleet.heard(2, messages.Restore) == []
    fleet.client.leave_channel(fleet.now, channel.channel)
    fleet.run(1)
    assert len(fleet.heard(1, messages.Goodbye)) == 1


def test_a_server_that_drains_can_name_so_many_others_only() -> None:
    fleet = Fleet(1)
    for number in range(2, 2 + 2 * MAX_LISTED):
        fleet.push(1, messages.MoveOn(30, (messages.pack_address(place(number)),)))
        fleet.now = Instant(fleet.now + MET_PERIOD / MAX_MET)
    assert len(fleet.client._listed) == MAX_LISTED


def test_a_server_that_is_said_to_drain_is_no_place_to_go() -> None:
    fleet = Fleet(1)
    fleet.tell(1, 2, 3, loads={2: DRAINS})
    fleet.push(1, messages.MoveOn(30))
    fleet.run(1)
    assert fleet.client.server == place(3)


def test_when_the_server_in_use_dies_another_of_the_list_takes_over() -> None:
    fleet = Fleet(1)
    fleet.tell(1, 2, 3)
    fleet.client.listen(fleet.now, [ROOM])
    fleet.run(30)
    fleet.silent.add(1)
    fleet.run(12)
    assert fleet.client.server in (place(2), place(3))
    number = 2 if fleet.client.server == place(2) else 3
    assert [each.rooms for each in fleet.heard(number, messages.Join)] == [(ROOM,)]


def rooms_of(joins: Iterable[messages.Join]) -> list[tuple[bytes, ...]]:
    return [each.rooms for each in joins]


def test_outside_of_a_fleet_who_waits_does_so_at_several_servers_and_who_dials_when_nobody_was_met() -> None:
    fleet = Fleet(1, 2, epoch=0)
    fleet.client.listen(fleet.now, [ROOM])
    fleet.run(1)
    assert rooms_of(fleet.heard(1, messages.Join)) == rooms_of(fleet.heard(2, messages.Join)) == [(ROOM,)]
    other = bytes(16)
    fleet.client.dial(fleet.now, [other])
    fleet.run(1)
    assert rooms_of(fleet.heard(1, messages.Join)) == [(other,)]
    assert fleet.heard(2, messages.Join) == []
    fleet.client.dial(fleet.now, [other], is_wide=True)
    fleet.run(1)
    assert rooms_of(fleet.heard(2, messages.Join)) == [(other,)]
