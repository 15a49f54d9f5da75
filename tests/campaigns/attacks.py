"""What an attacker gets into a workspace: `python -m tests.campaigns.attacks [--tries N]`.

Two parts. Live messages reach the topic of a running member, by its own code, with its table of replays on a disk, over
a restart. Entries are offered to it as if a peer told them. A row an attack: how often it was tried, how often it was
handled or stored, how often it had an effect, and the code it was refused or voided with.
"""

import argparse
import hashlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio
import trio.testing

from agents.workspace.pen import begin, write
from agents.workspace.service import Workspaces, grant_for
from agents.workspace.space import Space
from agents.workspace.workspace import Workspace
from protocols import replay
from protocols.bitswap.shell import in_turn
from protocols.entry import Entry, make_entry, open_entry
from protocols.errors import Remote
from protocols.net import TopicMessage
from protocols.workspaces import announce
from protocols.workspaces.announce import News
from protocols.workspaces.entries import Grant, Join, Put, Revoke, Root, Say, content_of, scope_of
from simulations.net import SimWorld, open_world
from simulations.world import SimNode, make_node, unix_now_s
from storage.catalog import Catalog
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity

N_TRIES: Final = 100


class Row(NamedTuple):
    """An attack, and what came of it. `n_in`: handled, or stored."""

    part: str
    name: str
    n_tried: int
    n_in: int
    n_effective: int
    codes: tuple[str, ...]


def identity(name: str) -> Identity:
    """The same in every run."""
    return Identity(hashlib.sha256(name.encode()).digest())


class Peer:
    """Somebody with a key and a view of its own."""

    def __init__(self, name: str, root: Entry) -> None:
        self.identity = identity(name)
        self.space = Space(root, self.identity)

    def hear(self, one: Workspace) -> None:
        """Take in all that the victim has."""
        for entry in one.space.history.since(self.space.history.known()):
            self.space.add(entry)

    def write(self, says: Any, link_to: Cid | None = None) -> Entry:
        """Its next entry, which it has from now on."""
        entry = write(self.identity, self.space, says, link_to=link_to)
        self.space.add(entry)
        return entry

    def sign(self, says: Any, *, sequence: int | None = None, prev: list[Cid] | None = None, scope: str = "") -> Entry:
        """An entry that need not fit."""
        last = self.space.history.last(self.identity.peer_id)
        assert last is not None
        number = last.sequence + 1 if sequence is None else sequence
        links = [last.entry.cid] if prev is None else prev
        where = scope or scope_of(self.space.history.workspace)
        return make_entry(self.identity, says.kind, where, number, links, content_of(says))


# --- live messages


class Live:
    """A member that listens, and what is said on its topic."""

    def __init__(self, world: SimWorld, home: Path) -> None:
        self.world, self.home = world, home
        self.bob, self.eve = identity("bob"), identity("eve")
        self.sequence = 0
        self.node: SimNode
        self.one: Workspace
        self.scope = trio.CancelScope()

    async def start(self, nursery: trio.Nursery) -> None:
        """Come up, with the catalog on the disk."""
        self.catalog = Catalog.open(self.home / "catalog.db")
        self.node = make_node(self.world, "victim", self.home, catalog=self.catalog)
        self.spaces = Workspaces(self.node.ports, self.home / "journals", in_turn)
        self.scope = trio.CancelScope()
        await nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.spaces.run(task_status=task_status)

    async def restart(self, nursery: trio.Nursery) -> None:
        """Die, and come back with what is on the disk."""
        cid = self.one.cid
        self.scope.cancel()
        self.world.crash(self.node.network)
        self.catalog.close()
        await trio.testing.wait_all_tasks_blocked()
        await self.start(nursery)
        self.one = self.spaces.get(cid)

    def news(self, by: Identity, workspace: Cid | None = None, at_s: float | None = None) -> bytes:
        """Signed news of a head that the victim lacks."""
        self.sequence += 1
        head = Cid.of(dag_cbor.encode(self.sequence), DAG_CBOR)
        unix_s, number = unix_now_s() if at_s is None else at_s, self.sequence
        return announce.seal_news(by, workspace or self.one.cid, News(heads=(head,)), lambda aad: number, unix_s)

    async def hear(self, by: Identity, data: bytes) -> tuple[bool, str]:
        """Was it handled, and if not, why?"""
        while by.peer_id in self.one._followed:  # then it is asked, and not listened to
            await trio.sleep(1)
        message = TopicMessage(announce.topic_of(self.one.cid), by.peer_id, data)
        if self.one._is_valid(message) and await self.one._news_of(message) is not None:
            return True, ""
        if not self.one.space.is_member(by.peer_id):
            return False, "no_member"
        try:
            signed = announce.open_news(data, self.one.cid, by.peer_id, unix_now_s())
            replay.admit(self.node.ports.catalog.replay, signed, unix_now_s())
        except Remote as error:
            return False, error.code
        return False, "?"


