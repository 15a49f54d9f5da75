"""A workspace whose content is here in part is written out all the same, and says how much is missing."""

from agents.workspace.archive import pack
from protocols.workspaces.entries import Put
from storage.blockstore import MadeBlock
from storage.cid import DAG_CBOR, RAW, Cid
from storage.codecs import dag_cbor
from storage.memory import MemoryBlockstore


def test_content_that_is_here_in_part_is_written_as_far_as_it_goes(village, tmp_path):
    ann, store = village().ann, MemoryBlockstore()
    whole = MadeBlock.of(dag_cbor.encode({"a": 1}), DAG_CBOR)
    part = MadeBlock.of(dag_cbor.encode({"to": Cid.of(b"not here", RAW)}), DAG_CBOR)
    store.put_many([whole, part])
    for key, link in {"whole": whole.cid, "part": part.cid, "none": Cid.of(b"nothing", RAW)}.items():
        ann.say(Put(key=key, link=link))
    packed = pack(store, ann.space, tmp_path / "x.car", lambda author, cid: True)
    assert packed.n_missing == 2 and (tmp_path / "x.car").stat().st_size == packed.n_bytes
