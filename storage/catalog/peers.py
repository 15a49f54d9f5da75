"""The peers this node has heard of: where they are reached, what the user calls them, what they are trusted with."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from storage.catalog.database import Database
from storage.errors import InvalidText
from storage.keys import PeerId

MAX_PEERS: Final = 10_000
MAX_ADDRESSES: Final = 16  # of each peer
MAX_ADDRESS_CHARS: Final = 512
MAX_NAME_CHARS: Final = 64
_KIND: Final = re.compile(r"[a-z]{1,32}")

SCHEMA: Final = """
CREATE TABLE peers (
    peer BLOB PRIMARY KEY,
    name TEXT,
    is_kept INTEGER NOT NULL,
    heard_unix_s REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX peers_by_age ON peers (is_kept, heard_unix_s);
CREATE TABLE addresses (
    peer BLOB NOT NULL REFERENCES peers ON DELETE CASCADE,
    address TEXT NOT NULL,
    is_kept INTEGER NOT NULL,
    heard_unix_s REAL NOT NULL,
    PRIMARY KEY (peer, address)
) STRICT, WITHOUT ROWID;
CREATE TABLE trust (
    peer BLOB NOT NULL REFERENCES peers ON DELETE CASCADE,
    kind TEXT NOT NULL,
    PRIMARY KEY (peer, kind)
) STRICT, WITHOUT ROWID"""

BANS: Final = """
CREATE TABLE bans (
    peer BLOB PRIMARY KEY,
    reason TEXT NOT NULL,
    unix_s REAL NOT NULL
) STRICT, WITHOUT ROWID"""
MAX_BANS: Final = 10_000
MAX_REASON_CHARS: Final = 200

_SELECT: Final = "SELECT peer, name, is_kept, heard_unix_s FROM peers"


@dataclass(frozen=True, slots=True)
class PeerRow:
    """What is known of a peer. `is_kept`: the user added or trusted it, so it is never dropped to make room."""

    peer: PeerId
    name: str | None
    is_kept: bool
    heard_unix_s: float
    addresses: tuple[str, ...]
    kinds: frozenset[str]


class PeerBook:
    """Addresses are what others say; trust is what the local user says. The two never mix."""

    def __init__(self, database: Database, max_peers: int = MAX_PEERS) -> None:
        self._database = database
        self._max_peers = max_peers
        self._flock: frozenset[PeerId] | None = (
            None  # None: to be read; dropped inside each transaction that changes it
        )

    def heard(self, peer: PeerId, addresses: Iterable[str], unix_s: float) -> None:
        """Note where a peer was reached or said to be. The longest unheard of go when there are too many."""
        self._note(peer, addresses, unix_s, is_kept=False)

    def add(self, peer: PeerId, addresses: Iterable[str], unix_s: float, name: str | None = None) -> None:
        """Keep a peer that the user named, and the addresses given for it. Gives no trust. Raises: InvalidText."""
        if name is not None and (not name.isprintable() or not 1 <= len(name) <= MAX_NAME_CHARS):
            raise InvalidText(
                f"{name[:MAX_NAME_CHARS]!r} is no name for a peer: 1 to {MAX_NAME_CHARS} printable characters"
            )
        with self._database.transaction():
            self._note(peer, addresses, unix_s, is_kept=True)
            if name is not None:
                self._database.write("UPDATE peers SET name = ? WHERE peer = ?", (name, peer))

    def remove(self, peer: PeerId) -> bool:
        """Forget a peer, its addresses and its trust. Was it there?"""
        with self._database.transaction():
            self._flock = None
            return self._database.write("DELETE FROM peers WHERE peer = ?", (peer,)) > 0

    def trust(self, peer: PeerId, kinds: Iterable[str], unix_s: float) -> None:
        """Let what this peer publishes of these kinds be used. Raises: InvalidText."""
        wanted = sorted(set(kinds))
        for kind in wanted:
            if not _KIND.fullmatch(kind):
                raise InvalidText(f"{kind[:32]!r} is no kind of trust: 1 to 32 letters from a to z")
        with self._database.transaction():
            self._flock = None
            self._note(peer, (), unix_s, is_kept=True)
            for kind in wanted:
                self._database.write("INSERT OR IGNORE INTO trust VALUES (?, ?)", (peer, kind))

    def untrust(self, peer: PeerId, kinds: Iterable[str] | None = None) -> bool:
        """Take back trust of these kinds, or all. Was there any?"""
        with self._database.transaction():
            self._flock = None
            if kinds is None:
                return self._database.write("DELETE FROM trust WHERE peer = ?", (peer,)) > 0
            taken = [
                self._database.write("DELETE FROM trust WHERE peer = ? AND kind = ?", (peer, kind))
                for kind in set(kinds)
            ]
        return sum(taken) > 0

    def ban(self, peer: PeerId, reason: str, unix_s: float) -> None:
        """Have nothing to do with a peer any more: its trust goes, and what the user called it stays.

        Raises: InvalidText for a reason that is none, and when MAX_BANS peers are banned.
        """
        if len(reason) > MAX_REASON_CHARS or not reason.isprintable():
            raise InvalidText(f"a reason has at most {MAX_REASON_CHARS} printable characters")
        with self._database.transaction():
            self._flock = None
            if self._database.read_number("SELECT count(*) FROM bans WHERE peer != ?", (peer,)) >= MAX_BANS:
                raise InvalidText(f"{MAX_BANS} peers are banned, the limit: unban some")
            self._database.write("DELETE FROM trust WHERE peer = ?", (peer,))
            self._database.write("INSERT OR REPLACE INTO bans VALUES (?, ?, ?)", (peer, reason, unix_s))

    def unban(self, peer: PeerId) -> bool:
        """Speak with a peer again; trust does not come back. Was it banned?"""
        return self._database.write("DELETE FROM bans WHERE peer = ?", (peer,)) > 0

    def banned(self) -> dict[PeerId, str]:
        """The banned peers, each with the reason that the user gave."""
        rows = self._database.read("SELECT peer, reason FROM bans ORDER BY peer")
        return {PeerId(peer): reason for peer, reason in rows}

    def is_trusted(self, peer: PeerId, kind: str) -> bool:
        """May what this peer publishes of this kind be used?"""
        return self._database.read_one("SELECT 1 FROM trust WHERE peer = ? AND kind = ?", (peer, kind)) is not None

    def flock(self) -> frozenset[PeerId]:
        """The peers trusted for any kind. Kept in memory: it is asked for with every block that is served."""
        flock = self._flock
        if flock is None:
            with self._database.transaction():  # so that no change comes between reading and keeping
                rows = self._database.read("SELECT DISTINCT peer FROM trust")
                flock = self._flock = frozenset(PeerId(peer) for (peer,) in rows)
        return flock

    def get(self, peer: PeerId) -> PeerRow | None:
        """What is known of a peer."""
        with self._database.transaction():
            rows = self._database.read(f"{_SELECT} WHERE peer = ?", (peer,))
            return next((self._row(*row) for row in rows), None)

    def named(self, name: str) -> list[PeerRow]:
        """The peers that the user calls so; names need not be unique."""
        with self._database.transaction():
            rows = self._database.read(f"{_SELECT} WHERE name = ?", (name,))
            return [self._row(*row) for row in rows]

    def names(self) -> dict[PeerId, str]:
        """What the user calls the peers that he gave a name."""
        rows = self._database.read("SELECT peer, name FROM peers WHERE name IS NOT NULL")
        return {PeerId(peer): name for peer, name in rows}

    def kept(self) -> list[PeerRow]:
        """The peers that the user added or trusted."""
        with self._database.transaction():
            rows = self._database.read(f"{_SELECT} WHERE is_kept ORDER BY peer")
            return [self._row(*row) for row in rows]

    def list(self, limit: int = MAX_PEERS) -> list[PeerRow]:
        """The peers, those that the user keeps first, then the last heard of."""
        with self._database.transaction():
            rows = self._database.read(f"{_SELECT} ORDER BY is_kept DESC, heard_unix_s DESC, peer LIMIT ?", (limit,))
            return [self._row(*row) for row in rows]

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where the peer may be reached: the addresses that the user gave first, then the last heard."""
        rows = self._database.read(
            "SELECT address FROM addresses WHERE peer = ? ORDER BY is_kept DESC, heard_unix_s DESC, address", (peer,)
        )
        return tuple(address for (address,) in rows)

    def _row(self, peer: bytes, name: str | None, is_kept: int, heard_unix_s: float) -> PeerRow:
        kinds = self._database.read("SELECT kind FROM trust WHERE peer = ?", (peer,))
        whole = PeerId(peer)
        return PeerRow(whole, name, bool(is_kept), heard_unix_s, self.addresses(whole), frozenset(k for (k,) in kinds))

    def _note(self, peer: PeerId, addresses: Iterable[str], unix_s: float, *, is_kept: bool) -> None:
        with self._database.transaction():
            self._database.write(
                "INSERT INTO peers VALUES (?, NULL, ?, ?) ON CONFLICT DO UPDATE SET"
                " is_kept = max(is_kept, excluded.is_kept), heard_unix_s = max(heard_unix_s, excluded.heard_unix_s)",
                (peer, is_kept, unix_s),
            )
            for address in addresses:
                if len(address) <= MAX_ADDRESS_CHARS:
                    self._database.write(
                        "INSERT INTO addresses VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                        " is_kept = max(is_kept, excluded.is_kept),"
                        " heard_unix_s = max(heard_unix_s, excluded.heard_unix_s)",
                        (peer, address, is_kept, unix_s),
                    )
            self._database.write(
                "DELETE FROM addresses WHERE peer = ?1 AND address NOT IN"
                " (SELECT address FROM addresses WHERE peer = ?1 ORDER BY is_kept DESC, heard_unix_s DESC, address"
                " LIMIT ?2)",
                (peer, MAX_ADDRESSES),
            )
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        surplus = self._database.read_number("SELECT count(*) FROM peers") - self._max_peers
        if surplus > 0:
            self._database.write(
                "DELETE FROM peers WHERE peer IN"
                " (SELECT peer FROM peers WHERE NOT is_kept ORDER BY heard_unix_s, peer LIMIT ?)",
                (surplus,),
            )
