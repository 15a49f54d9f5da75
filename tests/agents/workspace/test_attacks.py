"""What an attacker signs: what is no entry of the workspace is not stored; what it may not say is stored, and void."""

import hashlib

import pytest
from nacl import bindings

from agents.workspace.history import Unlinked
from agents.workspace.pen import begin, write
from protocols import cose
from protocols.entry import external_aad, make_entry, open_entry
from protocols.errors import Forged, Malformed, TooBig
from protocols.workspaces.entries import (
    BadLinks,
    BadSequence,
    Close,
    Foreign,
    Grant,
    Join,
    Leave,
    Propose,
    Put,
    Revoke,
    Root,
    Say,
    Vote,
    content_of,
    scope_of,
)
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity

HELLO = Say(key="talk", text="hello")


def sign(member, says=HELLO, *, sequence=None, prev=None, scope=None, content=None, **more):
    """An entry that need not fit."""
    last = member.space.history.last(member.peer)
    return make_entry(
        member.identity,
        says.kind,
        scope or scope_of(member.space.history.workspace),
        last.sequence + 1 if sequence is None else sequence,
        [last.entry.cid] if prev is None else prev,
        content_of(says) if content is None else content,
        **more,
    )


def refused(made, entry):
    """Nobody stores it: the error's code."""
    before = (len(made.ann.space.history), made.ann.space.document())
    with pytest.raises((Foreign, Malformed, TooBig, BadLinks, BadSequence)) as error:
        made.ann.space.add(entry)
    assert (len(made.ann.space.history), made.ann.space.document()) == before
    return error.value.code


def test_a_forged_entry_is_none(village):
    made = village("bob")
    entry = sign(made.bob)
    other = make_entry(made.ann.identity, "say", entry.scope, 9, entry.prev, content_of(HELLO))
    block = dag_cbor.encode({"body": entry.body_cid, "sig": dag_cbor.decode(other.block)["sig"]})
    with pytest.raises((Forged, Malformed)):
        open_entry(block, entry.body_block)


def test_an_entry_of_another_workspace_is_not_stored(village):
    made = village("bob")
    other = begin(made.bob.identity, Root(title="other", created_unix_s=2))
    assert refused(made, sign(made.bob, scope=scope_of(other.body_cid))) == "foreign"
    assert refused(made, sign(made.bob, scope="rounds")) == "foreign"


def test_an_entry_over_the_size_is_not_stored(village):
    made = village("bob")
    assert refused(made, sign(made.bob, Put(key="a", value="x" * (64 << 10)))) == "too_big"


@pytest.mark.parametrize(
    "content",
    [
        {"key": "talk"},
        {"key": "talk", "text": "x", "more": 1},
        {"key": "", "text": "x"},
        {"key": "a b", "text": "x"},
        {"key": "talk\n", "text": "x"},
        {"key": "talk", "text": 5},
        {"key": "talk", "text": "x" * 16385},
    ],
)
def test_an_entry_of_another_form_is_not_stored(village, content):
    made = village("bob")
    assert refused(made, sign(made.bob, content=content)) == "malformed"


def test_nor_one_whose_lists_are_not_sets_or_that_has_a_kind_or_recipient_of_its_own(village):
    made = village("bob")
    peer = made.bob.peer
    for says in (
        Grant(audience=peer, can=("write", "read"), keys=("*",)),
        Grant(audience=peer, can=("read",), keys=("a", "a")),
        Propose(key="a", text="?", options=("x", "x"), rule="majority", closers=(peer,)),
        Propose(key="a", text="?", options=("x",), rule="majority", closers=(peer,)),
        Vote(proposal=made.root.cid, ranking=(1, 1)),
    ):
        assert refused(made, sign(made.bob, says)) == "malformed"
    assert refused(made, sign(made.bob, Put(key="a", value=1), recipient=peer)) == "malformed"
    other = make_entry(made.bob.identity, "wish", sign(made.bob).scope, 1, sign(made.bob).prev, {})
    assert refused(made, other) == "malformed"


