"""How ports, places and forwards are written: the one grammar for `expose`, `revoke`, `--forward` and `--stdio`.

    a share     PORT, NAME=HOST:PORT          what `expose` lets somebody reach, and what `revoke` takes back
    a forward   [BIND:]LOCAL[:REMOTE]         what `connect --forward` carries; REMOTE is PORT, NAME or NAME:PORT of the peer
    a target    REMOTE                        what `connect --stdio` joins

PORT is a number, a range as in 5000-5010, or a service that everybody knows.  A protocol stands behind a slash, or before one
as ptunnel shows it: 53/udp, udp/53.  EXAMPLES shows what else is understood; the pages, --help and the tests have it from there.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal, NamedTuple, get_args

from tunnel.errors import ConfigurationError

Protocol = Literal["tcp", "udp"]
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
MAX_PORT: Final = 65_535
MAX_RANGE: Final = 1_024  # ports of one forward: each is a listening socket or two
MAX_SHOWN: Final = 80  # characters of what was typed that a sentence repeats

#: Services over TCP whose names may stand for their port.  What a peer has given the same name goes first.
SERVICES: Final = {
    "ssh": 22, "telnet": 23, "smtp": 25, "http": 80, "imap": 143, "https": 443, "smb": 445, "rsync": 873, "imaps": 993,
    "mqtt": 1883, "nfs": 2049, "mysql": 3306, "rdp": 3389, "postgres": 5432, "postgresql": 5432, "vnc": 5900, "redis": 6379,
    "git": 9418, "minecraft": 25_565,
}  # fmt: skip
#: The peer's own machine, or this one: as people and programs write it.
LOCAL_HOSTS: Final = frozenset(("localhost", "127.0.0.1", "::1"))
#: What programs print for "listening everywhere".
ANY_HOSTS: Final = frozenset(("*", "0.0.0.0", "::", ""))

_PROTOCOL_WORDS: Final = frozenset(("tcp", "udp", "tcp+udp", "udp+tcp"))
_PORTS: Final = re.compile(r"[0-9]+(-[0-9]*)?", re.ASCII)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+]{0,15})://")
_FIELD: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:|$)")
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}", re.ASCII)
#: What an older peer may have named, and addresses, which stand there by mistake.
_TARGET_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}|[0-9]{1,3}(\.[0-9]{1,3}){3}", re.ASCII)
HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?)", re.ASCII
)
_SHAPE: Final = "[BIND:]LOCAL[:REMOTE][/tcp|/udp|/tcp+udp], as in 8080, 2222:22 or 5353:53/udp"


class Example(NamedTuple):
    """What somebody types, and the shortest way to write the same; or how the sentence begins that says what to type instead."""

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
    Example("forward", "web=localhost:7001", "here it is LOCAL:NAME, as in 7001:web", is_refused=True),
    Example("forward", "nas:445", "'nas' is no IP address", is_refused=True),
    Example("forward", "22,80", "give each its own --forward", is_refused=True),
    Example("target", "22", "22"),
    Example("target", "tcp/22", "22"),
    Example("target", ":22", "22"),
    Example("target", "localhost:22", "22"),
    Example("target", "ssh", "ssh"),
    Example("target", "nas:445", "nas:445"),
    Example("target", "2222:22", "--stdio takes the peer's port alone: write 22", is_refused=True),
    Example("target", "53/udp", "--stdio carries tcp only", is_refused=True),
)  # fmt: skip


class Share(NamedTuple):
    """Ports `first` to `last` of `host`; `name` and `host` None: of this machine.  `protocols` () where none was said."""

    protocols: tuple[Protocol, ...]
    name: str | None
    host: str | None
    first: int
    last: int


class Spec(NamedTuple):
    """One --forward: a target for each local port."""

    protocols: tuple[Protocol, ...]
    bind: str | None  # as written, without brackets; None: not said
    local: range
    targets: list[int | str]


def read_share(text: str) -> Share:
    """What `expose` takes.  Raises ConfigurationError with one sentence."""
    rest, protocols = split_protocols(text)
    rest, port_of_scheme = _unwrapped(rest)
    if "," in rest:
        raise ConfigurationError(f"{_shown(text)}: write several with blanks between them, as in {_spaced(rest)}.")
    if "=" in rest:
        name, _, place = rest.partition("=")
        place, port_of_scheme = _unwrapped(place)
        host, ports = _split_place(place)
        host, ports = (host, ports) if host is not None or not port_of_scheme else (ports, "")
        _check_name(text, name, place)
        if not host or not (ports or port_of_scheme):
            instead = f"{name}=localhost:{place.lstrip(':')}" if _PORTS.fullmatch(place.lstrip(":")) else "nas=192.168.1.5:445"
            raise ConfigurationError(f"{_shown(text)}: after the equals sign stands HOST:PORT, as in {instead}.")
        if not is_host(host):
            raise ConfigurationError(f"{_shown(text)}: {_shown(host)} is neither an address nor a host name.")
        first, last = read_ports(text, ports or port_of_scheme)
        return Share(protocols, name, host, first, last)
    host, ports = _split_place(rest)
    if port_of_scheme and host is None and ports:
        host, ports = ports, port_of_scheme
    if host is None or host.lower() in LOCAL_HOSTS or host in ANY_HOSTS or host == ports:
        if host is None and not _PORTS.fullmatch(ports):
            _refuse_word(text, ports)
        return Share(protocols, None, None, *read_ports(text, ports))
    before, _, middle = host.partition(":")
    if _PORTS.fullmatch(before) and (not middle or middle.strip("[]").lower() in LOCAL_HOSTS) and _PORTS.fullmatch(ports):
        read_ports(text, ports)
        raise ConfigurationError(
            f"{_shown(text)}: write {ports}: the other side chooses its own port, with --forward {before}:{ports}."
        )
    raise ConfigurationError(f"{_shown(text)}: another machine needs a name here, as in {_with_name(host, ports)}.")


def read_forward(text: str) -> Spec:
    """What `--forward` takes.  Raises ConfigurationError with one sentence."""
    rest, protocols = split_protocols(text)
    rest, port_of_scheme = _unwrapped(rest)
    if "," in rest:
        raise ConfigurationError(f"{_shown(text)}: give each its own --forward.")
    if "=" in rest:
        name, _, place = rest.partition("=")
        port = place.rpartition(":")[2]
        instead = f"{port if port.isascii() and port.isdecimal() else 8080}:{name if NAME.fullmatch(name) else 'web'}"
        raise ConfigurationError(f"{_shown(text)}: a share is written like that; here it is LOCAL:NAME, as in {instead}.")
    bind, fields = _split_bind(text, rest, port_of_scheme)
    local = _forward_ports(text, _port_of(fields[0]), zero_allowed=True)
    return Spec(protocols or ("tcp",), bind, local, _read_targets(text, local, fields[1:]))


def read_target(text: str) -> int | str:
    """What `--stdio` takes: a port, NAME or NAME:PORT of the peer.  Raises ConfigurationError."""
    rest, protocols = split_protocols(text)
    if "udp" in protocols:
        raise ConfigurationError(f"{_shown(text)}: --stdio carries tcp only; --forward carries udp too.")
    rest, port_of_scheme = _unwrapped(rest)
    fields = _fields(text, rest)
    if port_of_scheme and len(fields) == 1:
        fields = [*fields, port_of_scheme]
    if len(fields) == 2 and fields[0] == "" and fields[1]:
        fields = fields[1:]
    if len(fields) == 1 and _PORTS.fullmatch(fields[0]):
        ports = _forward_ports(text, fields[0])
        if len(ports) != 1:
            raise ConfigurationError(f"{_shown(text)} is a range: give one port.")
        return ports[0]
    if len(fields) >= 2 and _PORTS.fullmatch(fields[0]):
        raise ConfigurationError(f"{_shown(text)}: --stdio takes the peer's port alone: write {_plain(fields[-1], 'PORT')}.")
    return _read_targets(text, range(1, 2), fields)[0]


def read_ports(text: str, ports: str) -> tuple[int, int]:
    """FIRST and LAST of a share's ports.  Raises ConfigurationError."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(_port_of(ports)), re.ASCII)
    if match is None:
        raise ConfigurationError(f"{_shown(text)}: a port is a number from 1 to 65535, or a range as in 5000-5010.")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= MAX_PORT:
        raise ConfigurationError(f"{_shown(text)}: ports go from 1 to 65535, and a range from its lower to its higher end.")
    return first, last


