"""What the members of a workspace sign: its root, and then one entry after the other.

A workspace is known by the CID of the body of its root, an entry of kind `workspace` in the scope `workspaces`; every
other entry stands in the scope `workspaces/<that CID>`. Entries name each other by the CIDs of entry blocks, as links.

agents/WORKSPACES.md says who may sign what, and what follows from it.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from protocols.content import content_of as content_of  # for those who sign
from protocols.content import read_content
from protocols.entry import Entry
from protocols.errors import Malformed, Remote, TooBig
from storage.cid import Cid
from storage.keys import PeerId
from storage.sealed.keys import WRAP_BYTES

ROOT_KIND: Final = "workspace"
ROOT_SCOPE: Final = "workspaces"

PRIVATE_FORMAT: Final = 2

MAX_BODY_BYTES: Final = 64 << 10  # what is larger belongs in content of its own, linked from the entry
MAX_TEXT_CHARS: Final = 16 << 10
MAX_TITLE_CHARS: Final = 200
MAX_REASON_CHARS: Final = 500
MAX_MEMBERS: Final = 512
MAX_KEYED: Final = 400  # of one key of a private workspace: they have to fit into one body
MAX_GIVEN: Final = 256
COMMITMENT_BYTES: Final = 32
MAX_SEQUENCE: Final = 1 << 20
MAX_PATTERNS: Final = 16
MAX_GRANTS: Final = 64
MAX_WEIGHT: Final = 1000
MAX_OPTIONS: Final = 16
MAX_CLOSERS: Final = 8
MAX_TERM: Final = 1 << 31
MAX_STEP: Final = 1 << 31
MAX_ATTEMPT: Final = 1 << 20

Right = Literal["read", "write", "run", "admin"]
Rule = Literal["majority", "weighted", "unanimous", "veto", "ranked"]
Key = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._/-]{1,128}\Z")]
Pattern = Annotated[str, Meta(pattern=r"^(?:[A-Za-z0-9._/-]{1,128}|[A-Za-z0-9._/-]{0,127}\*)\Z")]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
UnixS = Annotated[int, Meta(ge=0, le=1 << 40)]
Weight = Annotated[int, Meta(ge=0, le=MAX_WEIGHT)]
Term = Annotated[int, Meta(ge=0, le=MAX_TERM)]
Step = Annotated[int, Meta(ge=0, le=MAX_STEP)]
Wrapped = Annotated[bytes, Meta(min_length=WRAP_BYTES, max_length=WRAP_BYTES)]
Links = Annotated[tuple[Cid, ...], Meta(min_length=1, max_length=MAX_GRANTS)]


class Foreign(Remote):
    """The entry belongs to another workspace, or to none."""

    code = "foreign"


class BadLinks(Remote):
    """The entry's links do not fit into its workspace."""

    code = "bad_links"


class BadSequence(Remote):
    """The entry's number does not follow on its author's last one."""

    code = "bad_sequence"


class Full(Remote):
    """The workspace has as many members as one can have. Who has more to let in begins another."""

    code = "full"


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A workspace begins: its author owns it. Format 2 is private: what its members say is sealed."""

    format: Literal[1, 2] = 1
    title: Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_CHARS)]
    created_unix_s: UnixS

    @property
    def is_private(self) -> bool:
        """Is what members say sealed?"""
        return self.format == PRIVATE_FORMAT


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all that is said in a workspace. `kind` is that of the entry."""

    kind: ClassVar[str]


class Grant(Statement, frozen=True):
    """`audience` may do this. `proof` is a grant of the author's that gives it as much; None for the owner's own."""

    kind = "grant"

    audience: PeerId
    can: Annotated[tuple[Right, ...], Meta(min_length=1, max_length=4)]
    keys: Annotated[tuple[Pattern, ...], Meta(min_length=1, max_length=MAX_PATTERNS)]
    weight: Weight = 1
    proof: Cid | None = None
    until_unix_s: UnixS = 0


class Join(Statement, frozen=True):
    """I take part. Links to a grant for its author."""

    kind = "join"


class Leave(Statement, frozen=True):
    """I give these grants back."""

    kind = "leave"

    grants: Links


class Revoke(Statement, frozen=True):
    """These grants are over. `last`: of each author that they let in, the last entry that still counts."""

    kind = "revoke"

    grants: Links
    last: Annotated[tuple[Cid, ...], Meta(max_length=MAX_MEMBERS)] = ()
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)] = ""


class Say(Statement, frozen=True):
    """Something is said under a key."""

    kind = "say"

    key: Key
    text: Text


class Put(Statement, frozen=True):
    """The key has this value from now on; `link` is content that belongs to it."""

    kind = "put"

    key: Key
    value: Any = None
    link: Cid | None = None


class Drop(Statement, frozen=True):
    """The key has no value any more."""

    kind = "drop"

    key: Key


class Propose(Statement, frozen=True, kw_only=True):
    """Let us decide. `closers` may end it, by `deadline_unix_s` or before; `quorum` is how many have to vote."""

    kind = "propose"

    key: Key
    text: Text
    options: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=MAX_OPTIONS)]
    rule: Rule
    quorum: Annotated[int, Meta(ge=0, le=MAX_MEMBERS)] = 0
    closers: Annotated[tuple[PeerId, ...], Meta(min_length=1, max_length=MAX_CLOSERS)]
    deadline_unix_s: UnixS = 0