async def live_rows(home: Path, n_tries: int) -> list[Row]:
    """Live messages."""
    rows: list[Row] = []

    async def row(name: str, messages: list[tuple[Identity, bytes]]) -> None:
        found = [await live.hear(by, data) for by, data in messages]
        codes = tuple(sorted({code for _, code in found if code}))
        n_handled = sum(is_handled for is_handled, _ in found)
        rows.append(Row("live", name, len(messages), n_handled, n_handled, codes))

    async with open_world(1) as world, trio.open_nursery() as nursery:
        live = Live(world, home)
        bob, eve = live.bob, live.eve
        await live.start(nursery)
        live.one = await live.spaces.create("village")
        await live.one.say(Grant(audience=bob.peer_id, can=("write",), keys=("*",)))
        other = Cid.of(b"another workspace", DAG_CBOR)
        good = [live.news(bob) for _ in range(n_tries)]
        await row("as it should be", [(bob, data) for data in good])
        forged = [live.news(bob) for _ in range(n_tries)]
        await row("forged: a bit changed", [(bob, flipped(data, number)) for number, data in enumerate(forged)])
        await row("forged: signed by another", [(bob, live.news(eve)) for _ in range(n_tries)])
        await row("by who is no member", [(eve, live.news(eve)) for _ in range(n_tries)])
        await row("replayed", [(bob, data) for data in good])
        await row("misdirected: of another workspace", [(bob, live.news(bob, other)) for _ in range(n_tries)])
        late = unix_now_s() - announce_ttl_s() - 1000
        await row("expired", [(bob, live.news(bob, at_s=late)) for _ in range(n_tries)])
        early = unix_now_s() + 100_000
        await row("of the future", [(bob, live.news(bob, at_s=early)) for _ in range(n_tries)])
        await row("over-size", [(bob, live.news(bob) + bytes(4096)) for _ in range(n_tries)])
        await live.restart(nursery)
        await row("replayed after a restart", [(bob, data) for data in good])
        await row("as it should be, after it", [(bob, live.news(bob)) for _ in range(n_tries)])
        nursery.cancel_scope.cancel()
    live.catalog.close()
    return rows


def announce_ttl_s() -> int:
    """How long news count."""
    return 15 * 60


def flipped(data: bytes, number: int) -> bytes:
    """With one bit of its signature changed."""
    at = len(data) - 1 - number % 64
    return data[:at] + bytes([data[at] ^ 1 << number % 8]) + data[at + 1 :]


# --- entries


async def entry_rows(home: Path, n_tries: int) -> list[Row]:
    """Entries."""
    async with open_world(1) as world, trio.open_nursery() as nursery:
        live = Live(world, home)
        await live.start(nursery)
        live.one = await live.spaces.create("village")
        rows = [await _offered(live.one, *attack) for attack in _attacks(live.one, n_tries)]
        rows += [await _offered(live.one, *attack) for attack in await _void(live.one, n_tries)]
        nursery.cancel_scope.cancel()
    live.catalog.close()
    return rows


Blocks = tuple[bytes, bytes]


def _blocks(entry: Entry) -> Blocks:
    return entry.block, entry.body_block


