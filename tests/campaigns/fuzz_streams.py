"""Readers of streams: connections, whole files, and trees of blocks in which one block is a stranger's."""

import random
from io import BytesIO
from typing import Final

from agents.adapters import inspect, safetensors_header
from agents.errors import BadAdapter
from protocols.errors import Malformed, TooBig
from protocols.framing import FrameReader
from protocols.gossipsub import wire as gossip
from protocols.gossipsub.router import Router
from protocols.noise import Opener, Sealer
from protocols.yamux import frames as yamux
from protocols.yamux.connection import Connection, Opened
from protocols.yamux.memory import Memory
from storage.blockstore import MadeBlock
from storage.car import CarReader, import_car, wire
from storage.car.entries import Entries
from storage.car.index import check_index, index_bytes
from storage.car.source import Source
from storage.cid import BLAKE3, DAG_CBOR, DAG_PB, SHA2_512, Cid
from storage.codecs import dag_cbor, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import BrokenSeal, InvalidCar, NotFound, StorageError
from storage.keys import Identity
from storage.memory import MemoryBlockstore
from storage.path import PathWalk
from storage.sealed import stream
from storage.unixfs import data as unixfs
from storage.unixfs import list_dir, read_file, resolve
from tests.campaigns.fuzz_reader import Reader

MAX_ENTRIES_READ: Final = 1000
MAX_FILE_BYTES_READ: Final = 1 << 20

_BLOCKS: Final = (
    MadeBlock.of(b"leaf"),
    MadeBlock.of(b"another", hash_code=SHA2_512),
    MadeBlock.of(b"a third", hash_code=BLAKE3),
    MadeBlock(Cid(b"\x01\x55\x00\x06inside"), b"inside"),
    MadeBlock.of(b"leaf"),
)
_ROOT: Final = MadeBlock.of(dag_cbor.encode([block.cid for block in _BLOCKS]), DAG_CBOR)
_CAR_BLOCKS: Final = (_ROOT, *_BLOCKS)
_V1: Final = wire.header([_ROOT.cid]) + b"".join(wire.section(cid, data) for cid, data in _CAR_BLOCKS)


def _entries() -> Entries:
    entries = Entries()
    at = len(wire.header([_ROOT.cid]))
    for cid, data in _CAR_BLOCKS:
        entries.add(cid.multihash, at)
        at += len(wire.section(cid, data))
    return entries


def _v2(*, padding: bytes = b"", has_index: bool = True) -> bytes:
    start = wire.PREFIX_BYTES + len(padding)
    index_at = start + len(_V1) + len(padding) if has_index else 0
    layout = wire.Layout(start, len(_V1), index_at, has_index)
    index = padding + b"".join(index_bytes(_entries())) if has_index else b""
    return wire.PRAGMA + wire.layout_bytes(layout) + padding + _V1 + index


def _plain_index() -> bytes:
    """The older format, without hash functions: buckets by the length of the digest."""
    made = b"".join(index_bytes(_entries()))
    at = made.index((40).to_bytes(4, "little"))  # the one bucket of the first hash function with digests of 32 bytes
    n_bytes = int.from_bytes(made[at + 4 : at + 12], "little")
    return b"\x80\x08" + (1).to_bytes(4, "little") + made[at : at + 12 + n_bytes]


def _read_car(data: bytes) -> object:
    """Every section, its hash, and the index; the length of the file is known to half of the inputs."""
    with CarReader(BytesIO(data), file_bytes=len(data) if len(data) % 2 else None) as reader:
        return [section.cid.matches(section.data) for section in reader.sections()]


def _import(data: bytes) -> object:
    return import_car(MemoryBlockstore(), BytesIO(data))


def _read_index(data: bytes) -> object:
    return check_index(Source(BytesIO(data)), _entries(), is_full=False)


def _message(kind: unixfs.Kind, *sizes: int, data: bytes | None = None) -> bytes:
    return unixfs.encode(unixfs.UnixFsData(kind, data, sum(sizes) + len(data or b""), sizes))


_STORE: Final = MemoryBlockstore()


def _stored(data: bytes, codec: int = DAG_PB) -> Cid:
    block = MadeBlock.of(data, codec)
    _STORE.put_many([block])
    return block.cid


_LEAF: Final = _stored(b"leaf", 0x55)
_PART: Final = _stored(dag_pb.encode(PbNode(_message(unixfs.Kind.FILE, data=b"part"))))
_FILE: Final = dag_pb.encode(
    PbNode(_message(unixfs.Kind.FILE, 4, 4, 4), (PbLink(_LEAF, "", 4), PbLink(_PART, "", 12), PbLink(_LEAF, "", 4)))
)
_FOLDER: Final = dag_pb.encode(
    PbNode(_message(unixfs.Kind.DIRECTORY), (PbLink(_LEAF, "a", 4), PbLink(_stored(_FILE), "b", 20)))
)
_DOCUMENT: Final = dag_cbor.encode({"a": [1, {"b": _LEAF}, {"c": {"b": None}}], "b": _PART})


