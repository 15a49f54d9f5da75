"""Readers of workspaces: questions, news, and what an entry says."""

from typing import Final

from protocols import envelope, message, telling
from protocols.entry import make_entry
from protocols.errors import Remote
from protocols.workspaces import announce, entries, sealed, sync
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock, TooLarge
from storage.keys import Identity
from storage.sealed.keys import derive, encrypt
from tests.campaigns.fuzz_reader import Reader

UNIX_S: Final = 1_800_000_000
_ME: Final = Identity(bytes(range(32)))
_WORKSPACE: Final = Cid.of(b"workspace", DAG_CBOR)
_KINDS: Final = tuple(entries.STATEMENTS)
_SAID: Final = (
    entries.Grant(audience=_ME.peer_id, can=("read", "write"), keys=("*", "a/*"), weight=2, proof=_WORKSPACE),
    entries.Join(),
    entries.Leave(grants=(_WORKSPACE,)),
    entries.Revoke(grants=(_WORKSPACE,), last=(_WORKSPACE,), reason="gone"),
    entries.Say(key="talk", text="hello"),
    entries.Put(key="a/b", value={"n": [1, None, "x"]}, link=_WORKSPACE),
    entries.Drop(key="a/b"),
    entries.Propose(key="a", text="which?", options=("x", "y"), rule="ranked", quorum=2, closers=(_ME.peer_id,)),
    entries.Vote(proposal=_WORKSPACE, ranking=(1, 0), veto=True),
    entries.Close(proposal=_WORKSPACE),
    entries.Claim(task="a/b", term=3),
    entries.Endorse(claim=_WORKSPACE),
    entries.Begin(claim=_WORKSPACE, step=1, attempt=2),
    entries.Commit(claim=_WORKSPACE, step=1, output=[1, 2], link=_WORKSPACE),
    entries.Accept(commit=_WORKSPACE),
    entries.Rekey(commitment=bytes(32), wraps=((_ME.peer_id, bytes(80)),)),
    entries.Give(audience=_ME.peer_id, keys=((_WORKSPACE, bytes(80)),)),
)
_BOX: Final = sealed.Box(epoch=_WORKSPACE, nonce=bytes(24), box=bytes(80))
_SEALED: Final = tuple(said for said in _SAID if said.kind in sealed.SECRETS)


def _statement(data: bytes) -> object:
    """The first byte says of which kind; the rest is the content."""
    return _said(data, is_private=False)


def _sealed_statement(data: bytes) -> object:
    """The same of a private workspace."""
    return _said(data, is_private=True)


def _unsealed(data: bytes) -> object:
    """What is in a box of a member's. The first byte says of which kind; the rest was padded."""
    says = _SEALED[data[0] % len(_SEALED)] if data else _SEALED[0]
    bound = dag_cbor.encode([_WORKSPACE, says.kind, _WORKSPACE])
    key = derive(bytes(32), b"covey-ws-entry-1")
    box = sealed.Box(epoch=_WORKSPACE, nonce=bytes(24), box=encrypt(key, bytes(24), data[1:], bound))
    return sealed.unseal(says, box, _WORKSPACE, bytes(32))


def _said(data: bytes, *, is_private: bool) -> object:
    value = dag_cbor.decode(data[1:])
    content = {key: item for key, item in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}
    kind = _KINDS[data[0] % len(_KINDS)] if data else "nothing"
    entry = make_entry(_ME, kind, entries.scope_of(_WORKSPACE), 0, [], content)
    return sealed.read_said(entry, _WORKSPACE, is_private=is_private)


def _news(data: bytes) -> object:
    return message.decode(data, (announce.News,), envelope.MAX_ANNOUNCEMENT_BYTES)


def _signed_news(data: bytes) -> object:
    return announce.open_news(data, _WORKSPACE, _ME.peer_id, UNIX_S)


def _told(data: bytes) -> object:
    return message.decode(data, (telling.Here, telling.Told, telling.Where, sync.Content), telling.MAX_ANSWER_BYTES)


_NEWS: Final = announce.News(heads=(_WORKSPACE, Cid.of(b"other", DAG_CBOR)))
_ANSWERS: Final = (
    telling.Here(),
    telling.Told(entry=b"entry", body=b"body"),
    telling.Where(peer=_ME.peer_id, addresses=("/ip4/1.2.3.4/tcp/1",)),
    sync.Content(data=b"content"),
)
_QUESTIONS: Final = (
    sync.question_of(_WORKSPACE, sync.Known({_ME.peer_id: telling.Mark(3, bytes(16))}, (_WORKSPACE,)), 2.5),
    sync.AskRoot(workspace=_WORKSPACE),
    sync.AskMembers(workspace=_WORKSPACE),
    sync.AskContent(workspace=_WORKSPACE, cid=_WORKSPACE),
)

READERS: Final = (
    Reader(
        "workspace-statement", _statement, (Remote, InvalidBlock, TooLarge),
        tuple(bytes([_KINDS.index(said.kind)]) + dag_cbor.encode(entries.content_of(said)) for said in _SAID[:-2]),
    ),
    Reader(
        "workspace-sealed-statement", _sealed_statement, (Remote, InvalidBlock, TooLarge),
        tuple(
            bytes([_KINDS.index(said.kind)]) + dag_cbor.encode(sealed.content_with(said, _BOX)) for said in _SEALED
        ) + tuple(bytes([_KINDS.index(said.kind)]) + dag_cbor.encode(entries.content_of(said)) for said in _SAID[-2:]),
    ),
    Reader(
        "workspace-unsealed", _unsealed, (),
        tuple(
            bytes([number]) + sealed.pad(dag_cbor.encode({name: entries.content_of(said)[name] for name in names}))
            for number, said in enumerate(_SEALED) for names in [sealed.SECRETS[said.kind]]
        ),
    ),
    Reader(
        "workspace-question", sync.read_ask, (Remote,),
        tuple(message.encode(question, sync.MAX_ASK_BYTES) for question in _QUESTIONS),
    ),
    Reader("workspace-news", _news, (Remote,), (message.encode(_NEWS, envelope.MAX_ANNOUNCEMENT_BYTES),)),
    Reader(
        "workspace-signed-news", _signed_news, (Remote,),
        (announce.seal_news(_ME, _WORKSPACE, _NEWS, lambda aad: 7, UNIX_S),),
    ),
    Reader("told", _told, (Remote,), tuple(message.encode(answer, telling.MAX_ANSWER_BYTES) for answer in _ANSWERS)),
)  # fmt: skip
