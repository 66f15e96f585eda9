"""The parts of ptunnel that scripts/fuzz feeds, each with all that stands behind its decoders."""

from __future__ import annotations

from typing import Final

from tests.fuzz.engine import Machine
from tests.fuzz.machines import (
    bench,
    connection,
    consumers,
    control,
    decoders,
    dht,
    endpoint,
    handshake,
    nat,
    rendezvous,
    rooms,
    state,
)

MACHINES: Final[dict[str, Machine]] = {
    machine.name: machine
    for module in (decoders, handshake, rendezvous, connection, endpoint, nat, rooms, state, consumers, control, bench, dht)
    for machine in module.MACHINES
}
