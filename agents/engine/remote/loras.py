"""Which adapters a server holds for us, under which names, and which of them gives way. Pure.

A name is made of the CID of the adapter's manifest, so that it means the same after a restart on either side.
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import PurePath
from typing import Final

from agents.errors import BadAdapter
from storage.cid import Cid
from storage.errors import InvalidCid

PREFIX: Final = "covey-"


def manifest_of(folder: str) -> str:
    """The CID of the manifest of an adapter that stands on our shelf. Raises: BadAdapter for any other folder."""
    name = PurePath(folder).name
    try:
        return str(Cid.parse(name))
    except InvalidCid:
        raise BadAdapter(f"{folder} is no published adapter: a server is given those alone") from None


class Loras:
    """The adapters at the server, the longest unused first. At most `limit` stay, but for those in use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_users: OrderedDict[str, int] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._n_users

    def __iter__(self) -> Iterator[str]:
        return iter(self._n_users)

    def loaded(self, name: str) -> None:
        """The server has it now."""
        self._n_users.setdefault(name, 0)
        self._n_users.move_to_end(name)

    def begin(self, name: str) -> None:
        """A request uses it."""
        self._n_users[name] = self._n_users.get(name, 0) + 1
        self._n_users.move_to_end(name)

    def end(self, name: str) -> None:
        """That request is over. One that was forgotten meanwhile stays forgotten."""
        if self._n_users.get(name):
            self._n_users[name] -= 1

    def forget(self, name: str) -> None:
        """The server has it no more."""
        self._n_users.pop(name, None)

    def surplus(self, wanted: str) -> list[str]:
        """What to unload, the longest unused first: never `wanted`, which a request is about to use."""
        idle = [name for name, n_users in self._n_users.items() if n_users == 0 and name != wanted]
        return idle[: max(0, len(self._n_users) - self._limit)]
