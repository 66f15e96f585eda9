"""Events of `connect`, `expose` and `lan` for their caller: one frozen class for each event of the machine interface.

`to_dict` gives the JSON object, `event` first; its keys are as stable as the wire format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """We stand ready at `bind`.  For an embedded server that is the address the other side must name as its server.

    `public` is where it is reached from other networks, when the router forwards a port to it; told again when that changes.
    """

    bind: str
    embedded: bool = False
    public: str | None = None

    def to_dict(self) -> dict[str, Any]:
        told = {"event": "listening", "bind": self.bind}
        return told if self.public is None else {**told, "public": self.public}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReady:
    """Tell this code to one person.  Replaces any earlier one.  `expires_s` None: good for many, as long as this runs."""

    code: str
    expires_s: float | None

    def to_dict(self) -> dict[str, Any]:
        return {"event": "code", "code": self.code, "expires_s": None if self.expires_s is None else round(self.expires_s)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The code led to this peer, who is remembered from now on under the name `peer`."""

    peer: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        return {"event": "paired", "peer": self.peer, "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """All that the remembered peer `peer` may reach here: told of each when we stand ready, and again when that changes."""

    peer: str
    grants: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"event": "serving", "peer": self.peer, "grants": list(self.grants)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReport:
    """Data to and from `peer` goes this way until the next PathReport."""

    kind: str
    remote: str
    rtt_s: float
    mtu: int
    why: str
    peer: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "event": "path",
            "kind": self.kind,
            "remote": self.remote,
            "rtt_s": round(self.rtt_s, 6),
            "mtu": self.mtu,
            "why": self.why,
            "peer": self.peer,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """A member of our room is now like this.  `state` is online, offline or removed; `kind` and `why` of its path, while online.

    `is_me`: it is ourselves, told when we are in, and again when the room gets other addresses.  `room`: which one, where a
    process may be in several.
    """

    peer: str
    address: str
    ipv6: str
    state: str
    kind: str | None = None
    why: str = ""
    is_me: bool = False
    room: str = ""

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = {"event": "member"}
        told |= {name: getattr(self, name) for name in ("peer", "address", "ipv6", "state", "kind", "why")}
        told["self"] = self.is_me
        return {**told, "room": self.room} if self.room else told


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The link to `peer` has ended; of a room: this machine is no longer in it, and `peer` is the room's name."""

    reason: str
    peer: str

    def to_dict(self) -> dict[str, Any]:
        return {"event": "closed", "reason": self.reason, "peer": self.peer}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something a person should know; what can heal is being retried.  What cannot is raised instead, or after this.

    `code` is one of those that docs/json.md lists for `warning`.
    """

    code: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        return {"event": "warning", "code": self.code, "message": self.message}


Event: TypeAlias = Listening | CodeReady | Paired | Serving | PathReport | MemberReport | Closed | Trouble
