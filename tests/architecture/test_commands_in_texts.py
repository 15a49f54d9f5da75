"""Every command that a text names exists, with its options: what people are told to run, they can run."""

import ast
import re
from pathlib import Path

import click
import pytest

from daemon.cli.root import covey

ROOT = Path(__file__).parents[2]
_COMMAND = re.compile(r"\bcovey (?!is\b)([a-z]+)\b([^.,;:`'\"()\n&|]*)")


def unknown(text: str) -> list[str]:
    """The commands and options in `text` that do not exist."""
    wrong = []
    for name, rest in _COMMAND.findall(text):
        words = [name, *rest.split()]
        at: click.Command = covey
        with click.Context(covey) as context:
            while isinstance(at, click.Group) and words:
                found = at.get_command(context, words[0])
                if found is None:
                    break
                at = found
                words.pop(0)
            there = {option for parameter in at.get_params(context) for option in parameter.opts}
        missing = [word for word in words if word.startswith("--") and word not in there]
        if at is covey or (isinstance(at, click.Group) and words and not words[0].startswith("-")) or missing:
            wrong.append(f"covey {name}{rest}")
    return wrong


@pytest.mark.parametrize("room", ["agents", "daemon", "protocols", "storage"])
def test_every_command_that_a_text_names_exists(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {text}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for text in unknown(node.value)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ["agents", "daemon"])  # what the others sign begins like commands: `covey name key`
def test_every_command_that_a_document_names_exists(room: str) -> None:
    documents = sorted((ROOT / room).rglob("*.md"))
    assert documents and [f"{path.name}: {text}" for path in documents for text in unknown(path.read_text())] == []


def test_a_command_that_is_not_there_is_noticed() -> None:
    assert unknown("Bring it in first: covey model import") == ["covey model import"]
    assert unknown("run covey trane") == ["covey trane"]
    assert unknown("covey peer trust PEER --kind adapters") == ["covey peer trust PEER --kind adapters"]
    assert unknown("`covey peer trust PEER --kinds adapters`, then covey up") == []
