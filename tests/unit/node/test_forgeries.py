"""A rendezvous server that guesses codes, and peers who forge the addresses they send from."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import GRANTS, SERVER, entropy_of
from tunnel.node.context import Context, EndpointConfig
from tunnel.node.events import CodeIssued, PeerPaired, Problem, Troubled
from tunnel.node.flows.answer import MAX_PENDING, PENDING_LIFETIME
from tunnel.node.flows.expose_code import (
    CODE_LIFETIME,
    FOR_MANY,
    FOR_ONE,
    LONGEST_DELAY,
    PATIENT_FAILURES,
    ROOM_GUESSES,
    CodeTerms,
    ExposerPairing,
)
from tunnel.pairing.code import parse_code
from tunnel.pairing.pake import Pake
from tunnel.rendezvous import messages
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import RelayChannel, Told
from tunnel.rendezvous.messages import RefusalCode
from tunnel.transport.connection.control import MAX_BACKLOG
from tunnel.transport.connection.events import PathKind
from tunnel.units import Address, Instant, PathKey, SocketId

RELAY = Address("192.88.99.1", 24_531)
VICTIM = Address("198.51.100.66", 666)
SOCKET = SocketId(0)


def an_exposer(terms: CodeTerms = FOR_ONE) -> tuple[Context, Client, ExposerPairing]:
    context = Context(
        config=EndpointConfig(name="home", aeads=(1, 2), receive_buffer=200_000),
        static_key=bytes(32),
        store=None,  # type: ignore[arg-type]
        entropy=entropy_of("exposer"),
        rng=random.Random(1),
        wall_ns=lambda: 10**18,
        traces=None,
    )
    client = Client(servers=[(SOCKET, RELAY)], now=Instant(0.0), rng=random.Random(1), entropy=context.entropy)
    flow = ExposerPairing(context, client, grants=GRANTS, keep=True, adopt=lambda *_: None, now=Instant(0.0), terms=terms)
    return context, client, flow


def says(
    flow: ExposerPairing,
    now: Instant,
    message: messages.ResponseMessage | messages.PushMessage,
    request: messages.RequestMessage | None = None,
) -> None:
    """The server, to this flow."""
    channel = None
    if isinstance(message, messages.ChannelMessage):
        channel = RelayChannel(message.channel, message.token, message.side, SOCKET, RELAY)
    flow.on_server(now, flow._client, Told(message, request, channel))


def gives(flow: ExposerPairing, now: Instant, nameplate: int, seconds: int) -> None:
    says(flow, now, messages.Allocated(nameplate, seconds), messages.Allocate())


def loses(flow: ExposerPairing, now: Instant, nameplate: int) -> None:
    says(flow, now, messages.Refused(RefusalCode.TAKEN, ""), messages.Allocate(nameplate))


def codes_of(context: Context) -> list[str]:
    return [event.code for event in context.events if isinstance(event, CodeIssued)]


def a_guess(context: Context, flow: ExposerPairing, now: Instant, number: int = 0) -> bytes:
    """The server claims the newest code itself, with words that it made up.  The answer tells it whether they are right."""
    nameplate = int(codes_of(context)[-1].partition("-")[0])
    guess = Pake("B", parse_code(f"{nameplate:03}-zoo-zoo"), entropy_of(("guess", now)))
    channel = b"\xc0" + bytes(6) + bytes([number])
    mailbox = nameplate.to_bytes(7, "big") + bytes([number])
    says(flow, now, messages.ClaimReceived(nameplate, mailbox, guess.message, channel, bytes(16), 0))
    return mailbox


def a_wrong_guess(context: Context, flow: ExposerPairing, now: Instant) -> None:
    says(flow, now, messages.Posted(a_guess(context, flow, now), b"\x02"))


def test_a_server_that_hands_out_codes_unasked_cannot_guess_any_faster() -> None:
    context, _client, flow = an_exposer()
    guesses = 0
    for second in range(3_600):
        now = Instant(float(second))
        flow.on_time(now)
        for _ in range(2):  # neither an answer nor a refusal shortens the wait that wrong guesses have earned
            before = len(codes_of(context))
            gives(flow, now, 1000 + second, 600)
            if len(codes_of(context)) > before:
                a_wrong_guess(context, flow, now)
                guesses += 1
                says(flow, now, messages.Refused(RefusalCode.FULL, ""), messages.Allocate())
    assert PATIENT_FAILURES <= guesses <= PATIENT_FAILURES + 12


def test_a_fresh_code_waits_longer_and_longer_after_guesses_and_never_longer_than_told() -> None:
    context, _client, flow = an_exposer()
    issued: list[float] = []
    for second in range(4_000):
        now = Instant(float(second))
        before = len(codes_of(context))
        gives(flow, now, 1000 + second, 600)
        flow.on_time(now)
        if len(codes_of(context)) > before:
            issued.append(second)
            a_wrong_guess(context, flow, now)
    waits = [after - before for before, after in pairwise(issued)]
    assert waits[PATIENT_FAILURES:] == sorted(waits[PATIENT_FAILURES:])
    assert all(LONGEST_DELAY <= wait <= LONGEST_DELAY + 1 for wait in waits[-2:])  # looked at once a second


def test_a_code_lives_no_longer_than_people_are_told_whatever_the_server_says() -> None:
    context, _client, flow = an_exposer()
    gives(flow, Instant(0.0), 1000, 10**6)
    assert [event.expires_s for event in context.events if isinstance(event, CodeIssued)] == [CODE_LIFETIME]
    for at, has_ended in ((CODE_LIFETIME - 0.1, False), (CODE_LIFETIME, True)):
        flow.on_time(Instant(at))
        ended = [each for each in context.events if isinstance(each, Troubled) and each.problem is Problem.CODE_EXPIRED]
        assert bool(ended) == has_ended


@pytest.mark.parametrize("fails", [True, False])
def test_a_server_that_loses_the_code_of_a_room_after_its_guesses_cannot_guess_any_faster(fails: bool) -> None:
    """It keeps below the number that would end the code, or has all of them under way, and has a fresh one at once."""
    context, _client, flow = an_exposer(FOR_MANY)
    guesses = 0
    for second in range(3_600):
        now = Instant(float(second))
        flow.on_time(now)
        gives(flow, now, 1000 + second, 600)
        if flow._nameplate == 1000 + second:
            for number in range(ROOM_GUESSES - fails):
                mailbox = a_guess(context, flow, now, number)
                guesses += 1
                if fails:
                    says(flow, now, messages.Posted(mailbox, b"\x02"))
            loses(flow, now, 1000 + second)
    assert ROOM_GUESSES * PATIENT_FAILURES - PATIENT_FAILURES <= guesses <= ROOM_GUESSES * (PATIENT_FAILURES + 12)


def test_whoever_has_begun_to_pair_by_the_code_of_a_room_comes_to_nothing_when_it_is_renewed() -> None:
    """A removed member may have: it would be back in a moment."""
    context, client, flow = an_exposer(FOR_MANY)
    gives(flow, Instant(0.0), 731, 600)
    for number in range(2):
        a_guess(context, flow, Instant(1.0 + number / 2), number)
        assert context.demux.channels[b"\xc0" + bytes(6) + bytes([number])] is flow
    assert len(context.demux.handshakes) == 2
    flow.renew(Instant(2.0))
    assert not context.demux.channels
    assert not context.demux.handshakes
    assert not client.drops


@pytest.mark.parametrize("does_lose", [True, False])
def test_a_server_that_gives_codes_no_time_does_not_flood_the_screen(does_lose: bool) -> None:
    context, _client, flow = an_exposer()
    for turn in range(60_000):
        now = Instant(turn / 1000)
        flow.on_time(now)
        gives(flow, now, 1000 + turn, 0)
        if does_lose and flow._nameplate is not None:
            loses(flow, now, flow._nameplate)
    assert len(codes_of(context)) == (60 if does_lose else 1)


def test_a_nameplate_is_an_answer_to_the_wish_for_one_and_to_nothing_else() -> None:
    _context, client, _flow = an_exposer()
    client.leave_mailbox(Instant(0.0), bytes(8))

    def answer(kind: type[messages.RequestMessage], message: messages.ResponseMessage) -> None:
        while (sent := client.poll_transmit(Instant(0.0))) is not None:
            request = messages.decode_request(sent[2])
            if isinstance(request.message, kind):
                reply = messages.encode_response(request.transaction, message)
                client.handle_datagram(Instant(0.0), SOCKET, RELAY, reply)
                return

    answer(messages.Hello, messages.Retry(bytes(17), messages.pack_address(VICTIM), 0, b"", 1))
    answer(messages.Leave, messages.Allocated(731, 600))
    heard: list[Any] = []
    while (event := client.poll_event()) is not None:
        heard.append(event)
    assert not [event for event in heard if isinstance(event, Told)]
    assert client.drops["rendezvous_answer"] == 1


def test_what_a_pairing_proves_is_the_relay_and_never_a_forged_source() -> None:
    with Cast() as party:
        party.claim()
        home = party.home.endpoint
        honest = home.handle_batch

        def forged(now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
            if buffer[0] >= 0xC0 and len(buffer) > 8 and buffer[8] == 0x72:  # the finish
                remote = VICTIM
            honest(now, socket_id, remote, buffer, stride)

        home.handle_batch = forged  # type: ignore[assignment]
        party.world.run(3.0)
        assert not [event for event in party.home.told if isinstance(event, PeerPaired)]
        assert home.drops["pairing past the server"]


def test_a_finish_that_never_arrives_ends_the_claim_with_a_sentence() -> None:
    with Cast() as party:
        party.claim()
        home = party.home.endpoint
        honest = home.handle_batch

        def deaf(now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
            if not (buffer[0] >= 0xC0 and len(buffer) > 8 and buffer[8] == 0x72):
                honest(now, socket_id, remote, buffer, stride)

        home.handle_batch = deaf  # type: ignore[assignment]
        party.world.run(40.0)
        final = [event for event in party.friend.told if isinstance(event, Troubled) and event.is_final]
        assert [event.problem for event in final] == [Problem.CODE_UNANSWERED]


def test_what_a_handshake_proves_is_where_the_answer_went_and_never_a_forged_source() -> None:
    with Cast(home_path="relay") as party:
        party.acquaint()
        honest = party.home.endpoint.handle_batch
        forged_ones = 0

        def forged(now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
            nonlocal forged_ones
            if buffer[0] >= 0xC0 and len(buffer) > 8 and 0x80 <= buffer[8] <= 0xBF and not party.home.peerings:
                remote, forged_ones = VICTIM, forged_ones + 1
            honest(now, socket_id, remote, buffer, stride)

        party.home.endpoint.handle_batch = forged  # type: ignore[assignment]
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: bool(party.home.peerings))
        assert forged_ones
        connection = party.home.peerings[0].connection
        assert connection is not None
        assert connection.current_path.key.remote != VICTIM
        party.echoed(peering, b"hello")
        assert VICTIM not in {key.remote for key in connection.paths}


def test_an_answer_that_seems_to_come_from_elsewhere_leaves_the_dialer_on_the_way_it_asked() -> None:
    with Cast(friend_path="relay") as party:
        party.acquaint()
        honest = party.friend.endpoint.handle_batch

        def forged(now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
            is_response = buffer[0] >= 0xC0 and len(buffer) > 8 and buffer[8] == 0x71
            honest(now, socket_id, VICTIM if is_response else remote, buffer, stride)

        party.friend.endpoint.handle_batch = forged  # type: ignore[assignment]
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None)
        assert peering.connection is not None
        assert peering.connection.current_path.kind is PathKind.RELAY
        assert peering.connection.current_path.key.remote != VICTIM
        party.echoed(peering, b"hello")


def test_a_peer_that_floods_us_with_inits_crowds_out_only_its_own() -> None:
    with Cast() as party:
        party.acquaint()
        responder = party.home.endpoint._meetings._responder
        party.friend.dial(party.home)
        party.world.run_until(lambda: bool(responder.pending))
        (genuine,) = list(responder.pending.items())
        other = genuine[1].completed
        for index in range(1, 4 * MAX_PENDING):  # of another peer
            responder._make_room()
            flood = genuine[1]._replace(completed=type(other)(**{**_fields(other), "remote_static": b"other" * 6 + b"!!"}))
            responder.pending[index] = flood
        assert genuine[0] in responder.pending
        assert len(responder.pending) <= MAX_PENDING


def test_an_answer_whose_keys_nobody_uses_is_forgotten_after_its_time() -> None:
    with Cast() as party:
        party.acquaint()
        responder = party.home.endpoint._meetings._responder
        party.friend.dial(party.home)
        party.world.run_until(lambda: bool(responder.pending))
        answered = party.world.now
        responder.expire(Instant(answered + PENDING_LIFETIME - 0.1))
        assert responder.pending
        responder.expire(Instant(answered + PENDING_LIFETIME))
        assert not responder.pending


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def test_a_late_answer_does_not_revive_a_pairing_that_has_failed() -> None:
    with Cast() as party:
        party.claim()
        endpoint = party.friend.endpoint
        held: list[tuple[PathKey, bytes]] = []
        honest = endpoint.handle_batch

        def late(now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
            if buffer[0] >= 0xC0 and len(buffer) > 8 and buffer[8] == 0x71:
                held.append((PathKey(socket_id, remote), bytes(buffer)))
            else:
                honest(now, socket_id, remote, buffer, stride)

        endpoint.handle_batch = late  # type: ignore[assignment]
        party.world.run_until(lambda: bool(party.friend.problems), 40)
        for path, datagram in held:
            honest(party.world.now, path.socket_id, path.remote, memoryview(datagram), len(datagram))
        party.world.touch(party.friend.host)
        party.world.run(1.0)
        assert held
        assert not party.friend.peerings
        assert not party.friend.saved


def test_who_connects_lets_nobody_in_even_a_remembered_peer() -> None:
    """One that sprays inits over our ports would be a link of ours, and might be taken for the peer that we dialed."""
    with Cast() as party:
        party.acquaint(listening=False)
        inits: list[bytes] = []

        def keep(sender: object, destination: object, datagram: bytes) -> bool:
            if len(datagram) > 8 and datagram[0] >= 0xC0 and datagram[8] == 0x70:
                inits.append(datagram[8:])
                return False
            return True

        party.world.filter = keep
        party.home.listen()
        party.friend.dial(party.home)
        party.world.run_until(lambda: bool(inits))
        endpoint, outsider = party.home.endpoint, Address("45.1.0.99", 4444)
        endpoint._meetings._listener.is_on = False  # as in a process that only connects
        endpoint.handle_batch(party.world.now, SOCKET, outsider, memoryview(inits[-1]), len(inits[-1]))
        assert endpoint.drops["init while not listening"] == 1
        assert not endpoint._meetings._responder.pending


def test_a_peer_that_asks_and_asks_and_takes_no_answer_fills_no_memory() -> None:
    with Cast() as party:
        peering = party.pair()
        connection = peering.connection
        assert connection is not None
        for _ in range(100_000):
            peering.send_ping()
        assert len(connection._control_out) <= MAX_BACKLOG
        assert connection.drops["control backlog full"]
        party.world.run(2.0)
        party.echoed(peering, b"still there")


@pytest.mark.parametrize(
    ("request_", "is_told"),
    [
        (messages.Join(messages.Role.LISTEN, (bytes(16),)), True),
        (messages.Refresh(), True),
        (messages.Join(messages.Role.DIAL, (bytes(16),)), False),
        (messages.Post(bytes(8), b""), False),
    ],
)
def test_a_person_hears_that_nobody_may_wait_of_what_was_asked_for_waiting_alone(
    request_: messages.RequestMessage, is_told: bool
) -> None:
    """A refusal of what a flow has asked that is over comes to whoever waits for everybody."""
    with Cast() as party:
        party.acquaint()
        party.world.run(2.0)
        meetings = party.home.endpoint._meetings
        client = party.home.endpoint._context.clients[SERVER]
        refused = messages.Refused(messages.RefusalCode.FULL, "full")
        meetings._listener.hear(party.world.now, client, Told(refused, request_))
        party.world.touch(party.home.host)
        party.world.run(0.1)
        assert (Problem.SERVER_REFUSED in party.home.problems) == is_told
