"""PostgreSQL: tables both ways, and Ctrl-C, which asks for the end of a query over a connection of its own."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from tests.netns.lab import eventually
from tests.programs.homes import SLOW_S, Homes, find, needs

ROOMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BIN = ROOMS[-1] if ROOMS else Path("/usr/lib/postgresql/bin")
pytestmark = needs("psql", str(BIN / "postgres"), str(BIN / "initdb"))

ROWS = 200_000
SLEEPING = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'"


def psql(port: int, *words: str) -> list[str]:
    path = find("psql")
    assert path is not None
    common = ["--no-psqlrc", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1"]
    return [path, *common, f"host=127.0.0.1 port={port} user=owner dbname=postgres connect_timeout=30", *words]


@pytest.fixture
def database(homes: Homes) -> Homes:
    """It refuses to be root's, so it runs as Debian's user for it, which is somebody else in a user namespace only."""
    user = pwd.getpwnam("postgres")
    around = ["unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}"]
    data = homes.folder / "data"
    make = [BIN / "initdb", "--pgdata", data, "--username=owner", "--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync"]
    homes.home.run(*around, *make, timeout=SLOW_S)
    settings = [word for one in ("fsync=off", "unix_socket_directories=", "listen_addresses=127.0.0.1") for word in ("-c", one)]
    server = homes.serve("postgres", [*around, BIN / "postgres", "-D", data, "-p", "5432", *settings], 5432)
    server.wait_said("ready to accept connections", SLOW_S)
    homes.link("5432", forward=["15432:5432"])
    return homes


def test_ctrl_c_ends_a_query(database: Homes) -> None:
    sleeper = database.start("psql", *psql(15432, "--command", "select pg_sleep(600)"))

    def sleeping() -> str:
        return database.home.run(*psql(5432, "--command", SLEEPING)).stdout

    eventually("the query runs", lambda: sleeping() == "1\n", SLOW_S)
    sleeper.interrupt()
    assert sleeper.wait(SLOW_S) == 1
    assert "canceling statement due to user request" in sleeper.said()
    assert sleeping() == "0\n"


def test_a_table_is_copied_in_and_out(database: Homes) -> None:
    table = database.folder / "table.csv"
    table.write_text("".join(f"{number},{number * 7919 % 1_000_003}\n" for number in range(ROWS)), encoding="ascii")
    given = table.read_text(encoding="ascii")
    database.use(*psql(15432, "--command", "create table numbers (a int, b int)"))
    database.use(*psql(15432, "--command", f"\\copy numbers from '{table}' csv"))
    assert database.use(*psql(15432, "--command", "\\copy (table numbers order by a) to stdout csv")).stdout == given
    total = database.home.run(*psql(5432, "--command", "select count(*), sum(b) from numbers")).stdout
    assert total == f"{ROWS}|{sum(number * 7919 % 1_000_003 for number in range(ROWS))}\n"
