"""Every command that ptunnel prints, or that a page shows, is one that ptunnel takes."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.style.source import ROOT, modules, project_files
from tunnel.cli.main import COMMANDS, group
from tunnel.cli.offers import all_in_one, forwards_for, other_command
from tunnel.errors import ConfigurationError, command_word
from tunnel.pairing.code import looks_like_code, parse_code
from tunnel.pairing.grants import GrantSet
from tunnel.ports.local import _explain
from tunnel.ports.spec import MAX_FORWARDS, parse_forwards, parse_target
from tunnel.server_spec import parse_server

#: What stands for what a person fills in.
WORDS = {
    "NAME=HOST:PORT": "nas=192.168.1.5:445", "NAME": "home", "PEER": "home", "MEMBER": "ben", "ROOM": "game", "PORT": "2222",
    "LOCAL:REMOTE": "2222:22", "HOST": "rv.example.net", "CODE": "731-garden-violin", "COMMAND": "serve", "FILE": "access",
    "ANNA": "anna", "FRIEND": "friend", "ADDR": "127.0.0.1", "SHA256": "ab" * 32, "DIR": "/tmp/traces", "TEXT": "text",
}  # fmt: skip
#: The same for what the source fills in.
FILLED_IN = {
    "port": "2222", "ports": "22 8080", "suffix": "/udp", "options": "--forward 2222:22", "meant": "serve",
    "line": "home --forward 2222:22",
}  # fmt: skip
QUOTED = re.compile(r"'(?:sudo )?(ptunnel [^'\n]+)'|`(?:sudo )?(ptunnel [^`\n]+)`")
#: A line that shows a command: behind a prompt or alone, with what it does behind two spaces.
LINE = re.compile(r"^(?: *|\s*\w+\$ +)(?:sudo )?(ptunnel [^\n]*?)(?: {2,}.*| \\\\)?$", re.MULTILINE)
EXAMPLES = re.compile(r"\n +(\w+\$ +)?(sudo )?ptunnel ")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def strings(tree: ast.AST) -> Iterator[str]:
    """Every text of a module; what an f-string fills in is a word in braces."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else stand_in(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def stand_in(part: ast.AST) -> str:
    """What an f-string may fill in there: the name of a peer has spaces, unless it is made a word of a command."""
    code = ast.unparse(part.value if isinstance(part, ast.FormattedValue) else part)
    if "command_word(" in code:
        return command_word("my home")
    if code in FILLED_IN:
        return FILLED_IN[code]
    return "my home" if "name" in code and "room" not in code and "saved" not in code else "home"


def shown(text: str, page: str) -> Iterator[str]:
    """The commands in `text`: in quotes, on lines of `page`, or all of it."""
    for pair in QUOTED.findall(text):
        yield pair[0] or pair[1]
    yield from LINE.findall(page)
    if text.startswith("ptunnel ") and text.split()[1] in COMMANDS:
        yield text


def printed() -> set[tuple[str, str]]:
    """(where, command)."""
    found: set[tuple[str, str]] = set()
    for module in modules():
        for text in strings(module.tree):
            found |= {(module.relative, each) for each in shown(text, text if EXAMPLES.search(text) else "")}
    for path in project_files():
        if path.suffix == ".md" and path.exists():
            text = path.read_text(encoding="utf-8")
            where = path.relative_to(ROOT).as_posix()
            found |= {(where, each) for each in shown(text, "\n".join(FENCE.findall(text)))}
    return {(where, each) for where, each in found if not NOT_MEANT.fullmatch(each)}


#: What is not one command: a synopsis, and words about the program.
NOT_MEANT = re.compile(r".*[|\[\]<>].*|ptunnel (?:COMMAND|command) .*")


def filled(command: str) -> str:
    command = command.replace("...", "")
    for word, value in WORDS.items():
        command = re.sub(rf"(?<![\w./]){re.escape(word)}(?![\w])", value, command)
    return re.split(r" (?:\||&&|&|>) ", command)[0].rstrip(" &.")


def take(command: str) -> None:
    """Raises what ptunnel would say against it."""
    words = shlex.split(command)[1:]
    context = click.Context(group, info_name="ptunnel")
    while isinstance(context.command, click.Group) and words and not words[0].startswith("-"):
        name, found, words = context.command.resolve_command(context, words)
        assert found is not None
        context = click.Context(found, parent=context, info_name=name)
    context = context.command.make_context(context.info_name, words, parent=context.parent)
    options = context.params
    match context.command.name:
        case "expose":
            GrantSet.parse(*options["grants"])
        case "revoke":
            for text in options["what"]:
                with pytest.raises(ConfigurationError, match="not shared"):
                    GrantSet().without(text)
        case "connect":
            parse_forwards(options["forwards"])
            if options["stdio"] is not None:
                parse_target(options["stdio"])
    for word in (options.get("peer"), options.get("room")):
        if isinstance(word, str) and looks_like_code(word):
            parse_code(word)
    if options.get("server") is not None:
        parse_server(options["server"])


def test_there_is_something_to_look_at() -> None:
    assert len(printed()) > 150


