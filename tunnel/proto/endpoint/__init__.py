"""Many sockets, many peers: the one room that the driver stands on.  Re-exports what it hands out from the rooms below."""

from __future__ import annotations

from tunnel.proto.connection.events import CloseCode as CloseCode
