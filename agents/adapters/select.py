"""Which of the adapters that are ready shall the model use? Pure: a policy and what there is, in; a choice, out."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agents.errors import UnknownName
from storage.cid import Cid
from storage.errors import InvalidCid
from storage.keys import PeerId


class Ready(NamedTuple):
    """An adapter that is here, checked and usable. `cid` names its manifest; `ready_s` is our own wall clock."""

    cid: Cid
    name: str
    version: int
    publisher: PeerId
    ready_s: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Latest:
    """The one that became ready last; of one publisher's versions under one name only the highest counts."""


@dataclass(frozen=True, slots=True)
class Best:
    """The one with the best value of a metric; adapters that do not state it are left out."""

    metric: str
    is_higher_better: bool


@dataclass(frozen=True, slots=True)
class Pinned:
    """Exactly this one: a manifest's CID, or a name with a version, or the highest version under a name."""

    cid: Cid | None = None
    name: str = ""
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """No adapter: the base model alone."""


Policy = Latest | Best | Pinned | Base


def parse_policy(text: str) -> Policy:
    """Read `latest`, `none`, `best:METRIC:min`, `best:METRIC:max`, a CID, NAME or NAME@VERSION. Raises: UnknownName."""
    if text == "latest":
        return Latest()
    if text == "none":
        return Base()
    kind, *rest = text.split(":")
    if kind == "best" and len(rest) == 2 and rest[0] and rest[1] in ("min", "max"):
        return Best(rest[0], rest[1] == "max")
    try:
        return Pinned(cid=Cid.parse(text))
    except InvalidCid:
        pass
    name, mark, version = text.rpartition("@")
    if not mark:
        return Pinned(name=text)
    if not name or not (version.isascii() and version.isdigit()):
        raise UnknownName(f"{text!r} is not NAME or NAME@VERSION. `covey adapter ls` shows what there is.")
    return Pinned(name=name, version=int(version))


def choose(policy: Policy, ready: Iterable[Ready]) -> Ready | None:
    """The adapter that the policy asks for, or None for the base model alone. The same set gives the same choice.

    Raises: UnknownName when a pinned adapter is not here.
    """
    ready = sorted(ready, key=lambda one: one.cid)
    match policy:
        case Base():
            return None
        case Latest():
            return max(_newest_versions(ready), key=lambda one: (one.ready_s, one.cid), default=None)
        case Best(metric, is_higher_better):
            sign = 1 if is_higher_better else -1
            scored = [one for one in ready if math.isfinite(one.metrics.get(metric, math.nan))]
            return max(scored, key=lambda one: (sign * one.metrics[metric], one.ready_s, one.cid), default=None)
        case Pinned():
            return _pinned(policy, ready)


def _newest_versions(ready: Iterable[Ready]) -> Iterable[Ready]:
    newest: dict[tuple[PeerId, str], Ready] = {}
    for one in ready:
        other = newest.get((one.publisher, one.name))
        if other is None or one.version > other.version:
            newest[one.publisher, one.name] = one
    return newest.values()


def _pinned(policy: Pinned, ready: Iterable[Ready]) -> Ready:
    fitting = [
        one
        for one in ready
        if (one.cid == policy.cid if policy.cid is not None else one.name == policy.name)
        and policy.version in (None, one.version)
    ]
    if not fitting:
        wanted = policy.cid or (policy.name if policy.version is None else f"{policy.name}@{policy.version}")
        raise UnknownName(f"there is no adapter {wanted} for this model that is ready to answer. See: covey adapter ls")
    return max(fitting, key=lambda one: (one.version, one.ready_s, one.cid))
