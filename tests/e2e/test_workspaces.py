"""A workspace between real processes: who was away catches up, who was revoked learns it, nothing said is lost."""

import time
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.long]

LIMIT_S = 30.0


def until(ask: Any, is_it: Any) -> Any:
    """What `ask` gives once it is as wanted."""
    end_s = time.monotonic() + LIMIT_S
    while not is_it(found := ask()):
        assert time.monotonic() < end_s, found
        time.sleep(0.1)
    return found


def test_three_nodes_one_of_them_killed_come_to_one_state(new_node: Any) -> None:
    ada, bob, cleo = (new_node(name).up() for name in ("ada", "bob", "cleo"))
    cid = ada.ask("ws", "create", "village")["workspace"]
    for node in (bob, cleo):
        ada.ok("ws", "invite", cid, node.peer)
        assert node.ask("ws", "join", cid, "--from", ada.address)["n_members"] >= 2
    ada.ok("ws", "put", cid, "plan", "first")
    bob.kill()
    ada.ok("ws", "say", cid, "bob is away")
    cleo.ok("ws", "put", cid, "plan", "second")
    bob.up()
    bob.ok("ws", "say", cid, "back again")

    def states() -> list[Any]:
        return [node.ask("ws", "ls")[0] for node in (ada, bob, cleo)]

    rows = until(states, lambda rows: len({row["state"] for row in rows}) == 1 and rows[0]["n_entries"] == 8)
    assert [row["n_void"] for row in rows] == [0, 0, 0]
    assert bob.ask("ws", "get", cid, "plan")[0]["value"] == "second"
    ada.ok("ws", "revoke", cid, cleo.peer)
    until(lambda: cleo.ask("ws", "ls")[0], lambda row: not row["is_member"])
    assert cleo.covey("ws", "say", cid, "still here?").returncode == 4
