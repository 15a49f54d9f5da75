"""What the adapter services need from the rest of a node. The daemon hands in the real things, simulations theirs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import trio

from agents.adapters.policy import Policy
from protocols.bitswap.shell import Exchange
from protocols.net import Network
from storage.blockstore import Store
from storage.catalog import Catalog
from storage.keys import Identity, PeerId
from storage.pins import Pins
from storage.roots import Roots


class Emit(Protocol):
    """Notes an event: the daemon writes it to the durable log."""

    def __call__(self, kind: str, *, by: PeerId | None = None, **fields: Any) -> None:
        """`fields` hold JSON values. `by` is the peer that can cause the event as often as it likes."""


@dataclass
class Spending:
    """Bytes of adapters that are coming now. Who decides whether more may come holds `turn` until they are counted."""

    n_bytes: int = 0
    turn: trio.Lock = field(default_factory=trio.Lock)


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Everything outside. `unix_s` is the wall clock; `folder` holds the adapters that are ready, each as files.

    `policy` says what comes unasked; `is_busy`: does the engine answer now? `spending` counts what is coming.
    `store` is the exchange's store. Who gives an adapter its version holds `numbering` until its row is written.
    """

    exchange: Exchange
    identity: Identity
    store: Store
    roots: Roots
    pins: Pins
    catalog: Catalog
    emit: Emit
    unix_s: Callable[[], float]
    folder: Path
    policy: Policy = field(default_factory=Policy)
    is_busy: Callable[[], bool] = lambda: False
    spending: Spending = field(default_factory=Spending)
    numbering: Lock = field(default_factory=Lock)

    @property
    def network(self) -> Network:
        """The network that the exchange runs on."""
        return self.exchange.network
