"""A stranger at one address and the codes of a public server."""

from __future__ import annotations

from tests.adversary.reproduction.wire import (
    ALLOCATE,
    ALLOCATED,
    CLAIM,
    CLAIM_ACCEPTED,
    REFUSED,
    RELEASE,
    Rendezvous,
)
from tunnel.units import Address

STRANGER = Address("198.18.66.66", 6_000)
TAKEN = 12
NUMBERS = range(100, 1_000)  # of three digits
EXPOSERS = 60


def exposers(rendezvous: Rendezvous) -> set[int]:
    """The numbers of so many people who wait with a code each."""
    numbers = set()
    for number in range(EXPOSERS):
        answer = rendezvous.insist(Address(f"198.18.{number}.1", 5_000), [ALLOCATE, 0, 1])
        assert answer[0] == ALLOCATED
        numbers.add(answer[1])
    assert len(numbers) == EXPOSERS
    return numbers


def test_a_stranger_cannot_list_the_codes_of_a_server() -> None:
    """It asks for each number by its name, and gives back what it gets, for a minute."""
    rendezvous = Rendezvous()
    live = exposers(rendezvous)
    begun = rendezvous.now
    listed = set()
    for number in NUMBERS:
        answer = rendezvous.insist(STRANGER, [ALLOCATE, number, 1])
        if answer[0] == ALLOCATED:
            rendezvous.insist(STRANGER, [RELEASE, answer[1]])
        elif answer[:2] == [REFUSED, TAKEN]:
            listed.add(number)
        if rendezvous.now > begun + 60:
            break
    found = len(live & listed)
    assert found <= 5, f"{found} of {len(live)} codes were listed in {rendezvous.now - begun:.0f} s"


def test_a_stranger_cannot_list_them_by_what_it_is_never_given() -> None:
    """It takes a number and gives it back, for a minute; what is left over is in use."""
    rendezvous = Rendezvous()
    live = exposers(rendezvous)
    begun = rendezvous.now
    given = set()
    while rendezvous.now < begun + 60:
        answer = rendezvous.insist(STRANGER, [ALLOCATE, 0, 1])
        given.add(answer[1])
        rendezvous.insist(STRANGER, [RELEASE, answer[1]])
    left_over = len(NUMBERS) - len(given.intersection(NUMBERS))
    assert left_over > 10 * len(live), f"{len(live)} live codes are among {left_over} numbers that it was not given"


def test_a_stranger_that_knows_all_numbers_uses_up_few_codes_a_minute() -> None:
    rendezvous = Rendezvous()
    live = exposers(rendezvous)
    begun = rendezvous.now
    used = 0
    for number in sorted(live):
        used += rendezvous.insist(STRANGER, [CLAIM, number, b"x" * 34])[0] == CLAIM_ACCEPTED
        if rendezvous.now > begun + 60:
            break
    assert used <= EXPOSERS // 2, f"{used} of {len(live)} codes were used up in {rendezvous.now - begun:.0f} s"
