"""A program at the end of a forward, as real processes on loopback: nginx logs who connects."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import PATIENCE_S, Lab

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
CURL = shutil.which("curl")
SLOW_S = 120.0  # for a program that others wrote, on a busy machine

CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    log_format who '$proxy_protocol_addr:$proxy_protocol_port $request_uri';
    access_log {folder}/who who;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        default_type text/html;
        return 200 "<p id=who>you are $proxy_protocol_addr</p>";
    }}
}}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[int]:
    """Its port."""
    folder = tmp_path / "nginx"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = int(placeholder.getsockname()[1])
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port), encoding="ascii")
    with (folder / "said").open("wb") as said:
        program = subprocess.Popen([NGINX or "nginx", "-p", folder, "-c", config], stdin=subprocess.DEVNULL, stderr=said)
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end, (folder / "said").read_text(encoding="utf-8")
                time.sleep(0.05)
        yield port
    finally:
        program.kill()
        program.wait()


@pytest.mark.skipif(None in (NGINX, CURL), reason="nginx and curl are missing; scripts/test says how to install them")
def test_nginx_logs_the_address_and_port_from_which_the_peers_datagrams_come(lab: Lab, nginx: int, tmp_path: Path) -> None:
    exposing = lab.expose(str(nginx), "--proxy-protocol")
    code = exposing.wait("code")["code"]
    options = ("--server", lab.server, "--path", "direct", "--forward", f"0:{nginx}")
    connecting = lab.run(lab.connector, "connect", *options, PTUNNEL_CODE=code)
    bind = connecting.wait("forward")["bind"]
    connecting.wait("path", kind="direct")
    exposing.wait("path", kind="direct")
    done = subprocess.run(
        [CURL or "curl", "-sS", "-m", "60", f"http://{bind}/page"], capture_output=True, text=True, timeout=SLOW_S, check=False
    )
    log = tmp_path / "nginx" / "who"
    end = time.monotonic() + PATIENCE_S
    while not log.exists() or not log.read_text(encoding="ascii").endswith(" /page\n"):
        assert time.monotonic() < end, done.stderr
        time.sleep(0.05)
    seen, _page = log.read_text(encoding="ascii").splitlines()[-1].split()
    paths = [event["remote"].replace("[", "").replace("]", "") for event in exposing.events if event.get("kind") == "direct"]
    assert seen in paths
    assert done.stdout == f"<p id=who>you are {seen.rpartition(':')[0]}</p>"
    bare = subprocess.run(
        [CURL or "curl", "-sS", "-m", "60", f"http://127.0.0.1:{nginx}/"], capture_output=True, timeout=SLOW_S, check=False
    )
    assert bare.returncode != 0  # nginx takes nobody who does not say it
