"""docs/security.md says what nobody can do: each such sentence has a test that tries, and each limit a test that names it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tests.adversary.sentences import SENTENCES
from tests.style.source import ROOT

PROMISES = re.compile(r"\b(cannot|never|no more|at most|refused|nobody)\b", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z*`])")
LIMIT = re.compile(r"^\| `([\w.]+)` \| [\d,.]+ ", re.MULTILINE)


def page() -> str:
    return (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def sentences() -> dict[str, set[str]]:
    """By section, with line breaks made blanks."""
    text = page()
    found: dict[str, set[str]] = {}
    section = ""
    for block in re.split(r"\n\s*\n", text[text.index("## Who can see and do what") : text.index("## Limits")]):
        if block.startswith("#"):
            section = block.strip("# \n")
            continue
        found.setdefault(section, set()).update(SENTENCE.split(" ".join(block.split())))
    return found


@cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_promise_of_the_page_has_a_test_that_tries() -> None:
    missing = [
        f"{section}: {sentence}"
        for section, found in sentences().items()
        for sentence in found
        if PROMISES.search(sentence) and sentence not in SENTENCES.get(section, {})
    ]
    assert missing == []


def test_every_sentence_that_is_tried_stands_on_the_page() -> None:
    stands = sentences()
    assert [each for section, tried in SENTENCES.items() for each in tried if each not in stands.get(section, set())] == []


def test_the_tests_that_try_exist() -> None:
    named = [node for tried in SENTENCES.values() for nodes in tried.values() for node in nodes]
    assert all(nodes for tried in SENTENCES.values() for nodes in tried.values())
    wrong = []
    for node in named:
        file, _, name = node.partition("::")
        if not (ROOT / file).exists() or name not in functions_of(file):
            wrong.append(node)
    assert wrong == []


def test_every_limit_is_named_by_a_test() -> None:
    texts = [path.read_text(encoding="utf-8") for path in Path(ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name]
    words = set(re.findall(r"[A-Za-z_]\w+", "\n".join(texts)))
    limits = {name.rpartition(".")[2] for name in LIMIT.findall(page())}
    assert len(limits) > 100
    assert limits - words == set(), "write a test that reaches it, by its name and not by its number"