class Vote(Statement, frozen=True):
    """My vote, in the place of any that I gave before. `ranking`: options by their place, the best first."""

    kind = "vote"

    proposal: Cid
    ranking: Annotated[tuple[Annotated[int, Meta(ge=0, lt=MAX_OPTIONS)], ...], Meta(max_length=MAX_OPTIONS)]
    veto: bool = False


class Close(Statement, frozen=True):
    """Voting is over: the votes that this entry's past holds are counted."""

    kind = "close"

    proposal: Cid


class Claim(Statement, frozen=True):
    """I want this task, or this lease, for this term."""

    kind = "claim"

    task: Key
    term: Term = 0


class Endorse(Statement, frozen=True):
    """This claim has my support, and no other one of its task and term."""

    kind = "endorse"

    claim: Cid


class Begin(Statement, frozen=True):
    """I begin a step of the task that I hold by `claim`: its effect may happen from now on."""

    kind = "begin"

    claim: Cid
    step: Step
    attempt: Annotated[int, Meta(ge=1, le=MAX_ATTEMPT)]


class Commit(Statement, frozen=True):
    """A step of the task that I hold by `claim` is done; this is what came out."""

    kind = "commit"

    claim: Cid
    step: Step
    output: Any = None
    link: Cid | None = None


class Accept(Statement, frozen=True):
    """I have this commit, and accept it."""

    kind = "accept"

    commit: Cid


class Rekey(Statement, frozen=True):
    """From now on what is said is sealed under this key, which is here for these members; known by `commitment`."""

    kind = "rekey"

    commitment: Annotated[bytes, Meta(min_length=COMMITMENT_BYTES, max_length=COMMITMENT_BYTES)]
    wraps: Annotated[tuple[tuple[PeerId, Wrapped], ...], Meta(min_length=1, max_length=MAX_KEYED)]


class Give(Statement, frozen=True):
    """Keys that others have, by the entries that began them, for one more member: so that it reads the past."""

    kind = "give"

    audience: PeerId
    keys: Annotated[tuple[tuple[Cid, Wrapped], ...], Meta(min_length=1, max_length=MAX_GIVEN)]


S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T", bound=Statement)
STATEMENTS: Final = {
    form.kind: form
    for form in (
        Grant, Join, Leave, Revoke, Say, Put, Drop, Propose, Vote, Close, Claim, Endorse, Begin, Commit, Accept,
        Rekey, Give,
    )
}  # fmt: skip


@lru_cache(maxsize=256)
def scope_of(workspace: Cid) -> str:
    """Where the entries of a workspace stand."""
    return f"{ROOT_SCOPE}/{workspace}"


def read_root(entry: Entry) -> Root:
    """The root that an entry is. Raises: TooBig, Malformed."""
    if (entry.kind, entry.scope, entry.prev) != (ROOT_KIND, ROOT_SCOPE, ()):
        raise Malformed(f"a {entry.kind} in {entry.scope} is the root of no workspace")
    return _read(entry, Root)


def read_statement(entry: Entry, workspace: Cid, content: Mapping[str, Any] | None = None) -> Statement:
    """What an entry of this workspace says; `content` where it is not what stands there. Raises: TooBig, Foreign,
    Malformed."""
    if entry.scope != scope_of(workspace):
        raise Foreign(f"the entry {entry.cid} belongs to {entry.scope}, not to the workspace {workspace}")
    if entry.kind not in STATEMENTS:
        raise Malformed(f"nothing in a workspace is called {entry.kind}")
    if entry.recipient is not None and entry.kind != Say.kind:
        raise Malformed(f"a {entry.kind} is for everybody, and names no recipient")
    statement: Statement = _read(entry, STATEMENTS[entry.kind], content)
    _check_sets(statement)
    return statement


def check(statement: T) -> T:
    """The same statement, when others will accept it, but for its size. Raises: Malformed."""
    # What was sealed may hold anything in its fields: their types come first.
    checked = read_content(content_of(statement), type(statement), _name_of(type(statement)), every_field=True)
    _check_sets(checked)
    return checked


def _check_sets(statement: Statement) -> None:
    match statement:
        case Grant():
            _check_set(statement.can)
            _check_set(statement.keys)
        case Propose():
            _check_set(statement.closers)
            if len(statement.options) < 2 or len(set(statement.options)) < len(statement.options):
                raise Malformed("a proposal has two options or more, no two alike")
        case Rekey(wraps=pairs) | Give(keys=pairs):
            _check_set(tuple(name for name, _ in pairs))
        case Vote():
            if len(set(statement.ranking)) < len(statement.ranking):
                raise Malformed("a vote names an option twice")


def _check_set(values: tuple[Any, ...]) -> None:
    """One way to write a set. Raises: Malformed."""
    if list(values) != sorted(set(values)):
        raise Malformed("a list of an entry is not sorted, or names something twice")


def _read(entry: Entry, form: type[S], other: Mapping[str, Any] | None = None) -> S:
    if entry.n_body_bytes > MAX_BODY_BYTES:
        raise TooBig(f"a body of {entry.n_body_bytes} bytes; the limit in a workspace is {MAX_BODY_BYTES}")
    content = entry.content if other is None else other
    return read_content(content, form, _name_of(form), every_field=True)


def _name_of(form: type[msgspec.Struct]) -> str:
    return f"a {form.__name__.lower()}"
