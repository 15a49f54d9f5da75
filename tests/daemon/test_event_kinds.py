"""Every event that the node notes is documented, and none that it does not note."""

import ast
import re
from pathlib import Path

import daemon
from daemon.api.kinds import EVENT_KINDS

ROOT = Path(daemon.__file__).parents[1]
SOURCES = [
    path.read_text() for room in ("daemon", "agents") for path in (ROOT / room).rglob("*.py") if path.name != "kinds.py"
]
NOTING = {"note", "note_by", "emit"}


def noted():
    """The kinds that stand in calls which note an event."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in NOTING:
                for argument in node.args[:2]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value


def test_every_kind_is_documented():
    found = {kind for kind in noted() if re.fullmatch(r"[a-z]+(_[a-z]+)+", kind)}
    assert found - EVENT_KINDS.keys() == set()
    assert len(found) > 20


def test_no_kind_is_documented_that_nobody_notes():
    everything = "".join(SOURCES)
    assert [kind for kind in EVENT_KINDS if f'"{kind}"' not in everything] == []


def test_kinds_are_in_order():
    assert list(EVENT_KINDS) == sorted(EVENT_KINDS)