def test_bad_sequences_and_links_are_not_stored(village):
    made = village("bob", "cleo")
    bob = made.bob
    last, join = (
        bob.space.history.last(bob.peer),
        bob.space.history.get(made.cleo.space.history.last(made.cleo.peer).entry.cid),
    )
    assert refused(made, sign(bob, sequence=0)) == "bad_sequence"
    assert refused(made, sign(bob, sequence=2)) == "bad_sequence"
    assert refused(made, sign(bob, sequence=1, prev=[join.entry.cid])) == "bad_sequence"
    assert refused(made, sign(bob, prev=[])) == "bad_links"
    assert refused(made, sign(bob, prev=[last.entry.cid, Cid.of(b"\xa0", DAG_CBOR)])) == "unlinked"
    second = bob.say(HELLO)
    made.ann.hear(bob)
    two = sign(bob, prev=[last.entry.cid, second.entry.cid], sequence=2)
    assert refused(made, two) in ("bad_links", "bad_sequence")


def test_a_stranger_gets_nothing_into_a_history(village):
    made = village("bob")
    eve = Identity(b"e" * 32)
    scope, root = scope_of(made.root.body_cid), made.root.cid
    for kind, content, prev in (
        ("say", content_of(HELLO), [root]),
        ("join", {}, [root]),
        ("join", {}, [made.grants["bob"].entry.cid]),
        ("say", content_of(HELLO), [made.bob.space.history.last(made.bob.peer).entry.cid]),
    ):
        assert refused(made, make_entry(eve, kind, scope, 0, prev, content)) == "bad_links"


def test_a_member_begins_with_a_join_that_links_to_its_grant(village):
    made = village("bob")
    eve = made.invite("eve", joins=False)
    eve.hear(made.ann)
    grant = made.grants["eve"].entry.cid
    assert (
        refused(made, make_entry(eve.identity, "say", scope_of(made.root.body_cid), 0, [grant], content_of(HELLO)))
        == "bad_links"
    )
    assert made.ann.space.add(write(eve.identity, eve.space, Join(), link_to=grant)) is not None


def test_an_entry_whose_past_is_not_here_waits_and_is_taken_once_it_is(village):
    made = village("bob")
    first = made.bob.say(HELLO)
    second = made.bob.say(HELLO)
    with pytest.raises(Unlinked):
        made.ann.space.add(second.entry)
    assert made.ann.space.add(first.entry) and made.ann.space.add(second.entry)


def test_a_repeated_entry_changes_nothing(village):
    made = village("bob")
    node = made.bob.say(HELLO)
    made.ann.hear(made.bob)
    before = made.ann.space.document()
    assert made.ann.space.add(node.entry) is None
    assert made.ann.space.document() == before


# --- stored, and void


def test_what_no_grant_covers_is_void(village):
    made = village("bob", can=("write",), keys=("docs/*",))
    good, bad = made.bob.say(Put(key="docs/a", value=1)), made.bob.say(Put(key="other", value=1))
    run = made.bob.say(HELLO)
    made.meet()
    assert [made.ann.code(node) for node in (good, bad, run)] == ["", "out_of_grant", "out_of_grant"]
    assert list(made.ann.space.values()) == ["docs/a"]


def test_what_a_revoked_member_says_later_or_beside_is_void_and_what_it_said_before_stands(village):
    made = village("bob", "cleo")
    before = made.bob.say(Put(key="a", value="before"))
    made.meet()
    beside = made.bob.say(Put(key="b", value="beside"))  # its height is that of the revocation
    made.ann.say(Revoke(grants=(made.grants["bob"].entry.cid,), last=(before.entry.cid,)))
    made.meet()
    later = made.bob.say(Put(key="a", value="later"))
    made.meet()
    for member in (made.ann, made.bob, made.cleo):
        assert [member.code(node) for node in (before, beside, later)] == ["", "revoked", "revoked"]
        assert {key: node.says.value for key, node in member.space.values().items()} == {"a": "before"}
        assert not member.space.is_member(made.bob.peer) and member.space.is_member(made.cleo.peer)


def test_a_revocation_that_names_no_entry_of_a_member_leaves_nothing_of_it(village):
    made = village("bob")
    node = made.bob.say(Put(key="a", value=1))
    made.meet()
    made.ann.say(Revoke(grants=(made.grants["bob"].entry.cid,)))
    assert made.ann.code(node) == "revoked" and made.ann.space.values() == {}


