"""`ptunnel`: parse, run, and the one table from exception to exit code and sentence.

Only click is imported to get here; each sub-command lives in a module of its own and is imported when it is called.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from tunnel.cli import voice
from tunnel.cli.later import LATER, put_off
from tunnel.errors import (
    AlreadyRunningError,
    CommandNotFoundError,
    CommandNotRunError,
    ConfigurationError,
    PairingError,
    PeerError,
    PermissionDeniedError,
    ServerUnreachableError,
    StateError,
    TunnelError,
    UnreachableError,
    leaves,
)
from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.settings import TABLE as TABLE_OF_SETTINGS
from tunnel.settings import flag_of, take_secrets

logger = logging.getLogger("ptunnel")

#: The first row that fits counts, so the narrower kind stands before the wider: exception, exit code, `code` of the JSON error.
TABLE: Final[tuple[tuple[type[BaseException], int, str], ...]] = (
    (KeyboardInterrupt, 130, "interrupted"),
    (StateError, 7, "state_unusable"),
    (AlreadyRunningError, 8, "already_running"),
    (CommandNotFoundError, 127, "command_not_found"),
    (CommandNotRunError, 126, "command_not_run"),
    (ConfigurationError, 2, "usage"),
    (click.UsageError, 2, "usage"),
    (click.ClickException, 2, "usage"),
    (PairingError, 4, "pairing_failed"),
    (PermissionDeniedError, 6, "denied"),
    (ServerUnreachableError, 3, "server_unreachable"),
    (UnreachableError, 5, "peer_unreachable"),
    (PeerError, 5, "peer_unreachable"),
    (TunnelError, 1, "internal"),
    (OSError, 1, "system"),
    (Exception, 1, "internal"),
)

COMMANDS: Final = {
    "serve": "Run a rendezvous server on a public host.",
    "up": "Run what config.toml asks for: all links of this home in one process.",
    "expose": "Let a peer reach ports of this machine; prints a code.",
    "grant": "Let a remembered peer reach more of this machine.",
    "revoke": "Take back what a remembered peer may reach here.",
    "connect": "Reach a peer: forward local ports to it, or --stdio for ssh.",
    "forward": "Add, remove and list the forwards of the running 'up'.",
    "invite": "Have the running 'up' give a code for one new peer.",
    "join": "Have the running 'up' pair by a code, and forward ports.",
    "service": "Have systemd run 'up', now and from each start on.",
    "reload": "Have the running 'up' go by an edited config.toml.",
    "page": "Open the page of the running 'up' in a browser.",
    "lan": "A LAN over the internet for a game: create a room, join one.",
    "exec": "Run a program whose only network is a room: needs no privilege.",
    "peers": "List, rename and forget remembered peers.",
    "config": "Show and set what config.toml holds, such as the server.",
    "status": "Show the links of running commands: path, rtt, loss, rates.",
    "ping": "Measure round trips through a running link.",
    "bench": "Measure what a running link can carry.",
    "doctor": "Say what this network is, and why a path is direct or relayed.",
}

PAGE: Final = f"""
Reach a port of one computer from another, both behind home routers, over an encrypted
UDP path that the two punch through their NATs.  Where no direct path exists, a server
relays datagrams that it cannot read.

\b
A HOME SSH PORT FOR A FRIEND.  Somewhere a small public host runs 'ptunnel serve'.
  home$    ptunnel expose 22 --server rv.example.net
           ... prints a code that works once, for 10 minutes
  friend$  ptunnel connect --server rv.example.net --forward 2222:22
           Code: 731-garden-violin
  friend$  ssh -p 2222 localhost

\b
NEXT WEEK.  Both sides remember each other; no code is needed.
  home$    ptunnel expose
  friend$  ptunnel connect home --forward 2222:22
  friend$  ssh -o ProxyCommand='ptunnel connect home --stdio 22' me@home

\b
A LAN OVER THE INTERNET FOR A GAME.  Up to {MAX_MEMBERS} in one subnet; discovery works as at home.
  you$     sudo ptunnel lan create --server rv.example.net
           ... prints a code that is good for all friends
  friend$  sudo ptunnel lan join --server rv.example.net

