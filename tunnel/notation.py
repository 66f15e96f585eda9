"""How ports, places and forwards are written: the one grammar for `expose`, `revoke`, `--forward` and `--stdio`.

    a share     PORT, NAME=HOST:PORT          what `expose` lets somebody reach, and what `revoke` takes back
    a forward   [BIND:]LOCAL[:REMOTE]         what `connect --forward` carries; REMOTE is PORT, NAME or NAME:PORT of the peer
    a target    REMOTE                        what `connect --stdio` joins

PORT is a number, a range as in 5000-5010, or a service that everybody knows.  A protocol stands behind a slash, or before one
as ptunnel shows it: 53/udp, udp/53.  In the place of PORT, of HOST:PORT and of [BIND:]LOCAL may stand unix:/PATH (tunnel.ends).
tcp+proxy/8080, or 8080/tcp+proxy, is a share whose program is told who connects.
tunnel.examples shows what else is understood; the pages, --help and the tests have it from there.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal, NamedTuple, get_args

from tunnel.ends import (
    MAX_PORT,
    MAX_SHOWN,
    UNIX,
    Found,
    can_be_asked,
    fields_of,
    find_path,
    plain,
    port_of,
    shown,
    spaced,
    without_proxy,
    without_tcp,
)
from tunnel.errors import ConfigurationError

Protocol = Literal["tcp", "udp"]
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
MAX_RANGE: Final = 1_024  # ports of one forward: each is a listening socket or two

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
NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}", re.ASCII)
#: What an older peer may have named, and addresses, which stand there by mistake.
_TARGET_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}|[0-9]{1,3}(\.[0-9]{1,3}){3}", re.ASCII)
HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?)", re.ASCII
)
_SHAPE: Final = "[BIND:]LOCAL[:REMOTE][/tcp|/udp|/tcp+udp], as in 8080, 2222:22 or 5353:53/udp"


class Share(NamedTuple):
    """Ports `first` to `last` of `host`; `name` and `host` None: of this machine.  `protocols` () where none was said.

    A Unix socket is a host `unix:/PATH`, with the port that the other side may take for it.
    """

    protocols: tuple[Protocol, ...]
    name: str | None
    host: str | None
    first: int
    last: int
    proxy: bool = False  # its program is told by the PROXY protocol who connects


class Spec(NamedTuple):
    """One --forward: a target for each local port, or for the Unix socket at `path`."""

    protocols: tuple[Protocol, ...]
    bind: str | None  # as written, without brackets; None: not said
    local: range
    targets: list[int | str]
    path: str = ""


def read_share(text: str) -> Share:
    """Read an argument of `expose`.  Raises ConfigurationError with one sentence."""
    if (plain := without_proxy(text)) != text.strip():
        share = read_share(plain)
        if "udp" in share.protocols:
            raise ConfigurationError(f"{shown(text)}: the PROXY protocol goes with tcp alone.")
        return share._replace(protocols=("tcp",), proxy=True)
    if (socket := _read_socket(text)) is not None:
        return socket
    rest, protocols = split_protocols(text)
    rest, port_of_scheme = _unwrapped(rest)
    if "," in rest:
        raise ConfigurationError(f"{shown(text)}: write several with blanks between them, as in {spaced(rest)}.")
    if "=" in rest:
        name, _, place = rest.partition("=")
        place, port_of_scheme = _unwrapped(place)
        host, ports = _split_place(place)
        host, ports = (host, ports) if host is not None or not port_of_scheme else (ports, "")
        _check_name(text, name, place)
        if not host or not (ports or port_of_scheme):
            instead = f"{name}=localhost:{place.lstrip(':')}" if _PORTS.fullmatch(place.lstrip(":")) else "nas=192.168.1.5:445"
            raise ConfigurationError(f"{shown(text)}: after the equals sign stands HOST:PORT, as in {instead}.")
        if not is_host(host):
            raise ConfigurationError(f"{shown(text)}: {shown(host)} is neither an address nor a host name.")
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
            f"{shown(text)}: write {ports}: the other side chooses its own port, with --forward {before}:{ports}."
        )
    raise ConfigurationError(f"{shown(text)}: another machine needs a name here, as in {_with_name(host, ports)}.")


def read_forward(text: str) -> Spec:
    """Read the value of `--forward`.  Raises ConfigurationError with one sentence."""
    text = text.strip()
    if (found := find_path(text)) is not None:
        return _forward_of_path(text, found)
    rest, protocols = split_protocols(text)
    rest, port_of_scheme = _unwrapped(rest)
    if "," in rest:
        raise ConfigurationError(f"{shown(text)}: give each its own --forward.")
    if "=" in rest:
        name, _, place = rest.partition("=")
        port = place.rpartition(":")[2]
        instead = f"{port if port.isascii() and port.isdecimal() else 8080}:{name if NAME.fullmatch(name) else 'web'}"
        raise ConfigurationError(f"{shown(text)}: a share is written like that; here it is LOCAL:NAME, as in {instead}.")
    bind, fields = _split_bind(text, rest, port_of_scheme)
    local = _forward_ports(text, _port_of(fields[0]), zero_allowed=True)
    return Spec(protocols or ("tcp",), bind, local, _read_targets(text, local, fields[1:]))


def read_target(text: str) -> int | str:
    """Read the value of `--stdio`: a port, NAME, NAME:PORT or unix:/PATH of the peer.  Raises ConfigurationError."""
    if (found := find_path(without_tcp(text))) is not None:
        if found.before or found.behind is not None:
            raise ConfigurationError(f"{shown(text)}: --stdio takes the peer's socket alone: write {UNIX}{found.path}.")
        return _asked_path(text, found.path)
    rest, protocols = split_protocols(text)
    if "udp" in protocols:
        raise ConfigurationError(f"{shown(text)}: --stdio carries tcp only; --forward carries udp too.")
    rest, port_of_scheme = _unwrapped(rest)
    fields = fields_of(text, rest)
    if port_of_scheme and len(fields) == 1:
        fields = [*fields, port_of_scheme]
    if len(fields) == 2 and fields[0] == "" and fields[1]:
        fields = fields[1:]
    if len(fields) == 1 and _PORTS.fullmatch(fields[0]):
        ports = _forward_ports(text, fields[0])
        if len(ports) != 1:
            raise ConfigurationError(f"{shown(text)} is a range: give one port.")
        return ports[0]
    if len(fields) >= 2 and _PORTS.fullmatch(fields[0]):
        raise ConfigurationError(f"{shown(text)}: --stdio takes the peer's port alone: write {plain(fields[-1], 'PORT')}.")
    return _read_targets(text, range(1, 2), fields)[0]


def read_ports(text: str, ports: str) -> tuple[int, int]:
    """FIRST and LAST of a share's ports.  Raises ConfigurationError."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(_port_of(ports)), re.ASCII)
    if match is None:
        raise ConfigurationError(f"{shown(text)}: a port is a number from 1 to 65535, or a range as in 5000-5010.")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= MAX_PORT:
        raise ConfigurationError(f"{shown(text)}: ports go from 1 to 65535, and a range from its lower to its higher end.")
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
            f"{shown(text)}: {shown('/' + words[:20])} is no protocol: after the slash stands tcp, udp or tcp+udp, as in 53/udp."
        )
    return rest, tuple(known for known in PROTOCOLS if known in words.split("+"))


