"""Who listens on this machine, as the kernel's tables say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunnel.host.listening import MAX_TABLE, listening

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tables are Linux's")

HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   {}: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"


def tables(folder: Path, **rows: list[tuple[str, int, str]]) -> Path:
    for name in ("tcp", "tcp6", "udp", "udp6"):
        lines = [ROW.format(number, *row) for number, row in enumerate(rows.get(name, []))]
        (folder / name).write_text(HEADING + "".join(lines))
    return folder


def test_what_loopback_reaches_is_known_from_what_it_does_not(tmp_path: Path) -> None:
    found = listening(
        tables(
            tmp_path,
            tcp=[("00000000", 22, "0A"), ("0100007F", 80, "0A"), ("0501A8C0", 445, "0A"), ("0100007F", 81, "01")],
            tcp6=[
                ("0" * 32, 8080, "0A"),
                ("00000000000000000000000001000000", 7001, "0A"),
                ("0000000000000000FFFF00000100007F", 7002, "0A"),
                ("B80D0120000000000000000001000000", 7003, "0A"),
            ],
            udp=[("00000000", 53, "07"), ("0100007F", 5000, "01")],
        )
    )
    assert found is not None
    assert found.tcp == {22, 80, 8080, 7001, 7002}
    assert found.udp == {53}
    assert found.on("tcp", 7000, 7001)
    assert not found.on("udp", 22, 22)


def test_without_ipv6_the_other_tables_do(tmp_path: Path) -> None:
    tables(tmp_path, tcp=[("00000000", 22, "0A")])
    for name in ("tcp6", "udp6"):
        (tmp_path / name).unlink()
    found = listening(tmp_path)
    assert found is not None
    assert found.tcp == {22}


def test_a_table_that_is_too_long_or_unreadable_tells_nothing(tmp_path: Path) -> None:
    tables(tmp_path)
    (tmp_path / "tcp").write_text(HEADING + "x" * MAX_TABLE)
    assert listening(tmp_path) is None
    (tmp_path / "tcp").unlink()
    (tmp_path / "tcp").mkdir()
    assert listening(tmp_path) is None