\b
MORE EXAMPLES
  ptunnel expose 25565/udp 8080               two ports at once, no server: one desk or one LAN
  ptunnel expose nas=192.168.1.5:445          a machine in this LAN; they use --forward 1445:nas
  ptunnel connect --forward 8080              port 8080 to the only remembered peer's 8080
  ptunnel connect home --forward 5000-5010/tcp+udp
  ptunnel status --watch                      the links of this user, live
  ptunnel ping home --until-direct            wait for the direct path
  ptunnel bench home                          round trips, loss, and Mbit/s both ways
  ptunnel doctor home                         what this network is, and why a path is relayed
  ptunnel exec --peer home -- openttd         one program in a room of home's, without root
  ptunnel revoke friend 9090                  takes it back, and ends what is open of it
  ptunnel peers forget friend                 everything, and the peer is a stranger again
"""

_TEXT: Final = """
\b
Exit codes:
    0  done, or ended as asked (also by SIGTERM)
    1  something inside ptunnel went wrong
    2  the command or the configuration cannot work as written
    3  the server cannot be reached, or is no ptunnel server
    4  pairing failed: the code is wrong, spent, expired or unknown
    5  the peer cannot be reached, or the path is not as asked
    6  the peer does not allow it
    7  the state directory cannot be used
    8  another process does this already
  126  the command of 'exec' may not be run
  127  the command of 'exec' is not there
  130  interrupted by Ctrl-C

\b
Settings: a flag goes before its variable, and this before config.toml in PTUNNEL_HOME.
SETTINGS
  PTUNNEL_HOME
      the directory of identity, peers and config.toml; ~/.local/state/ptunnel on Linux
      unless said ('ptunnel doctor' shows it)

\b
Scripts: --json on any command prints one JSON object a line on stdout, 'event' first:
  listening, code, paired, serving, shared, path, forward, remote, connection, connections,
  member, closed, warning while something runs; error as the last one of a command that failed;
  granted, revoked, peer, renamed, forgotten, setting, room, removed, forward_removed,
  reloaded, service, page, status, check, ping, bench, doctor, finding, fleet as answers.
  People are spoken to on stderr; 'exec' prints events there too.

\b
Completion by the shell, of commands, options and peers' names:
  bash   eval "$(_PTUNNEL_COMPLETE=bash_source ptunnel)"
  zsh    eval "$(_PTUNNEL_COMPLETE=zsh_source ptunnel)"
  fish   _PTUNNEL_COMPLETE=fish_source ptunnel | source