def test_a_revocation_ends_what_was_granted_by_it_too(village):
    made = village()
    made.invite("bob", can=("admin", "write"))
    made.invite("cleo", by="bob", can=("write",), proof=made.grants["bob"])
    made.meet()
    said = made.cleo.say(Put(key="a", value=1))
    made.meet()
    assert made.ann.code(said) == ""
    last = made.ann.space.history.last(made.bob.peer)
    made.ann.say(Revoke(grants=(made.grants["bob"].entry.cid,), last=(last.entry.cid,)))
    assert made.ann.code(said) == "revoked"
    assert [one.peer for one in made.ann.space.members()] == [made.ann.peer]


def test_who_was_revoked_cannot_strike_back_from_the_past(village):
    made = village()
    made.invite("bob", can=("admin", "write"))
    made.meet()
    low = write(made.bob.identity, made.bob.space, HELLO)  # where its next entry would stand
    for number in range(5):
        made.ann.say(Put(key="a", value=number))
    last = made.ann.space.history.last(made.bob.peer)
    made.ann.say(Revoke(grants=(made.grants["bob"].entry.cid,), last=(last.entry.cid,)))
    made.bob.space.add(low)
    wish = made.bob.say(Revoke(grants=(made.grants["bob"].entry.cid,)))
    made.invite("cleo")
    mine = made.bob.say(Grant(audience=made.cleo.peer, can=("write",), keys=("*",), proof=made.grants["bob"].entry.cid))
    made.meet()
    assert made.ann.code(wish) == "out_of_grant" and made.ann.code(mine) == "revoked"
    assert made.ann.space.values()["a"].says.value == 4


def test_nobody_gives_more_than_it_has(village):
    made = village()
    made.invite("bob", can=("admin", "write"), keys=("docs/*",), weight=2)
    made.invite("cleo", can=("write",))
    made.meet()
    proof, peer = made.grants["bob"].entry.cid, made.cleo.peer

    def give(by, **changes):
        fields = {"audience": peer, "can": ("write",), "keys": ("docs/a",), "proof": proof} | changes
        node = by.say(Grant(**fields))
        made.meet()
        return made.ann.code(node)

    assert give(made.bob) == ""
    assert give(made.bob, keys=("*",)) == "unfounded"
    assert give(made.bob, keys=("doc*",)) == "unfounded"
    assert give(made.bob, can=("run",)) == "unfounded"
    assert give(made.bob, weight=3) == "unfounded"
    assert give(made.bob, proof=None) == "out_of_grant"
    assert give(made.bob, proof=made.grants["cleo"].entry.cid) == "unfounded"
    assert give(made.cleo, proof=made.grants["cleo"].entry.cid) == "unfounded"
    assert give(made.cleo) == "unfounded"
    assert give(made.bob, proof=made.root.cid) == "unfounded"


def test_only_who_stands_above_a_grant_revokes_it(village):
    made = village("cleo")
    made.invite("bob", can=("admin", "write"))
    made.meet()
    node = made.bob.say(Revoke(grants=(made.grants["cleo"].entry.cid,)))
    own = made.bob.say(Revoke(grants=(made.grants["bob"].entry.cid,)))
    nothing = made.bob.say(Revoke(grants=(made.root.cid,)))
    made.meet()
    assert [made.ann.code(one) for one in (node, own, nothing)] == ["out_of_grant", "out_of_grant", "unfounded"]
    assert made.ann.space.is_member(made.cleo.peer) and made.ann.space.is_member(made.bob.peer)


def test_an_author_whose_entries_fork_loses_both_branches(village):
    made = village("bob", "cleo")
    kept = made.bob.say(Put(key="a", value="kept"))
    made.meet()
    other = write(made.bob.identity, made.bob.space, Put(key="b", value="other"))
    one = made.bob.say(Put(key="b", value="one"))
    after = made.bob.say(Put(key="c", value="after"))
    made.ann.hear(made.bob)
    made.cleo.space.add(other)
    assert made.ann.code(one) == "" and made.cleo.space.values()["b"].says.value == "other"
    made.meet()
    for member in (made.ann, made.bob, made.cleo):
        assert [member.code(node) for node in (kept, one, after)] == ["", "forked", "forked"]
        assert member.space.voids()[other.body_cid] == "forked"
        assert list(member.space.values()) == ["a"] and member.space.history.forks() == {made.bob.peer: 2}
    assert len({member.space.document() for member in (made.ann, made.bob, made.cleo)}) == 1


