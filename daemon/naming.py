"""This node's own IPNS names: signed, given to the DHT, and kept alive there. Each has a key of its own, by a label.

The keys come of the identity: whoever restores that has all names again. Where the records stand is in the catalog.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from agents.adapters.ports import Ports
from daemon import wall
from daemon.errors import NotFoundHere, Unfit
from protocols.errors import Local, ProtocolError, Remote, Replayed
from protocols.ipns import DEFAULT_LIFETIME_S, DEFAULT_TTL_S, make_record, name_text, parse_name, read_record
from storage.catalog.names import NameRow, NameTable, OwnName
from storage.cid import Cid
from storage.errors import StorageError, TooLarge
from storage.keys import Identity, PeerId

if TYPE_CHECKING:
    from daemon.app import Node
    from protocols.delegated_routing import Routers

SELF: Final = "self"
MAX_LABEL_CHARS: Final = 80
TELL_AGAIN_S: Final = 4 * 3600.0  # peers of the DHT come and go; as often as others do it
SETTLE_S: Final = 120.0  # a fresh record is told at each look for so long: who just joined a DHT knows few of it
LOOK_S: Final = 60.0
TELL_LIMIT_S: Final = 120.0
FIND_LIMIT_S: Final = 60.0
MAX_STEPS: Final = 8  # from name to name
_SEQUENCE: Final = b"ipns"
_NS: Final = 1_000_000_000

log = structlog.get_logger(__name__)


class Due(NamedTuple):
    """What a name needs now."""

    is_renewed: bool
    is_told: bool


def due(own: OwnName, row: NameRow, unix_s: float) -> Due:
    """A record is made anew when half of its time is over, and told again every TELL_AGAIN_S; a new one at once."""
    is_renewed = row.expires_unix_ns / _NS - unix_s < own.lifetime_s / 2
    is_told = not 0 <= unix_s - own.told_unix_s < TELL_AGAIN_S  # a clock that was set back does not silence it
    return Due(is_renewed, is_renewed or is_told)


def label_of(adapter: str) -> str:
    """The key whose name stands for the latest public version of an own adapter."""
    return f"adapter/{adapter}"


def key_of(identity: Identity, label: str) -> Identity:
    """The key of a label; of `self` the node's own. Raises: Unfit."""
    if not 0 < len(label) <= MAX_LABEL_CHARS or not label.isprintable():
        raise Unfit(f"a key is called by 1 to {MAX_LABEL_CHARS} characters that can be printed, not {label[:80]!r}")
    return identity if label == SELF else identity.derived(label)


