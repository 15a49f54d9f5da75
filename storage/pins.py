"""Pins: which DAGs this node keeps, under which names. Durable, and only a complete one counts as held.

A pin is wanted before its blocks are asked for, fetching while they arrive, and complete when all are here; a crash
leaves it fetching, and the next start goes on with it.
"""

from enum import StrEnum
from threading import Lock
from typing import Final, NamedTuple

import msgspec

from storage.blockstore import Notes
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.errors import TooLarge

MAX_NAME_BYTES: Final = 128

_PREFIX: Final = "pin/"


class PinKind(StrEnum):
    """Does the pin hold the whole DAG, or the one block?"""

    RECURSIVE = "recursive"
    DIRECT = "direct"


class PinState(StrEnum):
    """How far the pin has come."""

    WANTED = "wanted"
    FETCHING = "fetching"
    COMPLETE = "complete"


class Pin(NamedTuple):
    """One pin. A CID may be pinned under several names; each stands for itself."""

    cid: Cid
    name: str
    kind: PinKind
    state: PinState


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: PinKind
    state: PinState


class Pins:
    """The pins of a store, kept as its notes."""

    def __init__(self, store: Notes) -> None:
        self._store = store
        self._lock = Lock()

    def add(
        self,
        cid: Cid,
        name: str = "",
        kind: PinKind = PinKind.RECURSIVE,
        state: PinState = PinState.WANTED,
    ) -> Pin:
        """Pin `cid`, or change the pin of that CID and name. Whoever added all blocks himself says COMPLETE at once."""
        if len(name.encode()) > MAX_NAME_BYTES:
            raise TooLarge(f"a pin's name of {len(name.encode())} bytes; the limit is {MAX_NAME_BYTES}")
        pin = Pin(cid, name, kind, state)
        value = dag_cbor.encode({"kind": str(kind), "state": str(state)})
        with self._lock:
            self._store.put_note(_key(cid, name), value)
        return pin

    def remove(self, cid: Cid, name: str = "", *, unless_complete: bool = False) -> bool:
        """Unpin; was it pinned? The blocks stay until garbage is collected.

        `unless_complete` is for whoever gives up a pin that he began: another may have completed it meanwhile.
        """
        with self._lock:
            pin = self.get(cid, name)
            if pin is None or (unless_complete and pin.state is PinState.COMPLETE):
                return False
            self._store.delete_note(_key(cid, name))
            return True

    def get(self, cid: Cid, name: str = "") -> Pin | None:
        """The pin of that CID and name."""
        key = _key(cid, name)
        value = self._store.get_note(key)
        return None if value is None else _read(key, value)

    def list(self, cid: Cid | None = None) -> list[Pin]:
        """Every pin, or those of one CID."""
        prefix = _PREFIX if cid is None else _key(cid, "")
        return [_read(key, value) for key, value in self._store.notes(prefix).items()]


def _key(cid: Cid, name: str) -> str:
    return f"{_PREFIX}{cid}/{name}"


def _read(key: str, value: bytes) -> Pin:
    text, _, name = key.removeprefix(_PREFIX).partition("/")
    fields = msgspec.convert(dag_cbor.decode(value), _Value)
    return Pin(Cid.parse(text), name, fields.kind, fields.state)
