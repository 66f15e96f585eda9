"""Examples of ports and forwards with their meaning, for docs/notation.md and --help; the tests hold them."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class Example(NamedTuple):
    """An input and its shortest form, or the beginning of the sentence that says what to type instead."""

    kind: Literal["share", "forward", "target"]
    typed: str
    means: str
    is_refused: bool = False


EXAMPLES: Final = (
    Example("share", "22", "22"),
    Example("share", "tcp/22", "22"),
    Example("share", "22/tcp", "22"),
    Example("share", "53/udp", "53/udp"),
    Example("share", "udp/5000-5010", "5000-5010/udp"),
    Example("share", "25565/tcp+udp", "25565/tcp+udp"),
    Example("share", "ssh", "22"),
    Example("share", ":3000", "3000"),
    Example("share", "localhost:3000", "3000"),
    Example("share", "127.0.0.1:3000", "3000"),
    Example("share", "[::1]:3000", "3000"),
    Example("share", "0.0.0.0:3000", "3000"),
    Example("share", "3000:3000", "3000"),
    Example("share", "http://localhost:3000/", "3000"),
    Example("share", "https://localhost", "443"),
    Example("share", "nas=192.168.1.5:445", "nas=192.168.1.5:445"),
    Example("share", "web=localhost:7001", "web=localhost:7001"),
    Example("share", "web=http://192.168.1.5", "web=192.168.1.5:80"),
    Example("share", "tcp+proxy/8080", "8080/tcp+proxy"),
    Example("share", "unix:/run/app.sock", "unix:/run/app.sock"),
    Example("share", "unix:///run/app.sock", "unix:/run/app.sock"),
    Example("share", "/run/app.sock", "unix:/run/app.sock"),
    Example("share", "pg=unix:/run/postgresql/.s.PGSQL.5432", "pg=unix:/run/postgresql/.s.PGSQL.5432"),
    Example("share", "8080:3000", "write 3000: the other side chooses its own port, with --forward 8080:3000", is_refused=True),
    Example(
        "share", "2222:localhost:22", "write 22: the other side chooses its own port, with --forward 2222:22", is_refused=True
    ),
    Example(
        "share", "192.168.1.5:445", "another machine needs a name here, as in nas=192.168.1.5:445", is_refused=True
    ),
    Example(
        "share", "nas:192.168.1.5:445", "another machine needs a name here, as in nas=192.168.1.5:445", is_refused=True
    ),
    Example("share", "http://192.168.1.5:8080", "another machine needs a name here, as in nas=192.168.1.5:8080", is_refused=True),
    Example("share", "ssh=22", "after the equals sign stands HOST:PORT, as in ssh=localhost:22", is_refused=True),
    Example(
        "share", "8080:unix:/run/app.sock", "write unix:/run/app.sock alone: the other side chooses its own port", is_refused=True
    ),
    Example("share", "unix:app.sock", "a Unix socket is written with its whole path, as in unix:/run/app.sock", is_refused=True),
    Example("share", "22,80", "write several with blanks between them, as in 22 80", is_refused=True),
    Example("share", "rv.example.net", "a server is named by --server rv.example.net", is_refused=True),
    Example("share", "friend", "a remembered peer is named by --to friend", is_refused=True),
    Example("forward", "8080", "8080"),
    Example("forward", "2222:22", "2222:22"),
    Example("forward", "tcp/2222:22", "2222:22"),
    Example("forward", "2222:tcp/22", "2222:22"),
    Example("forward", "5353:53/udp", "5353:53/udp"),
    Example("forward", "3000:3000", "3000"),
    Example("forward", ":3000", "3000"),
    Example("forward", "https", "443"),
    Example("forward", "http://localhost:3000", "localhost:3000"),
    Example("forward", "8001:localhost:7001", "8001:7001"),
    Example("forward", "8001:127.0.0.1:7001", "8001:7001"),
    Example("forward", "8001:[::1]:7001", "8001:7001"),
    Example("forward", "1445:nas", "1445:nas"),
    Example("forward", "*:8080", "*:8080"),
    Example("forward", "5432:unix:/run/postgresql/.s.PGSQL.5432", "5432:unix:/run/postgresql/.s.PGSQL.5432"),
    Example("forward", "5432:/run/postgresql/.s.PGSQL.5432", "5432:unix:/run/postgresql/.s.PGSQL.5432"),
    Example("forward", "unix:/tmp/pg.sock:5432", "unix:/tmp/pg.sock:5432"),
    Example("forward", "unix:/tmp/pg.sock:pg", "unix:/tmp/pg.sock:pg"),
    Example("forward", "unix:/tmp/a.sock:unix:/run/b.sock", "unix:/tmp/a.sock:unix:/run/b.sock"),
    Example("forward", "web=localhost:7001", "here it is LOCAL:NAME, as in 7001:web", is_refused=True),
    Example("forward", "nas:445", "'nas' is no IP address", is_refused=True),
    Example(
        "forward", "unix:/tmp/pg.sock", "does not say what of the peer is meant: write unix:/tmp/pg.sock:PORT", is_refused=True
    ),
    Example("forward", "unix:/tmp/dns.sock:53/udp", "a Unix socket carries tcp only", is_refused=True),
    Example("forward", "22,80", "give each its own --forward", is_refused=True),
    Example("target", "22", "22"),
    Example("target", "tcp/22", "22"),
    Example("target", ":22", "22"),
    Example("target", "localhost:22", "22"),
    Example("target", "ssh", "ssh"),
    Example("target", "nas:445", "nas:445"),
    Example("target", "unix:/run/app.sock", "unix:/run/app.sock"),
    Example("target", "2222:22", "--stdio takes the peer's port alone: write 22", is_refused=True),
    Example("target", "53/udp", "--stdio carries tcp only", is_refused=True),
)  # fmt: skip


def also(kind: str) -> str:
    """One line for --help: what else of one kind is understood."""
    meant: dict[str, list[str]] = {}
    for each in EXAMPLES:
        if each.kind == kind and each.typed != each.means and not each.is_refused:
            meant.setdefault(each.means, []).append(each.typed)
    return "Also understood: " + "; ".join(f"{', '.join(typed)} for {means}" for means, typed in meant.items()) + "."
