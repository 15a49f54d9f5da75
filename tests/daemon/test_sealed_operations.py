"""Sealing over the control API, and from the command line: commands, files, levels, and what people are told."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import trio

from daemon.api.faults import EXIT_FAILED, Fault
from daemon.api.operation import operations
from daemon.app import open_node
from daemon.cli import forms, generate
from daemon.config import Config
from protocols.errors import NoProviders
from storage.blockstore import Visibility
from storage.cid import Cid
from storage.dag import reach
from storage.keys import Identity
from storage.sealed import open_sealed
from tests.storage.losing import lose

BO = Identity(bytes([7]) * 32)


@pytest.fixture
async def here(home, lonely, ask):
    async with open_node(home, Identity.generate(), Config(), print, lonely.opened) as node:
        node.catalog.peers.add(BO.peer_id, ["/ip4/192.0.2.7/tcp/4701"], 1.0, name="bo")

        async def post(name, /, **params):
            return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

        async def result(name, /, **params):
            answer = await post(name, **params)
            assert answer.status == 200, answer.body
            said = answer.lines[-1]
            assert "error" not in said, said
            return said

        async def code(name, /, **params):
            answer = await post(name, **params)
            return (answer.lines[-1] if answer.status == 200 else answer.json)["error"]["code"]

        yield SimpleNamespace(node=node, post=post, result=result, code=code)


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "plan.txt").write_bytes(b"a secret plan" * 20_000)
    return tmp_path / "notes"


async def test_content_is_sealed_opened_and_read_in_ranges(here, notes, tmp_path):
    made = await here.result("sealed/seal", path=str(notes), to=["bo", "me"])
    assert made["recipients"] == sorted(made["recipients"], key=lambda peer: peer) and len(made["recipients"]) == 2
    assert made["visibility"] == "private" and f"covey share {made['cid']} --visibility members" in made["note"]
    assert here.node.pins.list()[0].cid == Cid.parse(made["cid"])
    entries = await here.result("sealed/ls", reference=made["cid"])
    assert [(entry["path"], entry["kind"], entry["mode"]) for entry in entries][1:] == [("plan.txt", "file", "644")]
    done = await here.result("sealed/unseal", reference=made["cid"], out=str(tmp_path / "out"))
    assert done["n_bytes"] == 260_000 and (tmp_path / "out" / "plan.txt").read_bytes() == b"a secret plan" * 20_000
    assert await here.code("sealed/unseal", reference=made["cid"], out=str(tmp_path / "out")) == "target_exists"
    plan = f"{made['cid']}/plan.txt"
    part = await here.post("sealed/cat", reference=plan, offset=130_000, length=13)
    assert part.body == (b"a secret plan" * 20_000)[130_000:130_013]
    await here.result("sealed/unseal", reference=plan, out=str(tmp_path / "part"), offset=13, length=13)
    assert (tmp_path / "part").read_bytes() == b"a secret plan"
    assert (await here.result("sealed/unseal", reference=plan))["out"] is None
    assert open_sealed(here.node.store, Cid.parse(made["cid"]), BO).find("plan.txt").n_bytes == 260_000


async def test_recipients_are_listed_added_and_revoked(here, notes):
    made = await here.result("sealed/seal", path=str(notes))
    added = await here.result("sealed/add", cid=made["cid"], peers=["bo"])
    rows = await here.result("sealed/recipients", cid=added["cid"])
    assert {(row["name"], row["is_self"]) for row in rows} == {("bo", False), (None, True)}
    first, second = Cid.parse(made["cid"]), Cid.parse(added["cid"])
    blocks = {reached.cid for reached in reach(here.node.store, first)}
    assert {reached.cid for reached in reach(here.node.store, second)} - blocks == {second}
    revoked = await here.result("sealed/revoke", cid=added["cid"], peers=["bo"])
    assert "keeps what he could read" in revoked["note"] and "--rekey" in revoked["note"]
    assert revoked["recipients"] == [str(here.node.identity.peer_id)]
    assert here.node.pins.list(second) == []
    assert await here.code("sealed/revoke", cid=revoked["cid"], peers=["bo"]) == "not_found"
    assert await here.code("sealed/revoke", cid=revoked["cid"], peers=["me"]) == "unfit"


async def test_rekeying_leaves_no_ciphertext_that_the_revoked_key_opens(here, notes):
    made = await here.result("sealed/seal", path=str(notes), to=["bo"], visibility="members")
    first = Cid.parse(made["cid"])
    key = open_sealed(here.node.store, first, BO).key
    assert here.node.roots.members(first) == {BO.peer_id}
    done = await here.result("sealed/revoke", cid=made["cid"], peers=["bo"], rekey=True)
    new = open_sealed(here.node.store, Cid.parse(done["cid"]), here.node.identity)
    assert new.key != key and "does not know" in done["note"]
    old = {reached.cid for reached in reach(here.node.store, first)}
    assert not old & {reached.cid for reached in reach(here.node.store, Cid.parse(done["cid"]))}
    assert here.node.roots.list() == []  # nobody is left to show it to, and the old root is withdrawn
    assert not here.node.roots.may_see(BO.peer_id, first, is_flock=False)


async def test_who_may_fetch_changes_with_the_recipients(here, notes):
    eve = Identity(bytes([9]) * 32).peer_id
    made = await here.result("sealed/seal", path=str(notes), to=["bo"], visibility="members")
    added = await here.result("sealed/add", cid=made["cid"], peers=[str(eve)])
    assert here.node.roots.members(Cid.parse(added["cid"])) == {BO.peer_id, eve}
    done = await here.result("sealed/revoke", cid=added["cid"], peers=[str(eve)])
    assert here.node.roots.members(Cid.parse(done["cid"])) == {BO.peer_id}
    assert here.node.roots.level(Cid.parse(done["cid"])) is Visibility.MEMBERS


async def test_an_erased_key_is_gone(here, notes, home):
    made = await here.result("sealed/seal", path=str(notes), is_erasable=True)
    assert made["recipients"] == [] and len(list(home.sealed_keys.iterdir())) == 1
    assert (await here.post("sealed/cat", reference=f"{made['cid']}/plan.txt", length=8)).body == b"a secret"
    again = await here.result("sealed/add", cid=made["cid"], peers=["bo"])
    assert again["recipients"] == [str(BO.peer_id)]
    rekeyed = await here.result("sealed/revoke", cid=again["cid"], peers=["bo"], rekey=True)
    assert len(list(home.sealed_keys.iterdir())) == 2
    for cid, who in ((rekeyed["cid"], "nobody, wherever"), (again["cid"], "its 1 recipients")):
        assert who in (await here.result("sealed/erase", cid=cid))["text"]
        assert await here.code("sealed/ls", reference=cid) == "not_a_recipient"
    assert await here.code("sealed/erase", cid=made["cid"]) == "not_found"
    assert not list(home.sealed_keys.iterdir())


async def test_what_cannot_be_done_is_told_by_its_code(here, notes, tmp_path):
    plain = (await here.result("content/add", path=str(notes)))["cid"]
    assert await here.code("sealed/ls", reference=plain) == "not_sealed"
    assert Fault("not_sealed", "").exit_code == EXIT_FAILED
    assert await here.code("sealed/seal", path=str(notes), to=["nobody I know"]) == "not_found"
    assert await here.code("sealed/seal", path=str(notes / "none")) == "no_such_file"
    made = await here.result("sealed/seal", path=str(notes))
    assert await here.code("sealed/unseal", reference=made["cid"], out=str(tmp_path / "none" / "x")) == "not_found"
    assert await here.code("sealed/unseal", reference=f"{made['cid']}/none", out=str(tmp_path / "x")) == "no_such_name"
    missing = str(Cid.of(b"none", 0x71))
    assert await here.code("sealed/ls", reference=missing, timeout_s=0.1) == NoProviders.code
    for block in [block for block in here.node.store.cids() if block.digest != Cid.parse(made["cid"]).digest]:
        lose(here.node.store, [block])
    out = tmp_path / "out"
    assert await here.code("sealed/unseal", reference=made["cid"], out=str(out), timeout_s=0.1) == NoProviders.code
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_the_output_of_unseal_may_be_stdout(home, monkeypatch, capfdbinary):
    asked = []

    def stream_bytes(_home, name, params):
        asked.append((name, params))
        return iter([b"secret"])

    monkeypatch.setattr(generate.client, "stream_bytes", stream_bytes)
    command = generate.command_of(operations()["sealed/unseal"])
    command.main(["CID", "--out", "-", "--offset", "3"], obj=home, standalone_mode=False)
    sys.stdout.flush()
    assert asked == [("sealed/cat", {"reference": "CID", "offset": 3})]
    assert capfdbinary.readouterr().out == b"secret"


def test_a_new_root_is_told_with_what_to_know(capsys):
    result = {"cid": "bafy", "recipients": ["12D3"], "visibility": "private", "n_bytes": 1, "note": "He keeps it."}
    forms.show(result, as_json=False, name="sealed/revoke")
    assert capsys.readouterr().out == "bafy\nsealed to 12D3; given out to this node alone. He keeps it.\n"
    forms.show({"cid": "bafy", "out": None, "n_bytes": 2048}, as_json=False, name="sealed/unseal")
    rows = [{"kind": "folder", "path": "a", "size_bytes": None, "mode": "755"}]
    forms.show(rows, as_json=False, name="sealed/ls")
    assert capsys.readouterr().out == f"bafy  opened 2.0 KiB\n755  {'-':>10}  a/\n"
