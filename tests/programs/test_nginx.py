"""nginx: the log says who has connected, as the PROXY protocol tells it."""

from __future__ import annotations

from tests.netns.lab import eventually
from tests.programs.homes import SLOW_S, Homes, find, needs

pytestmark = needs("nginx", "curl")

CONFIG = """
daemon off; master_process off; user root; pid {folder}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    log_format who '$remote_addr $proxy_protocol_addr $request_uri';
    access_log {folder}/who who;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:8080 proxy_protocol;
        set_real_ip_from 127.0.0.1;
        real_ip_header proxy_protocol;
        return 200 "you are $remote_addr\\n";
    }}
}}
"""


def test_the_log_and_the_page_name_the_true_client(homes: Homes) -> None:
    folder = homes.folder / "nginx"
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder), encoding="ascii")
    program = find("nginx")
    assert program is not None
    homes.serve("nginx", [program, "-p", folder, "-c", config], 8080)
    pair = homes.link("8080", "--proxy-protocol", forward=["18080:8080"])
    seen = pair.exposer.wait_event("path", SLOW_S, kind="direct")["remote"]
    address = seen.rpartition(":")[0].strip("[]")
    assert address != homes.friend_site.address  # the friend is behind a NAT
    for number in range(3):
        assert homes.use("curl", "-sS", f"http://127.0.0.1:18080/{number}").stdout == f"you are {address}\n"
    log = folder / "who"
    wanted = [f"{address} {address} /{number}" for number in range(3)]
    eventually("the log", lambda: log.exists() and log.read_text().splitlines() == wanted, SLOW_S)
    assert homes.home.run("curl", "-sS", "http://127.0.0.1:8080/", check=False).returncode != 0  # it insists on the header
