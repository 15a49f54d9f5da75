"""History: entries that are signed once and stay true, linked into a DAG that anybody can walk, fetch and verify.

An entry is two DAG-CBOR blocks. The body holds {kind, scope, author, sequence, prev, recipient?, ...content}; the entry
block is {body: link, sig: bytes}, where `sig` is an untagged COSE_Sign1 (`protocols.cose`) over the body's bytes with
the payload detached. Who is who: an entry is known, ordered and counted as a head by the CID of its body; `prev` names
entry blocks, so that a walk finds the signatures too. Nothing expires here and nothing is a replay: what comes again is
known already.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, Final

from protocols import cose
from protocols.errors import Local, Malformed, Oversize, TooBig
from protocols.message import canonical
from storage.blockstore import Block, Reading
from storage.cid import DAG_CBOR, SHA2_256, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, TooLarge
from storage.keys import Identity, InvalidPeerId, PeerId

MAX_ENTRY_BYTES: Final = 256
MAX_BODY_BYTES: Final = 256 << 10  # what is larger belongs in a block of its own, linked from the body
LONG_BODY_BYTES: Final = 1 << 10  # from which on the bytes of those that are kept are not
MAX_PREV: Final = 64
MAX_SCOPE_CHARS: Final = 256
MAX_SEQUENCE: Final = (1 << 63) - 1

# Ranges, not str.isprintable: what an entry may say must not depend on a Python's Unicode tables.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_KIND: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_REQUIRED: Final = frozenset({"kind", "scope", "author", "sequence", "prev"})
_RESERVED: Final = _REQUIRED | {"recipient"}
_VERIFIED: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry whose signature was made or checked here. Only `make_entry` and `open_entry` make one."""

    cid: Cid
    block: bytes
    body_cid: Cid
    kept_body: bytes | None = field(repr=False, compare=False)  # None: it is made again out of the fields
    n_body_bytes: int
    kind: str
    scope: str
    author: PeerId
    sequence: int
    prev: tuple[Cid, ...]
    recipient: PeerId | None
    content: Mapping[str, Any]
    verified: InitVar[object]

    def __post_init__(self, verified: object) -> None:
        if verified is not _VERIFIED:
            raise Local("an Entry is made by protocols.entry alone")

    @property
    def body_block(self) -> bytes:
        """The body, as it was signed."""
        return self.kept_body if self.kept_body is not None else self._made_body()

    def _made_body(self) -> bytes:
        body = _body_of(self.kind, self.scope, self.author, self.sequence, self.prev, self.recipient, self.content)
        return dag_cbor.encode(body)

    def light(self) -> "Entry":
        """The same entry without its body's bytes, where these are long and its fields give them back: for who keeps
        many. To ask such a one for its body takes time."""
        if self.kept_body is None or self.n_body_bytes < LONG_BODY_BYTES or self._made_body() != self.kept_body:
            return self
        return replace(self, kept_body=None, verified=_VERIFIED)

    @property
    def n_bytes(self) -> int:
        """How long its two blocks are."""
        return len(self.block) + self.n_body_bytes

    @property
    def blocks(self) -> tuple[Block, Block]:
        """Both blocks, the body first: as a store takes them, so that no link dangles."""
        return Block(self.body_cid, self.body_block), Block(self.cid, self.block)


def make_entry(
    identity: Identity,
    kind: str,
    scope: str,
    sequence: int,
    prev: Iterable[Cid],
    content: Mapping[str, Any],
    recipient: PeerId | None = None,
) -> Entry:
    """Sign a new entry. `prev` are the CIDs of entry blocks, in any order.

    Raises: Local (a field outside its limits), Oversize.
    """
    if taken := sorted(_RESERVED & content.keys()):
        raise Local(f"content may not be called {', '.join(taken)}: an entry's own fields are")
    body = _body_of(kind, scope, identity.peer_id, sequence, sorted(set(prev)), recipient, content)
    try:
        body_block = dag_cbor.encode(body)
        sig = cose.sign_detached(identity, body_block, external_aad(kind, scope))
        block = dag_cbor.encode({"body": Cid.of(body_block, DAG_CBOR), "sig": sig})
        return open_entry(block, body_block)
    except (TooLarge, TooBig) as error:
        raise Oversize(str(error)) from None
    except (InvalidBlock, Malformed) as error:
        raise Local(f"this cannot be an entry: {error}") from None


def _body_of(
    kind: str,
    scope: str,
    author: PeerId,
    sequence: int,
    prev: Sequence[Cid],
    recipient: PeerId | None,
    content: Mapping[str, Any],
) -> dict[str, Any]:
    to = {"recipient": bytes(recipient)} if recipient is not None else {}
    fields = {"kind": kind, "scope": scope, "author": bytes(author), "sequence": sequence, "prev": list(prev)}
    return {**content, **fields, **to}


