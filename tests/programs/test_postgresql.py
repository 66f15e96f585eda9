"""PostgreSQL: tables both ways, and Ctrl-C, which asks for the end of a query over a connection of its own."""

from __future__ import annotations

import pwd
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab import eventually
from tests.programs.homes import SLOW_S, Homes, find, needs

ROOMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BIN = ROOMS[-1] if ROOMS else Path("/usr/lib/postgresql/bin")
pytestmark = needs("psql", str(BIN / "postgres"), str(BIN / "initdb"))

ROWS = 200_000
SLEEPING = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'"


def psql(port: int, *words: str, host: str | Path = "127.0.0.1") -> list[str]:
    path = find("psql")
    assert path is not None
    common = ["--no-psqlrc", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1"]
    return [path, *common, f"host={host} port={port} user=owner dbname=postgres connect_timeout=30", *words]


def data_of(dump: str) -> list[str]:
    """Without the two lines that hold a word drawn for each dump."""
    return [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For sockets: with a short path."""
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        yield Path(name)


@pytest.fixture
def database(homes: Homes, folder: Path) -> Homes:
    """It refuses to be root's, so it runs as Debian's user for it, which is somebody else in a user namespace only."""
    user = pwd.getpwnam("postgres")
    around = ["unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}"]
    data = homes.folder / "data"
    make = [
        str(BIN / "initdb"),
        "--pgdata",
        str(data),
        "--username=owner",
        "--auth=trust",
        "--no-locale",
        "--encoding=UTF8",
        "--no-sync",
    ]
    homes.home.run(*around, *make, timeout=SLOW_S)
    settings = [
        word for one in ("fsync=off", f"unix_socket_directories={folder}", "listen_addresses=127.0.0.1") for word in ("-c", one)
    ]
    server = homes.serve("postgres", [*around, BIN / "postgres", "-D", data, "-p", "5432", *settings], 5432)
    server.wait_said("ready to accept connections", SLOW_S)
    near = folder / "near"
    near.mkdir()
    homes.link("5432", f"pg=unix:{folder}/.s.PGSQL.5432", forward=["15432:5432", f"unix:{near}/.s.PGSQL.5432:pg", "25432:pg"])
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


def test_the_database_is_used_by_unix_sockets_at_one_end_or_both(database: Homes, folder: Path) -> None:
    """The server tells whether a client came by a Unix socket: then it has no address."""
    ask = ["--command", "select inet_client_addr() is null, sum(a) from generate_series(1, 200000) a"]
    for words in (psql(5432, *ask, host=folder / "near"), psql(25432, *ask)):
        assert database.use(*words).stdout == "t|20000100000\n"
    assert database.use(*psql(15432, *ask)).stdout == "f|20000100000\n"


@pytest.mark.nightly
@pytest.mark.time_limit(300)
def test_a_benchmark_a_dump_and_a_notification_after_a_silence(database: Homes) -> None:
    here, there = (f"host=127.0.0.1 port={port} user=owner dbname=postgres" for port in (5432, 15432))
    database.use(BIN / "pgbench", "--initialize", "--quiet", "--scale=2", there)
    said = database.use(BIN / "pgbench", "--client=8", "--transactions=200", there).stdout
    assert "number of transactions actually processed: 1600/1600" in said
    assert "number of failed transactions: 0 " in said
    near, far = database.home.run(BIN / "pg_dump", here, timeout=SLOW_S), database.use(BIN / "pg_dump", there)
    assert data_of(far.stdout) == data_of(near.stdout)
    listener = database.start("listener", *psql(15432), stdin=subprocess.PIPE)

    def say(line: str) -> None:
        assert listener.process.stdin is not None
        listener.process.stdin.write(f"{line}\n")
        listener.process.stdin.flush()

    say("listen news;")
    listener.wait_said("LISTEN", SLOW_S)
    time.sleep(75)
    database.home.run(*psql(5432, "--command", "notify news, 'after the silence'"))
    say("select 'asked';")
    listener.wait_said("asked", SLOW_S)
    listener.wait_said('Asynchronous notification "news" with payload "after the silence" received', SLOW_S)
