"""A DHT of real nodes that are not ours: sessions of libtorrent, each at an address of its own, with libtorrent's own settings.

    python -m tests.netns.dht_farm ADDRESS ...

Prints `ready` once all run and each knows some others.  Commands on stdin, one a line, and what they print:
    kill COUNT          ends so many of them                                   `killed`
    announce HEX PORT   announces PORT under an infohash, from the first node  `announced`
    peers HEX           the peers that the DHT holds under an infohash         JSON, a list of HOST:PORT
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any, Final

PORT: Final = 6881
PATIENCE: Final = 25.0  # seconds for all nodes to know some others
ENOUGH: Final = 5  # others that each knows then
QUESTION: Final = 5.0  # seconds for a question to the DHT


def start(address: str) -> Any:
    import libtorrent

    where = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
    quiet = dict.fromkeys(("enable_lsd", "enable_upnp", "enable_natpmp", "enable_incoming_tcp", "enable_outgoing_tcp"), False)
    settings: dict[str, Any] = {
        **quiet,
        "listen_interfaces": where,
        "enable_dht": True,
        "dht_bootstrap_nodes": "",  # such nodes enter no table, and a farm that knows only these never begins
        "connections_limit": 2,
        "aio_threads": 1,
        "hashing_threads": 1,
        "alert_mask": libtorrent.alert.category_t.dht_operation_notification | libtorrent.alert.category_t.stats_notification,
    }
    return libtorrent.session(settings)  # type: ignore[call-overload]  # its stub has no constructor that takes settings


def nodes_of(session: Any) -> int:
    """How many others it knows."""
    import libtorrent

    session.post_session_stats()
    end = time.monotonic() + QUESTION
    while time.monotonic() < end:
        session.wait_for_alert(200)
        for alert in session.pop_alerts():
            if isinstance(alert, libtorrent.session_stats_alert):
                return int(alert.values["dht.dht_nodes"])
    return 0


def main(addresses: list[str]) -> None:
    import libtorrent

    rng = random.Random(1)
    sessions = [start(each) for each in addresses]
    for number, session in enumerate(sessions):
        earlier = {max(0, number - 1), *(rng.randrange(max(1, number)) for _ in range(3))} - {number}
        for other in earlier:
            session.add_dht_node((addresses[other], PORT))
            sessions[other].add_dht_node((addresses[number], PORT))
    end = time.monotonic() + PATIENCE
    while any(nodes_of(each) < min(ENOUGH, len(sessions) - 1) for each in sessions) and time.monotonic() < end:
        time.sleep(0.2)
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "kill":
            for _ in range(int(rest[0])):
                sessions.pop(rng.randrange(1, len(sessions)))
            print("killed", flush=True)
        elif word == "announce":
            sessions[0].dht_announce(libtorrent.sha1_hash(bytes.fromhex(rest[0])), int(rest[1]), 0)
            print("announced", flush=True)
        elif word == "peers":
            found: set[str] = set()
            sessions[0].dht_get_peers(libtorrent.sha1_hash(bytes.fromhex(rest[0])))
            until = time.monotonic() + QUESTION
            while time.monotonic() < until and not found:
                sessions[0].wait_for_alert(200)
                for alert in sessions[0].pop_alerts():
                    if isinstance(alert, libtorrent.dht_get_peers_reply_alert):
                        found |= {f"{host}:{port}" for host, port in alert.peers()}
            print(json.dumps(sorted(found)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
