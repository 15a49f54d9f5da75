"""Events of rounds are read as they were said, and what no member may say is refused."""

import hashlib
from typing import Any

import pytest

from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from protocols.rounds import (
    MAX_REFUSALS,
    MAX_VERDICT_CHARS,
    Event,
    Refusal,
    Result,
    Score,
    content_of,
    read_event,
    scope_of,
)
from storage.cid import RAW, Cid
from storage.keys import Identity

AUTHOR = Identity(hashlib.sha256(b"author").digest())
LINK = Cid.of(b"link", RAW)
EXPERIMENT = Cid.of(b"experiment")


def said(kind: str, content: dict[str, Any]) -> Entry:
    return make_entry(AUTHOR, kind, scope_of(EXPERIMENT), 0, [], content)


EVENTS: list[Event] = [
    Result(round=1, close=LINK, result=LINK),
    Result(round=2, close=LINK, result=LINK, refused=(Refusal(AUTHOR.peer_id, "it holds NaN or infinity"),)),
    Score(round=1, result=LINK, n_samples=3),
    Score(round=1, result=LINK, n_samples=3, loss=1.5, accuracy=1.0),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_what_was_said_is_what_is_read(event: Event) -> None:
    assert read_event(said(event.kind, content_of(event)), EXPERIMENT) == event


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("score", {"n_samples": 0}),
        ("score", {"accuracy": 1.5}),
        ("score", {"accuracy": -0.1}),
        ("score", {"accuracy": "high"}),
        ("score", {"loss": "low"}),
        ("score", {"round": 0}),
        ("score", {"result": b"link"}),
        ("score", {"more": 1}),
        ("result", {"refused": [{"peer": b"short", "reason": "x"}]}),
        ("result", {"refused": [{"peer": bytes(AUTHOR.peer_id), "reason": ""}]}),
        ("result", {"refused": [{"peer": bytes(AUTHOR.peer_id), "reason": "x" * (MAX_VERDICT_CHARS + 1)}]}),
        ("result", {"refused": [{"peer": bytes(AUTHOR.peer_id), "reason": "x", "more": 1}]}),
        ("result", {"refused": [{"peer": bytes(AUTHOR.peer_id), "reason": "x"}] * (MAX_REFUSALS + 1)}),
        ("result", {"refused": "all"}),
    ],
)
def test_what_no_member_may_say_is_refused(kind: str, changes: dict[str, Any]) -> None:
    event = next(one for one in EVENTS if one.kind == kind)
    with pytest.raises(Malformed):
        read_event(said(kind, content_of(event) | changes), EXPERIMENT)
