"""What the library needs of a room on an endpoint: the core's Membership, for which EndpointDriver is the driver."""

from __future__ import annotations

from typing import Final

from tunnel.node.events import PeeringClosed, PeeringEvent, Problem
from tunnel.room.core.membership import Membership, NewcomerStore

__all__ = ["PROBLEMS_OF_PEERS", "Membership", "NewcomerStore", "PeeringClosed", "PeeringEvent", "Problem"]

#: What is said of one peer where that is the only one; a room says that a member is away.
PROBLEMS_OF_PEERS: Final = frozenset((Problem.PEER_ABSENT, Problem.PEER_LOST, Problem.PEER_SILENT))
