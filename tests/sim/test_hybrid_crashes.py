"""The hybrid step, broken off after any datagram by either side or both: the two always find each other again."""

from __future__ import annotations

from itertools import product

import pytest

from tests.sim.cast import Cast
from tests.sim.world import Host
from tests.unit.node.hybrid_pairs import BOTH, remembered_from_before
from tests.unit.node.test_hybrid import check_nobody_is_locked_out, known
from tunnel.units import Address

DATAGRAMS = 40  # of both sides that are looked at: more than the first second of a connection over a relay takes


def broken_off(cast: Cast, number: int, who: tuple[str, ...], *, by_code: bool) -> None:
    """A first connection in which so many datagrams leave; with the next one `who` die as by SIGKILL."""
    if by_code:
        cast.claim()
        cast.world.run_until(lambda: bool(cast.friend.saved))
    else:
        remembered_from_before(cast)
        cast.friend.dial(cast.home)
        cast.world.run(0.02)
    count = 0

    def let_through(sender: Host, _destination: Address, _datagram: bytes) -> bool:
        nonlocal count
        if sender is cast.server.host:
            return True
        count += 1
        if count == number + 1:
            for name in who:
                cast.who(name).kill()
        return count <= number

    cast.world.filter = let_through
    cast.world.run(1.0)


@pytest.mark.parametrize("by_code", [True, False])
@pytest.mark.parametrize("who", [("home",), ("friend",), BOTH])
def test_a_crash_after_any_datagram_locks_nobody_out(who: tuple[str, ...], by_code: bool) -> None:
    reached: set[tuple[int, bool]] = set()
    for number in range(DATAGRAMS):
        with Cast(home="sym", friend="sym") as cast:
            broken_off(cast, number, who, by_code=by_code)
            if not cast.home.saved:
                continue  # the pairing itself came to nothing
            reached.update((len(known(person).kept), known(person).is_hybrid) for person in cast.people if person.saved)
            check_nobody_is_locked_out(cast)
    assert reached == {(0, False), (1, False), (1, True)}  # before anything was kept, after, and after it was shown


@pytest.mark.parametrize(("number", "pause"), list(product((6, 9, 12, 15), (0.0, 1.0))))
def test_a_crash_in_the_next_connection_too_changes_nothing(number: int, pause: float) -> None:
    with Cast(home="sym", friend="sym") as cast:
        broken_off(cast, number, BOTH, by_code=False)
        for other in (8, 14):  # a server keeps places in a room for those who died, for a while
            cast.world.filter = None
            for person in cast.people:
                person.boot()
                person.meet(cast.server)
            cast.home.listen()
            cast.world.run(pause)
            count = [0]

            def let_through(sender: Host, _destination: Address, _datagram: bytes) -> bool:
                count[0] += sender is not cast.server.host  # noqa: B023
                return count[0] <= other or sender is cast.server.host  # noqa: B023

            cast.friend.dial(cast.home)
            cast.world.filter = let_through
            cast.world.run(1.0)
            for person in cast.people:
                person.kill()
        check_nobody_is_locked_out(cast)
