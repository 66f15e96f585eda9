"""The figures of a fleet that an operator sees."""

from __future__ import annotations

from tests.sim.fleet_servers import FleetWorld
from tunnel.telemetry.metrics import OF_SERVER


def test_the_figures_of_a_fleet_say_what_is_there_and_what_is_amiss() -> None:
    world = FleetWorld(2)
    caller = world.caller(0)
    caller.listen(bytes(16))
    world.run(1.0)
    server = world.servers[0].server
    counters = server.counters()
    found = {name: counters[name] for name in ("fleet_servers", "fleet_joined", "fleet_store_up", "fleet_pointers")}
    assert found == {"fleet_servers": 2, "fleet_joined": 1, "fleet_store_up": 1, "fleet_pointers": 1}
    assert {name for name in counters if name.startswith("fleet_")} <= set(OF_SERVER)
    world.store.is_down = True
    world.run(12.0)
    caller.listen(b"x" * 16)
    world.run(1.0)
    counters = server.counters()
    assert (counters["fleet_store_up"], counters["fleet_pointers"], counters["fleet_unwritten"]) == (0, 2, 1)
    assert counters["fleet_orders_failed"] > 0
    status = world.servers[0].fleet.status()
    assert status[0]["addresses"] == ["203.0.113.1:24531"]
    assert status[0]["clients"] == 1
