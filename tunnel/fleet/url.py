"""The URL of a fleet's store: of which kind it is, where, who we are there, and whom we trust."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from tunnel.errors import ConfigurationError


class Kind(Enum):
    """How a store is made up: one server, a cluster, or one that sentinels watch."""

    ALONE = "alone"
    CLUSTER = "cluster"
    SENTINELS = "sentinels"


PORT: Final = 6379
SENTINEL_PORT: Final = 26_379
SCHEMES: Final = {
    "redis": (Kind.ALONE, False),
    "rediss": (Kind.ALONE, True),
    "unix": (Kind.ALONE, False),
    "redis+cluster": (Kind.CLUSTER, False),
    "rediss+cluster": (Kind.CLUSTER, True),
    "redis+sentinel": (Kind.SENTINELS, False),
    "rediss+sentinel": (Kind.SENTINELS, True),
}
FORMS: Final = (
    "--fleet needs the URL of a store: redis://HOST/, rediss://HOST/ (TLS), unix:///PATH, redis+cluster://HOST,HOST/ or "
    "redis+sentinel://HOST,HOST/NAME (rediss+ for TLS)."
)
TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
OPTIONS: Final = frozenset({"db", "sentinel_password"})
NO: Final = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """As given by the operator."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""  # of a Unix socket, in the place of hosts
    name: str = ""  # by which sentinels know the primary
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


def parse(url: str) -> StoreUrl:
    """Raises ConfigurationError, in which no password is."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(FORMS) from None
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(FORMS)
    kind, has_tls = SCHEMES[parts.scheme]
    users, _, places = parts.netloc.rpartition("@")
    user, _, password = users.partition(":")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = options.keys() - OPTIONS - (TLS_OPTIONS if has_tls else frozenset())
    if unknown:
        hint = "" if has_tls or not unknown & TLS_OPTIONS else " Options for TLS need a URL that begins with 'rediss'."
        raise ConfigurationError(f"The URL of the store has an option that does not belong there: {min(unknown)[:40]!r}.{hint}")
    is_unix = parts.scheme == "unix"
    found = () if is_unix else tuple(_host(each, SENTINEL_PORT if kind is Kind.SENTINELS else PORT) for each in places.split(","))
    if kind is Kind.ALONE and len(found) > 1:
        raise ConfigurationError("Several hosts are a cluster (redis+cluster://) or sentinels (redis+sentinel://).")
    name, _, db = parts.path.strip("/").partition("/")
    if kind is not Kind.SENTINELS:
        name, db = "", "" if is_unix else name
    elif not name:
        raise ConfigurationError("Say by which name the sentinels know the primary: redis+sentinel://HOST,HOST/NAME.")
    if is_unix and not parts.path.strip("/"):
        raise ConfigurationError("Say where the socket of the store is: unix:///run/redis/redis.sock.")
    return StoreUrl(
        kind=kind,
        hosts=found,
        path=unquote(parts.path) if is_unix else "",
        name=unquote(name),
        db=_db(options.get("db", db)),
        user=unquote(user) or None,
        password=unquote(password) or None,
        sentinel_password=options.get("sentinel_password"),
        tls=_tls(options) if has_tls else None,
    )


def _host(text: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ConfigurationError(f"The URL of the store has no host that can be read: {text[:80]!r}. {FORMS}")
    return unquote(host), default if port is None else port


def _db(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(f"The number of the store's database is a number, not {text[:40]!r}.")
    return int(text)


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    """Certificates are checked, and the name of the host in them unless that is refused."""
    given = options.get("ssl_ca_certs")
    try:
        context = ssl.create_default_context(cafile=given)
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:  # ssl.SSLError is one
        what = options.get("ssl_certfile", "") if given is None else given
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigurationError(f"The certificates for the store cannot be read: {what}: {reason}.") from None
    context.check_hostname = options.get("ssl_check_hostname", "true").lower() not in NO
    return context
