"""Look into files that are still with a peer: only the blocks that hold the bytes asked for are fetched.

So what is to be judged by its header is judged by kilobytes, before the rest of it moves.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from agents.adapters.ports import Ports
from protocols.errors import TooBig
from protocols.fetch.dag import FindMore, fetch_blocks
from protocols.net import PeerInfo
from storage import unixfs
from storage.blockstore import Visibility
from storage.cid import DAG_PB, RAW, Cid
from storage.errors import InvalidBlock
from storage.keys import PeerId
from storage.unixfs.data import Kind

IDLE_TIMEOUT_S: Final = 20.0
MAX_PEEK_BYTES: Final = 64 << 20  # of all that one look asks for
MAX_PEEK_BLOCKS: Final = 4096
WINDOW_BLOCKS: Final = 64


@dataclass
class Peek:
    """One look into a folder, and what is left of its budget.

    `providers`, `find_more`, `show` and `voucher` are as for `protocols.fetch.dag.fetch_dag`.
    """

    ports: Ports
    providers: Sequence[PeerInfo]
    find_more: FindMore | None = None
    show: Visibility = Visibility.PRIVATE
    voucher: PeerId | None = None
    idle_timeout_s: float = IDLE_TIMEOUT_S
    n_blocks: int = field(default=0, init=False)
    n_bytes: int = field(default=0, init=False)

    async def files(self, folder: Cid, check_name: Callable[[str], None]) -> dict[str, Cid]:
        """The names in a folder of one block, and of each file its root block. `check_name` may refuse by raising.

        Raises: Remote, StorageError; InvalidBlock for what is no such folder.
        """
        check_kind(folder)
        await self.fetch([folder])
        found = await self.ports.exchange.work(partial(self._names, folder, check_name))
        for cid in found.values():
            check_kind(cid)
        await self.fetch(found.values())  # a file of one block is its own root, and none is big
        return found

    async def read(self, cid: Cid, offset: int = 0, length: int | None = None) -> bytes:
        """These bytes of a file. Raises: Remote, StorageError."""
        work, store = self.ports.exchange.work, self.ports.store
        while lacking := await work(partial(unixfs.missing, store, cid, offset, length)):
            await self.fetch(lacking)
        return await work(lambda: b"".join(unixfs.read_file(store, cid, offset, length)))

    async def fetch(self, cids: Iterable[Cid]) -> None:
        """Single blocks, within the budget. Raises: Remote, StorageError."""
        wanted = list(dict.fromkeys(cids))
        self.n_blocks += len(wanted)
        if self.n_blocks > MAX_PEEK_BLOCKS:
            raise TooBig(f"what tells its kind is spread over more than {MAX_PEEK_BLOCKS} blocks")
        for at in range(0, len(wanted), WINDOW_BLOCKS):
            fetched = await fetch_blocks(
                self.ports.exchange,
                wanted[at : at + WINDOW_BLOCKS],
                providers=self.providers,
                find_more=self.find_more,
                idle_timeout_s=self.idle_timeout_s,
                show=self.show,
                voucher=self.voucher,
            )
            self.n_bytes += fetched.n_bytes
            if self.n_bytes > MAX_PEEK_BYTES:
                raise TooBig(f"what tells its kind takes more than {MAX_PEEK_BYTES} bytes")

    def _names(self, folder: Cid, check_name: Callable[[str], None]) -> dict[str, Cid]:
        if unixfs.stat(self.ports.store, folder).kind != Kind.DIRECTORY:
            raise InvalidBlock(f"{folder} is no folder of a few files")
        found: dict[str, Cid] = {}
        for entry in unixfs.list_dir(self.ports.store, folder):
            check_name(entry.name)
            found[entry.name] = entry.cid
        return found


def check_kind(cid: Cid) -> None:
    """Raises: InvalidBlock for what is neither a file nor a folder: it has no place in files."""
    if cid.codec not in (RAW, DAG_PB):
        raise InvalidBlock(f"its files hold {cid}, which is neither a file nor a folder")
