"""A whole LAN through one SOCKS door: curl, a DNS client and a browser reach a neighbour of the one who exposes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.netns.lab import Lab, eventually
from tests.netns.programs import START_S, Program, Ptunnel, environment, server_address, start_server
from tests.programs.homes import SLOW_S, find, needs

pytestmark = needs("curl")

#: HTTP on port 80, and DNS on port 53 of both protocols: any name is 192.0.2.7.
NEIGHBOUR = """
import http.server, socket, socketserver, threading

PAGE = b"<html><title>printer</title><body><p id=who>the printer</p></body></html>"

class Page(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

def answer(question):
    end = question.index(b"\\0", 12) + 5
    record = b"\\xc0\\x0c\\0\\x01\\0\\x01\\0\\0\\0\\x3c\\0\\x04\\xc0\\0\\x02\\x07"
    return question[:2] + b"\\x81\\x80\\0\\x01\\0\\x01\\0\\0\\0\\0" + question[12:end] + record

class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        sock.sendto(answer(data), self.client_address)

threading.Thread(target=socketserver.UDPServer(("", 53), Datagram).serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("", 80), Page).serve_forever()
"""

#: A question by UDP ASSOCIATE; prints the address in the answer.
CLIENT = """
import socket, sys
door, server = (sys.argv[1], int(sys.argv[2])), sys.argv[3]
with socket.create_connection(door, timeout=60) as control, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    control.sendall(b"\\x05\\x01\\x00")
    assert control.recv(2) == b"\\x05\\x00"
    control.sendall(b"\\x05\\x03\\x00\\x01" + bytes(6))
    reply = b""
    while len(reply) < 10:
        reply += control.recv(10 - len(reply))
    assert reply[:4] == b"\\x05\\x00\\x00\\x01"
    there = socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:], "big")
    header = b"\\0\\0\\0\\x01" + socket.inet_aton(server) + b"\\0\\x35"
    sock.settimeout(2)
    for number in range(20):
        question = number.to_bytes(2, "big") + b"\\x01\\0\\0\\x01" + bytes(6) + b"\\x07printer\\x03lan\\0\\0\\x01\\0\\x01"
        sock.sendto(header + question, there)
        try:
            data = sock.recv(2000)
        except TimeoutError:
            continue
        assert data[:10] == header
        print(socket.inet_ntoa(data[-4:]))
        break
"""


class Door:
    """A home with a neighbour in its LAN, whose network is shared; and a friend with a door to it."""

    def __init__(self, lab: Lab) -> None:
        home, friend = lab.add_site("home", "prc", hosts=2), lab.add_site("friend", "uprc")
        start_server(lab)
        self.friend = friend.host
        self.home_address, self.neighbour = home.addresses[:2]
        self.env = environment(lab.folder / "friend", LC_ALL="C.UTF-8")
        neighbour = home.hosts[1]
        self.program = Program(lab, neighbour, "neighbour", [sys.executable, "-c", NEIGHBOUR], env=environment(lab.folder / "n"))
        eventually("the neighbour listens", lambda: ":80 " in neighbour.run("ss", "-Hlnt").stdout, START_S)
        network = f"{self.neighbour.rpartition('.')[0]}.0/24"
        words = ["--net", f"{network}:80", "--net", f"{network}:53/udp", "--net", "0.0.0.0/0:8000"]
        exposer = Ptunnel(lab, home.host, "expose-home", "expose", *words, "--server", server_address(lab), "--name", "home")
        code = exposer.wait_event("code")["code"]
        words = ["connect", "--server", server_address(lab), "--socks", "1080"]
        self.connector = Ptunnel(lab, friend.host, "connect-friend", *words, PTUNNEL_CODE=code)
        self.connector.wait_event("forward", START_S, target="socks")
        self.connector.wait_event("path", START_S, kind="direct")


@pytest.fixture
def door(lab: Lab) -> Door:
    return Door(lab)


def test_curl_and_a_dns_client_reach_the_neighbour_and_nothing_else(door: Door) -> None:
    proxy = ["--proxy", "socks5h://127.0.0.1:1080", "--silent", "--show-error", "--max-time", "60"]
    page = door.friend.run("curl", *proxy, f"http://{door.neighbour}/", env=door.env, timeout=SLOW_S + 10)
    assert "the printer" in page.stdout
    asked = door.friend.run(sys.executable, "-c", CLIENT, "127.0.0.1", "1080", door.neighbour, env=door.env, timeout=2 * SLOW_S)
    assert asked.stdout == "192.0.2.7\n"
    for place in (
        f"{door.neighbour}:22",
        f"{door.home_address}:80",
        "127.0.0.1:8000",
        f"{door.home_address}:8000",
        "169.254.169.254:8000",
    ):
        refused = door.friend.run("curl", *proxy, f"http://{place}/", env=door.env, timeout=SLOW_S + 10, check=False)
        assert (refused.returncode, "(2)" in refused.stderr) == (97, True), (place, refused.stderr)


@needs("chromium")
@pytest.mark.time_limit(300)
def test_a_browser_shows_a_page_of_the_neighbour(door: Door, tmp_path: Path) -> None:
    program = find("chromium")
    assert program is not None
    words = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
    words += ["--proxy-server=socks5://127.0.0.1:1080", "--timeout=60000", "--dump-dom", f"http://{door.neighbour}/"]
    shown = door.friend.run(*words, env=door.env, timeout=4 * SLOW_S, check=False)
    assert '<p id="who">the printer</p>' in shown.stdout, shown.stderr[-2000:]
