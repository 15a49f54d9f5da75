"""What members of a private workspace say, sealed for them. The text is hidden; who says it under which key is not.

An entry of a kind in `SECRETS` has, in the place of those fields, `sealed`: {epoch, nonce, box}. `epoch` links to the
`rekey` that began the key; `box` is XChaCha20-Poly1305 over the DAG-CBOR of the fields, padded. It is bound to the
workspace, the kind and the epoch, not to the author: a commit may have to be said again by another, with the same box.
Everything that decides what an entry comes to stands in clear, so who has no key folds the same state.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from protocols.entry import Entry
from protocols.errors import Malformed
from protocols.workspaces.entries import (
    MAX_OPTIONS,
    STATEMENTS,
    Give,
    Propose,
    Rekey,
    Statement,
    check,
    content_of,
    read_statement,
)
from storage.cid import DAG_CBOR, SHA2_256, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, TooLarge
from storage.keys import Identity, InvalidPeerId, PeerId
from storage.sealed.keys import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Entropy,
    commitment,
    decrypt,
    derive,
    encrypt,
    open_wrap,
    wrap,
)

SECRETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "say": {"text": ""},
    "put": {"value": None, "link": None},
    "propose": {"text": "", "options": ()},
    "commit": {"output": None, "link": None},
}
"""The fields of a kind that are sealed, and what stands in for them where the key is not here."""

PRIVATE_KINDS: Final = frozenset({Rekey.kind, Give.kind})
MIN_PADDED_BYTES: Final = 64
_END: Final = b"\x80"
_ENTRY: Final = b"covey-ws-entry-1"
_KEY: Final = b"covey-ws-keys-1\0"

T = TypeVar("T", bound=Statement)


class Box(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is sealed: under which key, and the bytes."""

    epoch: Cid
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    box: Annotated[bytes, Meta(min_length=TAG_BYTES + MIN_PADDED_BYTES)]


class Said(NamedTuple):
    """What an entry says. Where it is sealed, the statement has blanks for what is in the box."""

    statement: Statement
    box: Box | None = None


# --- entries


def read_said(entry: Entry, workspace: Cid, *, is_private: bool) -> Said:
    """What an entry of a workspace says, as far as it stands in clear. Raises: TooBig, Foreign, Malformed."""
    if not is_private and entry.kind in PRIVATE_KINDS:
        raise Malformed(f"a {entry.kind} has no place in a workspace that is not private")
    if not is_private or entry.kind not in SECRETS:
        return Said(read_statement(entry, workspace))
    content = dict(entry.content)
    box = _read_box(content.pop("sealed", None))
    if taken := sorted(SECRETS[entry.kind].keys() & content.keys()):
        raise Malformed(f"a {entry.kind} of a private workspace shows its {taken[0]}")
    blanks = dict(SECRETS[entry.kind])
    if entry.kind == Propose.kind:
        n_options = content.pop("n_options", None)
        if type(n_options) is not int or not 2 <= n_options <= MAX_OPTIONS:
            raise Malformed(f"a sealed proposal has 2 to {MAX_OPTIONS} options")
        blanks["options"] = [str(number) for number in range(1, n_options + 1)]
    return Said(read_statement(entry, workspace, content | blanks), box)


def _read_box(value: Any) -> Box:
    if not isinstance(value, dict) or value.keys() != set(Box.__struct_fields__):
        raise Malformed("what is said in a private workspace is {epoch, nonce, box}")
    epoch = value["epoch"]
    if not isinstance(epoch, Cid) or epoch.version != 1 or (epoch.codec, epoch.hash_code) != (DAG_CBOR, SHA2_256):
        raise Malformed("a sealed entry links to the rekey of its key")
    try:
        return msgspec.convert(value, Box, dec_hook=lambda _form, given: given)
    except msgspec.ValidationError as error:
        raise Malformed(f"not a sealed entry: {error}") from None


def content_with(statement: Statement, box: Box) -> dict[str, Any]:
    """The content of the entry that says this, sealed."""
    content = {name: value for name, value in content_of(statement).items() if name not in SECRETS[statement.kind]}
    if isinstance(statement, Propose):
        content["n_options"] = len(statement.options)
    return content | {"sealed": content_of(box)}


