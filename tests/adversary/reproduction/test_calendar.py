"""A calendar that was ahead once."""

from __future__ import annotations

from tests.adversary.reproduction.people import Cast


def test_a_calendar_that_was_ahead_once_keeps_nobody_out() -> None:
    """It is a day ahead, is put right, and the program starts again, as after a battery was changed."""
    with Cast("friend") as cast:
        friend = cast.people["friend"]
        friend.end()
        friend.days_ahead = 1.0
        friend.boot()
        friend.meet(cast.server)
        friend.connect(cast.home)
        cast.world.run(10.0)
        friend.end()
        friend.days_ahead = 0.0
        friend.boot()
        friend.meet(cast.server)
        friend.connect(cast.home, 600)
