"""What a command line or a store needs before there is an endpoint: codes, grants, keys, the process's limits.  No trio."""

from __future__ import annotations

from tunnel.host.clock import boottime
from tunnel.host.limits import raise_descriptor_limit
from tunnel.host.listening import listening
from tunnel.node.events import KeptPsk
from tunnel.pairing.code import Purpose, complete, looks_like_code, parse_code, require_purpose, split_server
from tunnel.pairing.grants import Grant, GrantSet
from tunnel.pairing.identity import fingerprint, sanitise_name
from tunnel.transport.connection.events import CloseCode

__all__ = [
    "CloseCode",
    "Grant",
    "GrantSet",
    "KeptPsk",
    "Purpose",
    "boottime",
    "complete",
    "fingerprint",
    "listening",
    "looks_like_code",
    "parse_code",
    "split_server",
    "raise_descriptor_limit",
    "require_purpose",
    "sanitise_name",
]
