"""The states of an agent, what it shows of itself, and the schedule of its rounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tunnel.units import Seconds

ROUND: Final = Seconds(10.0)  # a fresh round without success ends after so long
RETRY_ROUND: Final = Seconds(2.5)  # a slow retry is a short round
RETRY_AFTER: Final = Seconds(60.0)  # from the end of a round; longer than Linux keeps an unanswered flow (30 s)
RETRY_GROWTH: Final = 1.5
MAX_RETRY_AFTER: Final = Seconds(300.0)
FOLLOWER_GRACE: Final = Seconds(15.0)  # the controlled side waits so much longer for the controlling side's call to retry
MIN_RESTART_INTERVAL: Final = Seconds(1.0)  # calls of the peer for a fresh round are heeded no more often


class AgentState(Enum):
    IDLE = "idle"  # nothing to check yet
    CHECKING = "checking"
    CONNECTED = "connected"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True)
class AgentStats:
    state: AgentState
    checks_sent: int
    openers_sent: int
    rounds: int
    budget: int  # checks that may go out at once
