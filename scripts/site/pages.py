"""The pages of the site: those of the project as they are, and a reference made from the code.

python scripts/site/pages.py FOLDER      scripts/docs does that
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import tunnel  # noqa: E402
from tunnel.cli import main as cli  # noqa: E402
from tunnel.cli.manual import commands, paragraphs  # noqa: E402
from tunnel.settings import TABLE as SETTINGS  # noqa: E402
from tunnel.settings import flag_of  # noqa: E402

#: Titles of the groups of the site's menu, and the pages of each in their order.  What is not here comes last, under "More".
MENU = {
    "For people": [
        "README", "docs/if-you-know", "docs/notation", "docs/games", "docs/always-on", "docs/tutorial", "docs/tutorial.tr",
        "docs/tutorial-dht", "docs/tutorial-dht.tr",
    ],
    "For whoever runs a server": ["docs/server"],
    "Reference": [
        "reference/commands", "reference/settings", "reference/exit-codes", "docs/json", "docs/metrics", "docs/library",
        "reference/library",
    ],
    "How it works": ["docs/protocol", "docs/transport", "docs/security", "docs/deviations", "docs/decisions/README"],
    "Results": ["docs/reach", "docs/performance", "docs/measuring"],
    "The project": ["CONTRIBUTING", "SECURITY", "CHANGELOG"],
}  # fmt: skip
WIDTH = 88  # columns of a line of code on the site
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def make(folder: Path) -> None:
    """Write all pages into `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*")]:
        name = path.relative_to(ROOT)
        if path.is_dir() or name.parts[:2] == ("docs", "changes"):
            continue
        to = folder / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            to.write_text(with_links(path), encoding="utf-8")
        else:
            shutil.copy(path, to)
    reference = folder / "reference"
    reference.mkdir()
    for name, lines in (
        ("commands", page_of_commands()), ("settings", page_of_settings()), ("exit-codes", page_of_exit_codes()),
        ("library", page_of_library()),
    ):  # fmt: skip
        (reference / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "index.md").write_text("\n".join(front(folder)) + "\n", encoding="utf-8")


def with_links(path: Path) -> str:
    """The text of a page.  A link to what is no page of the site is that name alone."""

    def kept(found: re.Match[str]) -> str:
        is_picture, words, target = found[1], found[2], found[3]
        if "://" in target or is_picture:
            return found[0]
        leads_to = (path.parent / target).resolve()
        is_page = leads_to.suffix in (".md", ".svg") and leads_to.is_file() and (ROOT / "docs" / "changes") not in leads_to.parents
        return found[0] if is_page else words

    parts = re.split(r"(^```.*?^```$)", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(kept, part) for part in parts)


def front(folder: Path) -> Iterator[str]:
    """The first page: what it is, and the menu."""
    yield from ("# ptunnel", "")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    yield from (readme.split("\n", 1)[1].split("\n## ", 1)[0].strip(), "")
    known = {name for names in MENU.values() for name in names}
    pages = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.md"))
    decisions = [name for name in pages if name.startswith("docs/decisions/") and not name.endswith("README")]
    more = [name for name in pages if name not in known and name not in decisions and name != "index"]
    menu = {**MENU, "Decisions": decisions, "More": more}
    for title, names in menu.items():
        there = [name for name in names if (folder / f"{name}.md").exists()]
        if there:
            lines = ("First steps <README>" if name == "README" else name for name in there)
            yield from ("```{toctree}", f":caption: {title}", ":maxdepth: 1", "", *lines, "```", "")


def page_of_commands() -> Iterator[str]:
    """Every command with its options, as --help has them."""
    yield from ("# Commands", "", "As `ptunnel COMMAND --help` prints them; `man ptunnel` has the same.", "")
    for name, each in commands(cli.group):
        context = click.Context(each, info_name=f"ptunnel {name}")
        usage = " ".join(("ptunnel", name, *each.collect_usage_pieces(context)))
        yield from ("#" * (2 + name.count(" ")) + f" {name}", "", "```text", usage, "```", "")
        yield from text(each.help or "")
        records = [
            record
            for option in each.get_params(context)
            if isinstance(option, click.Option) and "--help" not in option.opts
            for record in [option.get_help_record(context)]
            if record is not None
        ]
        if records:
            yield from ("| option | |", "|---|---|", *(f"| `{cell(names)}` | {cell(plain(words))} |" for names, words in records), "")
        yield from text(each.epilog or "")


def page_of_settings() -> Iterator[str]:
    """Every setting with its names."""
    yield from ("# Settings", "", "A flag goes before its variable, and this before `config.toml` in PTUNNEL_HOME.", "")
    yield from ("| in config.toml | flag | variable | what it is |", "|---|---|---|---|")
    for key, row in SETTINGS.items():
        names = (key if row.is_in_file else None, flag_of(key), row.variable)
        yield "| " + " | ".join(f"`{name}`" if name else "" for name in names) + f" | {cell(plain(row.meaning))} |"


def page_of_exit_codes() -> Iterator[str]:
    """Every exit code, and the codes of the `error` that `--json` prints with it."""
    yield from ("# Exit codes", "", "| code | meaning | `code` of the event `error` |", "|---|---|---|")
    for code, words in re.findall(r"^ +(\d+)  (\w.*)$", cli.REFERENCE, re.MULTILINE):
        names = dict.fromkeys(name for _kind, number, name in cli.TABLE if number == int(code))
        yield f"| {code} | {cell(plain(words))} | {', '.join(f'`{name}`' for name in names)} |"


def page_of_library() -> Iterator[str]:
    """Every public name of the package with its signature and its docstring."""
    yield from ("# Names of the library", "", "What `import tunnel` gives; the library's page has programs that use it.", "")
    for name in tunnel.__all__:
        thing = getattr(tunnel, name)
        if inspect.ismodule(thing):
            yield from (f"## tunnel.{name}", "", *documented(thing))
            for inner in getattr(thing, "__all__", ()):
                yield from named(f"tunnel.{name}.{inner}", getattr(thing, inner), 3)
        else:
            yield from named(f"tunnel.{name}", thing, 2)


class Bare:
    """An annotation that is shown as it is written, without the quotes of a text."""

    def __init__(self, written: object) -> None:
        self._written = written

    def __repr__(self) -> str:
        return self._written if isinstance(self._written, str) else inspect.formatannotation(self._written)


def signature(thing: Callable[..., object]) -> str:
    """Arguments and result as the source has them."""
    found = inspect.signature(thing)
    empty = inspect.Signature.empty
    arguments = [
        each if each.annotation is empty else each.replace(annotation=Bare(each.annotation)) for each in found.parameters.values()
    ]
    result = found.return_annotation
    end = "" if result is empty else f" -> {Bare(result)!r}"
    words = [str(inspect.Signature([each]))[1:-1] for each in arguments]
    one_line = str(found.replace(parameters=arguments, return_annotation=empty)) + end
    if len(one_line) <= WIDTH:
        return one_line
    # A lone keyword argument shows the star that stands before the first of several.
    keyword = inspect.Parameter.KEYWORD_ONLY
    first = next((number for number, each in enumerate(arguments) if each.kind is keyword), None)
    has_star = first is not None and not any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in arguments)
    words = [word.removeprefix("*, ") if each.kind is keyword else word for word, each in zip(words, arguments, strict=True)]
    if has_star:
        words.insert(first, "*")
    return "(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"


def named(name: str, thing: object, level: int) -> Iterator[str]:
    """One public name; a class that the library alone makes has no arguments to show."""
    yield from ("#" * level + f" {name}", "")
    if callable(thing) and (dataclasses.is_dataclass(thing) or not inspect.isclass(thing)):
        yield from ("```python", f"{name.rpartition('.')[2]}{signature(thing)}", "```", "")
    yield from documented(thing)
    if inspect.isclass(thing):
        for inner, value in vars(thing).items():
            if not inner.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)) and value.__doc__:
                told = " ".join(signature(value).split()).replace("( ", "(").replace(", )", ")") if inspect.isfunction(value) else ""
                first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
                yield f"- `{inner}{told}`: {plain(first)}"
        yield ""


def documented(thing: object) -> Iterator[str]:
    found = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and found.startswith(f"{thing.__name__}("):
        found = ""  # what a dataclass makes of its fields, which the signature says already
    for paragraph in found.split("\n\n"):
        yield from (plain(paragraph), "")


def text(words: str) -> Iterator[str]:
    """Paragraphs of a help text; those that click leaves as they are stand in a block."""
    for lines, is_fixed in paragraphs(words):
        if is_fixed:
            yield from ("```text", *lines, "```", "")
        else:
            yield from (*(plain(line) for line in lines), "")


def plain(words: str) -> str:
    """Nothing in it is Markdown's, but what stands between backticks."""
    parts = re.split(r"(`[^`\n]+`)", words)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>#$`|{}~])", r"\\\1", part) for part in parts)


def cell(words: str) -> str:
    """In one line of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(words.split()))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
