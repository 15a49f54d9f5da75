"""Every reader of bytes that others wrote: what it reads, and the errors that it may answer with.

A new reader is one line of `READERS`: its name, the function, its errors, and some valid inputs to be damaged.
"""

from typing import Final

import msgspec

from agents import journal
from agents.federation.node.journal import Journal
from agents.federation.secure import vault
from protocols import adapters, entry, envelope, kubo_rpc, message, rounds, rounds_sync, telling
from protocols.adapters import Announcement
from protocols.ask import record as answers
from protocols.ask import wire as ask
from protocols.bitswap import wire
from protocols.envelope import Purpose
from protocols.errors import ProtocolError, Remote
from storage.blockstore import Block
from storage.cid import DAG_CBOR, DAG_PB, SHA2_512, Cid
from storage.codecs import dag_cbor, dag_json, dag_pb
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import BrokenSeal, InvalidBlock, InvalidCid, StorageError, TooLarge, UnknownSeal, UnknownVersion
from storage.keys import Identity, InvalidPeerId, PeerId
from storage.memory import MemoryBlockstore
from storage.packs import record
from storage.sealed import root as sealed_root
from storage.sealed import table as sealed_table
from storage.sealed.keys import make_root
from storage.unixfs import data as unixfs
from storage.unixfs import hamt, profile_of
from tests.campaigns import fuzz_dht, fuzz_faces, fuzz_requests, fuzz_streams, fuzz_workspaces
from tests.campaigns.fuzz_reader import Reader

UNIX_S: Final = 1_800_000_000
LINK: Final = Cid.of(b"x")
MARKER: Final = b"\x01\x9f\x88\xfe\x03\xc4\x10\x7a"


def _text(data: bytes) -> object:
    return Cid.parse(data.decode("latin-1"))


def _value() -> dict[str, object]:
    return {"a": LINK, "b": [1, -5, 1.5, None, True, "text", b"bytes", {"deep": [[[]]]}], "n": 1 << 63, "z": "é" * 40}


def _node() -> PbNode:
    return PbNode(b"\x08\x02\x18\x05", tuple(PbLink(Cid.of(bytes([n])), f"name {n}", n * 999) for n in range(6)))


def _messages() -> list[bytes]:
    file = unixfs.UnixFsData(unixfs.Kind.FILE, b"abc", 900, (3, 300, 597), mode=0o644, mtime=unixfs.Mtime(-5, 7))
    shard = unixfs.UnixFsData(unixfs.Kind.HAMT_SHARD, b"\xff\x01", hash_type=0x22, fanout=256)
    return [unixfs.encode(file), unixfs.encode(shard)]


def _shards() -> list[bytes]:
    links = [PbLink(LINK, f"file {n}", n) for n in range(8)]
    made = hamt.build(links, profile_of("unixfs-v1-2025"))
    return [block.data for block in made][-1:]


def _shard(data: bytes) -> object:
    store = MemoryBlockstore()
    return list(hamt.entries(store, LINK, dag_pb.decode(data)))


def _pack() -> bytes:
    blocks = [b"block %d" % number * 9 for number in range(5)]
    out = record.pack_header(MARKER)
    records = []
    for data in blocks:
        key = Cid.of(data).multihash
        head = record.record_head(MARKER, record.Kind.BLOCK, key, data)
        records.append(record.Record(record.Kind.BLOCK, key, len(out) + len(head), len(data)))
        out += head + data
    entries = record.footer_entries(records)
    return out + entries + record.footer_end(MARKER, entries, len(out), len(records))


def _read_pack(data: bytes) -> object:
    def read(at: int, n_bytes: int) -> bytes:
        return data[at : at + n_bytes]

    marker = record.read_marker(data[: record.PACK_HEADER_BYTES])
    if marker is None:
        return None
    footer = record.read_footer(read, marker, len(data))
    return footer, list(record.scan(read, marker, record.PACK_HEADER_BYTES, verify=True))


_ME: Final = Identity(bytes(range(32)))
_BASE: Final = Cid.of(b"base", DAG_CBOR)
_ANNOUNCEMENT: Final = Announcement(
    manifest=LINK, name="name", version=3, n_bytes=999, addresses=("/ip4/1.2.3.4/tcp/1",)
)
_PURPOSE: Final = Purpose(protocol="/covey/fuzz/1.0.0", topic="/covey/adapters/1/x")
_ENTRY: Final = entry.make_entry(_ME, "adapter", "scope", 7, [_BASE], {"more": [1, LINK, "text"]})


_QUESTIONS: Final = tuple(
    message.encode(question, rounds_sync.MAX_ASK_BYTES)
    for question in (
        rounds_sync.question_of(
            _BASE, rounds_sync.Known({_ME.peer_id: telling.Mark(3, bytes(16))}, frozenset({_ME.peer_id})), 2.5
        ),
        rounds_sync.AskPlan(experiment=_BASE),
        rounds_sync.AskMembers(experiment=_BASE),
    )
)
_EVENTS: Final = tuple(
    rounds.content_of(event)
    for event in (
        rounds.Submit(round=1, base=LINK, update=LINK, n_samples=5, loss=0.5),
        rounds.Close(round=1, term=0, submissions=(_BASE,), joined=(_ME.peer_id,)),
        rounds.Promise(round=1, term=1, vote=_BASE),
        rounds.Keys(round=1, for_shares=bytes(32), for_masks=bytes(32), seed_point=bytes(32)),
        rounds.Gather(round=1, term=0, stage="keys", said=(_BASE, _BASE)),
        rounds.Shares(
            round=1,
            gather=_BASE,
            sealed=(bytes(80),) * 2,
            digests=((bytes(32), bytes(32)),) * 2,
            seed_points=(bytes(32),) * 2,
            key_points=(bytes(32),) * 2,
            ephemeral=bytes(32),
            proof=bytes(64),
        ),
        rounds.Complain(round=1, shares=_BASE, shared=bytes(32), proof=bytes(64)),
        rounds.Unmask(round=1, close=_BASE, own_seeds=(bytes(32),), mask_keys=(bytes(32), bytes(32))),
    )
)
_JOURNAL: Final = Journal.header + b"".join(
    len(block).to_bytes(4) + len(body).to_bytes(4) + block + body
    for block, body in [(_ENTRY.block, _ENTRY.body_block)] * 3
)


_SECRETS: Final = (
    b'{"experiment":"%s","rounds":[{"round":1,"share_key":"%s","mask_key":"%s","own_seed":"%s"}],"format":1}'
    % (str(_BASE).encode(), *(b"A" * 43 + b"=",) * 3)
)
_KINDS: Final = {
    "update": "submit", "joined": "close", "for_masks": "keys", "stage": "gather", "sealed": "shares",
    "own_seeds": "unmask", "shared": "complain",
}  # fmt: skip


def _event(data: bytes) -> object:
    value = dag_cbor.decode(data)
    content = {key: item for key, item in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}
    kind = next((kind for key, kind in _KINDS.items() if key in content), "promise")
    made = entry.make_entry(_ME, kind, rounds.scope_of(_BASE), 0, [], content)
    return rounds.read_event(made, _BASE)


def _manifest() -> bytes:
    made = adapters.Manifest(
        name="name",
        version=1,
        base=adapters.Base(fingerprint=_BASE, name="base", architecture="llama"),
        files=LINK,
        n_bytes=5,
        n_params=6,
        rank=8,
        alpha=16.0,
        targets=("q_proj",),
        training={"loss": 1.5},
        created_unix_s=UNIX_S,
    )
    return dag_cbor.encode(adapters.manifest_content(made))


def _bitswap() -> list[bytes]:
    said = wire.Message(
        entries=(wire.Entry(LINK, 5, False, wire.WantType.HAVE, True), wire.Entry(_BASE, -1, True)),
        is_full=True,
        blocks=(wire.payload_of(LINK, b"x"), wire.payload_of(_BASE, b"base")),
        haves=(LINK,),
        dont_haves=(_BASE,),
        pending_bytes=77,
    )
    return [wire.encode(said, protocol) for protocol in wire.PROTOCOLS]


_SEALED: Final = make_root(
    sealed_root.Content(LINK, 999, bytes(19), bytes(32)),
    bytes(32),
    [_ME.peer_id],
    lambda n_bytes: bytes(range(n_bytes)),
)
_KUBO_PINS: Final = b'{"Cid": "%s", "Type": "recursive", "Name": "x"}' % str(LINK).encode()


def _table() -> bytes:
    entries = (
        sealed_table.Entry("folder", (), 0o755),
        sealed_table.Entry("file", (b"a",), 0o644, 7),
        sealed_table.Entry("folder", (b"b",), 0o700),
        sealed_table.Entry("symlink", (b"b", b"c"), target=b"../a"),
    )
    return b"".join(map(sealed_table.encode, entries))


_STORAGE: Final = (InvalidBlock, TooLarge)
_QUESTION: Final = ask.Ask(
    turns=(ask.Turn(role="user", content="why?"),), base=LINK, adapter="poet@2", options=ask.Options(stop=("x",))
)


def _asked() -> tuple[bytes, ...]:
    first = ask.Accepted(model="tiny", base=LINK, adapter=LINK, n_ahead=1)
    refused = ask.Refused(code="busy", text="later", retry_s=1.5)
    return tuple(message.encode(one, ask.MAX_REPLY_BYTES) for one in (first, ask.Waiting(n_ahead=2), refused))


READERS: Final = (
    Reader("cid", Cid, (InvalidCid,), (LINK, Cid.of(b"y", DAG_PB).as_v0(), Cid.of(b"z", 0x0129, SHA2_512))),
    Reader(
        "cid-text",
        _text,
        (InvalidCid,),
        tuple(LINK.encode(base).encode() for base in ("base32", "base36", "base58btc", "base64url", "base2", "base10")),
    ),
    Reader("dag-cbor", dag_cbor.links, _STORAGE, (dag_cbor.encode(_value()), dag_cbor.encode([LINK] * 20))),
    Reader("dag-json", dag_json.links, _STORAGE, (dag_json.encode(_value()), dag_json.encode([LINK] * 20))),
    Reader("dag-json-typed", dag_json.read, _STORAGE, (b' {"b" : [1, 2.5e3],\n "a": {"/": {"bytes": "AA"}}}\n',)),
    Reader("dag-pb", dag_pb.links, _STORAGE, (dag_pb.encode(_node()), dag_pb.encode(PbNode(b"x" * 300)))),
    Reader("unixfs", unixfs.decode, _STORAGE, tuple(_messages())),
    Reader("hamt", _shard, (StorageError,), tuple(_shards())),
    Reader("pack", _read_pack, (UnknownVersion,), (_pack(),)),
    Reader("peer-id", PeerId, (InvalidPeerId,), (bytes(_ME.peer_id),)),
    Reader(
        "envelope",
        lambda data: envelope.open(data, _PURPOSE, Announcement, unix_s=UNIX_S),
        (Remote,),
        (envelope.seal(_ME, _PURPOSE, _ANNOUNCEMENT, sequence=5, unix_s=UNIX_S, ttl_s=60),),
    ),
    Reader(
        "message",
        lambda data: message.decode(data, Announcement, envelope.MAX_ANNOUNCEMENT_BYTES),
        (Remote,),
        (message.encode(_ANNOUNCEMENT, envelope.MAX_ANNOUNCEMENT_BYTES),),
    ),
    Reader("entry", entry.read_entry, (Remote,), (_ENTRY.block,)),
    Reader("entry-body", lambda data: entry.open_entry(_ENTRY.block, data), (Remote,), (_ENTRY.body_block,)),
    Reader(
        "manifest",
        lambda data: adapters.read_manifest(dag_cbor.decode(data)),
        (ProtocolError, *_STORAGE),
        (_manifest(),),
    ),
    Reader(
        "ask-question",
        lambda data: message.decode_form(data, ask.Question, ask.MAX_ASK_BYTES),
        (Remote,),
        (message.encode(_QUESTION, ask.MAX_ASK_BYTES), message.encode(ask.Describe(), ask.MAX_ASK_BYTES)),
    ),
    Reader("ask-reply", lambda data: ask.Dialogue().heard(data), (Remote,), _asked()),
    Reader(
        "ask-asked",
        lambda data: answers.read_question(data),
        (Remote,),
        (answers.question_block(_QUESTION.turns, LINK, None, _QUESTION.options).data,),
    ),
    Reader("rounds-question", rounds_sync.read_ask, (Remote,), _QUESTIONS),
    Reader("rounds-event", _event, (ProtocolError, *_STORAGE), tuple(map(dag_cbor.encode, _EVENTS))),
    Reader("rounds-secrets", vault.read, (ValueError, msgspec.DecodeError), (_SECRETS,)),
    Reader("rounds-journal", lambda data: list(journal.read(data)), (), (_JOURNAL,)),
    Reader("bitswap", wire.decode, (Remote,), tuple(_bitswap())),
    Reader(
        "sealed-root",
        lambda data: sealed_root.decode(Cid.of(data, DAG_CBOR), data),
        (BrokenSeal, UnknownSeal, TooLarge),
        (_SEALED.block().data,),
    ),
    Reader("sealed-table", lambda data: list(sealed_table.decode([data], 100)), (BrokenSeal, TooLarge), (_table(),)),
    Reader("kubo-pins", lambda data: kubo_rpc.read_pins(data.split(b"\n")), (Remote,), (_KUBO_PINS,)),
    Reader(
        "kubo-put",
        lambda data: kubo_rpc.read_put(data.split(b"\n"), [Block(LINK, b"x")]),
        (Remote,),
        (b'{"Key": "%s", "Size": 1}' % str(LINK).encode(),),
    ),
    *fuzz_streams.READERS,
    *fuzz_requests.READERS,
    *fuzz_workspaces.READERS,
    *fuzz_faces.READERS,
    *fuzz_dht.READERS,
)
