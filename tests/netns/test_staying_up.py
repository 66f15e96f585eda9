"""A live TCP stream survives what happens to networks: no byte is lost, and the silence is short."""

from __future__ import annotations

import pytest

from tests.netns.lab import Lab
from tests.netns.recovery import EVENTS, Event, measure


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name.replace(" ", "-"))
def test_a_live_stream_goes_on_after(lab: Lab, event: Event) -> None:
    assert measure(lab, event) < event.limit
