"""The contract of every blockstore, and the words it uses. One suite in tests/ holds each implementation to it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, Self

from storage.cid import RAW, SHA2_256, Cid
from storage.errors import InvalidBlock, TooLarge

MAX_BLOCK_MADE_BYTES: Final = 1 << 20
MAX_BLOCK_BYTES: Final = 2 << 20


class Visibility(IntEnum):
    """Who may see a root and the blocks below it; higher is wider."""

    PRIVATE = 0
    MEMBERS = 1
    FLOCK = 2
    PUBLIC = 3


class Block(NamedTuple):
    """A CID and the bytes it names. Stores hash the bytes before they accept them."""

    cid: Cid
    data: bytes


class MadeBlock(Block):
    """A block made here: its CID was computed from its bytes a moment ago, so stores need not hash it again."""

    __slots__ = ()

    @classmethod
    def of(cls, data: bytes, codec: int = RAW, hash_code: int = SHA2_256) -> Self:
        """Hash `data` and name it."""
        return cls(Cid.of(data, codec, hash_code), data)


class Seen(NamedTuple):
    """Who may see a block: the widest of its floor and of the levels of the roots that it is shown below.

    `floor` is the level that it keeps without any root: that at which its publisher let it be passed on.
    """

    level: Visibility
    roots: Mapping[Cid, Visibility] = MappingProxyType({})
    floor: Visibility = Visibility.PRIVATE


class StoreStat(NamedTuple):
    """What a store holds and costs."""

    n_blocks: int
    n_bytes: int
    disk_bytes: int


class Sight(NamedTuple):
    """What somebody may see: blocks of this level and of wider ones, and those below these member roots."""

    level: Visibility = Visibility.PUBLIC
    member_roots: Sequence[Cid] = ()


EVERYTHING: Final = Sight(Visibility.PRIVATE)


class Aged(NamedTuple):
    """A block, as raw CIDv1 of its multihash, its length, and the tick of its last use: see storage.uses."""

    cid: Cid
    n_bytes: int
    used: int


class Swept(NamedTuple):
    """What a sweep took away."""

    n_blocks: int = 0
    n_bytes: int = 0


class Reading(Protocol):
    """What a walk over blocks needs."""

    def get(self, cid: Cid) -> bytes:
        """The bytes of a block. Raises: NotFound, Corrupt."""

    def size(self, cid: Cid) -> int | None:
        """The length in bytes, or None where there is no such block."""


class Unnoticed(NamedTuple):
    """A store's reads that are no use of blocks: see `Blockstore.unnoticed`."""

    get: Callable[[Cid], bytes]
    size: Callable[[Cid], int | None]


