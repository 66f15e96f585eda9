"""The container of a server: what its files promise, and that its health check knows whether a server runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.driver.programs import Program
from tests.style.source import ROOT
from tests.style.test_if_you_know import taken
from tests.twins.notify import Manager
from tunnel.server_spec import DEFAULT_PORT

FOLDER = ROOT / "scripts" / "container"
FILE = (FOLDER / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICE = COMPOSE["services"]["ptunnel"]
PATIENCE_S = 60


def said(word: str) -> list[str]:
    """What stands behind each instruction of this name."""
    return re.findall(rf"^{word} +(.*)$", FILE, re.MULTILINE)


def test_the_service_is_read_only_without_capabilities_and_not_root() -> None:
    assert SERVICE["read_only"] is True
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "cap_add" not in SERVICE
    assert "no-new-privileges:true" in SERVICE["security_opt"]
    assert said("USER") == ["24531:24531"]
    assert FILE.index("\nUSER") > FILE.rindex("\nRUN"), "nothing is set up behind it"


def test_what_may_be_written_is_the_state_alone() -> None:
    [home] = said("VOLUME")
    assert f"PTUNNEL_HOME={home} " in FILE
    assert SERVICE["volumes"] == [f"state:{home}"]
    assert list(COMPOSE["volumes"]) == ["state"]


def test_the_build_takes_what_is_there() -> None:
    context = (FOLDER / SERVICE["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / SERVICE["build"]["dockerfile"]).read_text(encoding="utf-8").startswith("# A rendezvous server")
    for line in said("COPY"):
        for name in line.split()[:-1] if "--from" not in line else ():
            assert (context / name).exists(), name


def test_the_command_is_one_that_ptunnel_takes_and_the_ports_are_its_own() -> None:
    assert said("ENTRYPOINT") == ['["ptunnel"]']
    assert taken(SERVICE["command"].split())["name"] == "serve"
    assert said("EXPOSE") == [f"{DEFAULT_PORT}/udp {DEFAULT_PORT + 1}/udp 8443/tcp"]
    example = re.search(r"# command: (serve .*)", (FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert example is not None
    assert taken(example[1].split())["tls_port"] == 8443


def test_the_health_check_knows_a_server_that_runs_from_one_that_does_not(tmp_path: Path) -> None:
    [options] = said("HEALTHCHECK")
    command = options.partition(" CMD ")[2].strip().replace("ptunnel ", f"{sys.executable} -m tunnel ")

    def is_healthy() -> bool:
        environment = {**os.environ, "PTUNNEL_HOME": str(tmp_path)}
        return subprocess.run(["sh", "-c", command], env=environment, timeout=PATIENCE_S, check=False).returncode == 0

    assert not is_healthy()
    with Manager() as manager:
        server = Program(tmp_path, "serve", "--listen", "127.0.0.1:0", **manager.variables)
        try:
            manager.until("READY")
            assert is_healthy()
        finally:
            server.close()
    assert not is_healthy()


def test_the_health_check_is_there_too_where_a_build_leaves_it_out_of_the_image() -> None:
    """Images of the OCI format have none, and `podman build` makes such unless told otherwise."""
    [options] = said("HEALTHCHECK")
    flags, _, command = options.partition(" CMD ")
    check = dict(SERVICE["healthcheck"])
    assert check.pop("test") == ["CMD-SHELL", command.strip()]
    assert check == {
        name.replace("-", "_"): int(value) if name == "retries" else value for name, value in re.findall(r"--(\S+?)=(\S+)", flags)
    }
    assert "podman build --format docker " in FILE