def read_remote(text: str) -> tuple[str | None, int, int]:
    """Where a peer may have us listen, as `expose --allow-remote` takes it: [BIND:]PORT, and BIND None where it is not said.

    Raises ConfigurationError with one sentence.
    """
    rest, protocols = split_protocols(text)
    if "udp" in protocols:
        raise ConfigurationError(f"{shown(text)}: a peer has us listen for tcp only.")
    bind, fields = _split_bind(text, rest, "")
    if len(fields) != 1:
        raise ConfigurationError(
            f"{shown(text)} has too many parts: write [BIND:]PORT, as in 8080; the other side says --remote."
        )
    first, last = read_ports(text, fields[0])
    return (None if bind in (None, "localhost", "127.0.0.1") else bind), first, last


def with_proxy(text: str) -> str:
    """The same share, of which the program is told who connects.  Raises ConfigurationError where that cannot be."""
    text = without_proxy(text)
    rest, protocols = (without_tcp(text), ()) if find_path(without_tcp(text)) is not None else split_protocols(text)
    if "udp" in protocols:
        raise ConfigurationError(f"{shown(text)}: --proxy-protocol goes with tcp alone: share udp by a command of its own.")
    return f"tcp+proxy/{rest}"


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


# -- Unix sockets


def _read_socket(text: str) -> Share | None:
    """A share that is a Unix socket; None: it is none.  Raises ConfigurationError."""
    rest = without_tcp(text)
    found = find_path(rest)
    if found is None:
        return None
    name, equals, more = found.before.rpartition("=")
    if more or found.behind is not None or (found.before and not equals):
        local = found.before.rstrip(":") or (found.behind or "").rpartition(":")[2]
        local = local if _PORTS.fullmatch(local) else "8080"
        raise ConfigurationError(
            f"{shown(text)}: write {UNIX}{found.path} alone: "
            f"the other side chooses its own port, with --forward {local}:{UNIX}{found.path}."
        )
    if equals:
        if "/" in name:
            raise ConfigurationError(f"{shown(text)}: a Unix socket carries tcp only.")
        _check_name(text, name, f"{UNIX}{found.path}")
    else:
        _asked_path(text, found.path)
    port = port_of(found.path)
    return Share(("tcp",), name or None, f"{UNIX}{found.path}", port, port)


