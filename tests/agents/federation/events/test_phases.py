"""The table of phases is what rounds go through, and what FEDERATION.md shows."""

from pathlib import Path

import agents
from agents.federation.events.phases import TABLE, phase_of, written_into
from tests.agents.federation.members.test_member import LONG_S, begin, is_done, kill_when

PHASES = {step.phase for step in TABLE} | {step.then for step in TABLE}


def ways() -> set[tuple[str, str]]:
    """From where to where steps of the table lead: events may come so close together that one is not seen alone."""
    found: set[tuple[str, str]] = {(step.phase, step.then) for step in TABLE}
    for middle in PHASES:
        for one in PHASES:
            found |= {(one, other) for other in PHASES if {(one, middle), (middle, other)} <= found}
    return found


def test_the_document_shows_the_table_of_now() -> None:
    document = (Path(agents.__file__).parent / "FEDERATION.md").read_text()
    assert document == written_into(document)


def test_rounds_go_through_phases_as_the_table_says() -> None:
    seen: set[tuple[str, str]] = set()
    for seed, kind in enumerate(("open", "submit", "close", "vote", "promise")):
        village = begin(seed, n_rounds=1, deadline_s=30.0, min_participants=5 if kind == "submit" else 1)
        kill_when(village, village.villagers[0], kind)
        watched = village.villagers[1]
        before = phase_of(watched.book, 1)
        for moment in range(1, int(LONG_S)):
            village.run(moment * 0.1)
            now = phase_of(watched.book, 1)
            if now != before:
                seen.add((before, now))
                before = now
            if is_done(village):
                break
    assert seen <= ways()
    assert ("settled", "training") not in ways()
    assert {then for _, then in seen} >= {"waiting", "training", "closing", "final", "settled", "void"}


def test_secure_rounds_go_through_phases_as_the_table_says() -> None:
    seen: set[tuple[str, str]] = set()
    for seed, kind in enumerate(("open", "keys", "shares", "close", "unmask")):
        village = begin(
            seed, n_members=4, n_rounds=1, deadline_s=30.0, secure={}, max_norm=1.0,
            min_participants=4 if kind in ("keys", "shares") else 3,
        )  # fmt: skip
        kill_when(village, village.villagers[0 if kind != "shares" else 3], kind)
        watched = village.villagers[1]
        before = phase_of(watched.book, 1)
        for moment in range(1, int(LONG_S)):
            village.run(moment * 0.1)
            now = phase_of(watched.book, 1)
            if now != before:
                seen.add((before, now))
                before = now
            if is_done(village):
                break
    assert seen <= ways()
    assert {then for _, then in seen} >= {"keying", "sharing", "training", "final", "settled", "void"}
