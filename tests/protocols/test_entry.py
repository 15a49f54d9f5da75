import dataclasses
from typing import Any

import cbor2
import pytest
from cwt import COSE, COSEKey
from cwt.exceptions import VerifyError
from hypothesis import given
from hypothesis import strategies as st

from protocols import cose
from protocols.entry import (
    LONG_BODY_BYTES,
    MAX_BODY_BYTES,
    MAX_ENTRY_BYTES,
    MAX_PREV,
    external_aad,
    make_entry,
    open_entry,
    read_entry,
)
from protocols.errors import Forged, Local, Malformed, Remote, TooBig
from storage.cid import DAG_CBOR, DAG_PB, SHA2_512, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
FIRST = make_entry(ALICE, "note", "garden", 0, [], {"text": "hello"})
SECOND = make_entry(ALICE, "note", "garden", 1, [FIRST.cid], {"text": "again", "about": FIRST.body_cid}, BOB.peer_id)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.binary(max_size=9).map(Cid.of),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def body_of(**changes: object) -> dict[str, Any]:
    body: dict[str, Any] = dag_cbor.decode(SECOND.body_block)
    return body | changes


def signed(body: object, kind: str = "note", scope: str = "garden", identity: Identity = ALICE) -> tuple[bytes, bytes]:
    """The blocks of an entry with any body, signed truly."""
    body_block = dag_cbor.encode(body)
    sig = cose.sign_detached(identity, body_block, external_aad(kind, scope))
    return entry_block(body_block, sig), body_block


def entry_block(body_block: bytes, sig: object) -> bytes:
    return dag_cbor.encode({"body": Cid.of(body_block, DAG_CBOR), "sig": sig})


@given(
    st.binary(min_size=32, max_size=32).map(Identity),
    st.from_regex(r"[a-z][a-z0-9_.-]{0,63}", fullmatch=True),
    st.text("abc /-_é", min_size=1, max_size=256),
    st.integers(0, (1 << 63) - 1),
    st.lists(st.binary(max_size=9).map(lambda data: Cid.of(data, DAG_CBOR)), max_size=MAX_PREV),
    st.dictionaries(st.text(max_size=9).map("x".__add__), plain, max_size=4),
)
def test_what_was_made_opens_to_the_same(
    author: Identity, kind: str, scope: str, sequence: int, prev: list[Cid], content: dict[str, Any]
) -> None:
    entry = make_entry(author, kind, scope, sequence, prev, content)
    assert open_entry(entry.block, entry.body_block) == entry
    assert (entry.author, entry.kind, entry.scope, entry.sequence) == (author.peer_id, kind, scope, sequence)
    assert (entry.prev, entry.content, entry.recipient) == (tuple(sorted(set(prev))), content, None)


@given(content=st.dictionaries(st.text(min_size=1, max_size=9), plain, max_size=4), filler=st.integers(900, 1100))
def test_a_long_entry_that_is_kept_without_its_bytes_gives_them_back(content: dict[str, Any], filler: int) -> None:
    content = {f"x{name}": value for name, value in content.items()} | {"filler": "x" * filler}
    whole = make_entry(ALICE, "note", "garden", 1, [FIRST.cid], content, BOB.peer_id)
    light = whole.light()
    assert (light.kept_body is None) == (len(whole.body_block) >= LONG_BODY_BYTES)
    assert light == whole and light.blocks == whole.blocks and light.n_bytes == len(whole.block) + len(whole.body_block)
    assert light.light() is light and open_entry(light.block, light.body_block) == whole


def test_an_entry_is_two_blocks_that_a_walk_can_follow() -> None:
    body, entry = SECOND.blocks
    assert body.cid.matches(body.data)
    assert entry.cid.matches(entry.data)
    assert dag_cbor.links(entry.data) == [body.cid]
    assert set(dag_cbor.links(body.data)) == {FIRST.cid, FIRST.body_cid}
    assert read_entry(entry.data)[0] == body.cid
    assert SECOND.recipient == BOB.peer_id
    assert len(entry.data) < MAX_ENTRY_BYTES


def test_no_changed_byte_is_accepted() -> None:
    block, body = SECOND.block, SECOND.body_block
    for at in range(len(block)):
        with pytest.raises(Remote):
            open_entry(block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :], body)
    for at in range(len(body)):
        with pytest.raises(Malformed):
            open_entry(block, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])


