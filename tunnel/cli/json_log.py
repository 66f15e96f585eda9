"""--log-json: whatever a command says on standard error is one JSON object a line, for programs that gather logs.

The sentences are those that a person would read, from the same places; beside each stands what happened, who did it and why, in
words that stay the same.  docs/json.md has the fields.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, Final

from tunnel.cli.voice import Voice

MAX_MESSAGE: Final = 16 * 1024  # characters of a message or a traceback; the end says most
#: `what` of lines that say no word of their own, by who logs them.
BY_LOGGER: Final[Mapping[str, str]] = {"ptunnel.faults": "fault"}
OTHERWISE: Final = "note"

logger = logging.getLogger("ptunnel.said")
_is_on = False


def is_on() -> bool:
    """Whether this command was called with --log-json."""
    return _is_on


def start(verbosity: int = 0) -> None:
    """From now on all that is logged or said goes to standard error as JSON: as with -v, with -vv as with that."""
    global _is_on
    _is_on = True
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.DEBUG if verbosity > 1 else logging.INFO, handlers=[handler], force=True)
    if isinstance(sys.stderr, Voice):
        sys.stderr.tell_loss = _notice_of_loss


def stop() -> None:
    """Speak to people again: for tests, which run more than one command in a process."""
    global _is_on
    _is_on = False


def say(text: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """A sentence that a person would read."""
    if text.strip():
        logger.log(level, "%s", text.strip(), extra={"facts": facts})


class JsonLines(logging.Formatter):
    """One object a record, whatever its text holds."""

    def format(self, record: logging.LogRecord) -> str:
        facts = dict(getattr(record, "facts", {}))
        line = {
            "time": stamp(record.created),
            "level": record.levelname.lower(),
            "what": facts.pop("what", "") or BY_LOGGER.get(record.name, OTHERWISE),
            **{key: value for key, value in facts.items() if value not in ("", None)},
            "message": record.getMessage()[-MAX_MESSAGE:],
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)[-MAX_MESSAGE:]
        return json.dumps(line)


def stamp(unix_time: float) -> str:
    """UTC, ISO 8601, with milliseconds."""
    at = datetime.datetime.fromtimestamp(unix_time, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _notice_of_loss(lines: int) -> str:
    record = logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "name": logger.name})
    record.msg, record.args = "%d lines are missing here, as nobody read them", (lines,)
    record.facts = {"what": "events_lost", "count": lines}
    return JsonLines().format(record) + "\n"