def split_protocols(text: str) -> tuple[str, tuple[Protocol, ...]]:
    """`53/udp`, `udp/53` or `udp://...`: what stands beside, and the protocols; () where none is said.

    Raises ConfigurationError.
    """
    text = text.strip()
    scheme = _SCHEME.match(text) or _SCHEME.match(text, text.find("=") + 1)
    if scheme is not None:
        said = tuple(known for known in PROTOCOLS if known == scheme[1].lower())
        return (text[: scheme.start()] + text[scheme.end() :].rstrip("/") if said else text), said
    head, slash, tail = text.partition("/")
    if not slash:
        return head, ()
    before, colon, word = head.rpartition(":")
    if colon and word.lower() in _PROTOCOL_WORDS:  # LOCAL:tcp/REMOTE, as ptunnel shows REMOTE
        head, tail = word, f"{before}:{tail}"
    rest, words = (tail, head.lower()) if head.lower() in _PROTOCOL_WORDS else (head, tail.lower())
    if words not in _PROTOCOL_WORDS:
        raise ConfigurationError(
            f"{_shown(text)}: {_shown('/' + words[:20])} is no protocol: "
            "after the slash stands tcp, udp or tcp+udp, as in 53/udp."
        )
    return rest, tuple(known for known in PROTOCOLS if known in words.split("+"))