def test_no_changed_byte_of_a_body_is_accepted_when_the_link_is_changed_too() -> None:
    _, sig = read_entry(SECOND.block)
    for at in range(len(SECOND.body_block)):
        body = SECOND.body_block[:at] + bytes([SECOND.body_block[at] ^ 1]) + SECOND.body_block[at + 1 :]
        with pytest.raises((Malformed, Forged)):
            open_entry(entry_block(body, sig), body)


def test_an_entry_cut_anywhere_or_followed_by_a_byte_is_refused() -> None:
    block, body = SECOND.block, SECOND.body_block
    _, sig = read_entry(block)
    for end in range(len(block)):
        with pytest.raises(Malformed):
            open_entry(block[:end], body)
    for end in range(len(body)):
        with pytest.raises(Malformed):
            open_entry(entry_block(body[:end], sig), body[:end])
    for blocks in ((block + b"\0", body), (block, body + b"\0"), (entry_block(body + b"\0", sig), body + b"\0")):
        with pytest.raises(Malformed):
            open_entry(*blocks)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else_escapes(block: bytes, body: bytes) -> None:
    with pytest.raises(Remote):
        open_entry(block, body)
    with pytest.raises(Remote):
        open_entry(entry_block(body, bytes(115)), body)


def test_a_signature_is_void_for_another_kind_scope_or_author() -> None:
    body = dag_cbor.decode(SECOND.body_block)
    assert open_entry(*signed(body))
    with pytest.raises(Forged):
        open_entry(*signed(body, kind="task"))
    with pytest.raises(Forged):
        open_entry(*signed(body, scope="cellar"))
    with pytest.raises(Malformed, match="another author"):
        open_entry(*signed(body, identity=BOB))


@pytest.mark.parametrize(
    "changes",
    [
        {"author": BOB.peer_id.public_key},
        {"author": str(ALICE.peer_id)},
        {"author": SECOND.cid},
        {"sequence": -1},
        {"sequence": True},
        {"sequence": 1.0},
        {"sequence": None},
        {"prev": None},
        {"prev": {}},
        {"prev": [bytes(FIRST.cid)]},
        {"prev": [Cid.of(b"raw")]},
        {"prev": [Cid.of(b"file", DAG_PB)]},
        {"prev": [Cid.of(b"long", DAG_CBOR, SHA2_512)]},
        {"prev": [FIRST.cid, FIRST.cid]},
        {"prev": sorted([FIRST.cid, FIRST.body_cid], reverse=True)},
        {"prev": sorted(Cid.of(bytes([n]), DAG_CBOR) for n in range(MAX_PREV + 1))},
        {"recipient": None},
        {"recipient": "bob"},
        {"recipient": bytes(38)},
    ],
)
def test_a_signed_body_outside_its_limits_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        open_entry(*signed(body_of(**changes)))


@pytest.mark.parametrize("kind", ["", "Note", "1note", "note\n", "a" * 65, "no te"])
def test_a_kind_that_is_no_name_is_refused(kind: str) -> None:
    with pytest.raises(Malformed):
        open_entry(*signed(body_of(kind=kind), kind=kind))


@pytest.mark.parametrize("scope", ["", "a\nb", "a\x1b[31m", "a" * 257, "\u202e"])
def test_a_scope_that_cannot_be_shown_is_refused(scope: str) -> None:
    with pytest.raises(Malformed):
        open_entry(*signed(body_of(scope=scope), scope=scope))


@pytest.mark.parametrize("name", ["kind", "scope", "author", "sequence", "prev"])
def test_a_body_that_lacks_a_field_is_refused(name: str) -> None:
    body = body_of()
    del body[name]
    with pytest.raises(Malformed):
        open_entry(*signed(body))


@pytest.mark.parametrize("body", [[], None, "text", 1])
def test_a_body_that_is_no_map_is_refused(body: object) -> None:
    with pytest.raises(Malformed):
        open_entry(*signed(body))


def test_another_shape_of_the_entry_block_is_refused() -> None:
    cid, sig = read_entry(SECOND.block)
    for value in (
        {"body": cid},
        {"body": cid, "sig": sig, "more": 1},
        {"body": bytes(cid), "sig": sig},
        {"body": cid, "sig": sig.hex()[:99]},
        {"body": Cid.of(SECOND.body_block), "sig": sig},
        {"body": Cid.of(SECOND.body_block, DAG_CBOR, SHA2_512), "sig": sig[:40]},
        [cid, sig],
        cid,
    ):
        with pytest.raises(Malformed):
            open_entry(dag_cbor.encode(value), SECOND.body_block)


