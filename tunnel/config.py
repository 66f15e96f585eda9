"""Settings: from flags, then the environment, then config.toml of PTUNNEL_HOME, then safe defaults; checked once.

config.toml knows the same words as the flags:

    server = "rv.example.net"      # host or host:port; the port is 24531 unless said
    name = "home"                  # how we introduce ourselves to new peers
    path = "auto"                  # auto, direct or relay
    access_token = "..."           # for a server that lets in only those who hold one
    qlog = "/tmp/qlog"             # a folder for traces of connections
    portmap = "on"                 # on or off: ask the router to forward a port
    tls_port = "443"               # TCP port of the server, for networks that block UDP; or off
    tls_fingerprint = "..."        # SHA-256 of the server's certificate; without it public authorities vouch for its name

A server's word may carry its own: HOST[:PORT][,tls=PORT|off][,pin=SHA256].  It is remembered with the peer like that.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from tunnel.errors import ConfigurationError

DEFAULT_PORT: Final = 24_531
DEFAULT_TLS_PORT: Final = 443  # TCP: the last port that networks close
PathPolicy: TypeAlias = Literal["auto", "direct", "relay"]
PATHS: Final = get_args(PathPolicy)
MAX_NAME: Final = 64  # characters
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?\Z"
)
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}\Z")
_SCHEME: Final = re.compile(r"\A[a-z]{1,10}://", re.IGNORECASE)  # people copy addresses from browsers
_ZONE: Final = re.compile(r"%[A-Za-z0-9_.-]{1,15}\Z")

#: Setting -> the variable of the environment that stands in for its flag.
VARIABLES: Final = {
    "server": "PTUNNEL_SERVER",
    "code": "PTUNNEL_CODE",
    "access_token": "PTUNNEL_ACCESS_TOKEN",
    "qlog": "PTUNNEL_QLOG",
    "portmap": "PTUNNEL_PORTMAP",
    "tls_port": "PTUNNEL_TLS_PORT",
    "tls_fingerprint": "PTUNNEL_TLS_FINGERPRINT",
}
#: Of these, what a program that is started must not inherit; tun/process.py has the same names.
SECRETS: Final = ("PTUNNEL_CODE", "PTUNNEL_ACCESS_TOKEN")
_taken: dict[str, str] = {}  # out of the environment, by variable
IN_FILE: Final = frozenset(("server", "name", "path", "access_token", "qlog", "portmap", "tls_port", "tls_fingerprint"))


class TlsOptions(NamedTuple):
    """How a server is reached over TLS where UDP is blocked."""

    port: int | None = DEFAULT_TLS_PORT  # TCP; None: not at all
    fingerprint: str | None = None  # SHA-256 of its certificate, 64 hex digits; None: public authorities vouch for its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a command goes by."""

    server: str | None = None  # host or host:port
    is_server_given: bool = False  # by flag: goes before the one that a peer is remembered with
    is_server_refused: bool = False  # "none": one of one's own, for this network only
    code: str | None = field(default=None, repr=False)  # a secret
    name: str | None = None
    path: PathPolicy = "auto"
    qlog: str | None = None  # a folder for traces
    portmap: str = "on"  # or off
    access_token: str | None = field(default=None, repr=False)  # a secret: by environment or file only
    tls_port: str | None = None  # a TCP port, or off
    tls_fingerprint: str | None = None

    @property
    def tls(self) -> TlsOptions:
        """For servers whose word says nothing else."""
        return make_tls_options(self.tls_port, self.tls_fingerprint)

    @property
    def wants_port_mapping(self) -> bool:
        return self.portmap == "on"

    @property
    def access_token_bytes(self) -> bytes:
        return (self.access_token or "").encode()

    @property
    def given_server(self) -> str | None:
        return self.server if self.is_server_given else None


def take_secrets(environ: MutableMapping[str, str]) -> None:
    """For a program that begins: what is secret leaves the environment, so that no child inherits it; `load` knows it."""
    for variable in SECRETS:
        if value := environ.pop(variable, None):
            _taken[variable] = value


def load(
    file: Mapping[str, Any], environ: Mapping[str, str], *, prefix: str = "--", tls: TlsOptions | None = None, **flags: str | None
) -> Settings:
    """The only place where settings are resolved: the command line and the library both ask here.

    `prefix` says how a flag is called in sentences: "--" on a command line, "" as an argument of the library.  `tls` goes before
    everything that is said elsewhere about TLS.  Raises ConfigurationError, naming where the bad value stands.
    """
    for key in file:
        if key not in IN_FILE:
            known = ", ".join(sorted(IN_FILE))
            raise ConfigurationError(f"config.toml has the unknown setting {str(key)[:40]!r}: known are {known}.")
    chosen: dict[str, str] = {}
    places: dict[str, str] = {}
    for key, value in file.items():
        if not isinstance(value, str):
            raise ConfigurationError(f'config.toml: {key} must be text in quotes, as in {key} = "...".')
        chosen[key], places[key] = value, f"config.toml: {key}"
    for key, variable in VARIABLES.items():
        if value := environ.get(variable) or _taken.get(variable):
            chosen[key], places[key] = value, variable
    for key, flag in flags.items():
        if flag is not None:
            chosen[key], places[key] = flag, prefix + (key.replace("_", "-") if prefix else key)
    chosen = {key: value if key == "qlog" else value.strip() for key, value in chosen.items()}
    token = chosen.get("access_token", "")
    if any(character.isspace() or character in "\"'" for character in token):
        raise ConfigurationError(
            f"{places['access_token']}: a token has no blanks or quotes in it: is there more than the token?"
        )
    settings = replace(Settings(**chosen), is_server_given=flags.get("server") is not None)  # type: ignore[arg-type]
    if tls is not None:
        port = "off" if tls.port is None else str(tls.port)
        settings = replace(settings, tls_port=port, tls_fingerprint=tls.fingerprint)
    options = make_tls_options(settings.tls_port, settings.tls_fingerprint, places)
    if settings.server is not None and settings.server.lower() == "none":
        settings = replace(settings, server=None, is_server_given=False, is_server_refused=True)
    if settings.server is not None:
        parse_server(settings.server, places["server"])
        settings = replace(settings, server=with_tls_options(settings.server, options, places["server"]))
    if settings.path not in PATHS:
        raise ConfigurationError(f"{places['path']} is auto, direct or relay, not {settings.path[:40]!r}.")
    if settings.portmap not in ("on", "off"):
        raise ConfigurationError(f"{places['portmap']} is on or off, not {settings.portmap[:40]!r}.")
    if settings.name is not None and not (0 < len(settings.name) <= MAX_NAME and settings.name.isprintable()):
        raise ConfigurationError(f"{places['name']} needs 1 to {MAX_NAME} printable characters.")
    return settings


