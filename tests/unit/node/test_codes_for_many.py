"""The code of a room, at its owner: how many guesses it gives away, to one claimer or to many at once."""

from __future__ import annotations

from tests.sim.peers import entropy_of
from tests.unit.node.test_forgeries import an_exposer, codes_of, gives, loses, says
from tunnel.node.context import Context
from tunnel.node.events import Problem, Troubled
from tunnel.node.flows.expose_code import (
    ANSWER_TIMEOUT,
    FOR_MANY,
    PATIENT_FAILURES,
    POST_ANSWER,
    POST_BUSY,
    POST_FAILURE,
    RENEW_INTERVAL,
    ROOM_CLAIMS,
    ROOM_GUESSES,
    ExposerPairing,
)
from tunnel.pairing.code import ROOM_CODE_WORDS, parse_code
from tunnel.pairing.pake import Pake
from tunnel.rendezvous import messages
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.standing import OwnNumber
from tunnel.units import Instant

NAMEPLATE = 731
T0 = Instant(0.0)


def a_room() -> tuple[Context, Client, ExposerPairing]:
    """With a code."""
    context, client, _ = an_exposer()
    flow = ExposerPairing(context, client, grants=(), keep=True, adopt=lambda *_: None, now=T0, terms=FOR_MANY)
    gives(flow, T0, NAMEPLATE, 600)
    return context, client, flow


def claim(flow: ExposerPairing, number: int, now: Instant = T0, nameplate: int = NAMEPLATE) -> bytes:
    """Somebody claims the code, with words that he made up; the mailbox."""
    guess = Pake("B", parse_code(f"{nameplate}-zoo-zoo-zoo"), entropy_of(("guess", number, now)))
    channel = b"\xc0" + number.to_bytes(7, "big")
    mailbox = number.to_bytes(8, "big")
    says(flow, now, messages.ClaimReceived(nameplate, mailbox, guess.message, channel, bytes(16), 0))
    return mailbox


def posts_of(client: Client) -> list[bytes]:
    """What was said through mailboxes."""
    return [request.message.body for request in client._requests if isinstance(request.message, messages.Post)]


def troubles(context: Context) -> list[Troubled]:
    return [event for event in context.events if isinstance(event, Troubled)]


def test_a_rooms_code_has_three_words_and_never_expires() -> None:
    context, client, flow = a_room()
    client._standing.nameplates[NAMEPLATE] = OwnNumber(ROOM_CLAIMS)  # as after the server's answer
    (code,) = codes_of(context)
    assert len(parse_code(code).password.split("-")) == ROOM_CODE_WORDS
    now = T0
    for _ in range(40):
        now = Instant(now + RENEW_INTERVAL)
        flow.on_time(now)
    assert codes_of(context) == [code]
    renewals = [request.message for request in client._requests if request.message == messages.Allocate(NAMEPLATE, ROOM_CLAIMS)]
    assert len(renewals) == 40
    assert not troubles(context)


def test_each_claim_has_a_pake_of_its_own_and_no_more_are_answered_than_guesses_are_left() -> None:
    context, client, flow = a_room()
    for number in range(1, 9):
        claim(flow, number)
    bodies = posts_of(client)
    answers = [body for body in bodies if body[0] == POST_ANSWER]
    assert len(answers) == len({body[1:35] for body in answers}) == ROOM_GUESSES
    assert [body for body in bodies if body[0] == POST_BUSY] == [bytes((POST_BUSY,))] * 3
    assert context.drops["claims while enough are under way"] == 3
    says(flow, T0, messages.Posted((1).to_bytes(8, "big"), bytes((POST_FAILURE,))))
    claim(flow, 9)
    assert len([body for body in posts_of(client) if body[0] == POST_BUSY]) == 4  # one guess is gone, four are under way


def test_a_claim_that_is_told_twice_is_answered_once() -> None:
    _, client, flow = a_room()
    claim(flow, 1)
    claim(flow, 1)
    assert len(posts_of(client)) == 1


def test_the_fifth_failure_ends_the_code_and_each_is_told() -> None:
    context, _, flow = a_room()
    for number in range(1, ROOM_GUESSES + 1):
        mailbox = claim(flow, number)
        says(flow, T0, messages.Posted(mailbox, bytes((POST_FAILURE,))))
    assert [trouble.problem for trouble in troubles(context)] == [Problem.WRONG_CODE] * ROOM_GUESSES
    assert [
        next(words for words in ("4 more", "3 more", "2 more", "one more", "used up") if words in trouble.text)
        for trouble in troubles(context)
    ] == ["4 more", "3 more", "2 more", "one more", "used up"]
    assert claim(flow, 9)
    assert flow._nameplate is None


def test_silence_is_a_guess_and_one_on_a_code_that_has_ended_costs_the_next_one_nothing() -> None:
    context, _, flow = a_room()
    for number in range(1, ROOM_GUESSES + 1):
        claim(flow, number)
    for number in range(1, ROOM_GUESSES):
        says(flow, T0, messages.Posted(number.to_bytes(8, "big"), bytes((POST_FAILURE,))))
    loses(flow, T0, NAMEPLATE)
    later = Instant(T0 + 2.0)
    flow.on_time(later)
    gives(flow, later, NAMEPLATE + 1, 600)
    flow.on_time(Instant(T0 + ANSWER_TIMEOUT))  # the fifth of the old code
    assert troubles(context)[-1].problem is Problem.CODE_UNANSWERED
    assert flow._failures == 0
    assert flow._nameplate == NAMEPLATE + 1


def test_a_server_that_guesses_at_a_rooms_code_is_slowed_down_like_any_other() -> None:
    context, _, flow = a_room()
    guesses = 0
    for second in range(1, 3_600):
        now = Instant(float(second))
        flow.on_time(now)
        gives(flow, now, 1_000 + second, 600)
        for number in range(10):
            nameplate = flow._nameplate
            if nameplate is not None:
                mailbox = claim(flow, second * 10 + number, now, nameplate)
                says(flow, now, messages.Posted(mailbox, bytes((POST_FAILURE,))))
                guesses += 1
    assert ROOM_GUESSES * PATIENT_FAILURES <= guesses <= ROOM_GUESSES * (PATIENT_FAILURES + 12)
    assert len(codes_of(context)) <= PATIENT_FAILURES + 12