def is_host(host: str) -> bool:
    """An address or a host name; not a mistyped one of digits alone."""
    if HOST.fullmatch(host) is None:
        return False
    if not host.replace(".", "").isdigit():
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def also(kind: str) -> str:
    """One line for --help: what else of one kind is understood."""
    meant: dict[str, list[str]] = {}
    for each in EXAMPLES:
        if each.kind == kind and each.typed != each.means and not each.is_refused:
            meant.setdefault(each.means, []).append(each.typed)
    return "Also understood: " + "; ".join(f"{', '.join(typed)} for {means}" for means, typed in meant.items()) + "."


# -- shares


def _check_name(text: str, name: str, place: str) -> None:
    if name.lower() == "localhost":
        raise ConfigurationError(
            f"{_shown(text)}: that name would be taken for a machine: "
            f"choose another one, as in web={_plain(place, 'localhost:7001')}."
        )
    if NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"{_shown(text)}: the name before the equals sign has letters, digits, dots and hyphens only, a letter first."
        )


def _split_place(place: str) -> tuple[str | None, str]:
    """HOST and PORT of what is written HOST:PORT; None where there is no colon."""
    host, colon, ports = place.rpartition(":")
    if place.endswith("]") and place.startswith("["):
        return place[1:-1], ""
    if not colon:
        return None, place
    return (host[1:-1] if host.startswith("[") and host.endswith("]") else host), ports


def _refuse_word(text: str, word: str) -> None:
    """Raises ConfigurationError where a word that is no service stands for a port."""
    if word.lower() in SERVICES or not is_host(word) or (word[0].isdigit() and "." not in word):
        return
    if "." in word:
        raise ConfigurationError(f"{_shown(text)}: a port is a number, as in 22; a server is named by --server {word}.")
    if NAME.fullmatch(word):
        raise ConfigurationError(f"{_shown(text)}: a port is a number, as in 22; a remembered peer is named by --to {word}.")


def _with_name(host: str, ports: str) -> str:
    """How HOST:PORT, or NAME:HOST:PORT, is written; an example where it is neither."""
    head, _, tail = host.partition(":")
    for name, place in ((head, tail), ("nas", host)):
        place = place.strip("[]")
        suggestion = f"{name}=[{place}]:{ports}" if ":" in place else f"{name}={place}:{ports}"
        if not is_host(place) or place.lower() in LOCAL_HOSTS:
            continue
        try:
            read_share(suggestion)
        except ConfigurationError:
            continue
        return suggestion
    return "nas=192.168.1.5:445"


def _spaced(text: str) -> str:
    parts = [part for part in re.split(r"[,\s]+", text) if re.fullmatch(r"[A-Za-z0-9_.:=\[\]-]{1,40}", part)]
    return " ".join(parts[:8]) if parts else "22 80"


# -- forwards and targets


def _fields(text: str, rest: str) -> list[str]:
    """What stands between the colons, of which one in brackets has its own."""
    fields: list[str] = []
    place = 0
    while place <= len(rest):
        match = _FIELD.match(rest, place)
        if match is None:
            raise ConfigurationError(f"{_shown(text)} needs a port behind the bracket: write [ADDRESS]:LOCAL[:REMOTE].")
        fields.append(match[1].strip("[]"))
        place = match.end()
        if not match[2]:
            break
    return fields


def _split_bind(text: str, rest: str, port_of_scheme: str) -> tuple[str | None, list[str]]:
    """BIND, None where none is said, and the other fields, of which there is at least one."""
    if not rest:
        raise ConfigurationError(f"--forward needs a port: write {_SHAPE}.")
    is_bracketed = rest.startswith("[")
    fields = _fields(text, rest)
    if port_of_scheme and len(fields) == 1:
        fields = [*fields, port_of_scheme]
    if not is_bracketed:
        if len(fields) == 2 and fields[0] == "" and fields[1]:
            return None, fields[1:]
        if len(fields) > 4 or "" in fields[:-1]:
            try:
                ipaddress.IPv6Address(rest.rpartition(":")[0])
            except ValueError:
                raise ConfigurationError(f"{_shown(text)} cannot be read: write {_SHAPE}.") from None
            raise ConfigurationError(f"{_shown(text)} is ambiguous: put the IPv6 address in brackets, as in [::1]:8080.")
        if len(fields) == 1 or _PORTS.fullmatch(_port_of(fields[0])):
            return None, fields
    if len(fields) == 1:
        raise ConfigurationError(
            f"{_shown(text)} needs a port behind the bracket: write [{_plain(fields[0], 'ADDRESS')}]:LOCAL[:REMOTE]."
        )
    return _checked_bind(text, fields[0], fields[1:]), fields[1:]


