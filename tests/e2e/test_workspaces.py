"""A workspace between real processes: who was away catches up, who was revoked learns it, nothing said is lost."""

import json
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


def test_who_is_removed_from_a_private_workspace_reads_nothing_that_is_said_later(new_node: Any) -> None:
    ada, bob, cleo = (new_node(name).up() for name in ("ada", "bob", "cleo"))
    cid = ada.ask("ws", "create", "--private", "village")["workspace"]
    ada.ok("ws", "say", cid, "before bob")
    ada.ok("ws", "invite", cid, bob.peer)
    bob.ask("ws", "join", cid, "--from", ada.address)
    ada.ok("ws", "invite", cid, cleo.peer, "--past")
    cleo.ask("ws", "join", cid, "--from", ada.address)

    def said(node: Any) -> list[Any]:
        rows = map(json.loads, node.ok("ws", "log", cid, "--json").splitlines())
        return [row["content"].get("text") for row in rows if row["kind"] == "say"]

    ada.ok("ws", "say", cid, "with bob")
    until(lambda: said(bob), lambda texts: texts == [None, "with bob"])
    until(lambda: said(cleo), lambda texts: texts == ["before bob", "with bob"])
    ada.ok("ws", "revoke", cid, bob.peer)
    ada.ok("ws", "say", cid, "without bob")
    until(lambda: said(cleo), lambda texts: texts == ["before bob", "with bob", "without bob"])
    until(lambda: bob.ask("ws", "ls")[0], lambda row: not row["is_member"])
    assert said(bob) == [None, "with bob"]
    cleo.kill()
    cleo.up()
    assert said(cleo) == ["before bob", "with bob", "without bob"]
