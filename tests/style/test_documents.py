"""The documents say what the code does: links, limits, tables of the wire, exit codes, and the two languages of the tutorial."""

from __future__ import annotations

import importlib
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.style.source import ROOT, modules, project_files, reads
from tunnel.cli import main as cli
from tunnel.nat import candidate
from tunnel.node import peering
from tunnel.rendezvous import messages, server
from tunnel.room.core import messages as room_messages
from tunnel.room.core.roster import Roster
from tunnel.settings import TABLE as SETTINGS
from tunnel.settings import flag_of
from tunnel.transport.connection import events
from tunnel.transport.connection.carried import OWED_FRAMES
from tunnel.transport.crypto import challenge, cookie, handshake
from tunnel.transport.packet import header
from tunnel.transport.packet.frames import Frame
from tunnel.transport.stream import flow
from tunnel.units import CHANNEL_BYTE

DOCUMENTS = [path for path in project_files() if path.suffix == ".md" and path.exists()]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LIMIT_ROW = re.compile(r"^\| `([\w.]+)` \| ([\d.,]+) [^|]*\|[^|]+\| `(tunnel[\w.]*)` \|$", re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The fragments by which the headings of a Markdown page are reached, as common renderers make them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def rows(text: str) -> list[list[str]]:
    """The cells of every table row."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def chapter(number: int) -> str:
    return read("docs/protocol.md").split(f"\n## {number}. ", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (fragment and fragment not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_that_are_named_exist(path: Path) -> None:
    named = set(re.findall(r"\bscripts/[a-z][\w-]*", path.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_pictures_stand_alone() -> None:
    for path in (ROOT / "docs").rglob("*.svg"):
        tree = ElementTree.parse(path)
        names = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert {"title", "desc"} <= names, f"{path.name} says nothing to those who cannot see it"
        assert not names & {"script", "image", "foreignObject"}
        assert not [value for element in tree.iter() for value in element.attrib.values() if value.startswith("http")]


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(LINK.findall((folder / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in folder.glob("*.md")} - listed == {"README.md"}


def test_the_limits_of_the_security_page_are_those_of_the_code() -> None:
    found = LIMIT_ROW.findall(read("docs/security.md"))
    assert len(found) > 60
    wrong = []
    for name, written, module in found:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part, None)
            value = value() if isinstance(value, type) else value
        if value is None or float(written.replace(",", "")) != pytest.approx(float(value)):
            wrong.append(f"docs/security.md says {name} = {written}, {module} says {value}")
    assert wrong == []


def test_every_limit_of_the_security_page_is_read_by_the_product() -> None:
    """A number that stands in the code and on the page, and that nothing asks for, limits nothing."""
    used = reads()
    idle = []
    for name, _, module in LIMIT_ROW.findall(read("docs/security.md")):
        last = name.rpartition(".")[2]
        if ("*", last) not in used and (module, last) not in used:
            idle.append(f"{module}.{name} is read nowhere")
    assert idle == []


def test_the_first_byte_table() -> None:
    table = {cells[0]: cells[1] for cells in rows(chapter(1)) if cells[0].startswith("0x")}
    expected = {
        messages.REQUEST: "request",
        messages.RESPONSE: "response",
        messages.PUSH: "push,",
        messages.PUSH_ACK: "push-ack",
        handshake.INIT: "init",
        handshake.RESPONSE: "response",
        handshake.FINISH: "finish",
        cookie.COOKIE_REPLY: "cookie reply",
        challenge.CHALLENGE: "challenge",
    }
    assert {f"0x{number:02X}": word in table.get(f"0x{number:02X}", "") for number, word in expected.items()} == {
        f"0x{number:02X}": True for number in expected
    }
    assert f"0x{header.TRANSPORT:02X}–0xBF" in table
    assert f"0x{CHANNEL_BYTE:02X}–0xFF" in table
    assert {int(text, 16) for key in table if "," in key for text in key.split(", ")} == server.DIRECTORY_KINDS


def test_the_messages_of_the_rendezvous_protocol() -> None:
    text = chapter(2)
    written = {(cells[0], cells[1]) for cells in rows(text.split("### Requests", 1)[1]) if cells[0].isdecimal()}
    kinds = [
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and not value.__name__.startswith("_")
    ]
    defined = {(str(kind.__struct_config__.tag), kind.__name__) for kind in kinds if kind.__struct_config__.tag is not None}
    assert len(defined) > 20
    assert written == defined
    for name in messages.RefusalCode:
        assert re.search(rf"\b{int(name)} ", text.split("Refusal codes:", 1)[1].split("\n\n", 1)[0]), f"code {name!r}"


def test_the_messages_and_the_roster_of_a_room() -> None:
    text = chapter(8)
    written = {
        (cells[0], cells[1], len([part for part in cells[2].split(", ") if part])) for cells in rows(text) if cells[0].isdecimal()
    }
    kinds = [
        value
        for value in vars(room_messages).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and not value.__name__.startswith("_")
        and value.__struct_config__.tag is not None
    ]
    defined = {(str(kind.__struct_config__.tag), kind.__name__) for kind in kinds if kind.__struct_config__.tag is not None}
    assert {row[:2] for row in written} == defined
    for reason in room_messages.Reason:
        assert re.search(rf"reason u8:.*\b{int(reason)} ", text), f"reason {reason!r}"
    body = text.split("### Roster", 1)[1].split("###", 1)[0]
    fields = [cells[0] for cells in rows(body) if cells[0] not in ("element", "---")]
    assert fields == [field.name for field in msgspec.structs.fields(Roster)]


def test_the_messages_of_the_control_stream() -> None:
    written = {(int(cells[0]), cells[1]) for cells in rows(chapter(5)) if cells[0].isdecimal()}
    defined = {(value, name.removeprefix("CONTROL_")) for name, value in vars(peering).items() if name.startswith("CONTROL_")}
    assert written == defined


def test_the_frames_of_the_transport() -> None:
    written: dict[int, str] = {}
    for cells in rows(chapter(4)):
        if cells[0].startswith("0x"):
            written.update(zip((int(text, 16) for text in cells[0].split(", ")), cells[1].split(", "), strict=True))
    names = (
        {int(frame): frame.name for frame in Frame}
        | {kind.TYPE: kind.NAME for kind in OWED_FRAMES.values()}
        | {int(Frame.STREAM_FIN): "STREAM with FIN"}
    )
    assert written == names


def test_numbers_that_both_sides_count_on() -> None:
    text = chapter(4)
    for number in (flow.INITIAL_STREAM_WINDOW, flow.CONNECTION_WINDOW, flow.MAX_STREAMS, header.SMALLEST_PROBE):
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", text), f"{number:,} is not in chapter 4"
    assert f"at most {candidate.MAX_CANDIDATES}" in chapter(7)
    codes = text.split("### CLOSE", 1)[1]
    known = [value for name, value in vars(events.CloseCode).items() if name.isupper()]
    assert [code for code in known if not re.search(rf"\b{code} \w", codes)] == []


def test_exit_codes_and_commands_of_the_readme() -> None:
    text = read("README.md")
    written = {int(cells[0]): cells[1] for cells in rows(text) if cells[0].isdecimal()}
    printed = {int(code): words for code, words in re.findall(r"^ +(\d+)  (\w.*)$", cli.REFERENCE, re.MULTILINE)}
    assert written == printed
    assert {code for _kind, code, _name in cli.TABLE} <= set(printed)
    assert set(re.findall(r"^\| `ptunnel (\w+)", text, re.MULTILINE)) == set(cli.COMMANDS)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_the_table_of_settings_in_the_readme_is_that_of_the_code() -> None:
    def quoted(name: str | None) -> str:
        return f"`{name}`" if name else ""

    expected = [
        f"| {quoted(key if row.is_in_file else None)} | {quoted(flag_of(key))} | {quoted(row.variable)} | {row.meaning} |"
        for key, row in SETTINGS.items()
    ]
    section = read("README.md").split("### Settings", 1)[1].split("\n##", 1)[0]
    assert [line for line in section.splitlines() if line.startswith("| ")][1:] == expected


@pytest.mark.parametrize("where", ["README.md", "--help"])
def test_every_variable_and_event_is_listed(where: str) -> None:
    text = read(where) if where.endswith(".md") else cli.PAGE + cli.REFERENCE
    variables = {*(row.variable for row in SETTINGS.values() if row.variable), "PTUNNEL_HOME"}
    assert set(re.findall(r"\bPTUNNEL_[A-Z_]+\b", text)) == variables
    listed = re.search(r"[`']event[`']\s+first(.*?)(?:\n\n|\n`serve`|People are)", text, re.DOTALL)
    assert listed is not None
    source = "".join(module.text for module in modules() if module.name != "tunnel.control.messages")
    emitted = {*re.findall(r'"event": "(\w+)"', source), "error"} - {
        "done",
        "closing",
        "looked",
        "view",
    }  # between processes alone
    assert emitted <= words_of(listed[1])


def commands(name: str) -> list[str]:
    """What the tutorial has its reader type, without comments."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", read(name), re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+#\s.*$", "", block, flags=re.MULTILINE) for block in blocks]


@pytest.mark.parametrize("page", ["tutorial", "tutorial-dht"])
def test_both_languages_of_the_tutorial_type_the_same(page: str) -> None:
    english, turkish = commands(f"docs/{page}.md"), commands(f"docs/{page}.tr.md")
    assert len(english) > 10
    assert english == turkish
    subprocess.run(["bash", "-n"], input="\n".join(english), text=True, check=True, timeout=10)


def test_prose_is_wrapped_at_100_columns() -> None:
    """So that a change of one sentence is a change of a few lines.  Tables, code and pictures cannot be wrapped."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "decisions").glob("*.md")]
    wrong = []
    for page in pages:
        is_code = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            is_code ^= line.lstrip().startswith("```")
            if len(line) > 100 and not is_code and not line.startswith("    ") and not line.lstrip().startswith(("|", "![", "#")):
                wrong.append(f"{page.relative_to(ROOT)}:{number}: {len(line)} columns")
    assert wrong == []