def _checked_bind(text: str, host: str, others: list[str]) -> str:
    if host == "*" or host.lower() == "localhost":
        return host.lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    more = "BIND is one of this computer, such as 127.0.0.1 or [::1], or localhost or *"
    if NAME.fullmatch(host) and len(others) == 1 and others[0].isascii() and others[0].isdecimal():
        more = f"to reach what the peer calls {host}, write {others[0]}:{host}:{others[0]}"
    raise ConfigurationError(f"{_shown(host)} is no IP address, in {_shown(text)}: {more}.")


def _port_of(word: str) -> str:
    """The port for the name of a service."""
    return str(SERVICES.get(word.lower(), word))


def _forward_ports(text: str, field: str, *, zero_allowed: bool = False) -> range:
    if _PORTS.fullmatch(field) is None:
        if field:
            raise ConfigurationError(
                f"{_shown(field)} in {_shown(text)} is no port: a port is a number from 1 to 65535, or a range as in 5000-5010."
            )
        raise ConfigurationError(f"A port is missing in {_shown(text)}: write {_SHAPE}.")
    low, dash, high = field.partition("-")
    if dash and not high:
        raise ConfigurationError(f"The range {_shown(field)} has no end: write it as 5000-5010.")
    if len(low) > 5 or len(high) > 5:
        raise ConfigurationError(
            f"Port {max(low, high, key=len)[:MAX_SHOWN]} in {_shown(text)} is out of range: ports go from 1 to 65535."
        )
    first, last = int(low), int(high) if dash else int(low)
    for port in (first, last):
        if port > MAX_PORT or (port == 0 and not (zero_allowed and not dash)):
            raise ConfigurationError(f"Port {port} in {_shown(text)} is out of range: ports go from 1 to 65535.")
    if last < first:
        raise ConfigurationError(f"The range {_shown(field)} runs backwards: write {last}-{first}.")
    if last - first >= MAX_RANGE:
        raise ConfigurationError(f"The range {_shown(field)} has {last - first + 1} ports: at most {MAX_RANGE} can be forwarded.")
    return range(first, last + 1)


def _read_targets(text: str, local: range, fields: list[str]) -> list[int | str]:
    """A target for each local port."""
    match fields:
        case []:
            if local[0] == 0:
                raise ConfigurationError(f"{_shown(text)} does not say which port of the peer is meant: write 0:PORT.")
            return list(local)
        case [ports] if _PORTS.fullmatch(ports) or not ports:
            remote = _forward_ports(text, ports)
            _match_lengths(text, local, remote)
            return list(remote)
        case [host, ports] if host.lower() in LOCAL_HOSTS:  # as for ssh -L: the peer's own machine
            remote = _forward_ports(text, _port_of(ports))
            _match_lengths(text, local, remote)
            return list(remote)
        case [name]:
            if len(local) > 1:
                raise ConfigurationError(
                    f"{_shown(text)} forwards a range to the name {_shown(name)}: "
                    f"say its ports too, as in {_plain(name, 'nas')}:5000-5010."
                )
            return [_checked_target(text, name)]
        case [name, ports]:
            remote = _forward_ports(text, ports)
            _match_lengths(text, local, remote)
            checked = _checked_target(text, name)
            return [f"{checked}:{port}" for port in remote]
        case _:
            raise ConfigurationError(f"{_shown(text)} has too many parts: write {_SHAPE}.")


def _checked_target(text: str, name: str) -> str:
    if _TARGET_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"{_shown(name)} in {_shown(text)} is neither a port nor a name: a name is letters, digits, dots and dashes, "
            "a letter first."
        )
    return name


def _match_lengths(text: str, local: range, remote: range) -> None:
    if len(local) != len(remote):
        raise ConfigurationError(
            f"The two ranges in {_shown(text)} differ in length ({len(local)} and {len(remote)} ports): make them equal."
        )


# -- both


def _unwrapped(text: str) -> tuple[str, str]:
    """Without `http://` and the path behind; and the port that such an address has where it says none, or ""."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return text, ""
    rest = re.split(r"[/?#]", text[scheme.end() :], maxsplit=1)[0].rpartition("@")[2]
    port = SERVICES.get(scheme[1].lower(), "")
    return rest, str(port)


def _plain(text: str, otherwise: str) -> str:
    """What was typed, where it may stand in a suggestion as it is."""
    return text if re.fullmatch(r"[A-Za-z0-9_.:*%\[\]-]{1,60}", text) else otherwise


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
