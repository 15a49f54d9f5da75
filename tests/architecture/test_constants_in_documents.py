"""Every constant that a document names is there, in the module that it names: what bounds a protocol is found by it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("storage", "protocols", "agents", "daemon")
DOCUMENTS = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.md"))
_NAMED = re.compile(r"`((?:[a-z_0-9]+\.)*)([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`")


def constants(path: Path) -> Iterator[str]:
    """What a module or its classes set, by its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign | ast.Assign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (one.id for one in ast.walk(target) if isinstance(one, ast.Name))


def modules() -> dict[str, list[str]]:
    """Where each constant is, by its name."""
    found: dict[str, list[str]] = defaultdict(list)
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for name in constants(path):
                found[name].append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def missing(text: str, there: dict[str, list[str]]) -> list[str]:
    """The constants that a text names, and that are not where it says."""
    return [
        f"{module}{name}"
        for module, name in _NAMED.findall(text)
        if not any(f".{place}.".endswith(f".{module}") for place in there.get(name, ()))
    ]


@pytest.fixture(scope="module")
def there() -> dict[str, list[str]]:
    return modules()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_constant_that_a_document_names_is_there(document: Path, there: dict[str, list[str]]) -> None:
    assert missing(document.read_text(), there) == []


def test_a_constant_that_is_not_there_is_noticed() -> None:
    there = {"MAX_DEPTH": ["protocols.message"], "MAX_ITEMS": ["protocols.message"]}
    text = "`message.MAX_DEPTH`, `MAX_ITEMS`, `protocols.message.MAX_ITEMS`"
    assert missing(text, there) == []
    assert missing(f"{text}, `entry.MAX_DEPTH`, `MAX_WIDTH`, `sage.MAX_ITEMS`", there) == [
        "entry.MAX_DEPTH", "MAX_WIDTH", "sage.MAX_ITEMS"
    ]  # fmt: skip