def test_one_body_in_two_entry_blocks_is_one_entry_and_parts_nobody(village):
    made = village("bob", "cleo")
    first = write(made.bob.identity, made.bob.space, Put(key="a", value=1))
    second = twin(made.bob.identity, hashlib.sha256(b"bob").digest(), first)
    assert second.cid != first.cid and second.body_cid == first.body_cid
    made.ann.space.add(first)
    made.cleo.space.add(second)
    made.ann.say(HELLO)
    made.cleo.say(HELLO)
    made.meet("ann", "cleo")
    made.meet()
    assert len({member.space.document() for member in (made.ann, made.cleo, made.bob)}) == 1
    assert made.ann.space.history.forks() == {} and made.ann.space.values()["a"].says.value == 1


def test_a_link_to_another_block_of_a_known_body_counts_whenever_that_comes(village):
    made = village("bob", "cleo")
    says = Propose(key="a", text="?", options=("x", "y"), rule="majority", closers=(made.bob.peer,))
    first = write(made.bob.identity, made.bob.space, says)
    second = twin(made.bob.identity, hashlib.sha256(b"bob").digest(), first)
    for member in (made.ann, made.cleo):
        member.space.add(first)
    vote = made.cleo.say(Vote(proposal=second.cid, ranking=(0,)))
    made.ann.hear(made.cleo)
    assert made.ann.code(vote) == "unfounded"
    for member in (made.ann, made.cleo):
        member.space.add(second)
        assert member.code(vote) == ""


def test_a_revocation_may_come_before_a_grant_that_it_names_and_that_stands_behind_it(village, replay):
    made = village("bob")
    made.invite("dan", can=("admin", "write"))
    made.meet()
    for number in range(3):
        made.dan.say(Put(key="a", value=number))
    grant = made.dan.say(Grant(audience=made.bob.peer, can=("write",), keys=("b",), proof=made.grants["dan"].entry.cid))
    revoke = made.ann.say(Revoke(grants=(grant.entry.cid,)))
    assert revoke.rank < grant.rank and made.ann.code(revoke) == "unfounded"
    made.meet()
    assert made.ann.code(revoke) == made.dan.code(revoke) == ""
    assert made.ann.space.document() == made.dan.space.document()


def twin(identity, seed, entry):
    """The same body under a second signature that verifies: made with another nonce than Ed25519 asks for."""
    aad = external_aad(entry.kind, entry.scope)
    message = cose.signed_bytes(identity.peer_id, entry.body_block, aad)
    scalar = bytearray(hashlib.sha512(seed).digest()[:32])
    scalar[0] &= 248
    scalar[31] = (scalar[31] & 127) | 64
    nonce = bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(b"another nonce" + message).digest())
    point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
    hashed = bindings.crypto_core_ed25519_scalar_reduce(
        hashlib.sha512(point + identity.peer_id.public_key + message).digest()
    )
    reduced = bindings.crypto_core_ed25519_scalar_reduce(bytes(scalar) + bytes(32))
    s = bindings.crypto_core_ed25519_scalar_add(nonce, bindings.crypto_core_ed25519_scalar_mul(hashed, reduced))
    sig = cose.sign_detached(identity, entry.body_block, aad)[:-64] + point + s
    return open_entry(dag_cbor.encode({"body": entry.body_cid, "sig": sig}), entry.body_block)


def test_what_names_nothing_is_void(village):
    made = village("bob")
    close, leave = made.bob.say(Close(proposal=made.root.cid)), made.bob.say(Leave(grants=(made.root.cid,)))
    vote = made.bob.say(Vote(proposal=close.entry.cid, ranking=()))
    assert [made.bob.code(node) for node in (close, leave, vote)] == ["unfounded"] * 3


def test_who_left_says_nothing_more_until_it_is_let_in_again(village):
    made = village("bob")
    before = made.bob.say(HELLO)
    made.bob.say(Leave(grants=(made.grants["bob"].entry.cid,)))
    after = made.bob.say(HELLO)
    made.meet()
    assert made.ann.code(before) == "" and made.ann.code(after) == "revoked"
    assert not made.ann.space.is_member(made.bob.peer)
    made.ann.say(Grant(audience=made.bob.peer, can=("write",), keys=("*",)))
    made.meet()
    again = made.bob.say(HELLO)
    made.meet()
    assert made.ann.code(again) == "" and made.ann.code(after) == "revoked"
