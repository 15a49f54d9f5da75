"""Which adapters can answer in a chat: ready here, made for its model, from a publisher who is trusted now."""

from collections.abc import Callable

from agents.adapters.decide import TRUST_KIND
from agents.adapters.select import Ready, choose, parse_policy
from agents.chat.events import Adapter
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.keys import PeerId

_SHOWN_OF_PEER_ID = 8


MayUse = Callable[[Cid], bool]


def ready_adapters(catalog: Catalog, model: ModelRow, may_use: MayUse = lambda manifest: True) -> list[Adapter]:
    """The adapters that fit `model` and that the asker may use, the newest here first."""
    return [_adapter(catalog, row) for row in _rows(catalog, model) if may_use(row.manifest)]


def resolve(catalog: Catalog, model: ModelRow, wish: str, may_use: MayUse = lambda manifest: True) -> Adapter | None:
    """The adapter that the policy `wish` asks for now; None is the base model. Raises: UnknownName."""
    rows = {row.manifest: row for row in _rows(catalog, model) if may_use(row.manifest)}
    chosen = choose(parse_policy(wish), map(_ready, rows.values()))
    return None if chosen is None else _adapter(catalog, rows[chosen.cid])


def named_adapters(catalog: Catalog, model: ModelRow) -> list[tuple[str, Adapter]]:
    """Every adapter that fits `model`, the newest here first, each by the shortest wish that resolves to it."""
    rows = _rows(catalog, model)
    groups: dict[str, list[Ready]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(_ready(row))
        groups.setdefault(f"{row.name}@{row.version}", []).append(_ready(row))
    chosen = {wish: choose(parse_policy(wish), group) for wish, group in groups.items()}
    named = []
    for row in rows:
        wishes = (row.name, f"{row.name}@{row.version}")
        shortest = next((wish for wish in wishes if chosen[wish] == _ready(row)), str(row.manifest))
        named.append((shortest, _adapter(catalog, row)))
    return named


def _rows(catalog: Catalog, model: ModelRow) -> list[AdapterRow]:
    rows = [
        row
        for base in sorted(model.accepts)
        for row in catalog.adapters.query(base=base, state=AdapterState.READY)
        if row.folder is not None and (row.is_own or catalog.peers.is_trusted(row.publisher, TRUST_KIND))
    ]
    return sorted(rows, key=lambda row: (-(row.ready_unix_s or 0.0), row.manifest))


def _ready(row: AdapterRow) -> Ready:
    return Ready(row.manifest, row.name, row.version, row.publisher, row.ready_unix_s or 0.0, row.metrics)


def _adapter(catalog: Catalog, row: AdapterRow) -> Adapter:
    assert row.folder is not None
    publisher = "you" if row.is_own else _peer_label(catalog, row.publisher)
    return Adapter(name=row.name, version=row.version, cid=str(row.manifest), publisher=publisher, folder=row.folder)


def _peer_label(catalog: Catalog, peer: PeerId) -> str:
    """The user's name for a peer, or the end of its id: all ids begin alike."""
    known = catalog.peers.get(peer)
    return known.name if known and known.name else f"…{str(peer)[-_SHOWN_OF_PEER_ID:]}"