def test_other_shapes_of_the_signature_are_refused() -> None:
    protected, unprotected, _, signature = cbor2.loads(read_entry(SECOND.block)[1])
    wrong_algorithm = cbor2.dumps({1: -7, 4: bytes(ALICE.peer_id)})
    for sig in (
        cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected, None, signature])),
        cbor2.dumps([protected, {4: b""}, None, signature]),
        cbor2.dumps([protected, unprotected, b"", signature]),
        cbor2.dumps([protected, unprotected, None, signature[:-1]]),
        cbor2.dumps([protected, unprotected, None, signature, 0]),
        cbor2.dumps([wrong_algorithm, unprotected, None, signature]),
        cbor2.dumps([protected, unprotected, None, signature]) + b"\0",
        b"",
    ):
        with pytest.raises(Malformed):
            open_entry(entry_block(SECOND.body_block, sig), SECOND.body_block)


def test_sizes_are_bounded() -> None:
    room = MAX_BODY_BYTES - len(make_entry(ALICE, "n", "s", 0, [], {"x": bytes(1 << 16)}).body_block) + (1 << 16)
    whole = make_entry(ALICE, "n", "s", 0, [], {"x": bytes(room)})
    assert len(whole.body_block) == MAX_BODY_BYTES
    with pytest.raises(TooBig):
        make_entry(ALICE, "n", "s", 0, [], {"x": bytes(room + 1)})
    with pytest.raises(TooBig):
        make_entry(ALICE, "n", "s", 0, [], {"x": bytes(3 << 20)})
    with pytest.raises(TooBig):
        open_entry(bytes(MAX_ENTRY_BYTES + 1), b"")
    deep = b"\x81" * 200 + b"\x80"
    with pytest.raises(TooBig):
        open_entry(entry_block(deep, bytes(9)), deep)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "Note"},
        {"scope": ""},
        {"sequence": -1},
        {"prev": [Cid.of(b"raw")]},
        {"content": {"prev": []}},
        {"content": {"recipient": b""}},
        {"content": {"x": object()}},
        {"content": {"x": float("nan")}},
        {"content": {1: 1}},
    ],
)
def test_making_an_entry_outside_the_limits_is_our_own_mistake(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"kind": "note", "scope": "garden", "sequence": 0, "prev": [], "content": {}}
    with pytest.raises(Local):
        make_entry(ALICE, **fields | changes)


def test_only_this_module_makes_an_entry() -> None:
    with pytest.raises(ValueError, match="verified"):
        dataclasses.replace(FIRST, scope="cellar")  # type: ignore[call-arg]  # that is the point
    with pytest.raises(Local):
        dataclasses.replace(FIRST, scope="cellar", verified=None)


def cwt_key(identity: Identity, *, is_private: bool) -> Any:
    key = {1: 1, -1: 6, 2: bytes(identity.peer_id), 3: -8, -2: identity.peer_id.public_key}
    return COSEKey.new(key | {-4: identity.seed} if is_private else key)


def test_a_foreign_library_verifies_our_entries_for_their_kind_and_scope_alone() -> None:
    foreign, key = COSE.new(verify_kid=True), cwt_key(ALICE, is_private=False)
    message = cbor2.CBORTag(18, cbor2.loads(read_entry(SECOND.block)[1]))
    aad = cbor2.dumps({"kind": "note", "scope": "garden"}, canonical=True)
    found = foreign.decode(message, key, external_aad=aad, detached_payload=SECOND.body_block)
    assert found == SECOND.body_block
    for other_aad, other_body in ((b"", SECOND.body_block), (aad, FIRST.body_block)):
        with pytest.raises(VerifyError):
            foreign.decode(message, key, external_aad=other_aad, detached_payload=other_body)


def test_we_open_entries_that_a_foreign_library_signed() -> None:
    tagged = COSE.new().encode(
        SECOND.body_block,
        cwt_key(ALICE, is_private=True),
        protected={1: -8, 4: bytes(ALICE.peer_id)},
        external_aad=cbor2.dumps({"kind": "note", "scope": "garden"}, canonical=True),
    )
    protected, unprotected, _, signature = cbor2.loads(tagged).value
    sig = cbor2.dumps([protected, unprotected, None, signature])
    assert open_entry(entry_block(SECOND.body_block, sig), SECOND.body_block) == SECOND
