"""The Refresh of a client at rest: answered from what it was told last, and only where the long way would say the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.unit.rendezvous.world import SOCKETS, V4, V6, entropy_of
from tests.work import instructions
from tunnel.core.prefixes import prefixes
from tunnel.rendezvous import messages
from tunnel.rendezvous.access import AccessList
from tunnel.rendezvous.admission import COOKIE_EPOCH
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.refreshes import MAX_PLACES, PACE, PHASES, SPREAD
from tunnel.rendezvous.registry import NO_DICT, NO_SET, Session
from tunnel.rendezvous.server import Server
from tunnel.units import Address, Instant

A, B = Address("198.18.0.1", 5000), Address("198.18.0.2", 5000)
V6_HOST = Address("2001:db8::1", 5000)
ROOM = bytes(16)
CALENDAR = 1_800_000_000
REST = 7.0
MOST = 300  # instructions; the long way takes four times as many


class Told(NamedTuple):
    is_quick: bool
    message: messages.ResponseMessage | None


class Desk:
    """One server, and requests made by hand."""

    def __init__(self, **options: object) -> None:
        self.now = Instant(1000.0)
        self.calendar = CALENDAR
        self.server = Server(
            ServerConfig(**options),  # type: ignore[arg-type]
            sockets=SOCKETS,
            now=self.now,
            entropy=entropy_of(7),
            unix_time=lambda: self.calendar,
        )
        self.cookies: dict[Address, bytes] = {}
        self.rng = random.Random(5)

    def wait(self, seconds: float) -> None:
        self.now = Instant(self.now + seconds)
        self.calendar += int(seconds)

    def request(self, message: messages.RequestMessage, source: Address, session: bytes, token: bytes = b"") -> bytes:
        cookie = b"" if isinstance(message, messages.Hello) else self.cookies.get(source, b"")
        return messages.encode_request(self.rng.getrandbits(64), session, message, cookie=cookie, access_token=token)

    def say(
        self,
        message: messages.RequestMessage,
        source: Address = A,
        session: bytes = b"s" * 16,
        token: bytes = b"",
        socket_id: int = V4,
    ) -> Told:
        data = self.request(message, source, session, token)
        answer = self.server.refreshed(self.now, V4 if socket_id == V4 else V6, source, memoryview(data))
        is_quick = answer is not None
        if answer is None:
            self.server.handle_batch(self.now, V4 if socket_id == V4 else V6, source, memoryview(data), len(data))
            while (transmit := self.server.poll_transmit(self.now)) is not None:
                if transmit.buffer[0] == messages.RESPONSE and transmit.remote == source:
                    answer = bytes(transmit.buffer)
        if answer is None:
            return Told(is_quick, None)
        response = messages.decode_response(answer)
        assert response.transaction == int.from_bytes(data[2:10], "big")
        if isinstance(response.message, messages.Retry | messages.Welcome):
            self.cookies[source] = response.message.cookie
        return Told(is_quick, response.message)

    def register(self, source: Address = A, session: bytes = b"s" * 16, token: bytes = b"", socket_id: int = V4) -> None:
        self.say(messages.Hello(), source, session, socket_id=socket_id)
        self.say(messages.Join(messages.Role.LISTEN, (ROOM,)), source, session, token, socket_id)
        self.wait(REST)
        assert not self.say(messages.Refresh(), source, session, token, socket_id).is_quick  # it has been told nothing yet
        self.wait(REST)

    def refresh(self, **options: object) -> Told:
        return self.say(messages.Refresh(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "socket_id"), [(A, V4), (V6_HOST, V6)])
def test_a_client_at_rest_is_told_what_the_long_way_says(source: Address, socket_id: int) -> None:
    desk, other = Desk(), Desk()
    for each in (desk, other):
        each.register(source, socket_id=socket_id)
    quick = desk.refresh(source=source, socket_id=socket_id)
    data = other.request(messages.Refresh(), source, b"s" * 16)
    other.server.handle_batch(other.now, V4 if socket_id == V4 else V6, source, memoryview(data), len(data))
    transmit = other.server.poll_transmit(other.now)
    assert transmit is not None
    assert quick.is_quick
    assert quick.message == messages.decode_response(transmit.buffer).message
    assert isinstance(quick.message, messages.Welcome)
    assert quick.message.unix_time == desk.calendar


def test_another_epoch_of_the_fleet_is_told_to_all_at_once() -> None:
    desk = Desk()
    for source, session in ((A, b"a" * 16), (B, b"b" * 16)):
        desk.register(source, session)
    desk.server.epoch = 70_000
    for source, session, is_quick in ((A, b"a" * 16, False), (B, b"b" * 16, True)):
        told = desk.refresh(source=source, session=session)
        assert told.is_quick == is_quick
        assert isinstance(told.message, messages.Welcome)
        assert told.message.epoch == 70_000


def test_its_session_lives_on_and_earns_the_same() -> None:
    desk, other = Desk(), Desk()
    for each in (desk, other):
        each.register()
    assert desk.refresh().is_quick
    data = other.request(messages.Refresh(), A, b"s" * 16)
    other.server.handle_batch(other.now, V4, A, memoryview(data), len(data))
    mine, others = (each.server.registry.sessions[b"s" * 16] for each in (desk, other))
    assert mine.seen_at == others.seen_at == desk.now
    assert mine.credit == others.credit
    assert desk.server.proofs == other.server.proofs


def test_the_longest_silent_session_is_still_the_first_to_go() -> None:
    desk = Desk()
    sessions = desk.server.registry.sessions
    other = next(
        each for each in (bytes((number,)) + b"a" * 15 for number in range(10)) if sessions.of(each) is sessions.of(b"a" * 16)
    )
    desk.register(A, b"a" * 16)
    desk.register(B, other)
    assert desk.refresh(source=A, session=b"a" * 16).is_quick
    assert list(sessions.of(other)) == [other, b"a" * 16]


def _at_another_address(desk: Desk) -> Told:
    desk.cookies[B] = desk.cookies[A]
    return desk.refresh(source=B)


def _with_another_cookie(desk: Desk) -> Told:
    desk.cookies[A] = bytes(17)
    return desk.refresh()


def _too_soon(desk: Desk) -> Told:
    desk.refresh()
    desk.wait(PACE - 0.1)
    return desk.refresh()


def _while_a_push_waits(desk: Desk) -> Told:
    desk.say(messages.Hello(), B, b"d" * 16)
    desk.say(messages.Join(messages.Role.DIAL, (ROOM,)), B, b"d" * 16)
    return desk.refresh()


def _after_it_lost_a_room(desk: Desk) -> Told:
    desk.server.registry.sessions[b"s" * 16].has_lost = True
    desk.server.registry.sessions[b"s" * 16].welcome = b""  # as Registry._give_way does
    return desk.refresh()


def _after_another_access_list(desk: Desk) -> Told:
    desk.server.replace_access(AccessList.parse("token " + "t" * 16))
    return desk.refresh()


def _without_a_calendar(desk: Desk) -> Told:
    desk.calendar = 5
    return desk.refresh()


def _in_another_fleet(desk: Desk) -> Told:
    desk.server.epoch = 70_000
    return desk.refresh()


def _of_nobody(desk: Desk) -> Told:
    return desk.refresh(session=b"n" * 16)


@pytest.mark.parametrize(
    "case",
    [
        _at_another_address, _with_another_cookie, _too_soon, _while_a_push_waits, _after_it_lost_a_room,
        _after_another_access_list, _without_a_calendar, _in_another_fleet, _of_nobody,
    ],
)  # fmt: skip
def test_whatever_is_not_as_it_was_takes_the_long_way(case: Callable[[Desk], Told]) -> None:
    desk = Desk()
    desk.register()
    assert not case(desk).is_quick


def test_other_requests_and_cut_ones_take_the_long_way() -> None:
    desk = Desk()
    desk.register()
    whole = desk.request(messages.Refresh(), A, b"s" * 16)
    for data in (
        desk.request(messages.Leave(), A, b"s" * 16),
        desk.request(messages.Hello(), A, b"s" * 16),
        whole[:1] + b"\2" + whole[2:],
        whole[: messages.MIN_REQUEST - 1],
        whole + bytes(messages.MAX_DATAGRAM),
        bytes((messages.REQUEST,)),
    ):
        assert desk.server.refreshed(desk.now, V4, A, memoryview(data)) is None
    assert desk.server.refreshed(desk.now, V4, A, memoryview(whole)) is not None


def test_a_lost_room_is_told_although_an_answer_was_kept() -> None:
    desk = Desk()
    desk.register()
    desk.say(messages.Join(messages.Role.LISTEN, tuple(bytes((number,)) * 16 for number in range(1, 4))))
    desk.wait(REST)
    desk.refresh()
    desk.wait(REST)
    assert desk.server.registry._give_way(prefixes("203.0.113.1"))
    told = desk.refresh()
    assert not told.is_quick
    assert isinstance(told.message, messages.Welcome)
    assert not told.message.known


def test_with_a_token_it_is_quick_as_well_and_a_wrong_one_is_not_let_in_by_it() -> None:
    desk = Desk(access=AccessList.parse("token " + "t" * 16))
    desk.register(token=b"t" * 16)
    assert desk.refresh(token=b"t" * 16).is_quick
    stranger = desk.say(messages.Hello(), B, b"x" * 16)
    assert isinstance(stranger.message, messages.Retry)
    assert isinstance(desk.say(messages.Refresh(), B, b"x" * 16, b"w" * 16).message, messages.Refused)


def test_each_takes_the_long_way_while_its_cookie_is_good_and_not_all_at_once() -> None:
    desk = Desk()
    sources = [Address(f"198.18.1.{number}", 5000) for number in range(1, 33)]
    for number, source in enumerate(sources):
        desk.say(messages.Hello(), source, bytes((number,)) * 16)
        desk.say(messages.Join(messages.Role.LISTEN, (bytes((number,)) * 16,)), source, bytes((number,)) * 16)
    long_ways: list[int] = []
    for _ in range(60):
        desk.wait(REST)
        told = [desk.refresh(source=source, session=bytes((number,)) * 16) for number, source in enumerate(sources)]
        assert all(isinstance(each.message, messages.Welcome) and each.message.known for each in told)
        long_ways.append(sum(not each.is_quick for each in told))
    assert long_ways[0] == len(sources)
    rounds = 60 * REST / COOKIE_EPOCH
    assert (rounds - 1.5) * len(sources) <= sum(long_ways[1:]) <= (rounds + 1.5) * len(sources)
    assert max(long_ways[1:]) <= 2 * len(sources) / PHASES * (REST / (SPREAD / PHASES) + 1)
    assert SPREAD + REST < COOKIE_EPOCH


def test_it_takes_a_fraction_of_the_work() -> None:
    desk = Desk()
    desk.register()
    data = memoryview(desk.request(messages.Refresh(), A, b"s" * 16))
    quick = instructions(lambda: desk.server.refreshed(desk.now, V4, A, data))
    assert quick < MOST
    desk.wait(1.0)
    long = instructions(lambda: desk.server.handle_batch(desk.now, V4, A, data, len(data)))
    assert long > 2 * quick


def test_what_is_kept_of_lengths_is_bounded() -> None:
    desk = Desk()
    desk.register()
    refreshes, session = desk.server._refreshes, desk.server.registry.sessions[b"s" * 16]
    for size in range(MAX_PLACES + 5):
        welcome = messages.Welcome(bytes(17), bytes(6), 90, True, 1, "x" * size, CALENDAR)
        refreshes.keep(desk.now, session, welcome, messages.encode_response(0, welcome))
        assert len(refreshes._places) <= MAX_PLACES


def test_a_session_that_only_waits_holds_no_empty_container() -> None:
    desk = Desk()
    desk.register()
    desk.say(messages.Allocate())
    desk.wait(COOKIE_EPOCH + SPREAD)
    desk.refresh()
    session = desk.server.registry.sessions[b"s" * 16]
    containers = ("dialing", "nameplates", "mailboxes", "channels", "answers", "pushes")
    there = {name for name in containers if _is_there(session, name)}
    assert there == {"nameplates", "answers"}
    desk.wait(COOKIE_EPOCH + SPREAD)
    desk.refresh()  # gets another cookie
    desk.refresh()  # what it asked for is longer ago than it would ask again
    assert {name for name in containers if _is_there(session, name)} == {"nameplates"}
    assert not session.channels  # and it is there again when it is asked for


def _is_there(session: Session, name: str) -> bool:
    held = getattr(session, name)
    return held is not NO_SET and held is not NO_DICT


def test_nothing_is_put_into_the_container_that_all_share() -> None:
    with pytest.raises(TypeError):
        NO_SET.add(b"")
    with pytest.raises(TypeError):
        NO_DICT[b""] = b""
