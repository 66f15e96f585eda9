"""The longest that one message takes a server with many clients: counted, as what grows and what is looked at in one go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.unit.rendezvous.world import SOCKETS, V4, entropy_of
from tunnel.core.parts import Parts
from tunnel.host.collector import MIDDLING, YOUNG
from tunnel.rendezvous import messages
from tunnel.rendezvous.admission import MAX_COOKIES
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.load import MAX_CHARGED
from tunnel.rendezvous.server import Server
from tunnel.units import Address, Instant

PAIRS = 800
NOW = Instant(1000.0)
ALONE = {"_accounts"}  # of pairs; with 200,000 it takes 12 ms to grow, of the 20 that there are
BOUNDED = {"_known": MAX_COOKIES, "_recent": MAX_CHARGED}  # in one piece, as they never have an entry for each client
LARGEST = 33_000  # entries of these: they grow within two milliseconds


def tables(of: object, name: str, seen: set[int]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All dicts that a server's own objects hold."""
    if id(of) in seen:
        return
    seen.add(id(of))
    if isinstance(of, dict):
        if all(isinstance(each, dict) for each in of.values()):
            yield from ((name, part) for part in of.values())
        else:
            yield name, of
    elif isinstance(of, Parts):
        yield from ((name, part) for part in of.parts)
    elif isinstance(of, list | tuple):
        for each in of:
            yield from tables(each, name, seen)
    elif type(of).__module__.startswith("tunnel."):
        slots = (each for kind in type(of).__mro__ for each in getattr(kind, "__slots__", ()))
        for each in (*slots, *getattr(of, "__dict__", ())):
            if hasattr(of, each):
                yield from tables(getattr(of, each), each, seen)


def test_no_table_with_an_entry_for_each_client_or_pair_grows_all_at_once() -> None:
    entropy = entropy_of(5)
    server = Server(ServerConfig(), sockets=SOCKETS, now=NOW, entropy=entropy)

    def ask(source: Address, session: bytes, message: messages.RequestMessage) -> None:
        cookie = server._cookies.issue(NOW, source)
        data = memoryview(messages.encode_request(1, session, message, cookie=cookie))
        server.handle_alone(NOW, V4, source, data)
        server.answers()

    for number in range(PAIRS):
        name = entropy(16)
        for role, first in ((messages.Role.LISTEN, 20), (messages.Role.DIAL, 120)):
            source = Address(f"{first + number % 100}.{number // 100}.{number % 251}.7", 1_000)
            ask(source, entropy(16), messages.Join(role, (name,)))
    assert len(server.registry.sessions) == 2 * PAIRS
    assert len(server.relay) == PAIRS
    sizes: dict[str, int] = {}
    for name_, table in tables(server, "", set()):
        sizes[name_] = max(len(table), sizes.get(name_, 0))
    assert {"sessions", "rooms", "_counts", "_classes", "_at", "_accounts", "_channels", "_in_room"} <= sizes.keys()
    assert max(BOUNDED.values()) < LARGEST
    large = {name_ for name_, size in sizes.items() if size > 2 * PAIRS // 4}
    assert large <= BOUNDED.keys() | ALONE


def test_the_collector_looks_at_few_in_one_go() -> None:
    """400 ns each where they are spread over a large memory."""
    assert YOUNG * (MIDDLING + 1) <= 15_000