def _forward_of_path(text: str, found: Found) -> Spec:
    """One end of the forward is a Unix socket, or both are."""
    if not found.before:
        if not found.behind:
            raise ConfigurationError(f"{shown(text)} does not say what of the peer is meant: write {UNIX}{found.path}:PORT.")
        return Spec(("tcp",), None, range(1), [_target_behind(text, found.behind)], found.path)
    if found.before.endswith("="):
        raise ConfigurationError(
            f"{shown(text)}: a share is written like that; here it is LOCAL:NAME or LOCAL:{UNIX}/PATH, as in 8080:web."
        )
    before, protocols = split_protocols(found.before.removesuffix(":"))
    bind, fields = _split_bind(text, before, "")
    local = _forward_ports(text, fields[0], zero_allowed=True)
    if "udp" in protocols:
        raise ConfigurationError(f"{shown(text)}: a Unix socket carries tcp only.")
    if len(fields) != 1 or len(local) != 1 or found.behind is not None:
        raise ConfigurationError(f"{shown(text)} has too many parts: write [BIND:]LOCAL:{UNIX}{found.path}.")
    return Spec(("tcp",), bind, local, [_asked_path(text, found.path)])


def _target_behind(text: str, behind: str) -> int | str:
    """Read the peer's end behind the path of a socket here."""
    if (found := find_path(behind)) is not None:
        if found.before or found.behind is not None:
            raise ConfigurationError(f"{shown(text)} has too many parts: write {UNIX}/PATH:{UNIX}{found.path}.")
        return _asked_path(text, found.path)
    rest, protocols = split_protocols(behind)
    if "udp" in protocols:
        raise ConfigurationError(f"{shown(text)}: a Unix socket carries tcp only.")
    return _read_targets(text, range(1, 2), fields_of(text, rest))[0]


def _asked_path(text: str, path: str) -> str:
    """How a peer is asked for the socket at `path`."""
    if not can_be_asked(path):
        raise ConfigurationError(f"{shown(text)}: a path of other letters than ASCII needs a name, as in app={UNIX}/PATH.")
    return f"{UNIX}{path}"


# -- shares


def _check_name(text: str, name: str, place: str) -> None:
    if name.lower() == "localhost":
        raise ConfigurationError(
            f"{shown(text)}: that name would be taken for a machine: "
            f"choose another one, as in web={plain(place, 'localhost:7001')}."
        )
    if NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"{shown(text)}: the name before the equals sign has letters, digits, dots and hyphens only, a letter first."
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
        raise ConfigurationError(f"{shown(text)}: a port is a number, as in 22; a server is named by --server {word}.")
    if NAME.fullmatch(word):
        raise ConfigurationError(f"{shown(text)}: a port is a number, as in 22; a remembered peer is named by --to {word}.")


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


# -- forwards and targets