async def _offered(one: Workspace, name: str, told: list[Blocks]) -> Row:
    """Tell a member, one by one; what is stored, in memory and on the disk, and what has an effect?"""
    codes, n_stored, n_effective = Counter[str](), 0, 0
    for block, body in told:
        n_before, n_bytes, before = len(one.space.history), one.n_journal_bytes, one.space.document()
        code = ""
        try:
            entry = open_entry(block, body)
            await one.take([entry])
            node = one.space.history.get(entry.cid)
            code = one.space.code(node) if node is not None else "unlinked"
        except Remote as error:
            code = error.code
        is_stored = len(one.space.history) > n_before or one.n_journal_bytes > n_bytes
        n_stored += is_stored
        n_effective += _effects(one.space.document()) != _effects(before) if is_stored else False
        codes[code] += bool(code)
    return Row("entries", name, len(told), n_stored, n_effective, tuple(sorted(code for code in codes if code)))


def _effects(document: bytes) -> Any:
    """The state, without which entries there are and which of them are void."""
    state = dag_cbor.decode(document)
    return {name: value for name, value in state.items() if name not in ("heads", "void")}


def _member(one: Workspace, name: str, **fields: Any) -> tuple[Peer, list[Entry]]:
    """One more member, and its join."""
    peer = Peer(name, one.space.history.root_entry)
    given = {"can": ("write",), "keys": ("docs/*",)} | fields
    owner = Peer("owner", one.space.history.root_entry)
    owner.identity = one._ports.identity
    owner.hear(one)
    grant = owner.write(Grant(audience=peer.identity.peer_id, **given))
    peer.space = Space(one.space.history.root_entry, peer.identity)
    peer.hear(one)
    peer.space.add(grant)
    return peer, [grant, peer.write(Join(), link_to=grant.cid)]


async def _let_in(one: Workspace, name: str, **fields: Any) -> Peer:
    peer, entries = _member(one, name, **fields)
    await one.take(entries)
    return peer


def _attacks(one: Workspace, n_tries: int) -> Iterator[tuple[str, list[Blocks]]]:
    """What is no entry of this workspace."""
    bob, entries = _member(one, "bob")
    for entry in entries:
        one.space.add(entry)
    put = [Put(key=f"docs/{number}", value=number) for number in range(n_tries)]
    yield "as it should be", [_blocks(bob.write(says)) for says in put]
    good = [bob.sign(says) for says in put]
    forged = []
    for number, entry in enumerate(good):
        fields = dag_cbor.decode(entry.block)
        forged.append((dag_cbor.encode(fields | {"sig": flipped(fields["sig"], number)}), entry.body_block))
    yield "forged: a bit of the signature changed", forged
    eve = Peer("eve", one.space.history.root_entry)
    theirs = [make_entry(eve.identity, "put", one_.scope, one_.sequence, one_.prev, one_.content) for one_ in good]
    swapped = [
        (dag_cbor.encode({"body": entry.body_cid, "sig": dag_cbor.decode(other.block)["sig"]}), entry.body_block)
        for entry, other in zip(good, theirs, strict=True)
    ]
    yield "forged: signed by another", swapped
    scope, root = scope_of(one.cid), one.space.history.root_entry.cid
    strangers = [identity(f"stranger {number}") for number in range(n_tries)]
    yield "by a stranger", [_blocks(make_entry(who, "join", scope, 0, [root], {})) for who in strangers]
    other = begin(bob.identity, Root(title="other", created_unix_s=2)).body_cid
    yield "of another workspace", [_blocks(bob.sign(says, scope=scope_of(other))) for says in put]
    large = "x" * (64 << 10)
    yield "over-size", [_blocks(bob.sign(Put(key="docs/a", value=f"{number}{large}"))) for number in range(n_tries)]
    yield "bad sequence", [_blocks(bob.sign(says, sequence=3 * n_tries + number)) for number, says in enumerate(put)]
    last = bob.space.history.last(bob.identity.peer_id)
    assert last is not None
    yield "bad links: none of its own before it", [_blocks(bob.sign(says, prev=[root])) for says in put]
    yield "bad links: none at all", [_blocks(bob.sign(says, prev=[], sequence=0)) for says in put]
    nowhere = [Cid.of(dag_cbor.encode(number), DAG_CBOR) for number in range(n_tries)]
    yield (
        "links to what nobody has",
        [_blocks(bob.sign(says, prev=[last.entry.cid, cid])) for says, cid in zip(put, nowhere, strict=True)],
    )
    known = [node.entry for node in one.space.history][-n_tries:]
    yield "repeated", [_blocks(entry) for entry in known]


