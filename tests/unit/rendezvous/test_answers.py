"""What each answer of the server tells about others, and what that costs: never less than the lock-out of wrong claims."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, NamedTuple, get_args

import pytest
from msgspec.structs import replace

from tests.unit.rendezvous.world import World
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import RefusalCode, RequestMessage, ResponseMessage
from tunnel.rendezvous.numbers import DRAWN_NUMBERS
from tunnel.units import CHANNEL_SIZE, Address, Instant

STRANGER = Address("198.18.66.66", 6000)
ROOM, OTHER_ROOM = b"r" * 16, b"o" * 16
SECRET = bytes(range(32))
TEN_MINUTES: Final = 600.0
LOCK_OUT: Final = 15  # numbers that an address can look at by claims in ten minutes: five, and one more a minute


class Row(NamedTuple):
    """`names`: the field by which it asks about something of others, if it can.  `bits`: how unguessable that is.

    Where the bits are few, `looks` says at how many of them one address may look in ten minutes.
    """

    names: str = ""
    bits: int = 0
    looks: int = 0


#: Every request there is.  A message without a row fails the next test: say what its answer tells, and bound it.
ANSWERS: Final[dict[type, Row]] = {
    messages.Hello: Row(),
    messages.Refresh: Row(),  # whether one's own session is known: 128 bits
    messages.Allocate: Row("wanted", 0, LOCK_OUT + DRAWN_NUMBERS),  # by its number; and by what is never given
    messages.Release: Row(),
    messages.Claim: Row("nameplate", 0, LOCK_OUT),
    messages.Post: Row(),
    messages.Join: Row("rooms", 128),  # Introduced, or full
    messages.Leave: Row(),
    messages.Rebind: Row("channel", 62),
    messages.Restore: Row("channel", 62),
    messages.Goodbye: Row(),
    messages.Follow: Row(),
}


class Others(NamedTuple):
    """Two exposers and a friend of the first; what they hold."""

    world: World
    number: int
    mailbox: bytes
    channel: bytes


def others(*, are_there: bool = True) -> Others:
    world = World()
    number, mailbox, channel = 731, b"m" * 8, b"\xc1" * 8
    if are_there:
        owner, friend = Address("198.18.0.1", 1), Address("198.18.0.2", 1)
        allocated = answer(world, owner, messages.Allocate(0, 9), b"o")
        assert isinstance(allocated, messages.Allocated)
        number = allocated.nameplate
        claim = answer(world, friend, messages.Claim(number, b"x"), b"f")
        assert isinstance(claim, messages.ClaimAccepted)
        mailbox, channel = claim.mailbox, claim.channel
        answer(world, owner, messages.Join(0, (ROOM,)), b"o")
    return Others(world, number, mailbox, channel)


def answer(world: World, source: Address, message: RequestMessage, session: bytes = b"s") -> ResponseMessage | None:
    found = world.ask(source, message, session=session * 16, cookie=world.cookie(source))
    return found[0] if found else None


def test_every_request_has_its_row() -> None:
    assert set(ANSWERS) == set(get_args(RequestMessage))


def about(kind: type, there: Others) -> RequestMessage:
    """A stranger's question of that kind that names all it can of what the others hold."""
    fields: dict[type, tuple[Any, ...]] = {
        messages.Allocate: (there.number,),
        messages.Release: (there.number,),
        messages.Claim: (there.number, b"x"),
        messages.Post: (there.mailbox, b"x"),
        messages.Join: (1, (ROOM,)),
        messages.Leave: ((ROOM,), (there.channel,), (there.mailbox,)),
        messages.Rebind: (there.channel, 1, 9, bytes(16)),
        messages.Restore: (there.channel, 1, bytes(16)),
    }
    message: RequestMessage = kind(*fields.get(kind, ()))
    return message


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_an_answer_differs_by_what_others_hold_only_where_its_row_says_so(kind: type) -> None:
    said = []
    for are_there in (True, False):
        there = others(are_there=are_there)
        heard = answer(there.world, STRANGER, about(kind, there))
        if isinstance(heard, messages.Retry | messages.Welcome):
            heard = replace(heard, cookie=b"")
        said.append(heard)
    if kind is messages.Join:  # tells by an Introduced that follows it
        assert said[0] == said[1]
    else:
        assert (said[0] != said[1]) == bool(ANSWERS[kind].names)


