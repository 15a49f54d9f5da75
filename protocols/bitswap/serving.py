"""The core of serving: what each peer wants of us, what it gets next, and what it never learns.

Wants are kept by the CID that was asked for, which is what the answer names: one block may be wanted by several. They
are noted first and looked up then, so that a block which comes meanwhile finds who waits for it. The caller looks
them up and hands over the sizes of the blocks that the peer may see. A block that it may not see is thus the very same
thing here as a block that we lack: DONT_HAVE where that was asked for, silence where not.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocols.bitswap.wire import Entry, WantType
from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import Cid
from storage.keys import PeerId

MAX_PEERS: Final = 1024
MAX_WANTLIST: Final = 4096  # entries kept for one peer; what comes beyond is not answered
MAX_WANTS: Final = 1 << 16  # kept for all together; behind them each peer has its share, of about 600 bytes each
MAX_PRESENCES: Final = 4096  # answers waiting to be sent to one peer
MAX_SMALL_BLOCK_BYTES: Final = 1 << 10  # a want-have is answered with a block as small as this
BATCH_BYTES: Final = 1 << 20  # a message closes when it holds this much; one large block may exceed it
MAX_BATCH_BLOCKS: Final = 1024
MAX_QUICK_BLOCK_BYTES: Final = 16 << 10  # a block as small as this has not to wait for large ones of others
MAX_COUNTED: Final = 1 << 14  # blocks of which it is known how often they were given away


class Batch(NamedTuple):
    """What the next message to a peer should say; `blocks` are still to be read."""

    blocks: tuple[Entry, ...]
    haves: tuple[Cid, ...]
    dont_haves: tuple[Cid, ...]
    pending_bytes: int


@dataclass(slots=True)
class _Client:
    waiting: dict[Cid, Entry] = field(default_factory=dict)  # what we could not serve yet
    ready: dict[Cid, tuple[Entry, int]] = field(default_factory=dict)  # block to send, its size
    haves: dict[Cid, None] = field(default_factory=dict)
    dont_haves: dict[Cid, None] = field(default_factory=dict)
    ready_bytes: int = 0
    n_most: int = MAX_WANTLIST

    @property
    def n_wants(self) -> int:
        return len(self.waiting) + len(self.ready)

    def is_full(self) -> bool:
        return self.n_wants >= self.n_most

    def answer(self, entry: Entry, size_bytes: int) -> None:
        """We have what was asked for."""
        cid = entry.cid
        self.waiting.pop(cid, None)
        if entry.want_type is WantType.BLOCK or size_bytes <= MAX_SMALL_BLOCK_BYTES:
            if cid in self.ready or not self.is_full():
                size_bytes = min(size_bytes, MAX_BLOCK_BYTES)
                self.ready_bytes += size_bytes - self.ready.get(cid, (entry, 0))[1]
                self.ready[cid] = (entry, size_bytes)
        elif len(self.haves) < MAX_PRESENCES:
            self.haves[cid] = None

    def lack(self, entry: Entry) -> None:
        """We lack what was asked for, or may not show it. It is remembered, for it may come."""
        if entry.send_dont_have and len(self.dont_haves) < MAX_PRESENCES:
            self.dont_haves[entry.cid] = None
        self.wait(entry)

    def wait(self, entry: Entry) -> None:
        """Keep a want until it can be answered, if there is room."""
        if entry.cid in self.waiting or not self.is_full():
            self.waiting[entry.cid] = entry

    def take(self, cid: Cid) -> int:
        """A block is sent, or wanted no more. Returns: its size."""
        _, size_bytes = self.ready.pop(cid)
        self.ready_bytes -= size_bytes
        return size_bytes

    def forget(self, cid: Cid) -> None:
        self.waiting.pop(cid, None)
        if cid in self.ready:
            self.take(cid)
        self.haves.pop(cid, None)
        self.dont_haves.pop(cid, None)


class _Sent:
    """How often blocks were given away lately."""

    def __init__(self) -> None:
        self._n: OrderedDict[bytes, int] = OrderedDict()

    def n(self, key: bytes) -> int:
        return self._n.get(key, 0)

    def note(self, key: bytes) -> None:
        self._n[key] = self._n.pop(key, 0) + 1
        if len(self._n) > MAX_COUNTED:
            self._n.popitem(last=False)


class Serving:
    """The wantlists of all peers."""

    def __init__(self) -> None:
        self._clients: dict[PeerId, _Client] = {}
        self._waiting: dict[bytes, set[tuple[PeerId, Cid]]] = {}  # multihash -> who waits for it, by which CIDs
        self._sent = _Sent()

    def heard(self, name: PeerId, entries: Iterable[Entry], is_full: bool) -> None:
        """A peer changed its wantlist, or replaced it; the caller now looks the wants up, and calls `looked_up`."""
        client = self._clients.get(name)
        if client is None:
            if len(self._clients) >= MAX_PEERS:
                return
            client = self._clients[name] = _Client()
        if is_full:
            self._wait_no_more(name, client)
            client.ready.clear()
            client.ready_bytes = 0
        client.n_most = self._n_most()
        for entry in entries:
            if entry.is_cancel:
                client.forget(entry.cid)
            else:
                client.wait(entry)
            self._index(name, client, entry.cid)

    def _n_most(self) -> int:
        """How many entries may be kept for a peer now: many peers with long lists share the room."""
        is_much = sum(client.n_wants for client in self._clients.values()) >= MAX_WANTS
        return min(MAX_WANTLIST, MAX_WANTS // len(self._clients)) if is_much else MAX_WANTLIST

    def looked_up(self, name: PeerId, entries: Iterable[Entry], sizes: Mapping[Cid, int]) -> None:
        """Answer those of a peer's wants that still stand, in this order.

        Args:
            sizes: The blocks among them that are here and that the peer may see.
        """
        client = self._clients.get(name, _Client())
        for entry in entries:
            if (
                client.waiting.get(entry.cid) == entry
            ):  # neither served meanwhile, nor cancelled, nor asked in another way
                if entry.cid in sizes:
                    client.answer(entry, sizes[entry.cid])
                else:
                    client.lack(entry)
                self._index(name, client, entry.cid)

    @property
    def is_anybody_waiting(self) -> bool:
        """Is there a want that could not be answered yet?"""
        return bool(self._waiting)

    @property
    def n_wanting(self) -> int:
        """How many peers want something of us."""
        return sum(bool(client.waiting or client.ready) for client in self._clients.values())

    def waiting_for(self, cids: Iterable[Cid]) -> list[tuple[PeerId, Cid]]:
        """Who waits for one of these blocks, under each CID that it used."""
        return [each for cid in cids for each in sorted(self._waiting.get(cid.multihash, ()))]

    def arrived(self, name: PeerId, cid: Cid, size_bytes: int) -> None:
        """A block that `name` waited for is here now, and it may see it."""
        client = self._clients.get(name)
        entry = client.waiting.get(cid) if client is not None else None
        if client is not None and entry is not None:
            client.answer(entry, size_bytes)
            self._index(name, client, cid)

    def vanished(self, name: PeerId, entry: Entry) -> None:
        """A block of a batch cannot be read any more."""
        client = self._clients.get(name)
        if client is not None:
            client.lack(entry)
            self._index(name, client, entry.cid)

    def has_presences(self, name: PeerId) -> bool:
        """Is there anything to say to this peer but blocks?"""
        client = self._clients.get(name)
        return client is not None and bool(client.haves or client.dont_haves)

    def ready_bytes(self, name: PeerId) -> int:
        """How many bytes of blocks can be sent to this peer now."""
        client = self._clients.get(name)
        return client.ready_bytes if client is not None else 0

    def has_quick(self, name: PeerId) -> bool:
        """Is a small block ready for this peer?"""
        ready = self._clients.get(name, _Client()).ready.values()
        return any(size_bytes <= MAX_QUICK_BLOCK_BYTES for _, size_bytes in ready)

    def has_answers(self, name: PeerId) -> bool:
        """Is there anything to say to this peer?"""
        client = self._clients.get(name)
        return client is not None and bool(client.ready or client.haves or client.dont_haves)

    def next_batch(self, name: PeerId, max_bytes: int = BATCH_BYTES, max_block_bytes: int = MAX_BLOCK_BYTES) -> Batch:
        """Take the next message's worth of answers for a peer off its queue; one large block may exceed it.

        Args:
            max_bytes: 0 for no block at all.
            max_block_bytes: Larger ones wait.
        """
        client = self._clients.get(name, _Client())
        blocks: list[Entry] = []
        n_bytes = 0
        for entry, size_bytes in self._in_order(client) if max_bytes else ():
            if size_bytes > max_block_bytes:
                continue
            if blocks and (n_bytes + size_bytes > max_bytes or len(blocks) == MAX_BATCH_BLOCKS):
                break
            blocks.append(entry)
            n_bytes += client.take(entry.cid)
            self._sent.note(entry.cid.multihash)
        haves, dont_haves = tuple(client.haves), tuple(client.dont_haves)
        client.haves.clear()
        client.dont_haves.clear()
        return Batch(tuple(blocks), haves, dont_haves, min(client.ready_bytes, (1 << 31) - 1))

    def _in_order(self, client: _Client) -> list[tuple[Entry, int]]:
        """What is ready for a peer, as it asked; where there are others, what the fewest were given comes first.

        So those who want the same at once get different parts of it, which they can give each other.
        """
        ready = list(client.ready.values())
        if len(self._clients) > 1:
            ready.sort(key=lambda item: self._sent.n(item[0].cid.multihash))
        return ready

    def gone(self, name: PeerId) -> None:
        """A peer disconnected: its wantlist goes with it."""
        client = self._clients.pop(name, None)
        if client is not None:
            self._wait_no_more(name, client)

    def _wait_no_more(self, name: PeerId, client: _Client) -> None:
        cids = list(client.waiting)
        client.waiting.clear()
        for cid in cids:
            self._index(name, client, cid)

    def _index(self, name: PeerId, client: _Client, cid: Cid) -> None:
        """Note whether this peer waits for this block, by this CID."""
        if cid in client.waiting:
            self._waiting.setdefault(cid.multihash, set()).add((name, cid))
        elif (waiting := self._waiting.get(cid.multihash)) is not None:
            waiting.discard((name, cid))
            if not waiting:
                del self._waiting[cid.multihash]