def seal(statement: Statement, workspace: Cid, epoch: Cid, key: bytes, entropy: Entropy) -> Box:
    """What is secret of a statement, in a box."""
    content = content_of(statement)
    plain = pad(dag_cbor.encode({name: content[name] for name in SECRETS[statement.kind]}))
    nonce = entropy(NONCE_BYTES)
    bound = _bound(workspace, statement.kind, epoch)
    return Box(epoch=epoch, nonce=nonce, box=encrypt(derive(key, _ENTRY), nonce, plain, bound))


def unseal(statement: T, box: Box, workspace: Cid, key: bytes) -> T | None:
    """The whole statement; None where the box does not open, or holds no such thing: whoever sealed it is to blame."""
    opened = decrypt(derive(key, _ENTRY), box.nonce, box.box, _bound(workspace, statement.kind, box.epoch))
    plain = unpad(opened) if opened is not None else None
    try:
        fields = dag_cbor.decode(plain) if plain is not None else None
    except (InvalidBlock, TooLarge):
        return None
    if not isinstance(fields, dict) or fields.keys() != SECRETS[statement.kind].keys():
        return None
    try:
        whole = check_content(type(statement), content_of(statement) | fields)
    except Malformed:
        return None
    if isinstance(whole, Propose) and len(whole.options) != len(content_of(statement)["options"]):
        return None
    return whole


def check_content(form: type[T], content: Mapping[str, Any]) -> T:
    """The statement that this content is. Raises: Malformed."""
    assert STATEMENTS[form.kind] is form
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    return check(form(**values))


def _bound(workspace: Cid, kind: str, epoch: Cid) -> bytes:
    return dag_cbor.encode([workspace, kind, epoch])


# --- padding


def padded_length(n_bytes: int) -> int:
    """How long so many bytes become: at most an eighth longer, and few lengths to tell apart (Padme, from PURBs)."""
    n_bytes = max(n_bytes, MIN_PADDED_BYTES)
    exponent = n_bytes.bit_length() - 1
    loose = exponent - exponent.bit_length()
    mask = (1 << max(loose, 0)) - 1
    return (n_bytes + mask) & ~mask


def pad(data: bytes) -> bytes:
    """The bytes, their end, and zeros."""
    return (data + _END).ljust(padded_length(len(data) + 1), b"\0")


def unpad(data: bytes) -> bytes | None:
    """What was padded; None where it was not."""
    stripped = data.rstrip(b"\0")
    return stripped[:-1] if stripped.endswith(_END) and len(data) == padded_length(len(stripped)) else None


# --- keys


@lru_cache(maxsize=4096)
def has_exchange_key(peer: PeerId) -> bool:
    """Can anything be sealed to this peer?"""
    try:
        return bool(peer.exchange_key)
    except InvalidPeerId:
        return False


def new_key(workspace: Cid, peers: Iterable[PeerId], entropy: Entropy) -> Rekey:
    """A new key, for these peers. Raises: BadRecipient."""
    key = entropy(KEY_BYTES)
    fixed = commitment(key)
    binding = _binding(workspace, fixed)
    return Rekey(
        commitment=fixed, wraps=tuple((peer, wrap(key, peer, binding, entropy)) for peer in sorted(set(peers)))
    )


def given(workspace: Cid, peer: PeerId, keys: Mapping[Cid, bytes], entropy: Entropy) -> Give:
    """Keys, by the entry blocks of their rekeys, for one more peer. Raises: BadRecipient."""
    wraps = (
        (epoch, wrap(key, peer, _binding(workspace, commitment(key)), entropy)) for epoch, key in sorted(keys.items())
    )
    return Give(audience=peer, keys=tuple(wraps))


def open_key(workspace: Cid, rekey: Rekey, wrapped: bytes, identity: Identity) -> bytes | None:
    """The key that a rekey began, out of a wrap for this identity."""
    key = open_wrap(wrapped, identity, _binding(workspace, rekey.commitment))
    return key if key is not None and commitment(key) == rekey.commitment else None


def _binding(workspace: Cid, fixed: bytes) -> bytes:
    return hashlib.sha256(_KEY + bytes(workspace) + fixed).digest()