async def _void(one: Workspace, n_tries: int) -> list[tuple[str, list[Blocks]]]:
    """What is stored, and comes to nothing."""
    cleo = await _let_in(one, "cleo")
    out = [_blocks(cleo.write(Put(key=f"else/{number}", value=number))) for number in range(n_tries)]
    dan = await _let_in(one, "dan")
    await one.take([dan.write(Put(key="docs/dan", value="before"))])
    grant = grant_for(one, dan.identity.peer_id)
    assert grant is not None
    last = one.space.history.last(dan.identity.peer_id)
    assert last is not None
    await one.say(Revoke(grants=(grant.entry.cid,), last=(last.entry.cid,)))
    beside = [_blocks(dan.write(Put(key=f"docs/dan/{number}", value=number))) for number in range(n_tries)]
    dan.hear(one)
    later = [_blocks(dan.write(Put(key=f"docs/later/{number}", value=number))) for number in range(n_tries)]
    fay = await _let_in(one, "fay")
    seen = one.space.history.last(fay.identity.peer_id)
    assert seen is not None
    twins = [fay.sign(Say(key="docs/talk", text=str(number))) for number in range(2)]
    await one.take(twins[:1])
    branches = [_blocks(twins[1])]
    fay.space.add(twins[0])
    branches += [_blocks(fay.write(Put(key=f"docs/fay/{number}", value=number))) for number in range(n_tries - 1)]
    return [
        ("out of its grant", out),
        ("by a revoked member, beside the revocation", beside),
        ("by a revoked member, later", later),
        ("by an author whose entries fork", branches),
    ]


# --- the table


def table(n_tries: int = N_TRIES) -> list[Row]:
    """Every attack."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    with tempfile.TemporaryDirectory(prefix="covey-attacks-") as name:
        folders = [Path(name) / part for part in ("live", "entries")]
        for folder in folders:
            folder.mkdir()
        rows = trio.run(live_rows, folders[0], n_tries, clock=clock)
        clock = trio.testing.MockClock(autojump_threshold=0)
        return rows + trio.run(entry_rows, folders[1], n_tries, clock=clock)


def is_expected(row: Row) -> bool:
    """As WORKSPACES.md says?"""
    if row.name.startswith("as it should be"):
        return row.n_in == row.n_effective == row.n_tried and not row.codes
    is_void = row.name in VOID
    return row.n_effective == 0 and row.n_in == (row.n_tried if is_void else 0) and row.codes == EXPECTED[row.name]


VOID: Final = (
    "out of its grant",
    "by a revoked member, beside the revocation",
    "by a revoked member, later",
    "by an author whose entries fork",
)
EXPECTED: Final = {
    "forged: a bit changed": ("forged",),
    "forged: signed by another": ("forged",),
    "by who is no member": ("no_member",),
    "replayed": ("replayed",),
    "replayed after a restart": ("replayed",),
    "misdirected: of another workspace": ("forged",),
    "expired": ("expired",),
    "of the future": ("expired",),
    "over-size": ("too_big",),
    "forged: a bit of the signature changed": ("forged",),
    "by a stranger": ("bad_links",),
    "of another workspace": ("foreign",),
    "bad sequence": ("bad_sequence",),
    "bad links: none of its own before it": ("bad_sequence",),
    "bad links: none at all": ("bad_links",),
    "links to what nobody has": ("unlinked",),
    "repeated": (),
    "out of its grant": ("out_of_grant",),
    "by a revoked member, beside the revocation": ("revoked",),
    "by a revoked member, later": ("revoked",),
    "by an author whose entries fork": ("forked",),
}


def main() -> None:
    """Print the table; exit 1 where anything is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=N_TRIES, help=f"of each attack (default {N_TRIES})")
    rows = table(parser.parse_args().tries)
    for part, heads in (("live", "handled"), ("entries", "stored")):
        print(f"{part:48}{'tried':>7}{heads:>9}{'effective':>11}  code")
        for row in rows:
            if row.part == part:
                mark = "" if is_expected(row) else "   NOT as expected"
                codes = ", ".join(row.codes) or "-"
                print(f"  {row.name:46}{row.n_tried:>7}{row.n_in:>9}{row.n_effective:>11}  {codes}{mark}")
    sys.exit(not all(map(is_expected, rows)))


if __name__ == "__main__":
    main()
