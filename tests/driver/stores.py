"""Real stores on loopback for the servers of a fleet: a Redis alone, one that sentinels watch, and a cluster."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from urllib.parse import quote

import trio

from tests.driver.tls import Certificate, make_certificate

PASSWORD = "between,servers:50%@/#"
LOGIN = (f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"')
ENCODED = quote(PASSWORD, safe="")
RIGHTS = "~ptunnel:* &ptunnel:* +hello +hset +hdel +hgetall +hlen +expire +publish +subscribe +unsubscribe +ping"
"""As in docs/fleet.md."""
HOST = "127.0.0.1"
DOWN_MS = 1000  # milliseconds of silence, and a primary counts as gone
READY_S = 30.0


def free_ports(count: int) -> list[int]:
    """On which nobody listens now."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Stores:
    """Processes of redis-server by port, until close()."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary = 0  # the one that fail_over() kills; 0: there is no other one
        self._successor: list[tuple[str, ...]] = []  # what is asked of whom until it says that another one has taken over
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, port: int, *lines: str, is_sentinel: bool = False) -> None:
        place = self.folder / f"redis-{port}"
        place.mkdir()
        kept = [] if is_sentinel else ['save ""', "appendonly no", "repl-diskless-sync-delay 0"]
        config = place / "redis.conf"
        config.write_text("\n".join([f"bind {HOST}", f"dir {place}", f"port {port}", *kept, *lines, ""]), encoding="ascii")
        words = ["redis-server", str(config), *(["--sentinel"] if is_sentinel else [])]
        with (place / "log").open("wb") as log:
            self._processes[port] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, port: int) -> None:
        self._processes[port].kill()
        self._processes[port].wait()

    def close(self) -> None:
        for port in self._processes:
            self.kill(port)

    async def ask(self, port: int, *words: str) -> str:
        """What the one there answers, or nothing."""
        login = ("redis-cli", "-h", HOST, "-p", str(port), "--no-auth-warning", "-a", PASSWORD)
        with trio.fail_after(READY_S):
            done = await trio.run_process((*login, *words), capture_stdout=True, capture_stderr=True, check=False)
        return done.stdout.decode()

    async def wait(self, text: str, port: int, *words: str) -> None:
        """Until that is in its answer."""
        with trio.fail_after(READY_S):
            while text not in await self.ask(port, *words):  # noqa: ASYNC110 - a process of its own
                await trio.sleep(0.05)

    async def fail_over(self) -> None:
        """Kill the primary, and wait until another one is in its place."""
        self.kill(self.primary)
        for text, port, *words in self._successor:
            await self.wait(text, int(port), *words)

    async def wait_open(self, port: int) -> None:
        with trio.fail_after(READY_S):
            while True:
                try:
                    await (await trio.open_tcp_stream(HOST, port)).aclose()
                    return
                except OSError:
                    await trio.sleep(0.05)


async def alone(stores: Stores, *, name: str = HOST) -> str:
    """With TLS, and a user with the RIGHTS alone; the certificate is for `name`.  Return the URL."""
    (port,) = free_ports(1)
    mine: Certificate = make_certificate(stores.folder, name, authority=True, stem=name)
    acl = stores.folder / "users.acl"
    acl.write_text(f"user default off\nuser fleet on >{PASSWORD} {RIGHTS}\n", encoding="ascii")
    stores.start(
        port, "port 0", f"tls-port {port}", f"tls-cert-file {mine.certificate}", f"tls-key-file {mine.key}",
        f"tls-ca-cert-file {mine.certificate}", "tls-auth-clients no", f"aclfile {acl}",
    )  # fmt: skip
    await stores.wait_open(port)
    return f"rediss://fleet:{ENCODED}@{HOST}:{port}/?ssl_ca_certs={mine.certificate}"


async def watched(stores: Stores) -> str:
    """A primary, its replica, and three sentinels; the first of those that the URL names is not there."""
    stores.primary, replica, nobody, *sentinels = free_ports(6)
    stores.start(stores.primary, *LOGIN)
    await stores.wait("PONG", stores.primary, "ping")
    stores.start(replica, *LOGIN, f"replicaof {HOST} {stores.primary}")
    await stores.wait("state=online", stores.primary, "info", "replication")
    for port in sentinels:
        stores.start(
            port, f"sentinel monitor fleet {HOST} {stores.primary} 2", f'sentinel auth-pass fleet "{PASSWORD}"',
            f"sentinel down-after-milliseconds fleet {DOWN_MS}", "sentinel failover-timeout fleet 5000", is_sentinel=True,
        )  # fmt: skip
    for port in sentinels:
        await stores.wait("slaves=1,sentinels=3", port, "info", "sentinel")
    stores._successor = [(str(replica), str(sentinels[0]), "sentinel", "get-master-addr-by-name", "fleet")]
    return f"redis+sentinel://:{ENCODED}@{','.join(f'{HOST}:{port}' for port in (nobody, *sentinels))}/fleet"


async def clustered(stores: Stores) -> str:
    """Three primaries with a replica each; of those that the URL names one is not there, and fail_over() kills the other."""
    nobody, *ports = free_ports(13)
    nodes, buses = ports[:6], ports[6:]
    for port, bus in zip(nodes, buses, strict=True):
        stores.start(port, *LOGIN, "cluster-enabled yes", f"cluster-node-timeout {DOWN_MS}", f"cluster-port {bus}")
    for port in nodes:
        await stores.wait("PONG", port, "ping")
    places = [f"{HOST}:{port}" for port in nodes]
    made = await stores.ask(nodes[0], "--cluster", "create", *places, "--cluster-replicas", "1", "--cluster-yes")
    assert "All 16384 slots covered" in made, made
    for port in nodes:
        await stores.wait("cluster_state:ok", port, "cluster", "info")
    for port in nodes[:3]:
        await stores.wait("state=online", port, "info", "replication")
    # The one that has the list of servers: with it gone nothing can be written at all.
    slot = (await stores.ask(nodes[0], "cluster", "keyslot", "ptunnel:servers")).strip()
    stores.primary = nodes[min(int(slot) // 5462, 2)]
    other = str(next(port for port in nodes if port != stores.primary))
    stores._successor = [("master,fail", other, "cluster", "nodes"), ("cluster_state:ok", other, "cluster", "info")]
    return f"redis+cluster://:{ENCODED}@{HOST}:{nobody},{HOST}:{stores.primary}/"
