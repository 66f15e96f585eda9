"""The log of a rendezvous server for its operator: a line for each client, pair and refusal, and details at DEBUG.

Strangers cause some of it and clients the rest, so each of the two gets only so many lines; the others are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from tunnel.rendezvous.admission import Buckets
from tunnel.rendezvous.messages import GoneReason, RefusalCode
from tunnel.units import Instant, Seconds

LOG_RATE: Final = 5.0  # lines a second that each of the two gets at length: 60 MB a day at most, whoever wants it to grow
LOG_BURST: Final = 100  # lines at once; a class that says `ip ver` together
REPEATED: Final = Seconds(10.0)  # the same refusal of the same host within this is no news: clients ask again by themselves

#: Refusals that belong to the protocol: after a restart, or of one server among several, the client goes on by itself.
ROUTINE: Final = frozenset(
    {
        RefusalCode.UNKNOWN_CHANNEL,
        RefusalCode.BAD_MAC,
        RefusalCode.UNKNOWN_MAILBOX,
        RefusalCode.CLOSING,
        RefusalCode.WRONG_SERVER,
    }
)
ENDED: Final = {
    GoneReason.LEFT: "they have left",
    GoneReason.EXPIRED: "one of them fell silent",
    GoneReason.QUOTA: "their share of bytes is used up",
}

logger = logging.getLogger("ptunnel.serve")
directory = logger.getChild("directory")  # what is asked for in it is public, and said without -v


def _clients(count: int) -> str:
    return f"{count} client{'' if count == 1 else 's'}"


def _left(data: Mapping[str, Any]) -> str:
    how = "fell silent" if data["reason"] == GoneReason.EXPIRED else "left"
    return f"{data['remote']} {how} ({_clients(data['clients'])} now)."


def _pair_ended(data: Mapping[str, Any]) -> str:
    why = ENDED.get(data["reason"], "it is over")
    return f"Pair {data['pair']} ended after {data['seconds']:,.0f} s, {data['relayed']:,} bytes relayed: {why}."


#: Event -> its sentence.  Everything else is for DEBUG.
SENTENCES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "registered": lambda data: f"{data['remote']} came ({_clients(data['clients'])} now).",
    "left": _left,
    "claimed": lambda data: f"Pair {data['pair']}: {data['remote']} met {data['owner']} by a code; the relay is open to them.",
    "introduced": lambda data: f"Pair {data['pair']}: {data['remote']} met {data['owner']} again; the relay is open to them.",
    "restored": lambda data: f"Pair {data['pair']}: {data['remote']} has its relay back after a restart.",
    "pair_ended": _pair_ended,
    "refused": lambda data: f"{data['remote']} was refused: {data['text']}.",
    "directory": lambda data: f"directory remote={data['remote']} text={data['text']!r}",
}
#: Figures of an event, as a program is told them.
FIGURES: Final[Mapping[str, str]] = {"clients": "clients", "pair": "pair", "seconds": "seconds", "relayed": "relayed_bytes"}
OF_STRANGERS: Final = frozenset({"refused", "directory", "stun"})


def facts(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """An event for programs, as docs/json.md has it: what, who, whom and why, and its figures."""
    found: dict[str, Any] = {"what": name}
    for key, field in (("remote", "who"), ("owner", "whom")):
        if key in data:
            found[field] = str(data[key])
    reason = data.get("code", data.get("reason"))
    if isinstance(reason, RefusalCode | GoneReason):
        found["why"] = reason.name.lower()
    return found | {field: data[key] for key, field in FIGURES.items() if key in data}


class LogTrace:
    """Writes what the server reports to the log: sentences at INFO, everything else at DEBUG."""

    def __init__(self) -> None:
        self._buckets = [Buckets(LOG_RATE, LOG_BURST, b"", slots=1) for _ in range(2)]  # of clients, of strangers
        self._left_out = [0, 0]
        self._refused: tuple[str, str] = ("", "")  # whom and why, last
        self._refused_at = Instant(0.0)

    def event(self, now: Instant, name: str, data: dict[str, Any]) -> None:
        name = name.removeprefix("rendezvous:")
        is_routine = name == "refused" and (data["code"] in ROUTINE or self._is_repeated(now, data))
        sentence = None if is_routine else SENTENCES.get(name)
        level = logging.DEBUG if sentence is None else logging.INFO
        log = directory if name == "directory" else logger
        if not log.isEnabledFor(level):
            return
        which = int(name in OF_STRANGERS)
        if not self._buckets[which].take(now, ""):
            self._left_out[which] += 1
            return
        if count := self._left_out[which]:
            whose = "strangers and refusals" if which else "clients"
            text = "%d lines were left out here, about %s, as more than %g a second came"
            log.log(level, text, count, whose, LOG_RATE, extra={"facts": {"what": "left_out", "count": count}})
            self._left_out[which] = 0
        extra = {"facts": facts(name, data)}
        if sentence is not None:
            log.log(level, "%s", sentence(data), extra=extra)
        else:
            details = " ".join(f"{key}={value!r}" if isinstance(value, str) else f"{key}={value}" for key, value in data.items())
            log.log(level, "%s %s", name, details, extra=extra)

    def _is_repeated(self, now: Instant, data: Mapping[str, Any]) -> bool:
        what = (data["remote"].host, data["text"])
        if what == self._refused and now - self._refused_at < REPEATED:
            return True
        self._refused, self._refused_at = what, now
        return False