def parse_server(text: str, place: str = "--server") -> tuple[str, int]:
    """`host`, `host:port`, `1.2.3.4:port`, `[2001:db8::1]:port` or a bare IPv6 address; behind it may stand options for TLS.

    Raises ConfigurationError.
    """
    address, _ = _split_word(text, place)
    host, port = split_host_port(address, place, DEFAULT_PORT)
    if not port:
        raise ConfigurationError(f"{place}: port 0 of {text[:80]!r} is no port to send to.")
    return host, port


def tls_options(word: str, default: TlsOptions, place: str = "--server") -> TlsOptions:
    """Those of a server's word; what it does not say is as in `default`.  Raises ConfigurationError."""
    _, said = _split_word(word, place)
    own = make_tls_options(said.get("tls"), said.get("pin"), {"tls_port": f"{place}: tls=", "tls_fingerprint": f"{place}: pin="})
    return TlsOptions(own.port if "tls" in said else default.port, own.fingerprint if "pin" in said else default.fingerprint)


def with_tls_options(word: str, options: TlsOptions, place: str = "--server") -> str:
    """The server's word with these options written out, where they are not the usual ones.  Raises ConfigurationError."""
    chosen = tls_options(word, options, place)
    address, _ = _split_word(word, place)
    if chosen.port != DEFAULT_TLS_PORT:
        address += f",tls={'off' if chosen.port is None else chosen.port}"
    return address if chosen.fingerprint is None else f"{address},pin={chosen.fingerprint}"


def make_tls_options(port: str | None, fingerprint: str | None, places: Mapping[str, str] = MappingProxyType({})) -> TlsOptions:
    """From what people write.  Raises ConfigurationError."""
    number: int | None = DEFAULT_TLS_PORT
    if port is not None:
        port = port.strip()
        if port == "off":
            number = None
        elif port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65_535:
            number = int(port)
        else:
            raise ConfigurationError(
                f"{places.get('tls_port', '--tls-port')} is a TCP port from 1 to 65535, or off, not {port[:20]!r}."
            )
    digits: str | None = None
    if fingerprint is not None:
        digits = fingerprint.strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
        if _FINGERPRINT.match(digits) is None:
            place = places.get("tls_fingerprint", "--tls-fingerprint")
            raise ConfigurationError(
                f"{place} is the SHA-256 of the server's certificate, 64 hexadecimal digits, as 'ptunnel serve' prints it; "
                f"{fingerprint[:20]!r} is not."
            )
    return TlsOptions(number, digits)


def _split_word(word: str, place: str) -> tuple[str, dict[str, str]]:
    address, *rest = word.strip().split(",")
    address = _bare_address(address, place)
    said: dict[str, str] = {}
    for item in rest:
        key, equals, value = item.strip().partition("=")
        if key not in ("tls", "pin") or not equals:
            raise ConfigurationError(f"{place}: {item[:40]!r} is no option of a server, as tls=PORT, tls=off and pin=SHA256 are.")
        said[key] = value
    return address, said


def _bare_address(address: str, place: str) -> str:
    """Without what people copy along from a browser or from ssh.  Raises ConfigurationError for a user's name."""
    scheme = _SCHEME.match(address)
    bare = address[scheme.end() :].partition("/")[0] if scheme else address.rstrip("/")
    if "@" in bare:
        host = bare.rpartition("@")[2]
        raise ConfigurationError(
            f"{place} names a server, and a server has no users: write {host[:80]!r}, without what is before it."
        )
    return bare


def split_host_port(text: str, place: str, default_port: int) -> tuple[str, int]:
    """The same with port 0 allowed, for addresses to listen on.  Raises ConfigurationError."""
    text = _SCHEME.sub("", text.strip()).rstrip("/")
    shown = repr(text[:80])
    port_text: str | None
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigurationError(f"{place}: {shown} has no closing bracket before the port: write [ADDRESS]:PORT.")
        port_text = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port_text = text, None
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else None
    if port_text is None:
        port = default_port
    elif port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5 and int(port_text) <= 65_535:
        port = int(port_text)
    else:
        raise ConfigurationError(f"{place}: {port_text[:20]!r} in {shown} is no port: ports go from 1 to 65535.")
    if not _is_host(host):
        raise ConfigurationError(f"{place}: {shown} is neither a host name nor an address: write HOST or HOST:PORT.")
    return host, port


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(_ZONE.sub("", host))
    except ValueError:
        looks_numeric = host.replace(".", "").isdigit()  # 300.1.1.1 is a mistyped address, not a name
        return not looks_numeric and _HOST_NAME.match(host) is not None
    return True