class Blockstore(Reading, Protocol):
    """Blocks keyed by multihash. Thread-safe; everything that returns has happened.

    Identity CIDs are answered from the CID itself and never stored. CIDv0 and CIDv1 of one multihash are one block.
    """

    def put_many(self, blocks: Iterable[Block], floor: Visibility = Visibility.PRIVATE) -> int:
        """Store blocks and make them durable before returning. Return how many were new.

        New ones get the level `floor`; those that are here keep theirs. One that was found Corrupt is written anew.
        All or nothing is not promised, but what was written is whole and what is acknowledged is durable.
        Raises: InvalidBlock when bytes do not match their CID, TooLarge, StoreFull.
        """

    def get(self, cid: Cid) -> bytes:
        """The bytes of a block, re-hashed on the way out. Raises: NotFound, Corrupt.

        One that is found Corrupt counts as missing from then on, until it is put again.
        """

    def has(self, cid: Cid) -> bool:
        """Is the block here?"""

    def size(self, cid: Cid) -> int | None:
        """The length in bytes, or None where there is no such block."""

    def cids(self, after: Cid | None = None) -> Iterator[Cid]:
        """Every block, also the damaged, as raw CIDv1 of its multihash, in the order of multihashes behind `after`.

        Blocks put meanwhile may be missing.
        """

    def stat(self) -> StoreStat:
        """Counts and sizes."""

    def seen(self, cid: Cid) -> Seen | None:
        """Who may see the block; None where there is no such block."""

    def visible(self, cids: Collection[Cid], sight: Sight) -> dict[Cid, int]:
        """The sizes of those that are here, whole, and in `sight`.

        What is here and out of sight costs what costs a block that is not here, and is not used by it: for answers
        that may not tell one from the other.
        """

    def show(self, root: Cid, cids: Iterable[Cid], level: Visibility) -> None:
        """Show blocks below `root` (itself included) to at least `level`, durably. Levels only rise here."""

    def set_floor(self, cids: Iterable[Cid], floor: Visibility) -> None:
        """Set the level that blocks keep without any root, durably."""

    def lower(self, roots: Collection[Cid], level: Visibility) -> None:
        """Show nothing through these roots to more than `level`, durably, and all of it at once.

        What was shown below them counts, not what can be reached now. Through other roots it is seen as before.
        """

    def lease(self) -> AbstractContextManager[None]:
        """Inside, nothing that was put, read or found to be here is swept, until the lease closes.

        Whoever adds or fetches pins before he closes it; a sweep that begins later sees the pin.
        """

    def note_uses(self) -> None:
        """Take down what was used when, in short steps, so that a restart knows it and memory forgets it."""

    def unnoticed(self) -> Reading:
        """The same blocks, for a walk that is no use of them: it makes no block younger and no block safe."""

    @property
    def n_sweeps(self) -> int:
        """How many sweeps have begun since the start: as long as none has, all is still here that was."""

    def begin_sweep(self) -> int:
        """The tick for `ages` and `sweep`. What is kept has to be looked up after this."""

    def ages(self, older_than: int) -> Iterator[Aged]:
        """Every block that was last used before the tick `older_than`, in no order."""

    def sweep(self, cids: Iterable[Cid], older_than: int) -> Swept:
        """Delete blocks, but for those that were used since, in short steps that hold up a writer for milliseconds."""

    def close(self) -> None:
        """Finish writing and let go of the files. Closing twice is harmless."""


class Notes(Protocol):
    """Small named values kept as durably as blocks: pins and roots live here, and outlive a lost index."""

    def put_note(self, key: str, value: bytes) -> None:
        """Set a value, durably. Raises: TooLarge, StoreFull."""

    def delete_note(self, key: str) -> None:
        """Forget a value, durably; one that is not there is no error."""

    def get_note(self, key: str) -> bytes | None:
        """A value, or None."""

    def notes(self, prefix: str) -> dict[str, bytes]:
        """Every value whose key begins with `prefix`, sorted by key."""


class Store(Blockstore, Notes, Protocol):
    """A whole store: what a node opens once."""


MAX_NOTE_KEY_BYTES: Final = 255
MAX_NOTE_BYTES: Final = 1 << 20


def check_note(key: str, value: bytes) -> bytes:
    """The key as bytes, when both are within their limits. Raises: TooLarge."""
    raw = key.encode()
    if not 1 <= len(raw) <= MAX_NOTE_KEY_BYTES:
        raise TooLarge(f"a note's key of {len(raw)} bytes; the limit is {MAX_NOTE_KEY_BYTES}")
    if len(value) > MAX_NOTE_BYTES:
        raise TooLarge(f"the note {key!r} has {len(value)} bytes; the limit is {MAX_NOTE_BYTES}")
    return raw


def check_block(block: Block) -> None:
    """Every store's gate. Raises: InvalidBlock, TooLarge."""
    if len(block.data) > MAX_BLOCK_BYTES:
        raise TooLarge(f"the block {block.cid} has {len(block.data)} bytes; the limit is {MAX_BLOCK_BYTES}")
    if not isinstance(block, MadeBlock) and not block.cid.matches(block.data):
        raise InvalidBlock(f"the bytes do not match the CID {block.cid}")
