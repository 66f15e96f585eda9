"""A VPN has the default route, as wg-quick sets it up: a room opens inside it, and outlives its end."""

from __future__ import annotations

import socket

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import Lab, eventually
from tests.netns.programs import START_S, Program, environment, is_real_root
from tests.netns.rooms import Member, Room, join_group, open_socket, wait_group
from tests.programs.homes import SLOW_S, needs

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.time_limit(240),
    needs("wireguard-go", "wg"),
    pytest.mark.skipif(not is_real_root(), reason="its control sockets are in a folder of root's"),
]

PORT, MARK = 51_820, 51_820
MINECRAFT = ("224.0.2.60", 4445)


def key(space: Namespace) -> tuple[str, str]:
    private = space.run("wg", "genkey").stdout.strip()
    return private, space.run("wg", "pubkey", stdin=private).stdout.strip()


def up(lab: Lab, space: Namespace, name: str, settings: str, address: str) -> Program:
    file = lab.folder / f"{name}.conf"
    file.write_text(settings, encoding="ascii")
    device = Program(lab, space, name, ["wireguard-go", "--foreground", name], env=environment(lab.folder / name))
    eventually(f"the device {name}", lambda: space.run("wg", "show", name, check=False).returncode == 0, START_S)
    space.run("wg", "setconf", name, file)
    space.ip(f"addr add {address} dev {name}\nlink set {name} mtu 1420 up")
    return device


def hears(speaker: Member, listener: Member, where: tuple[str, int], word: bytes) -> None:
    """What one says to everybody, the other hears, from the speaker's address in the room."""
    with open_socket(listener.space, port=where[1]) as ear, open_socket(speaker.space) as mouth:
        if where == MINECRAFT:
            join_group(ear, where[0])
            wait_group(listener, where[0])
        ear.settimeout(0.5)

        def heard() -> str:
            mouth.sendto(word, where)
            try:
                data, remote = ear.recvfrom(100)
            except TimeoutError:
                return ""
            return str(remote[0]) if data == word else ""

        assert eventually(f"{word!r} at {listener.name}", heard, SLOW_S) == speaker.ipv4


def test_a_room_opens_under_a_vpn_and_goes_on_without_it(lab: Lab) -> None:
    exit_site = lab.add_site("exit", "open")
    out = exit_site.host
    out.be_a_machine("exit", lab.folder / "etc-exit")
    ours, theirs = key(out), key(out)
    devices: list[Program] = []

    def prepare(member: Member) -> None:
        if devices:
            return
        peer = f"[Interface]\nPrivateKey = {ours[0]}\nListenPort = {PORT}\n[Peer]\nPublicKey = {theirs[1]}\n"
        up(lab, out, "wg-exit", f"{peer}AllowedIPs = 10.9.0.2/32\n", "10.9.0.1/24")
        out.sysctl("net.ipv4.ip_forward", 1)
        out.nft('table ip vpn { chain out { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }')
        peer = f"[Interface]\nPrivateKey = {theirs[0]}\nFwMark = {MARK}\n[Peer]\nPublicKey = {ours[1]}\n"
        peer += f"AllowedIPs = 0.0.0.0/0\nEndpoint = {exit_site.address}:{PORT}\nPersistentKeepalive = 25\n"
        devices.append(up(lab, member.space, "wg-quick", peer, "10.9.0.2/32"))
        member.space.sysctl("net.ipv4.conf.all.src_valid_mark", 1)
        member.space.ip(
            f"route add default dev wg-quick table {MARK}\nrule add not fwmark {MARK} table {MARK}\n"
            "rule add table main suppress_prefixlength 0"
        )

    host, friend = Room(lab, ("prc", "prc"), prepare).members
    assert lab.udp_bytes_both_ways(host.site, friend.site) == 0, "all of it went through the VPN"
    for speaker, listener in ((host, friend), (friend, host)):
        hears(speaker, listener, ("255.255.255.255", 7777), b"who is there " + speaker.name.encode())
        hears(speaker, listener, MINECRAFT, b"a world of " + speaker.name.encode())
    server = host.space.inside(lambda: socket.create_server((host.ipv4, 9000)))
    with server, friend.space.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(SLOW_S)
        sock.connect((host.ipv4, 9000))
        accepted, _ = server.accept()
        accepted.settimeout(SLOW_S)
        with accepted:
            sock.sendall(b"before")
            assert accepted.recv(100) == b"before"
            devices[0].kill()  # the device goes, and its routes with it
            sock.sendall(b"after")
            assert accepted.recv(100) == b"after"
            accepted.sendall(b"answer")
            assert sock.recv(100) == b"answer"
    eventually("a direct path without the VPN", lambda: lab.udp_bytes_both_ways(host.site, friend.site) > 1000, SLOW_S)
