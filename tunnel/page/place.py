"""How the setting `page` is written: an address of this machine with a port, or a Unix socket."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from tunnel.ends import MAX_PORT, checked_path, is_path, path_of, shown
from tunnel.errors import ConfigurationError

USUAL_PORT: Final = 24580  # in examples, and for a port that leads to the Unix socket
EXAMPLE: Final = f"127.0.0.1:{USUAL_PORT}"
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:]{2,39}\]|[0-9.]{7,15}|localhost):(?P<port>[0-9]{1,5})", re.ASCII)


class Place(NamedTuple):
    """Where the page is: at `host` and `port`, or at the Unix socket `path`."""

    host: str
    port: int
    path: str = ""

    def names(self, port: int) -> frozenset[str]:
        """Return what a request's Host may be (RFC 9110 §7.2), where the page listens at `port`.

        A name that leads here today and elsewhere tomorrow is not among them: a site that rebinds its own name gets nothing.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        spelled = {host, "localhost"}
        return frozenset({f"{each}:{port}" for each in spelled} | (spelled if port == HTTP_PORT else set()))


HTTP_PORT: Final = 80  # left out of Host (RFC 9110 §4.2.1)
#: Through a Unix socket a browser comes by way of a port that somebody else has chosen, as `ssh -L` does.
LOCAL_NAME: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.ASCII)


def read_place(text: str, where: str = "page") -> Place:
    """Raises ConfigurationError with one sentence."""
    text = text.strip()
    if is_path(text):
        return Place("", 0, checked_path(text, path_of(text)))
    match = _ADDRESS.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= MAX_PORT:
        raise ConfigurationError(
            f"{where} is an address of this machine with a port, or a Unix socket: {EXAMPLE} or unix:/PATH, not {shown(text)}."
        )
    host = "127.0.0.1" if match["host"] == "localhost" else match["host"].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigurationError(f"{where}: {shown(host)} is no IP address: write {EXAMPLE}.") from None
    if not address.is_loopback:
        raise ConfigurationError(
            f"{where}: {host} can be reached from other machines, and this page is for this one alone: write {EXAMPLE}; "
            f"from elsewhere use ssh -L {match['port']}:localhost:{match['port']}."
        )
    return Place(str(address), int(match["port"]))