def open_entry(block: bytes, body_block: bytes) -> Entry:
    """Check an entry's two blocks against each other and against the signature.

    The body is decoded before the signature is checked, since its kind and scope are signed beside it; its size, hash
    and encoding are checked first.

    Raises: TooBig, Malformed, Forged.
    """
    body_cid, sig = read_entry(block)
    if len(body_block) > MAX_BODY_BYTES:
        raise TooBig(f"an entry's body of {len(body_block)} bytes; the limit is {MAX_BODY_BYTES}")
    if not body_cid.matches(body_block):
        raise Malformed(f"the body is not the block {body_cid} that the entry names")
    body = _decode(body_block)
    if not isinstance(body, dict) or not body.keys() >= _REQUIRED:
        raise Malformed(f"an entry's body lacks one of {', '.join(sorted(_REQUIRED))}")
    kind, scope = _kind(body["kind"]), _scope(body["scope"])
    author, sequence, prev = _peer(body["author"]), _sequence(body["sequence"]), _prev(body["prev"])
    recipient = _peer(body["recipient"]) if "recipient" in body else None
    if cose.verify_detached(sig, body_block, external_aad(kind, scope)) != author:
        raise Malformed("an entry's body names another author than its signature")
    return Entry(
        cid=Cid.of(block, DAG_CBOR),
        block=block,
        body_cid=body_cid,
        kept_body=body_block,
        n_body_bytes=len(body_block),
        kind=kind,
        scope=scope,
        author=author,
        sequence=sequence,
        prev=prev,
        recipient=recipient,
        content={name: value for name, value in body.items() if name not in _RESERVED},
        verified=_VERIFIED,
    )


def read_entry(block: bytes) -> tuple[Cid, bytes]:
    """The CID of the body and the signature in an entry block, unverified: so that the body can be fetched.

    Raises: TooBig, Malformed.
    """
    if len(block) > MAX_ENTRY_BYTES:
        raise TooBig(f"an entry of {len(block)} bytes; the limit is {MAX_ENTRY_BYTES}")
    fields = _decode(block)
    if not isinstance(fields, dict) or fields.keys() != {"body", "sig"} or type(fields["sig"]) is not bytes:
        raise Malformed("an entry is {body: link, sig: bytes}")
    return _link(fields["body"]), fields["sig"]


def stored_entry(store: Reading, cid: Cid) -> Entry:
    """The entry whose two blocks are in `store`, verified. Raises: NotFound, Corrupt, Remote."""
    block = store.get(cid)
    return open_entry(block, store.get(read_entry(block)[0]))


def external_aad(kind: str, scope: str) -> bytes:
    """What is signed beside the body: the deterministic CBOR of {kind, scope}."""
    return canonical({"kind": kind, "scope": scope})


def _decode(block: bytes) -> Any:
    try:
        return dag_cbor.decode(block)
    except InvalidBlock as error:
        raise Malformed(str(error)) from None
    except TooLarge as error:
        raise TooBig(str(error)) from None


def _kind(value: object) -> str:
    if not isinstance(value, str) or not _KIND.fullmatch(value):
        raise Malformed("an entry's kind is 1 to 64 of a-z 0-9 _ . - and begins with a letter")
    return value


def _scope(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SCOPE_CHARS or _CONTROLS.search(value):
        raise Malformed(f"an entry's scope is 1 to {MAX_SCOPE_CHARS} characters, no control characters among them")
    return value


def _peer(value: object) -> PeerId:
    try:
        if type(value) is bytes:
            return PeerId.of(PeerId(value).public_key)
    except InvalidPeerId as error:
        raise Malformed(f"an entry names no peer: {error}") from None
    raise Malformed("an entry names a peer by bytes")


def _sequence(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SEQUENCE:
        raise Malformed(f"an entry's sequence is 0 to {MAX_SEQUENCE}")
    return value


def _prev(value: object) -> tuple[Cid, ...]:
    if not isinstance(value, list) or len(value) > MAX_PREV:
        raise Malformed(f"an entry's prev is a list of at most {MAX_PREV} links")
    links = tuple(_link(item) for item in value)
    if any(left >= right for left, right in itertools.pairwise(links)):
        raise Malformed("an entry's prev is not sorted, or names a link twice")
    return links


def _link(value: object) -> Cid:
    if not isinstance(value, Cid) or value.version != 1 or (value.codec, value.hash_code) != (DAG_CBOR, SHA2_256):
        raise Malformed("an entry links to DAG-CBOR blocks by sha2-256 CIDs")
    return value
