"""A fleet with a real store, in real kernels: pairs across its servers, and a relayed link while one or the other fails.

The laboratory is one for all: each test but the last leaves three servers that see each other, and the link as it was.  More
that fails, and for longer, is left to the night (tests/programs/test_fleet.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.fleet import BROKEN, GONE, SEEN, Fleet, Link, Outage, go_through
from tests.netns.lab import Lab
from tests.netns.programs import Ptunnel

SLOWEST = 10.0  # seconds, on a machine that is busy: the goals are held in tests/sim, and measured by tests.netns.fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Lab(tmp_path_factory.mktemp("fleet")) as lab:
        yield Fleet(lab)


@pytest.fixture(scope="module")
def office(fleet: Fleet) -> Ptunnel:
    return fleet.know_office()


@pytest.fixture(scope="module")
def link(fleet: Fleet) -> Link:
    return Link(fleet)


@pytest.mark.parametrize(("what", "seconds"), [("parted", GONE), ("killed", BROKEN)])
def test_a_store_that_fails_cuts_no_link_and_who_waits_meets_when_it_is_back(
    fleet: Fleet, office: Ptunnel, link: Link, what: Outage, seconds: float
) -> None:
    costs = go_through(fleet, link, what, seconds)
    assert costs["the link is silent"] < SLOWEST


def test_a_link_goes_on_and_a_code_that_waits_is_good_though_their_server_is_killed(fleet: Fleet, link: Link) -> None:
    link.wait_standing()
    carrier = link.server("carries")
    number = fleet.names.index(carrier)
    exposer = fleet.expose(number, "den")
    code = exposer.wait_event("code", SEEN)["code"]
    assert link.lose(carrier) < SLOWEST
    guest = fleet.connect(server=number - 1, PTUNNEL_CODE=code)
    guest.wait_event("paired", SEEN)
    fleet.wait_carries(guest)
    fleet.end(guest, exposer)
    fleet.start(carrier)
    fleet.wait_servers(3)


def test_a_link_and_a_pair_that_waits_go_elsewhere_from_a_server_that_is_stopped(
    fleet: Fleet, office: Ptunnel, link: Link
) -> None:
    link.wait_standing()
    carrier = link.server("carries")
    assert link.lose(carrier, is_drained=True) < SLOWEST
    fleet.end(office)
    left = [number for number, name in enumerate(fleet.names) if name != carrier]
    again = fleet.expose(left[0])
    again.wait_event("listening", SEEN)
    guest = fleet.connect("office", server=left[1])
    fleet.wait_carries(guest)
    fleet.end(guest, again)
    link.finish()
