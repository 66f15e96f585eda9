"""A real Prometheus scrapes a server and a home: every panel of the dashboard is filled, and every alarm is understood."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.driver.programs import PATIENCE_S, Lab, echo_through
from tests.driver.test_up_page import free_port
from tests.driver.tls import make_certificate
from tests.programs.homes import SLOW_S, find, needs
from tests.style.source import ROOT
from tests.unit.telemetry.test_metrics import expressions
from tunnel.telemetry.metrics import METRICS

pytestmark = [needs("prometheus", "promtool"), pytest.mark.time_limit(180)]

SECRET = "one-that-is-long-enough"
WINDOW = "20s"  # in the place of $__rate_interval, which Grafana makes at least four scrapes wide


def alarms() -> list[str]:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("## What to be woken for")[1]
    return re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)


class Prometheus:
    """It scrapes each second."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        folder.mkdir()
        rules = [{"alert": f"Alarm{number}", "expr": expression} for number, expression in enumerate(alarms())]
        (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "ptunnel", "rules": rules}]}), encoding="utf-8")
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "ptunnel", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.folder = folder
        self.place = f"127.0.0.1:{free_port()}"
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [str(find("prometheus")), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.place}"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def ask(self, path: str, **fields: str) -> Any:
        """The `data` of an answer; None where it does not answer yet."""
        assert self.process.poll() is None, (self.folder / "log").read_text(encoding="utf-8")
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            url = f"http://{self.place}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                return json.load(answer)["data"]
        return None

    def has(self, expression: str) -> bool:
        found = self.ask("query", query=expression)
        return bool(found and found["result"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@contextmanager
def scraping(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    prometheus = Prometheus(folder, targets)
    try:
        yield prometheus
    finally:
        prometheus.close()


def until(what: str, look: Callable[[], Any]) -> Any:
    end = time.monotonic() + SLOW_S
    while not (found := look()):
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return found


def promtool(*words: str | Path, said: str = "") -> None:
    done = subprocess.run(
        [str(find("promtool")), *words], input=said, capture_output=True, text=True, timeout=SLOW_S, check=False
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def test_every_panel_of_the_dashboard_and_every_figure_of_a_home_is_filled_and_the_alarms_are_understood(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    try:
        made = make_certificate(tmp_path, "127.0.0.1")
        (tmp_path / "access").write_text(f"token {SECRET}\n", encoding="utf-8")
        server = lab.run(
            tmp_path / "measured", "serve", "--listen", "127.0.0.1:0", "--metrics", "0", "--access", str(tmp_path / "access"),
            "--tls-cert", made.certificate, "--tls-key", made.key, "--tls-port", "0",
        )  # fmt: skip
        address = server.wait("listening")["bind"]
        of_server = server.wait("listening", metrics=True)["bind"]
        here = {"PTUNNEL_ACCESS_TOKEN": SECRET}

        # a peer that is met, one that is refused, and junk
        exposing = lab.run(lab.exposer, "expose", str(lab.port), "--server", address, "--name", "home", **here)
        code = exposing.wait("code")["code"]
        connecting = lab.run(
            lab.connector, "connect", "--server", address, "--forward", f"0:{lab.port}", "--name", "friend",
            PTUNNEL_CODE=code, **here,
        )  # fmt: skip
        assert echo_through(connecting.wait("forward")["bind"], b"hello") == b"hello"
        connecting.end()
        config = f'server = "{address}"\nmetrics = "0"\n[[forward]]\npeer = "home"\nlisten = ["0:{lab.port}"]\n'
        (lab.connector / "config.toml").write_text(config, encoding="utf-8")
        up = lab.run(lab.connector, "up", **here)
        of_up = up.wait("listening", metrics=True)["bind"]
        assert echo_through(up.wait("forward")["bind"], b"hello") == b"hello"
        lab.run(tmp_path / "stranger", "expose", str(lab.port), "--server", address).wait("error")
        host, _, port = address.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
            for data in (b"", b"\xff" * 40):
                junk.sendto(data, (host, int(port)))

        with scraping(tmp_path / "prometheus", [of_server, of_up]) as prometheus:
            promtool("check", "config", prometheus.folder / "prometheus.yml")
            promtool("check", "rules", prometheus.folder / "rules.yml")
            for place in (of_server, of_up):
                with urllib.request.urlopen(f"http://{place}/metrics", timeout=PATIENCE_S) as answer:
                    promtool("check", "metrics", said=answer.read().decode())
            dashboard = json.loads((ROOT / "docs" / "grafana-serve.json").read_text(encoding="utf-8"))
            asked = [
                expression.replace("$instance", re.escape(of_server).replace("\\", "\\\\")).replace("$__rate_interval", WINDOW)
                for expression in expressions(dashboard)
            ]
            asked += [f'{each.name}{{instance="{of_up}"}}' for each in METRICS if each.name.startswith("ptunnel_peer_")]
            for expression in asked:
                until(f"nothing is found by {expression}", partial(prometheus.has, expression))
            assert prometheus.has(f'ptunnel_peer_up{{peer="home",instance="{of_up}"}} == 1')
            assert prometheus.has('ptunnel_server_refusals_total{reason="denied"} > 0')

            def rules() -> list[dict[str, Any]] | None:
                found = prometheus.ask("rules")["groups"][0]["rules"]
                return found if all(each["health"] != "unknown" for each in found) else None

            found = until("the alarms are looked at", rules)
            assert [(each["health"], each.get("lastError")) for each in found] == [("ok", None)] * len(alarms())
            (firing,) = [each["query"] for each in found if each["state"] != "inactive"]
            assert "certificate_expiry" in firing  # ours ends in two days
    finally:
        lab.close()
