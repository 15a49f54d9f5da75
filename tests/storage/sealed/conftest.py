"""A store, some identities, and sealed content to alter."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity, PeerId
from storage.memory import MemoryBlockstore
from storage.sealed import Made, Sealed, open_sealed, seal_path
from storage.sealed.keys import make_root
from storage.sealed.root import Content
from storage.sealed.sealer import PROFILE
from storage.sealed.stream import SEALED_CHUNK_BYTES
from storage.unixfs import add_bytes, read_file

ALICE, BOB, EVE = (Identity(letter * 32) for letter in (b"a", b"b", b"e"))


@dataclass
class Bench:
    folder: Path
    store: MemoryBlockstore = field(default_factory=MemoryBlockstore)
    alice: Identity = ALICE
    bob: Identity = BOB
    eve: Identity = EVE

    def seal(self, content: bytes | Path, *to: PeerId, is_padded: bool = True) -> Made:
        path = content if isinstance(content, Path) else self.folder / "content"
        if isinstance(content, bytes):
            path.write_bytes(content)
        return seal_path(self.store, path, to or [ALICE.peer_id], is_padded=is_padded)

    def opened(self, cid: Cid, who: Identity = ALICE) -> Sealed:
        return open_sealed(self.store, cid, who)

    def read(self, cid: Cid, who: Identity = ALICE) -> bytes:
        sealed = self.opened(cid, who)
        return b"".join(sealed.read(sealed.find()))

    def put_root(self, data: bytes) -> Cid:
        self.store.put_many([made := type(self).block(data)])
        return made.cid

    @staticmethod
    def block(data: bytes):
        from storage.blockstore import MadeBlock

        return MadeBlock.of(data, DAG_CBOR)

    def chunks(self, made: Made) -> list[bytes]:
        whole = b"".join(read_file(self.store, made.root.content.data))
        return [whole[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(whole), SEALED_CHUNK_BYTES)]

    def with_chunks(self, made: Made, chunks: Iterable[bytes], **changes: object) -> Sealed:
        """Other ciphertext below a root that is made right for it: all that is left to notice it are the chunks."""
        data = b"".join(chunks)
        changed = {"data": add_bytes(self.store, data, PROFILE), "n_bytes": len(data)} | changes
        content = Content(**made.root.content._asdict() | changed)
        return Sealed(
            self.store, make_root(content, made.key, [ALICE.peer_id], lambda n: bytes(n)[:-1] + b"1"), made.key
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench")


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[], Path]:
    """A folder of files of all sorts."""

    def make() -> Path:
        top = tmp_path / "tree"
        (top / "sub" / "deep").mkdir(parents=True)
        (top / "empty").mkdir()
        (top / "a").write_bytes(bytes(range(256)) * 1000)
        (top / "a.b").write_bytes(b"sorted between a and a/")
        (top / "sub" / "run").write_bytes(b"#!/bin/sh\n")
        (top / "sub" / "run").chmod(0o755)
        (top / "sub" / "deep" / "nothing").write_bytes(b"")
        (top / "sub" / "up").symlink_to("../a")
        (top / "\udcff not utf-8".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")).touch()
        return top

    return make
