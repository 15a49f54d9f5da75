"""What a store must hold after a crash, said twice over: what was acknowledged, and what was in flight.

A step is begun before it runs and done when it was acknowledged. Between the two, what was before and what will be are
both right; behind `done` only the new is.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from storage.blockstore import Visibility
from storage.cid import Cid
from storage.pins import PinState

Files = dict[str, bytes]
_NONE: Any = MappingProxyType({})


class Effect(NamedTuple):
    """What a step changes. A pin, note, file or row of None is gone; blocks in `loosens` may go from then on."""

    puts: Mapping[Cid, bytes] = _NONE
    deletes: frozenset[Cid] = frozenset()
    loosens: frozenset[Cid] = frozenset()
    pins: Mapping[Cid, PinState | None] = _NONE
    notes: Mapping[str, bytes | None] = _NONE
    roots: Mapping[Cid, Visibility] = _NONE
    files: Mapping[str, Files | None] = _NONE
    rows: Mapping[Cid, int | None] = _NONE
    floor: Visibility = Visibility.PRIVATE
    dag: Mapping[Cid, frozenset[Cid]] = _NONE


@dataclass
class Model:
    """The blocks that must be there, those that may, and the values that each name may have."""

    must: dict[Cid, bytes] = field(default_factory=dict)
    may: dict[Cid, bytes] = field(default_factory=dict)
    pins: dict[Cid, list[PinState | None]] = field(default_factory=dict)
    notes: dict[str, list[bytes | None]] = field(default_factory=dict)
    roots: dict[Cid, list[Visibility]] = field(default_factory=dict)
    files: dict[str, list[Files | None]] = field(default_factory=dict)
    rows: dict[Cid, list[int | None]] = field(default_factory=dict)
    floors: dict[Cid, Visibility] = field(default_factory=dict)
    dags: dict[Cid, frozenset[Cid]] = field(default_factory=dict)

    def copy(self) -> "Model":
        """One that goes its own way. Values are never changed in place."""
        return Model(**{name: copy(value) for name, value in vars(self).items()})

    def begin(self, effect: Effect) -> None:
        """From now on the step may have happened, or a part of it."""
        for cid, data in effect.puts.items():
            if cid not in self.must:
                self.may[cid] = data
            self.floors[cid] = max(effect.floor, self.floors.get(cid, Visibility.PRIVATE))
        for cid in (effect.deletes | effect.loosens) & self.must.keys():
            self.may[cid] = self.must.pop(cid)
        for cid, state in effect.pins.items():
            self.pins[cid] = [*self.pins.get(cid, [None]), state]
        for name, value in effect.notes.items():
            self.notes[name] = [*self.notes.get(name, [None]), value]
        for cid, level in effect.roots.items():
            self.roots[cid] = [*self.roots.get(cid, [Visibility.PRIVATE]), level]
        for name, files in effect.files.items():
            self.files[name] = [*self.files.get(name, [None]), files]
        for cid, version in effect.rows.items():
            self.rows[cid] = [*self.rows.get(cid, [None]), version]
        self.dags.update(effect.dag)

    def done(self, effect: Effect) -> None:
        """From now on it must have happened."""
        for cid, data in effect.puts.items():
            self.may.pop(cid, None)
            self.must[cid] = data
        for cid in effect.deletes:
            self.may.pop(cid, None)
        self.pins.update({cid: [state] for cid, state in effect.pins.items()})
        self.notes.update({name: [value] for name, value in effect.notes.items()})
        self.roots.update({cid: [level] for cid, level in effect.roots.items()})
        self.files.update({name: [files] for name, files in effect.files.items()})
        self.rows.update({cid: [version] for cid, version in effect.rows.items()})

    def kept(self, *, surely: bool = False) -> frozenset[Cid]:
        """What pins and roots may keep, which is never deleted; or surely keep, which is never collected."""
        may_hold = all if surely else any
        holders = [cid for cid, states in self.pins.items() if may_hold(state is not None for state in states)]
        holders += [cid for cid, levels in self.roots.items() if may_hold(levels)]
        return frozenset().union(*(self.dags[cid] for cid in holders))