def test_names_that_cost_nothing_cannot_be_guessed() -> None:
    for row in ANSWERS.values():
        assert not row.names or row.bits >= 62 or row.looks
    there = others()
    assert len(there.channel) == CHANNEL_SIZE == 8
    assert len(there.mailbox) == messages.MAILBOX_SIZE == 8
    assert messages.ROOM_SIZE == messages.SESSION_SIZE == 16


# numbers, which are few


def exposers(world: World, count: int, *, homes: int = 60) -> dict[int, bytes]:
    """So many live codes, of different homes, and the sessions that own them."""
    live: dict[int, bytes] = {}
    for index in range(count):
        source = Address(f"198.18.{1 + index % homes}.1", 1000 + index)
        session = bytes((1 + index % 250, index // 250)) * 8
        (allocated,) = world.ask(source, messages.Allocate(), session=session, cookie=world.cookie(source))
        assert isinstance(allocated, messages.Allocated)
        live[allocated.nameplate] = session
    return live


def pace(world: World) -> None:
    """No address asks more often than a hundred times a second."""
    world.now = Instant(world.now + 0.01)
    world.server.handle_timeout(world.now)


@pytest.mark.parametrize("secret", [None, SECRET])
def test_who_asks_for_each_number_by_name_learns_no_more_than_by_wrong_claims(secret: bytes | None) -> None:
    world = World(secret=secret)
    live = exposers(world, 60)
    learned: set[int] = set()
    looked: set[int] = set()
    began = world.now
    for number in list(range(100, 1000)) * 2:
        pace(world)
        heard = answer(world, STRANGER, messages.Allocate(number))
        if isinstance(heard, messages.Allocated):
            looked.add(number)
            answer(world, STRANGER, messages.Release(number))
        elif (
            isinstance(heard, messages.Refused) and heard.code == RefusalCode.TAKEN and world.server._numbers.may_be_ours(number)
        ):
            looked.add(number)
            learned.add(number)
    assert world.now - began < 60
    assert learned <= set(live)
    assert len(learned) <= len(looked) <= 4
    assert isinstance(answer(world, STRANGER, messages.Allocate()), messages.Allocated)  # any number is still to be had


def test_wishes_for_numbers_lock_no_neighbour_out_of_claiming_but_the_next_wrong_claim_does() -> None:
    world = World()
    (number,) = exposers(world, 1)
    free = [n for n in range(100, 200) if n != number]
    codes = [answer(world, STRANGER, messages.Allocate(n)) for n in free]
    assert [type(heard).__name__ for heard in codes[:5]] == ["Allocated"] * 4 + ["Refused"]
    neighbour = Address(STRANGER.host, 7000)
    assert isinstance(answer(world, neighbour, messages.Claim(number, b"x"), b"n"), messages.ClaimAccepted)
    assert answer(world, neighbour, messages.Claim(999, b"x"), b"n").code == RefusalCode.UNKNOWN_NAMEPLATE  # type: ignore[union-attr]
    assert answer(world, neighbour, messages.Claim(998, b"x"), b"n").code == RefusalCode.LOCKED_OUT  # type: ignore[union-attr]


@pytest.mark.parametrize("secret", [None, SECRET])
def test_who_draws_numbers_and_gives_them_back_does_not_learn_the_others_by_what_is_missing(secret: bytes | None) -> None:
    world = World(secret=secret)
    exposers(world, 5)
    drawn: set[int] = set()
    began = world.now
    while world.now - began < TEN_MINUTES / 2 and len(drawn) < 200:
        pace(world)
        for _ in range(20):  # as many as the rate lets through, in fewer steps of the test
            heard = answer(world, STRANGER, messages.Allocate())
            if isinstance(heard, messages.Allocated):
                drawn.add(heard.nameplate)
                answer(world, STRANGER, messages.Release(heard.nameplate))
        world.now = Instant(world.now + 1.0)
    assert len(drawn) <= 2 * (DRAWN_NUMBERS + 2)  # two of the server's ten minutes may touch ours


def test_a_fresh_code_has_another_number_than_the_last() -> None:
    world = World()
    numbers = []
    for _ in range(300):
        world.now = Instant(world.now + 0.1)
        allocated = answer(world, STRANGER, messages.Allocate())
        assert isinstance(allocated, messages.Allocated)
        numbers.append(allocated.nameplate)
        answer(world, STRANGER, messages.Release(allocated.nameplate))
    assert all(before != after for before, after in pairwise(numbers))


def test_one_address_may_hold_all_its_numbers_and_another_still_gets_one() -> None:
    world = World(secret=SECRET)
    for index in range(64):
        heard = answer(world, STRANGER, messages.Allocate(), bytes((index,)))
        assert isinstance(heard, messages.Allocated), f"the {index}th was refused"
    assert answer(world, STRANGER, messages.Allocate(), b"z").code == RefusalCode.FULL  # type: ignore[union-attr]
    assert isinstance(answer(world, Address("198.18.0.1", 1), messages.Allocate(), b"y"), messages.Allocated)


@pytest.mark.parametrize("claims", [1, 50])
def test_one_address_claims_sixteen_codes_in_a_row_and_twelve_a_minute_although_it_knows_all_their_numbers(claims: int) -> None:
    world = World()
    live = exposers(world, 60)
    for number in live:
        world.server.registry.nameplates[number].left = claims
    accepted = 0
    began = world.now
    for number in list(live) * 100:
        pace(world)
        heard = answer(world, STRANGER, messages.Claim(number, b"x"))
        accepted += isinstance(heard, messages.ClaimAccepted)
        if isinstance(heard, messages.ClaimAccepted):
            answer(world, STRANGER, messages.Leave((), (heard.channel,), (heard.mailbox,)))
    assert 59 < world.now - began < 61
    assert 16 <= accepted <= 16 + 12 + 1


@pytest.mark.parametrize("limits", [{"mailboxes_per_address": 1}, {"channels_per_address": 1}, {"pairs_per_address": 1}])
def test_a_claimer_whose_own_limits_are_used_up_learns_nothing_about_a_number(limits: dict[str, int]) -> None:
    world = World(config=ServerConfig(**limits))  # type: ignore[arg-type]
    first, second = exposers(world, 2)
    assert isinstance(answer(world, STRANGER, messages.Claim(first, b"x")), messages.ClaimAccepted)
    said = [answer(world, STRANGER, messages.Claim(number, b"x")) for number in (second, 999)]
    assert said[0] == said[1]


def test_a_refusal_that_was_lost_is_repeated_not_counted_again() -> None:
    world = World()
    cookie = world.cookie(STRANGER)
    data = messages.encode_request(7, b"s" * 16, messages.Claim(999, b"x"), cookie=cookie)
    for _ in range(20):
        world.server.handle_datagram(world.now, next(iter(world.server._strangers._sockets)), STRANGER, data)
        transmit = world.server.poll_transmit(world.now)
        assert transmit is not None
        refused = messages.decode_response(transmit.buffer).message
        assert isinstance(refused, messages.Refused)
        assert refused.code == RefusalCode.UNKNOWN_NAMEPLATE


# after a restart


def restarted(world: World) -> None:
    world.now = Instant(world.now + 1)
    world.start_server()


def test_after_a_restart_everybody_behind_one_address_has_his_number_back_and_nobody_is_locked_out() -> None:
    world = World(secret=SECRET)
    owned: dict[bytes, messages.Allocated] = {}
    for index in range(40):
        session = bytes((index,))
        heard = answer(world, STRANGER, messages.Allocate(), session)
        assert isinstance(heard, messages.Allocated)
        owned[session] = heard
    restarted(world)
    for session, own in owned.items():
        heard = answer(world, STRANGER, messages.Allocate(own.nameplate, 1, own.ticket), session)
        assert isinstance(heard, messages.Allocated)
        assert heard.nameplate == own.nameplate
    (number,) = exposers(world, 1)
    assert isinstance(answer(world, STRANGER, messages.Claim(number, b"x"), b"z"), messages.ClaimAccepted)


@pytest.mark.parametrize("secret", [None, SECRET])
def test_after_a_restart_four_behind_one_address_have_their_numbers_back_without_tickets(secret: bytes | None) -> None:
    """Clients of before, and a server that could not keep its secret."""
    world = World(secret=secret)
    owned = {}
    for index in range(6):
        heard = answer(world, STRANGER, messages.Allocate(), bytes((index,)))
        assert isinstance(heard, messages.Allocated)
        owned[bytes((index,))] = heard.nameplate
    restarted(world)
    back = [answer(world, STRANGER, messages.Allocate(number), session) for session, number in owned.items()]
    assert [isinstance(heard, messages.Allocated) for heard in back] == [True] * 4 + [False] * 2
    assert isinstance(answer(world, STRANGER, messages.Allocate(), bytes((5,))), messages.Allocated)


def test_a_ticket_is_good_for_one_session_and_number_and_not_in_the_time_of_the_server_that_gave_it() -> None:
    world = World(secret=SECRET)
    own = answer(world, STRANGER, messages.Allocate(), b"s")
    assert isinstance(own, messages.Allocated)
    numbers = world.server._numbers
    same, later = int.from_bytes(own.ticket[:8], "big"), 77
    number, session = own.nameplate, b"s" * 16
    assert numbers.is_ticket(own.ticket, later, session, number)
    assert not numbers.is_ticket(own.ticket, same, session, number)
    assert not numbers.is_ticket(own.ticket, later, b"t" * 16, number)
    assert not numbers.is_ticket(own.ticket, later, session, number + 1)
    for damaged in (b"", own.ticket[:-1], own.ticket + b"x", bytes(24), own.ticket[:8] + bytes(16)):
        assert not numbers.is_ticket(damaged, later, session, number)


def test_tickets_gathered_before_a_restart_find_no_more_than_five_numbers_of_others_after_it() -> None:
    world = World(secret=SECRET)
    tickets: dict[int, bytes] = {}
    for number in range(100, 1000):
        if world.server._numbers.may_be_ours(number):  # as if it had drawn for days
            tickets[number] = world.server._numbers.ticket(world.server._instance, b"s" * 16, number)
    restarted(world)
    world.server._numbers._density = 0.5  # more than a server lets it come to
    live = exposers(world, 20)
    learned = 0
    for number, ticket in tickets.items():
        pace(world)
        heard = answer(world, STRANGER, messages.Allocate(number, 1, ticket))
        learned += isinstance(heard, messages.Refused) and heard.code == RefusalCode.TAKEN
        if isinstance(heard, messages.Allocated):
            answer(world, STRANGER, messages.Release(number))
    assert len(live) == 20
    assert learned <= 5


def test_a_client_shows_its_ticket_after_a_restart_and_its_code_stays_good() -> None:
    world = World(secret=SECRET)
    hosts = [world.host(f"home{index}", "198.18.5.5", port=5000 + index) for index in range(12)]
    for host in hosts:
        host.client.allocate(world.now)
    world.run(5)
    owned = set(world.server.registry.nameplates)
    assert len(owned) == 12
    world.start_server()
    world.run(20)
    assert set(world.server.registry.nameplates) == owned


# two servers behind one name


def shares(secret: bytes | None) -> set[int]:
    numbers = World(secret=secret).server._numbers
    return {number for number in range(100, 10_000) if numbers.may_be_ours(number)}


def test_a_server_gives_a_sixteenth_of_the_numbers_and_two_servers_hardly_ever_the_same() -> None:
    assert len(shares(None)) == 9_900
    first, second = shares(SECRET), shares(bytes(32))
    assert len(first) == pytest.approx(9_900 / 16, abs=2)
    assert first == shares(SECRET)
    assert len(first & second) < len(first) / 8


def test_codes_grow_with_the_crowd_so_that_a_guess_in_the_servers_own_share_is_wrong_nine_times_in_ten() -> None:
    world = World(secret=SECRET)
    live = exposers(world, 300)
    assert all(world.server._numbers.may_be_ours(number) for number in live)
    for digits, share in ((3, 900 / 16), (4, 9_000 / 16)):
        used = sum(len(str(number)) == digits for number in live)
        assert used <= 0.1 * share + 1, f"{used} of {share:.0f} numbers of {digits} digits"


def test_a_claim_that_belongs_to_another_server_is_told_so_and_counts_for_nobody() -> None:
    world = World(secret=SECRET)
    exposers(world, 60)
    foreign = [number for number in range(100, 1000) if not world.server._numbers.may_be_ours(number)]
    for number in foreign[:100]:
        world.now = Instant(world.now + 6)
        heard = answer(world, STRANGER, messages.Claim(number, b"x", may_move=True))
        assert isinstance(heard, messages.Refused)
        assert heard.code == RefusalCode.WRONG_SERVER
        older = answer(world, STRANGER, messages.Allocate(number))  # nor does a wish for it tell anything
        assert isinstance(older, messages.Refused)
        assert older.code == RefusalCode.TAKEN
    for number in foreign[:50]:
        world.now = Instant(world.now + 6)
        heard = answer(world, STRANGER, messages.Claim(number, b"x"))  # a client of before gets the refusal that it knows
        assert isinstance(heard, messages.Refused)
        assert heard.code == RefusalCode.UNKNOWN_NAMEPLATE
    (fresh,) = exposers(world, 1)
    assert isinstance(answer(world, STRANGER, messages.Claim(fresh, b"x")), messages.ClaimAccepted)
