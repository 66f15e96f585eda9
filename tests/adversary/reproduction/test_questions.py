"""Short questions from forged addresses, and what a server still answers."""

from __future__ import annotations

from tests.adversary.reproduction.wire import Rendezvous
from tunnel.units import Address

FORGED_A_SECOND = 3_000
SECONDS = 10


def question(size: int) -> bytes:
    """A binding request (RFC 8489 §5) of so many bytes, the rest of it PADDING (RFC 5780 §7.6)."""
    body = b"" if size == 20 else b"\x00\x26" + (size - 24).to_bytes(2, "big") + bytes(size - 24)
    return b"\x00\x01" + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + b"transaction." + body


def test_a_flood_of_forged_questions_takes_no_answer_from_anybody_whose_question_is_as_long() -> None:
    rendezvous = Rendezvous()
    asked = answered = 0
    for number in range(FORGED_A_SECOND * SECONDS):
        rendezvous.pass_time(1 / FORGED_A_SECOND)
        rendezvous.send(Address(f"100.64.{number >> 8 & 255}.{number & 255}", 9), question(20))
        if number % 400 == 399:
            asked += 1
            answered += len(rendezvous.send(Address(f"198.18.{asked}.1", 1_000), question(100)))
    assert answered == asked, f"{answered} of {asked} honest questions were answered"


def test_a_flood_of_forged_questions_takes_no_hint_from_those_whose_channel_is_lost() -> None:
    """The hint is what brings two peers together again after a restart of the server."""
    rendezvous = Rendezvous()
    asked = hinted = 0
    for number in range(FORGED_A_SECOND * SECONDS):
        rendezvous.pass_time(1 / FORGED_A_SECOND)
        rendezvous.send(Address(f"100.64.{number >> 8 & 255}.{number & 255}", 9), question(20))
        if number % 400 == 399:
            asked += 1
            channel = b"\xc1" + asked.to_bytes(7, "big")
            hinted += len(rendezvous.send(Address(f"198.18.{asked}.1", 1_000), channel + b"\x80" + bytes(60)))
    assert hinted == asked, f"{hinted} of {asked} were told that their channel is lost"


def test_whoever_speaks_in_a_victims_name_silences_nothing_of_it() -> None:
    rendezvous = Rendezvous()
    victim = Address("198.18.0.1", 1_000)
    answered = 0
    for _ in range(40):
        rendezvous.pass_time(0.5)
        rendezvous.send(Address(victim.host, 9), question(20))
        answered += len(rendezvous.send(victim, question(100)))
    assert answered == 40, f"{answered} of the victim's 40 questions were answered"