class _Hostile(MemoryBlockstore):
    """The honest blocks, and one whose bytes are as they come."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def get(self, cid: Cid) -> bytes:
        return self._data if cid == _AT else _STORE.get(cid)


_AT: Final = Cid.of(b"the hostile block", DAG_PB)


def _read_folder(data: bytes) -> object:
    store = _Hostile(data)
    listed = [entry for entry, _ in zip(list_dir(store, _AT), range(MAX_ENTRIES_READ), strict=False)]
    for entry in listed[:2]:
        resolve(store, _AT, entry.name)
    return listed


def _read_file(data: bytes) -> object:
    n_bytes = 0
    for piece in read_file(_Hostile(data), _AT):
        n_bytes += len(piece)
        if n_bytes > MAX_FILE_BYTES_READ:
            break
    return n_bytes


def _walk(codec: int, data: bytes) -> object:
    walk = PathWalk(Cid.of(b"root", codec), ["a", "1", "b"])
    walk.take(data)
    return walk.value, walk.cid


_KEY: Final = bytes(range(32))
_PREFIX: Final = bytes(range(19))
_CHUNK: Final = next(stream.seal_chunks(_KEY, _PREFIX, [b"sealed"]))
_CONFIG: Final = (
    b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none",'
    b' "base_model_name_or_path": "x", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}'
)
_TENSORS: Final = (
    b'{"__metadata__":{"format":"pt"},"a.lora_A.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
    b'"a.lora_B.weight":{"dtype":"BF16","shape":[3,2],"data_offsets":[24,36]}}'
)


_OWN, _STRANGER = Identity(b"o" * 32), Identity(b"s" * 32)


def _hear_gossip(data: bytes) -> object:
    """A node that listens to the topic hears it from a peer that is connected."""
    router = Router(_OWN, lambda message: True, random.Random(1))
    router.join("topic", 0.0)
    router.open_to(_STRANGER.peer_id, gossip.MESHSUB_1_2, False, 0.0)
    heard = router.receive(_STRANGER.peer_id, data, 0.0)
    router.heartbeat(1.0)
    return heard


def _gossip() -> tuple[bytes, ...]:
    ids = [bytes([number]) * 20 for number in range(3)]
    framed = [
        gossip.frame_message(gossip.sign(_STRANGER, "topic", 7, b"what it says").raw),
        gossip.frame_subscriptions(["topic", "another"], True),
        gossip.frame_have("topic", ids),
        gossip.frame_want(ids),
        gossip.frame_graft("topic"),
        gossip.frame_prune(gossip.Prune("topic", 60)),
        gossip.frame_dont_want(ids),
    ]
    each = [one for packet in framed for one in FrameReader(gossip.MAX_RPC_BYTES).feed(packet)]
    return (*each, b"".join(each))


def _hear_yamux(data: bytes) -> object:
    """A server accepts and reads whatever is opened; the second half of the bytes comes 40 s later."""
    core = Connection(False, Memory(), 0.0)
    for now_s, part in ((0.0, data[: len(data) // 2]), (40.0, data[len(data) // 2 :])):
        core.tick(now_s)
        for event in core.receive(part, now_s):
            if isinstance(event, Opened):
                core.accept(event.stream)
            else:
                core.read(event.stream, 1 << 20, now_s)
        core.take_messages(100, now_s)
    return core.streams


_YAMUX: Final = b"".join(
    (
        yamux.pack(yamux.WINDOW, yamux.SYN, 1, 0),
        yamux.pack(yamux.DATA, yamux.SYN | yamux.FIN, 3, 9) + b"all of it",
        yamux.pack(yamux.DATA, 0, 1, 300) + bytes(300),
        yamux.pack(yamux.WINDOW, 0, 1, 1 << 20),
        yamux.pack(yamux.PING, yamux.SYN, 0, 7),
        yamux.pack(yamux.WINDOW, yamux.RST, 1, 0),
        yamux.pack(yamux.DATA, 0, 1, 4) + b"late",
        yamux.pack(yamux.GO_AWAY, 0, 0, 0),
    )
)

READERS: Final = (
    Reader("gossip", _hear_gossip, (Malformed, TooBig), _gossip()),
    Reader("yamux", _hear_yamux, (Malformed, TooBig), (_YAMUX,)),
    Reader(
        "noise",
        lambda data: Opener(bytes(32)).feed(data),
        (Malformed,),
        (Sealer(bytes(32)).seal([b"", b"hello", bytes(300)]),),
    ),
    Reader("car-v1", _read_car, (InvalidCar,), (_V1, wire.header([]) + wire.section(*_ROOT))),
    Reader("car-v2", _read_car, (InvalidCar,), (_v2(), _v2(padding=bytes(9)), _v2(has_index=False))),
    Reader("car-header", wire.read_header, (ValueError,), (_V1[1 : len(wire.header([_ROOT.cid]))], wire.PRAGMA[1:])),
    Reader("car-index", _read_index, (InvalidCar,), (b"".join(index_bytes(_entries())), _plain_index())),
    Reader("car-import", _import, (InvalidCar, NotFound), (_V1, _v2())),
    Reader("folder", _read_folder, (StorageError,), (_FOLDER,)),
    Reader("file", _read_file, (StorageError,), (_FILE,)),
    Reader("path-cbor", lambda data: _walk(DAG_CBOR, data), (StorageError,), (_DOCUMENT,)),
    Reader(
        "path-pb",
        lambda data: _walk(DAG_PB, data),
        (StorageError,),
        (_FOLDER, dag_pb.encode(PbNode(b"x", (PbLink(_LEAF, "a", 1),)))),
    ),
    Reader(
        "sealed-chunk",
        lambda data: stream.open_chunk(_KEY, _PREFIX, 0, data, is_last=True),
        (BrokenSeal,),
        (_CHUNK,),
    ),
    Reader("adapter-config", inspect.parse_config, (BadAdapter,), (_CONFIG,)),
    Reader("safetensors", lambda data: safetensors_header.parse_header(data, 36), (BadAdapter,), (_TENSORS,)),
)
