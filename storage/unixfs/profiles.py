"""The CID profiles: every choice that decides which CID a file gets, under one name.

`unixfs-v1-2025` is the default here and in new implementations; `unixfs-v0-2015` is what `ipfs add` has always done.
`covey-weights` is ours, for what is published in versions (adapters, models, datasets, checkpoints): files are cut by
their content, so that after an insertion or a longer header a peer fetches a hundredth of the file, and not all of it;
measured with `python -m tests.benchmarks.chunking`.

Source: IPIP-499, for those of others.
"""

from dataclasses import dataclass, replace
from typing import Final

from storage.blockstore import MadeBlock
from storage.cid import DAG_PB
from storage.codecs import dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import InvalidOption
from storage.unixfs.data import UnixFsData, encode

HAMT_THRESHOLD_BYTES: Final = 256 << 10


@dataclass(frozen=True)
class Profile:
    """How files become blocks.

    `counts_link_bytes`: a directory's size is the bytes of its links' names and CIDs, not of its block.
    """

    name: str
    cid_version: int
    chunker: str
    raw_leaves: bool
    width: int
    counts_link_bytes: bool
    layout: str = "balanced"

    def but(
        self,
        *,
        chunker: str | None = None,
        layout: str | None = None,
        raw_leaves: bool | None = None,
        cid_version: int | None = None,
    ) -> "Profile":
        """This profile, but for what is given. Of CID version 1 the leaves are raw unless they shall not be."""
        if raw_leaves is None:
            raw_leaves = self.raw_leaves or cid_version == 1
        return replace(
            self,
            chunker=chunker or self.chunker,
            layout=layout or self.layout,
            raw_leaves=raw_leaves,
            cid_version=self.cid_version if cid_version is None else cid_version,
        )

    def node(self, message: UnixFsData, links: tuple[PbLink, ...] = ()) -> MadeBlock:
        """A dag-pb block with this message in it."""
        block = MadeBlock.of(dag_pb.encode(PbNode(encode(message), links)), DAG_PB)
        return block if self.cid_version else MadeBlock(block.cid.as_v0(), block.data)


UNIXFS_V1_2025: Final = Profile("unixfs-v1-2025", 1, f"size-{1 << 20}", True, 1024, False)
UNIXFS_V0_2015: Final = Profile("unixfs-v0-2015", 0, f"size-{256 << 10}", False, 174, True)
COVEY_WEIGHTS: Final = Profile("covey-weights", 1, "fastcdc-32768-131072-524288", True, 1024, False)
PROFILES: Final = {profile.name: profile for profile in (UNIXFS_V1_2025, UNIXFS_V0_2015, COVEY_WEIGHTS)}


def profile_of(name: str) -> Profile:
    """The profile of this name. Raises: InvalidOption."""
    profile = PROFILES.get(name)
    if profile is None:
        raise InvalidOption(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return profile
