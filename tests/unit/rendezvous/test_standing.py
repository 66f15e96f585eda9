"""To whom it goes what a server says: to whoever asked, found by what a message is about."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.rendezvous.world import World
from tunnel.rendezvous import messages
from tunnel.rendezvous.events import ClientEvent, Told
from tunnel.rendezvous.standing import MAX_HEARERS, OwnNumber, Standing

ROOM, OTHER = bytes(16), bytes((1,)) * 16
MAILBOX, CHANNEL, TOKEN = bytes(8), b"\xc0" + bytes(7), bytes(16)


class Ear:
    """Hears nothing: only who it is counts here."""

    def hear(self, *_: Any) -> None:
        raise NotImplementedError


ASKER, LISTENER, DIALER = Ear(), Ear(), Ear()


class News(messages.OfNameplate, frozen=True, tag=99):
    """A message that a later server may send."""

    text: str


@pytest.fixture
def standing() -> Standing:
    made = Standing()
    made.hear(731, ASKER)
    made.hear(MAILBOX, ASKER)
    made.listening[ROOM] = LISTENER
    made.dial((ROOM,), DIALER)
    return made


@pytest.mark.parametrize(
    ("message", "hearer"),
    [
        (messages.ClaimReceived(731, MAILBOX, b"", CHANNEL, TOKEN, 0), ASKER),
        (messages.Posted(MAILBOX, b""), ASKER),
        (messages.Gone(messages.GoneKind.MAILBOX, MAILBOX, 1), ASKER),
        (messages.Introduced(ROOM, CHANNEL, TOKEN, 0), LISTENER),
        (messages.Introduced(ROOM, CHANNEL, TOKEN, 1), DIALER),
        (messages.Unmet(ROOM, 7), LISTENER),
        (messages.Join(messages.Role.LISTEN, (OTHER, ROOM)), LISTENER),
        (messages.Join(messages.Role.DIAL, (ROOM,)), DIALER),
        (messages.Allocate(731), ASKER),
        (News(731, "spent"), ASKER),  # nobody had to be told of it
        (News(732, "of somebody else"), None),
        (messages.Introduced(OTHER, CHANNEL, TOKEN, 1), None),
        (messages.Bye(), None),
    ],
)
def test_a_message_goes_to_whom_it_is_about(standing: Standing, message: Any, hearer: Ear | None) -> None:
    assert standing.hearers_of(message) in ((hearer,), () if hearer is None else None)


def test_so_many_nameplates_and_mailboxes_are_known_and_the_oldest_is_forgotten() -> None:
    standing = Standing()
    for number in range(MAX_HEARERS + 3):
        standing.hear(number, ASKER)
    assert [number for number in range(MAX_HEARERS + 3) if not standing.hears(number)] == [0, 1, 2]


def test_all_that_is_wanted_makes_its_own_message(standing: Standing) -> None:
    standing.nameplates[731] = OwnNumber(5, b"t")
    assert list(standing.wanted()) == [
        messages.Join(messages.Role.LISTEN, (ROOM,)),
        messages.Join(messages.Role.DIAL, (ROOM,)),
        messages.Allocate(731, 5, b"t"),
    ]


def hearers(events: list[ClientEvent], kind: type[Any]) -> list[Any]:
    return [event.hearer for event in events if isinstance(event, Told) and isinstance(event.message, kind)]


def test_two_that_ask_for_a_code_at_once_have_one_each() -> None:
    world = World()
    host = world.host("owner")
    for asker in (ASKER, LISTENER):
        host.client.allocate(world.now, hearer=asker)
    world.run(5, until=lambda: len(host.of(messages.Allocated)) == 2)
    assert len({each.nameplate for each in host.of(messages.Allocated)}) == 2
    assert set(hearers(host.events, messages.Allocated)) == {ASKER, LISTENER}


def test_whoever_asked_hears_the_refusal_and_the_claim_of_its_code_and_what_comes_through_its_mailbox() -> None:
    world = World()
    owner, claimer = world.host("owner"), world.host("claimer")
    owner.client.allocate(world.now, hearer=ASKER)
    world.run(5, until=lambda: bool(owner.of(messages.Allocated)))
    nameplate = owner.of(messages.Allocated)[0].nameplate
    claimer.client.claim(world.now, nameplate, b"pake", DIALER)
    world.run(5, until=lambda: bool(claimer.of(messages.ClaimAccepted)))
    owner.client.post(world.now, owner.of(messages.ClaimReceived)[0].mailbox, b"answer")
    claimer.client.claim(world.now, nameplate, b"pake", LISTENER)
    world.run(5, until=lambda: bool(claimer.of(messages.Posted) and claimer.of(messages.Refused)))
    assert hearers(owner.events, messages.ClaimReceived) == [ASKER]
    assert hearers(claimer.events, messages.ClaimAccepted) == hearers(claimer.events, messages.Posted) == [DIALER]
    assert hearers(claimer.events, messages.Refused) == [LISTENER]


def test_that_a_channel_is_gone_is_for_all_who_follow_it() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    listener.client.listen(world.now, [ROOM], LISTENER)
    dialer.client.dial(world.now, [ROOM], DIALER)
    world.run(5, until=lambda: bool(listener.of(messages.Introduced)))
    channel = listener.of(messages.Introduced)[0].channel.channel
    listener.client.follow(channel, ASKER)
    dialer.client.leave_channel(world.now, channel)
    world.run(5, until=lambda: bool(listener.of(messages.Gone)))
    assert hearers(listener.events, messages.Gone) == [LISTENER, ASKER]


def test_two_dialers_of_one_room_both_hear_and_one_that_leaves_does_not_end_the_others_dial() -> None:
    world = World()
    listener, dialer = world.host("listener"), world.host("dialer")
    for hearer in (ASKER, DIALER):
        dialer.client.dial(world.now, [ROOM], hearer)
    dialer.client.leave(world.now, [ROOM], ASKER)
    world.run(5)
    listener.client.listen(world.now, [ROOM], LISTENER)
    world.run(5, until=lambda: bool(dialer.of(messages.Introduced)))
    assert set(hearers(dialer.events, messages.Introduced)) == {DIALER}
    dialer.client.leave(world.now, [ROOM], DIALER)
    world.run(5)
    assert not world.server.registry.rooms[ROOM].dialers