class Names:
    """The names of a node."""

    def __init__(self, ports: Ports, routers: "Routers | None" = None) -> None:
        self._ports = ports
        self._routers = routers
        self._table = ports.catalog.names
        self._wake = trio.Event()

    def sign(self, value: str, label: str, *, lifetime_s: int, ttl_s: int) -> tuple[NameRow, bool]:
        """From now on the label's name stands for `value`. Returns: the record that is kept, and whether it is new.

        Raises: Unfit, TooBig, StorageError.
        """
        key = key_of(self._ports.identity, label)
        before = self._table.get(key.peer_id)
        # It grows for ever, also behind a forgotten record, and over what another machine signed before with this key.
        given = self._ports.catalog.sequences.next(_SEQUENCE, self._ports.unix_s(), is_dated=True)
        sequence = max(given, before.sequence + 1 if before else 0)
        is_new = self._make(key, value, sequence, lifetime_s, ttl_s)
        self._table.put_own(OwnName(key.peer_id, label, lifetime_s))
        row = self._table.get(key.peer_id)
        if row is None:
            raise Local("a record that was just kept is gone")
        return row, is_new

    def point(self, label: str, root: Cid) -> None:
        """Let a label's name stand for content, told of soon; nothing changes where it does so already."""
        key = key_of(self._ports.identity, label)
        value = f"/ipfs/{root}"
        row = self._table.get(key.peer_id)
        if row is None or row.value != value.encode() or not self._table.own_of(key.peer_id):
            self.sign(value, label, lifetime_s=DEFAULT_LIFETIME_S, ttl_s=DEFAULT_TTL_S)

    def text_of(self, label: str) -> str:
        """A label's name, as it is written."""
        return name_text(key_of(self._ports.identity, label).peer_id)

    def let_go(self, label: str, root: Cid) -> None:
        """Sign no more for a name that stands for this: the records that are out die of age."""
        name = key_of(self._ports.identity, label).peer_id
        row = self._table.get(name)
        if row is not None and row.value == f"/ipfs/{root}".encode():
            self._table.remove(name)

    def _make(self, key: Identity, value: str, sequence: int, lifetime_s: int, ttl_s: int) -> bool:
        unix_s = self._ports.unix_s()
        raw = make_record(key, value, sequence=sequence, unix_s=unix_s, lifetime_s=lifetime_s, ttl_s=ttl_s)
        return self._table.put(row_of(raw, key.peer_id, unix_s))

    async def tell(self, row: NameRow) -> int:
        """Give a record to the DHT, and to routers. Returns: how many took it; where any did, that is noted soon."""
        n_taken = 0
        with trio.move_on_after(TELL_LIMIT_S):
            try:
                n_taken = await self._ports.network.publish_record(row.name, row.record, self._ports.unix_s())
                n_taken += await self._tell_routers(row)
            except Replayed as error:  # another machine has this key, and signs with it
                log.warning("name_not_told", name=name_text(row.name), error=str(error))
                await self._ports.exchange.work(partial(self._note_told, row))  # to be tried again no sooner
            except Remote as error:
                log.warning("name_not_told", name=name_text(row.name), error=str(error))
        if n_taken and not _is_within(SETTLE_S, row, self._ports.unix_s()):
            await self._ports.exchange.work(partial(self._note_told, row))
        return n_taken

    async def _tell_routers(self, row: NameRow) -> int:
        from protocols.delegated_routing import put_record

        return await put_record(self._routers, row.name, row.record) if self._routers is not None else 0

    def tell_soon(self) -> None:
        """Something was signed: the next look is now."""
        self._wake.set()

    def _note_told(self, row: NameRow) -> None:
        if own := self._table.own_of(row.name):
            self._table.put_own(own._replace(told_unix_s=self._ports.unix_s()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the records alive until cancelled; without a peer they wait."""
        task_status.started()
        while True:
            for own in await self._ports.exchange.work(self._table.own):
                row = await self._ports.exchange.work(partial(self._renewed, own))
                if row is not None and (self._ports.network.peers() or self._routers is not None):
                    await self.tell(row)
            with trio.move_on_after(LOOK_S):
                await self._wake.wait()
            self._wake = trio.Event()

    def _renewed(self, own: OwnName) -> NameRow | None:
        """The record of a name that is to be told, made anew where it is time."""
        row = self._table.get(own.name)
        if row is None:
            return None
        needs = due(own, row, self._ports.unix_s())
        if needs.is_renewed:
            key = key_of(self._ports.identity, own.label)
            try:
                value = row.value.decode()
                self._make(key, value, row.sequence, own.lifetime_s, int(row.ttl_ns // _NS))
                self._table.put_own(own._replace(told_unix_s=0.0))
            except (ProtocolError, StorageError, UnicodeDecodeError) as error:
                log.warning("name_not_renewed", label=own.label, error=str(error))
            row = self._table.get(own.name) or row
        return row if needs.is_told else None


async def look_up(node: "Node", name: PeerId) -> list[bytes]:
    """What the DHT and the routers have as the record of a name: unverified, all that came in time."""
    found: list[bytes] = []

    async def ask_dht() -> None:
        raw = await node.network.find_record(name, wall.unix_s())
        found.extend([raw] if raw else [])

    async def ask_routers(routers: "Routers") -> None:
        from protocols.delegated_routing import find_records

        try:
            found.extend(await find_records(routers, name))
        except Remote as error:
            log.info("routers_failed", error=str(error))

    with trio.move_on_after(FIND_LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_dht)
            if node.routers is not None:
                nursery.start_soon(ask_routers, node.routers)
    return found


def unrecorded(name: PeerId) -> NotFoundHere:
    """The error of a name that was looked up, and of which there is no record."""
    return NotFoundHere(f"nobody who can be asked has a record of {name_text(name)}")


async def followed(node: "Node", reference: str) -> str:
    """The same reference, where it begins with an IPNS name: to the content that the name stands for now.

    A record is asked for where none is kept, or its time to live is over. Raises: NotFoundHere, Malformed.
    """
    for _ in range(MAX_STEPS):
        reference = reference.replace("ipns://", "/ipns/", 1) if reference.startswith("ipns://") else reference
        if not reference.startswith("/ipns/"):
            return reference
        head, _, path = reference.removeprefix("/ipns/").partition("/")
        row = await _current(node, parse_name(head))
        reference = "/".join((row.value.decode("utf-8", "replace").rstrip("/"), *filter(None, [path])))
    raise NotFoundHere(f"the name leads on and on, through over {MAX_STEPS} others")


async def _current(node: "Node", name: PeerId) -> NameRow:
    unix_s = wall.unix_s()
    kept, is_fresh = await trio.to_thread.run_sync(_kept, node.catalog.names, name, unix_s)
    if kept is not None and is_fresh:
        return kept
    found = await look_up(node, name)
    row = await trio.to_thread.run_sync(_best, node.catalog.names, name, found, unix_s) or kept
    if row is None or unix_s >= row.expires_unix_ns / _NS:
        raise unrecorded(name)
    return row


def _kept(table: NameTable, name: PeerId, unix_s: float) -> tuple[NameRow | None, bool]:
    """The record that is here and valid, and whether nobody needs to be asked for a newer one."""
    row = table.get(name)
    if row is None or unix_s >= row.expires_unix_ns / _NS:
        return None, False
    return row, table.own_of(name) is not None or _is_within(row.ttl_ns / _NS, row, unix_s)


def _is_within(time_s: float, row: NameRow, unix_s: float) -> bool:
    """Did a record come within so long? One that seems to come yet did so before the clock was set back."""
    return 0 <= unix_s - row.received_unix_s < time_s


def _best(table: NameTable, name: PeerId, found: Sequence[bytes], unix_s: float) -> NameRow | None:
    """The best of what was found and of what is kept. It is kept where there is room."""
    good = [row for row in [table.get(name)] if row is not None]
    for raw in found:
        try:
            row = row_of(raw, name, unix_s)
            good.append(row)
            table.put(row)
        except (Remote, TooLarge) as error:
            log.info("record_not_kept", name=name_text(name), error=str(error))
    return max(good, key=lambda row: row.rank, default=None)


def row_of(raw: bytes, name: PeerId, unix_s: float) -> NameRow:
    """A record as a row. Raises: Remote where it is none of `name`."""
    record = read_record(raw, name, unix_s)
    return NameRow(
        name=name,
        record=raw,
        value=record.value,
        sequence=record.sequence,
        expires_unix_ns=record.expires_unix_ns,
        ttl_ns=record.ttl_ns,
        received_unix_s=unix_s,
    )
