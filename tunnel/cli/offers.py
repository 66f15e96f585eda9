"""The command with which the other side uses what is shared with it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.pairing.grants import Grant
    from tunnel.shell.link import Share

#: Ports that an ordinary user may not listen on -> what people take instead; any other gets 10,000 added.
SUGGESTED: Final = {22: 2222, 23: 2323, 53: 5353, 80: 8080, 443: 8443, 445: 1445}
FIRST_FREE_PORT: Final = 1024  # below, only root may listen (ip_unprivileged_port_start)
SOCKS_PORT: Final = 1080  # RFC 1928 §3


def other_command(server: str, grants: Sequence[Grant]) -> str:
    """Return the command with which the other side uses all of `grants`."""
    return " ".join(["ptunnel connect", f"--server {short_server(server)}", *options_for(grants)])


def all_in_one(code: str, server: str, grants: Sequence[Grant]) -> str:
    """The same with the code, which carries its server."""
    from tunnel.errors import command_word

    word = command_word(f"{code}@{short_server(server).strip(chr(39))}")
    return " ".join(["ptunnel connect", word, *options_for(grants)])


def short_server(server: str) -> str:
    from tunnel.server_spec import DEFAULT_PORT

    short = server.removesuffix(f":{DEFAULT_PORT}")
    return f"'{server}'" if "[" in server else short if ":" not in short else server


def options_for(grants: Sequence[Grant | Share]) -> list[str]:
    """All of them as options of `connect`."""
    options = [f"--forward {text}" for text in forwards_for(grants)]
    options += [f"--socks {SOCKS_PORT}"] if any(each.kind == "net" for each in grants) else []
    return [*options, *(f"--remote {each.first}" for each in grants if each.kind == "remote")]


def forwards_for(grants: Sequence[Grant | Share]) -> list[str]:
    """A --forward for each grant, with local ports that an ordinary user may use, each of them once; tcp and udp of one place
    together.  What is beyond the ports that one command may forward is left out."""
    from tunnel.ports.spec import MAX_FORWARDS

    protocols: dict[tuple[str | None, int, int], list[str]] = {}
    for grant in (each for each in grants if each.kind == "port"):
        kinds = protocols.setdefault((grant.asked, grant.first, grant.last), [])
        if grant.protocol not in kinds:
            kinds.append(grant.protocol)
    counts: dict[tuple[str | None, int, int], int] = {}
    left = MAX_FORWARDS
    for (name, first, last), kinds in protocols.items():
        if count := min(last - first + 1, left // len(kinds)):
            counts[name, first, last] = count
            left -= count * len(kinds)
    places: dict[tuple[str | None, int, int], int] = {}
    taken: set[int] = set()
    for place in sorted(counts, key=lambda place: place[1] < FIRST_FREE_PORT):  # whoever may have the same port, gets it
        places[place] = _free(_suggest(*place[1:]), counts[place], taken)
        taken.update(range(places[place], places[place] + counts[place]))
    names = [name for name, _first, _last in counts]
    texts = []
    for place, count in counts.items():
        name, first, last = place
        kinds, local = protocols[place], _span(places[place], count - 1)
        ports = _span(first, count - 1)
        is_whole = last == first and names.count(name) == 1  # then the name alone says which port
        remote = ports if name is None else name if is_whole else f"{name}:{ports}"
        suffix = "" if kinds == ["tcp"] else f"/{'+'.join(kinds)}"
        texts.append(f"{local}{suffix}" if local == remote else f"{local}:{remote}{suffix}")
    return texts


def _suggest(first: int, last: int) -> int:
    if first >= FIRST_FREE_PORT:
        return first
    return SUGGESTED.get(first, first + 10_000) if first == last else first + 10_000


def _free(wish: int, count: int, taken: set[int]) -> int:
    """The first of `count` local ports in a row that are not taken: at `wish`, 10,000 further on, or wherever there are some."""
    starts = itertools.chain(range(wish, 65_536, 10_000), range(FIRST_FREE_PORT, 65_536))
    return next(start for start in starts if start + count <= 65_536 and taken.isdisjoint(range(start, start + count)))


def _span(first: int, more: int) -> str:
    return f"{first}-{first + more}" if more else str(first)