"""


def _settings() -> str:
    """Every setting with its names and its meaning, and an indented line for each."""
    lines = []
    for key, row in TABLE_OF_SETTINGS.items():
        where = f"{key} in config.toml" if row.is_in_file else None
        lines.append("  " + ", ".join(each for each in (flag_of(key), row.variable, where) if each))
        lines.append("      " + row.meaning)
    return "\n".join(lines)


REFERENCE: Final = _TEXT.replace("SETTINGS", _settings())


class Commands(click.Group):
    """Sub-commands by name; their modules are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "man":
            from tunnel.cli.manual import command as manual

            return manual
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"tunnel.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """An option of every command may stand before it, too."""
        if len(args) > 1 and args[0] in ("--json", "-v", "-vv", "--verbose") and args[1] in COMMANDS:
            args = [args[1], args[0], *args[2:]]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        from tunnel.cli.habits import is_code, joined_code, unknown

        if args and args[0] == "help":
            if not args[1:]:
                click.echo(ctx.get_help())
                ctx.exit()
            return self.resolve_command(ctx, [*args[1:], "--help"])
        if args and args[0] == "version":
            click.echo(version_line())
            ctx.exit()
        args = joined_code(args)
        if args and not args[0].startswith("-") and args[0] not in (*COMMANDS, "man"):
            if is_code(args[0]):  # the first thing that one wants to do with it
                return super().resolve_command(ctx, ["connect", *args])
            raise unknown(args[0], "ptunnel", [*COMMANDS, "help", "version"])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands (each explains itself: ptunnel help COMMAND)"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    help=PAGE,
    epilog=REFERENCE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="",
    subcommand_metavar="COMMAND ...",
)
@click.version_option(package_name="ptunnel", prog_name="ptunnel", message="%(prog)s %(version)s")
def group() -> None:
    pass


def version_line() -> str:
    """As --version prints it."""
    from importlib.metadata import version

    return f"ptunnel {version('ptunnel')}"


def main() -> None:
    """The program."""
    take_secrets(os.environ)
    put_off(*LATER)
    out, err = voice.install()
    try:
        code = run(sys.argv[1:])
    except SystemExit:
        if not out.is_gone:  # else it is click's way with a reader that has left, which is no failure
            raise
        code = 0
    try:
        out.finish()
        if out.failure is not None:
            code = report(out.failure)
        err.finish()
    except KeyboardInterrupt:
        os._exit(130)  # nobody reads, and somebody has had enough of waiting
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """One command line; returns the exit code.  No exception gets past here but SystemExit of shell completion."""
    try:
        result = group.main(args=arguments, prog_name="ptunnel", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.ctx.get_help(), err=True)
        return 2
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return report(KeyboardInterrupt(), arguments)
    except SystemExit:
        raise
    except BaseException as problem:
        return report(problem, arguments)


def report(problem: BaseException, arguments: Sequence[str] = ()) -> int:
    """Say what happened, once, in one sentence; returns the exit code."""
    own = list(itertools.takewhile(lambda word: word != "--", arguments))  # what is behind it is another program's
    is_json = "--json" in own
    is_exec = next((word for word in own if not word.startswith("-")), "") == "exec"
    found = list(leaves(problem))
    if any(_is_broken_pipe(leaf) for leaf in found):
        _silence_stdout()
        return 0
    rank, leaf = min(((_row(leaf), leaf) for leaf in found), key=lambda pair: pair[0], default=(len(TABLE) - 1, problem))
    kind, code, name = TABLE[rank]
    logger.debug("how it came to this", exc_info=problem)
    sentence = _sentence(leaf, kind)
    if isinstance(sys.stdout, voice.Voice):
        sys.stdout.finish(voice.LAST_WORDS)  # first, so that on a terminal the sentence is the last thing that is read
    try:
        if is_json and name != "interrupted":
            from tunnel.cli.render import json_line

            line = json_line({"event": "error", "code": name, "message": sentence})
            click.echo(line, err=is_exec)  # there standard output is the program's, and standard error has the objects
    except OSError:
        _silence_stdout()
    if isinstance(sys.stdout, voice.Voice):
        sys.stdout.finish_answer()
    try:
        if name == "interrupted":
            if sys.stderr.isatty() and not is_json:
                click.echo("", err=True)
        elif not (is_json and is_exec):
            from tunnel.cli import json_log
            from tunnel.cli.render import tell

            if "--log-json" in own:
                json_log.start()
                json_log.say(sentence, level=logging.ERROR, what=name)
            else:
                tell(f"ptunnel: {sentence}")
    except OSError:
        _silence_stdout()
    return code


def _row(problem: BaseException) -> int:
    return next((rank for rank, row in enumerate(TABLE) if isinstance(problem, row[0])), len(TABLE) - 1)


def _is_broken_pipe(problem: BaseException) -> bool:
    return isinstance(problem, BrokenPipeError) or (isinstance(problem, OSError) and problem.errno == errno.EPIPE)


def _sentence(problem: BaseException, kind: type[BaseException]) -> str:
    if isinstance(problem, click.ClickException):
        text = problem.format_message().strip()
        context = getattr(problem, "ctx", None)
        if context is not None and isinstance(problem, click.UsageError):
            text = text.rstrip(".") if text.endswith("?.") else text
            text = f"{text}{'' if text.endswith(('.', '?')) else '.'} See '{context.command_path} --help'."
        return text
    if isinstance(problem, TunnelError) and (kind is not TunnelError or type(problem) is TunnelError):
        return str(problem)  # the bare root: another process of ours says what it has met
    if isinstance(problem, OSError):
        if problem.errno in (errno.EMFILE, errno.ENFILE):
            return "Too many files are open: raise the limit with 'ulimit -n', or forward fewer ports."
        where = f" ({problem.filename})" if problem.filename else ""
        return f"The system refused: {problem.strerror or problem}{where}. Run it again with -vv for details."
    detail = str(problem).partition("\n")[0]
    return (
        f"This is a bug in ptunnel ({type(problem).__name__}: {detail}). Please run it again with -vv and report what it prints."
    )


def _silence_stdout() -> None:
    """Whoever read our output is gone; that is no failure."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