def _split_bind(text: str, rest: str, port_of_scheme: str) -> tuple[str | None, list[str]]:
    """BIND, None where none is said, and the other fields, of which there is at least one."""
    if not rest:
        raise ConfigurationError(f"--forward needs a port: write {_SHAPE}.")
    is_bracketed = rest.startswith("[")
    fields = fields_of(text, rest)
    if port_of_scheme and len(fields) == 1:
        fields = [*fields, port_of_scheme]
    if not is_bracketed:
        if len(fields) == 2 and fields[0] == "" and fields[1]:
            return None, fields[1:]
        if len(fields) > 4 or "" in fields[:-1]:
            try:
                ipaddress.IPv6Address(rest.rpartition(":")[0])
            except ValueError:
                raise ConfigurationError(f"{shown(text)} cannot be read: write {_SHAPE}.") from None
            raise ConfigurationError(f"{shown(text)} is ambiguous: put the IPv6 address in brackets, as in [::1]:8080.")
        if len(fields) == 1 or _PORTS.fullmatch(_port_of(fields[0])):
            return None, fields
    if len(fields) == 1:
        raise ConfigurationError(
            f"{shown(text)} needs a port behind the bracket: write [{plain(fields[0], 'ADDRESS')}]:LOCAL[:REMOTE]."
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
    raise ConfigurationError(f"{shown(host)} is no IP address, in {shown(text)}: {more}.")


def _port_of(word: str) -> str:
    """The port for the name of a service."""
    return str(SERVICES.get(word.lower(), word))


def _forward_ports(text: str, field: str, *, zero_allowed: bool = False) -> range:
    if _PORTS.fullmatch(field) is None:
        if field:
            raise ConfigurationError(
                f"{shown(field)} in {shown(text)} is no port: a port is a number from 1 to 65535, or a range as in 5000-5010."
            )
        raise ConfigurationError(f"A port is missing in {shown(text)}: write {_SHAPE}.")
    low, dash, high = field.partition("-")
    if dash and not high:
        raise ConfigurationError(f"The range {shown(field)} has no end: write it as 5000-5010.")
    if len(low) > 5 or len(high) > 5:
        raise ConfigurationError(
            f"Port {max(low, high, key=len)[:MAX_SHOWN]} in {shown(text)} is out of range: ports go from 1 to 65535."
        )
    first, last = int(low), int(high) if dash else int(low)
    for port in (first, last):
        if port > MAX_PORT or (port == 0 and not (zero_allowed and not dash)):
            raise ConfigurationError(f"Port {port} in {shown(text)} is out of range: ports go from 1 to 65535.")
    if last < first:
        raise ConfigurationError(f"The range {shown(field)} runs backwards: write {last}-{first}.")
    if last - first >= MAX_RANGE:
        raise ConfigurationError(f"The range {shown(field)} has {last - first + 1} ports: at most {MAX_RANGE} can be forwarded.")
    return range(first, last + 1)


def _read_targets(text: str, local: range, fields: list[str]) -> list[int | str]:
    """A target for each local port."""
    match fields:
        case []:
            if local[0] == 0:
                raise ConfigurationError(f"{shown(text)} does not say which port of the peer is meant: write 0:PORT.")
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
                    f"{shown(text)} forwards a range to the name {shown(name)}: "
                    f"say its ports too, as in {plain(name, 'nas')}:5000-5010."
                )
            return [_checked_target(text, name)]
        case [name, ports]:
            remote = _forward_ports(text, ports)
            _match_lengths(text, local, remote)
            checked = _checked_target(text, name)
            return [f"{checked}:{port}" for port in remote]
        case _:
            raise ConfigurationError(f"{shown(text)} has too many parts: write {_SHAPE}.")


def _checked_target(text: str, name: str) -> str:
    if _TARGET_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"{shown(name)} in {shown(text)} is neither a port nor a name: a name is letters, digits, dots and dashes, "
            "a letter first."
        )
    return name


def _match_lengths(text: str, local: range, remote: range) -> None:
    if len(local) != len(remote):
        raise ConfigurationError(
            f"The two ranges in {shown(text)} differ in length ({len(local)} and {len(remote)} ports): make them equal."
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


def printable(text: str) -> str:
    """Somebody else's words, made harmless for a terminal."""
    return "".join(filter(str.isprintable, text))
