"""What the README tells a newcomer to type exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from daemon.cli.root import covey

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def lines_of_consoles(text: str) -> Iterator[str]:
    """What is typed at the prompts of a text's console blocks, without remarks."""
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            prompt, dollar, typed = line.partition("$ ")
            if dollar and " " not in prompt:
                yield " ".join(shlex.split(typed, comments=True))


def commands_of(text: str) -> list[str]:
    """Every `covey ...` of a text: in its console blocks, and between backticks."""
    inline = re.findall(r"`(covey(?: [^`]+)?)`", text)
    return sorted({line for line in [*lines_of_consoles(text), *inline] if line.partition(" ")[0] == "covey"})


def parse(group: click.Command, words: list[str], context: click.Context | None = None) -> None:
    """Parse a command line down to its last command, and run nothing. Raises: click.UsageError."""
    with group.make_context(words[0], words[1:], parent=context) as here:
        if isinstance(group, click.Group):
            rest = [*here._protected_args, *here.args]
            _name, command, _arguments = group.resolve_command(here, rest)
            assert command is not None
            parse(command, rest, here)


@pytest.mark.parametrize("line", commands_of(README))
def test_every_command_of_the_readme_can_be_typed(line):
    parse(covey, line.split())


@pytest.mark.parametrize("line", ["covey flyy", "covey peer befriend X", "covey peer trust X --kind a", "covey add"])
def test_a_command_that_does_not_exist_is_noticed(line):
    with pytest.raises(click.UsageError):
        parse(covey, line.split())


def test_the_readme_has_commands():
    assert {"covey up --detach", "covey chat", "covey doctor"} <= set(commands_of(README))


def test_every_target_of_make_that_the_readme_names_exists():
    named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", README))
    assert {"demo", "test", "check"} <= named
    assert named <= set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_documents_that_a_text_leads_to_exist(document):
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []
