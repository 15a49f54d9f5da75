"""The manifest, the announcement and catch-up: what is accepted, and that nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import adapters as wire
from protocols import envelope
from protocols.adapters import Announcement, Answer, Ask, Base, Manifest, manifest_content, read_manifest
from protocols.errors import Expired, Forged, Malformed, ProtocolError, TooBig
from protocols.framing import frame
from protocols.message import decode, encode
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity
from tests.protocols.scripted import BOB, ScriptedNetwork, ScriptedStream

ANN = Identity(b"a" * 32)
BASE, OTHER = Cid.of(b"base", DAG_CBOR), Cid.of(b"other", DAG_CBOR)
MANIFEST = Manifest(
    name="poet",
    version=3,
    base=Base(fingerprint=BASE, name="tiny", architecture="LlamaForCausalLM"),
    files=Cid.of(b"files"),
    n_bytes=1000,
    n_params=64,
    rank=8,
    alpha=16.0,
    targets=("q_proj",),
    parent=OTHER,
    training={"steps": 30, "loss": 1.5, "data": "topics", "shuffled": True},
    metrics={"loss": 1.5},
    tags=("verse",),
    licence="Apache-2.0",
    created_unix_s=5,
)
ANNOUNCEMENT = Announcement(
    manifest=Cid.of(b"m", DAG_CBOR), name="poet", version=1, n_bytes=10, addresses=("/ip4/1.2.3.4/tcp/1",)
)


def sealed(identity=ANN, base=BASE, unix_s=1000.0, announcement=ANNOUNCEMENT):
    return wire.seal_announcement(identity, base, announcement, lambda purpose: 7, unix_s)


def test_a_manifest_comes_back_from_its_block_as_it_was():
    content = dag_cbor.decode(dag_cbor.encode(manifest_content(MANIFEST)))
    assert read_manifest(content) == MANIFEST
    assert dag_cbor.links(dag_cbor.encode(content)).count(MANIFEST.files) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"surprise": 1},
        {"name": ""},
        {"name": "a/b"},
        {"name": "a\n"},
        {"name": "x" * 65},
        {"version": 0},
        {"version": 1 << 31},
        {"version": True},
        {"n_bytes": 0},
        {"n_bytes": wire.MAX_ADAPTER_BYTES + 1},
        {"rank": 0},
        {"rank": 5000},
        {"alpha": 0.0},
        {"targets": []},
        {"targets": ["q"] * 65},
        {"targets": ["q" * 129]},
        {"files": b"bytes"},
        {"files": "text"},
        {"parent": 5},
        {"base": {"fingerprint": BASE, "name": "n"}},
        {"base": {"fingerprint": BASE, "name": "n" * 129, "architecture": "a"}},
        {"tags": ["UPPER"]},
        {"tags": ["t"] * 17},
        {"licence": "l" * 129},
        {"training": {"k": [1]}},
        {"training": {"k": "x" * 257}},
        {"training": {f"k{n}": n for n in range(33)}},
        {"metrics": {"loss": "low"}},
        {"created_unix_s": -1},
    ],
)
def test_a_manifest_outside_its_bounds_is_refused(change):
    with pytest.raises(Malformed, match="not the manifest"):
        read_manifest(manifest_content(MANIFEST) | change)


def test_the_largest_manifest_fits_its_limit():
    largest = manifest_content(MANIFEST) | {
        "targets": ["\U0001f600" * 128] * wire.MAX_TARGETS,
        "training": {f"{n:0>128}": "\U0001f600" * 256 for n in range(wire.MAX_FACTS)},
    }
    read_manifest(largest)
    assert len(dag_cbor.encode(largest)) > wire.MAX_MANIFEST_BYTES  # so that the limit is what counts
    plain = largest | {
        "targets": ["q" * 128] * wire.MAX_TARGETS,
        "training": {f"{n:0>128}": "x" * 256 for n in range(wire.MAX_FACTS)},
    }
    assert len(dag_cbor.encode(plain)) <= wire.MAX_MANIFEST_BYTES


def test_an_announcement_is_opened_for_its_sender_and_its_base_alone():
    signed = wire.open_announcement(sealed(), BASE, ANN.peer_id, 1000.0)
    assert signed.body == ANNOUNCEMENT and signed.sequence == 7
    with pytest.raises(Forged):
        wire.open_announcement(sealed(), OTHER, ANN.peer_id, 1000.0)
    with pytest.raises(Forged, match="signed"):
        wire.open_announcement(sealed(), BASE, BOB.peer_id, 1000.0)
    with pytest.raises(Expired):
        wire.open_announcement(sealed(), BASE, ANN.peer_id, 1001.0 + envelope.ANNOUNCEMENT_TTL_S)


def test_an_announcement_cut_at_any_byte_or_with_a_tail_is_refused():
    whole = sealed()
    for data in [whole[:length] for length in range(len(whole))] + [
        whole + b"\0",
        bytes(envelope.MAX_ANNOUNCEMENT_BYTES + 1),
    ]:
        with pytest.raises(ProtocolError):
            wire.open_announcement(data, BASE, ANN.peer_id, 1000.0)


@given(st.binary(max_size=200))
def test_noise_is_never_an_announcement(data):
    with pytest.raises(ProtocolError):
        wire.open_announcement(data, BASE, ANN.peer_id, 1000.0)


def test_the_largest_announcement_fits_its_limit():
    addresses = tuple("a" * 256 for _ in range(wire.MAX_ADDRESSES))
    sealed(announcement=Announcement(manifest=BASE, name="x" * 64, version=1, n_bytes=1, addresses=addresses))


def announcing(envelopes):
    async def announced(base, n_most):
        return envelopes.get(base, [])[:n_most]

    return announced


async def test_a_question_is_answered_for_the_bases_asked_for():
    stream = ScriptedStream(frame(encode(Ask(bases=(BASE, OTHER)), wire.MAX_ASK_BYTES)))
    await wire.answer(stream, announcing({BASE: [b"one", b"two"]}))
    replies = await wire.ask(ScriptedNetwork(ScriptedStream(stream.written)), BOB.peer_id, [BASE, OTHER])
    assert replies == [(BASE, b"one"), (BASE, b"two")]


async def test_no_more_is_answered_nor_read_than_the_limit():
    stream = ScriptedStream(frame(encode(Ask(bases=(BASE, OTHER)), wire.MAX_ASK_BYTES)))
    await wire.answer(stream, announcing({BASE: [b"x"] * 1000, OTHER: [b"y"]}))
    flood = ScriptedStream(stream.written * 2)
    assert len(await wire.ask(ScriptedNetwork(flood), BOB.peer_id, [BASE])) == wire.MAX_ANSWERS
    assert flood.is_closed and flood.said


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (frame(b"\xff"), Malformed),
        (frame(encode(Answer(base=OTHER, envelope=b"x"), 500)), Malformed),
        (frame(bytes(envelope.MAX_ANNOUNCEMENT_BYTES + 1000)), TooBig),
        (frame(b"\xa0")[:-1], ProtocolError),
    ],
)
async def test_an_answer_that_breaks_the_protocol_is_refused_and_the_stream_closed(said, error):
    stream = ScriptedStream(said)
    with pytest.raises(error):
        await wire.ask(ScriptedNetwork(stream), BOB.peer_id, [BASE])
    assert stream.is_closed


@pytest.mark.parametrize("said", [frame(b""), frame(b"\xa0"), frame(bytes(wire.MAX_ASK_BYTES + 1)), b"\x05ab"])
async def test_a_question_that_breaks_the_protocol_is_refused(said):
    with pytest.raises(ProtocolError):
        await wire.answer(ScriptedStream(said), announcing({}))


async def test_a_peer_that_asks_nothing_gets_nothing():
    stream = ScriptedStream()
    await wire.answer(stream, announcing({BASE: [b"x"]}))
    assert stream.written == b""


def test_too_many_bases_are_refused():
    data = encode(Ask(bases=(BASE,)), wire.MAX_ASK_BYTES)
    assert decode(data, Ask, wire.MAX_ASK_BYTES).bases == (BASE,)
    many = tuple(Cid.of(bytes([n]), DAG_CBOR) for n in range(65))
    with pytest.raises(Malformed):
        decode(encode(Ask(bases=many), 1 << 20), Ask, 1 << 20)
