"""WireGuard over a UDP forward: its own network inside ours, with a large transfer each way while the path changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.kernel import why_no_tap
from tests.netns.programs import START_S, Program, checksum, environment, http_server, is_real_root, random_file
from tests.netns.site import eventually
from tests.programs.homes import Homes, needs

pytestmark = [
    pytest.mark.nightly,
    needs("wireguard-go", "wg", "curl"),
    pytest.mark.skipif(not is_real_root(), reason="its control sockets are in a folder of root's"),
    pytest.mark.skipif(why_no_tap() is not None, reason=str(why_no_tap())),
]

SIZE = 12_000_000
CONFIG = """[Interface]
PrivateKey = %s
%s
[Peer]
PublicKey = %s
AllowedIPs = %s/32
%s
"""


def up(homes: Homes, at_home: bool, key: str, peer: str, address: str, other: str, listen: str, endpoint: str) -> None:
    """One side: a device of its own, in the namespace of its machine."""
    space, name = (homes.home, "wg-home") if at_home else (homes.friend, "wg-friend")
    settings = homes.folder / f"{name}.conf"
    settings.write_text(CONFIG % (key, listen, peer, other, endpoint), encoding="ascii")
    env = environment(homes.folder / name)
    device = Program(homes.lab, space, name, ["wireguard-go", "--foreground", name], env=env)
    eventually(f"the device {name}", lambda: space.run("wg", "show", name, check=False).returncode == 0, START_S)
    assert device.process.poll() is None
    space.run("wg", "setconf", name, settings)
    space.ip(f"addr add {address}/24 dev {name}\nlink set {name} mtu 1280 up")


def test_a_network_inside_carries_files_both_ways(homes: Homes, tmp_path: Path) -> None:
    home_key, friend_key = (homes.use("wg", "genkey").stdout.strip() for _ in range(2))
    home_public, friend_public = (homes.use("wg", "pubkey", stdin=key).stdout.strip() for key in (home_key, friend_key))
    up(homes, True, home_key, friend_public, "10.91.0.1", "10.91.0.2", "ListenPort = 51820", "")
    homes.link("51820/udp", forward=["15182:51820/udp"])
    up(homes, False, friend_key, home_public, "10.91.0.2", "10.91.0.1", "", "Endpoint = 127.0.0.1:15182")
    eventually("a ping", lambda: homes.friend.run("ping", "-c1", "-W1", "10.91.0.1", check=False).returncode == 0, START_S)
    homes.use("ping", "-c", "2", "-M", "do", "-s", "1252", "10.91.0.1")
    served = tmp_path / "served"
    served.mkdir()
    digest = random_file(served / "big", SIZE)
    http_server(homes.lab, homes.home, served, bind="10.91.0.1")
    http_server(homes.lab, homes.friend, served, bind="10.91.0.2")
    for space, address in ((homes.friend, "10.91.0.1"), (homes.home, "10.91.0.2")):
        space.run("curl", "-sS", "-o", tmp_path / "taken", f"http://{address}:8000/big", timeout=60)
        assert checksum(tmp_path / "taken") == digest
        homes.rebind()
