"""What the adapter services need from the rest of a node. The daemon hands in the real things, simulations theirs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from protocols.bitswap.shell import Exchange
from protocols.net import Network
from storage.blockstore import Store
from storage.catalog import Catalog
from storage.keys import Identity
from storage.pins import Pins
from storage.roots import Roots


class TaskStatus(Protocol):
    """What `trio.Nursery.start` hands to a service."""

    def started(self) -> None:
        """The service is ready."""


IGNORED: Final[TaskStatus] = trio.TASK_STATUS_IGNORED


class Emit(Protocol):
    """Notes an event: the daemon writes it to the durable log."""

    def __call__(self, kind: str, **fields: Any) -> None:
        """`fields` hold JSON values."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Everything outside. `unix_s` is the wall clock; `folder` holds the adapters that are ready, each as files.

    `store` is the exchange's store.
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

    @property
    def network(self) -> Network:
        """The network that the exchange runs on."""
        return self.exchange.network
