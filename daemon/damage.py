"""What damaged blocks belong to, in people's terms, and how each is mended. Blocks; call it in a thread."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from storage.cid import Cid
from storage.errors import InvalidCid
from storage.pins import Pin, PinKind
from storage.places import Place, places_of

if TYPE_CHECKING:
    from daemon.app import Node
    from storage.catalog.artifacts import ArtifactRow

REPAIR: Final = "covey repo verify --repair, which fetches them again from peers that have them"
UNKNOWN: Final = (
    "nothing that is kept leads to some, unless through others that are damaged: mend those, and look again"
)
BEYOND: Final = "too much is kept here to find what some belong to: covey repo verify --repair"


class Belonging(NamedTuple):
    """What a block belongs to, each in one line, and what to do about it."""

    lines: tuple[str, ...]
    hint: str


def belongings(node: "Node", damaged: Collection[Cid], *, was_tried: bool) -> dict[Cid, Belonging]:
    """For each damaged block what it belongs to; `was_tried`: no peer that is connected or found has it."""
    pins = node.pins.list()
    kept = [pin for pin in pins if pin.kind is PinKind.RECURSIVE] + [pin for pin in pins if pin.kind is PinKind.DIRECT]
    labels = _Labels(node, kept)
    roots = [pin.cid for pin in kept if pin.kind is PinKind.RECURSIVE] + [root.cid for root in node.roots.list()]
    wanted = {cid.multihash for cid in damaged}
    places = places_of(node.store.unnoticed(), wanted, dict.fromkeys(roots))
    alone = {pin.cid.multihash: Place(pin.cid) for pin in kept if pin.kind is PinKind.DIRECT}
    told = {}
    for cid in damaged:
        found = places.found.get(cid.multihash) or [alone[key] for key in [cid.multihash] if key in alone]
        lines = tuple(f"{labels.of(place.root)}: {place}" for place in found)
        nothing = UNKNOWN if places.is_whole else BEYOND
        told[cid] = Belonging(lines, labels.hint(found[0], was_tried=was_tried) if found else nothing)
    return told


class _Labels:
    """What people call a root."""

    def __init__(self, node: "Node", pins: Collection[Pin]) -> None:
        self._own = node.identity.peer_id
        self._artifacts: dict[Cid, ArtifactRow] = {}
        for row in node.catalog.artifacts.find():
            self._artifacts |= {cid: row for cid in (row.manifest, row.files) if cid is not None}
        self._pins = {pin.cid: pin.name for pin in pins}

    def of(self, root: Cid) -> str:
        """An artifact by its name, else the pin's, else what it is."""
        row = self._artifact(root)
        if row is not None:
            return f"{row.kind} {row.name} v{row.version}"
        name = self._pins.get(root)
        return f"pin {name}" if name else "published" if name is None else "pinned"

    def hint(self, place: Place, *, was_tried: bool) -> str:
        """How a block in that place is mended."""
        if not was_tried:
            return REPAIR
        row = self._artifact(place.root)
        if row is not None and row.publisher != self._own:
            return f"no peer gave them. Fetch them again: covey artifact add {row.manifest} --whole --provider ADDRESS"
        if row is not None and row.kind != "adapter":
            return f"no peer gave them. Add the files of {row.name} again: covey artifact publish PATH, as before"
        if row is not None:
            return f"no peer gave them. Add its folder again: covey adapter publish PATH, as {row.name}"
        return (
            f"no peer gave them. Add what it came from again, covey add PATH with the same options; "
            f"or, from a peer that has it: covey get {place.root} --provider ADDRESS"
        )

    def _artifact(self, root: Cid) -> "ArtifactRow | None":
        name = self._pins.get(root) or ""
        try:  # the pins of an artifact are named after its manifest
            return self._artifacts.get(root) or self._artifacts.get(Cid.parse(name.rpartition("/")[2]))
        except InvalidCid:
            return None