def test_every_printed_command_is_taken() -> None:
    wrong = []
    for where, found in sorted(printed()):
        try:
            take(filled(found))
        except (click.MissingParameter, click.BadOptionUsage, click.exceptions.Exit):
            pass  # named, not spelt out; or --help
        except (click.ClickException, ConfigurationError, ValueError) as error:
            wrong.append(f"{where}: {found}  ->  {filled(found)}: {error}")
    assert "\n".join(wrong) == ""


# -- what `expose` prints for the other side

ports = st.tuples(
    st.sampled_from((22, 80, 443, 8080, 18080, 8443, 1000, 1024, 5000, 65_000)), st.sampled_from((0, 0, 0, 1, 10, 300, 535))
)
places = st.one_of(
    ports.map(lambda pair: f"{pair[0]}-{pair[0] + pair[1]}"),
    st.tuples(st.sampled_from(("nas", "web")), ports).map(lambda named: f"{named[0]}=192.168.1.5:{named[1][0]}-{sum(named[1])}"),
)
texts = st.tuples(places, st.sampled_from(("", "/udp", "/tcp+udp"))).map("".join)


@given(st.lists(texts, min_size=1, max_size=6))
def test_the_command_for_the_other_side_is_taken_and_leads_only_to_what_was_granted(chosen: list[str]) -> None:
    try:
        grants = GrantSet.parse(*chosen)
    except ConfigurationError:  # one name for two places
        return
    for server in ("[2001:db8::1]:24531", "rv.example.net:99", f"rv.example.net,pin={'ab' * 32}"):
        take(other_command(server, list(grants)))
        take(all_in_one("731-garden-violin", server, list(grants)))
    forwards = parse_forwards(forwards_for(list(grants)))
    assert all(grants.allows(forward.protocol, forward.target) is not None for forward in forwards)
    assert all(forward.local >= 1024 for forward in forwards)
    wanted = {(grant.protocol, grant.host, port) for grant in grants for port in range(grant.first, grant.last + 1)}
    reached = {(forward.protocol, *grants.allows(forward.protocol, forward.target)) for forward in forwards}  # type: ignore[misc]
    assert reached <= wanted
    if sum(grant.last - grant.first + 1 for grant in grants) <= MAX_FORWARDS:
        assert reached == wanted


@pytest.mark.parametrize(
    ("chosen", "forwards"),
    [
        (["80", "8080"], ["18080:80", "8080"]),
        (["8080", "80"], ["8080", "18080:80"]),
        (["22", "2222", "12222"], ["22222:22", "2222", "12222"]),
        (["80", "8080/udp"], ["18080:80", "8080/udp"]),
        (["22", "22-25"], ["2222:22", "10022-10025:22-25"]),
        (["nas=a:445", "1445"], ["11445:nas", "1445"]),
        (["65535", "web=a:65535"], ["65535", "1024:web"]),
        (["1-65535"], ["10001-11024:1-1024"]),
        (["1-65535", "22"], ["10001-11024:1-1024"]),
    ],
)
def test_each_local_port_is_given_once(chosen: list[str], forwards: list[str]) -> None:
    assert forwards_for(list(GrantSet.parse(*chosen))) == forwards
    assert parse_forwards(forwards)


def test_what_is_left_of_a_name_is_asked_for_by_its_ports() -> None:
    left, _taken = GrantSet.parse("web=a:8000-8010").without("web:8005-8009")
    assert forwards_for(list(left)) == ["8000-8004:web:8000-8004", "8010:web:8010"]


# -- what sentences suggest


@pytest.mark.parametrize("text", ["5353:53/udp", "2222:22", "1445:nas", "5353:games:53/udp", "127.0.0.1:80:8080", "60000/udp"])
@pytest.mark.parametrize("number", ["EADDRINUSE", "EACCES"])
def test_another_port_that_is_suggested_means_the_same_target(text: str, number: str) -> None:
    import errno

    [forward] = parse_forwards([text])
    if number == "EACCES" and forward.local >= 1024:
        return
    sentence = _explain(forward, forward.bind, OSError(getattr(errno, number), ""))
    suggested = re.search(r"as in (\S+)\.$", sentence)
    assert suggested is not None
    [instead] = parse_forwards([suggested[1]])
    assert (instead.target, instead.protocol) == (forward.target, forward.protocol)
    assert instead.local != forward.local


@pytest.mark.parametrize(
    "text", ["192.168.1.5:445", "nas:192.168.1.5:445", "a:b", "[::2]:80", "web=localhost", "web=22", "localhost=h:1"]
)
def test_a_grant_that_is_suggested_is_one(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        GrantSet.parse(text)
    suggested = re.search(r"as in (\S+)\.$", str(caught.value))
    if suggested is not None:
        assert len(GrantSet.parse(suggested[1])) == 1


@pytest.mark.parametrize("name", ["home", "my home", "it's", 'a "b" $c `d` \\e', "наш сервер", "x;y", "*"])
def test_a_name_in_a_command_is_one_word(name: str) -> None:
    shell = subprocess.run(
        ["sh", "-c", f"printf '%s|' {command_word(name)}"], capture_output=True, text=True, check=True, timeout=10
    )
    assert shell.stdout == f"{name}|"
