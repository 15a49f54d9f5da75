"""How members of a workspace bring each other up to date: one asks, the other tells what the asker lacks.

`PROTOCOL`: one frame asks. To a member the answer is `Here`, then the entries that it lacks, each behind those that it
links to, then the end of the stream; what is over the limits of one answer is asked for again. Where there is nothing
to tell, the answer is held open until there is something, or the asker's wait is over. Who is no member gets what one
gets for a workspace that is not known: the end of the stream.

What an asker knows is said by author: how many entries in a row, and the first bytes of the last one's hash, which
stand for all before it, since each links to the one before. That is not enough for an author whose entries fork; what
is known of those is said by `heads`: entry blocks that nothing known links to, which stand for their whole past.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Annotated, Final, NamedTuple, cast

import trio
from msgspec import Meta

from protocols.entry import Entry
from protocols.errors import Tampered
from protocols.framing import patient, read_frame
from protocols.message import Message, decode, encode
from protocols.net import Network, Stream
from protocols.telling import (
    ANSWER_TIMEOUT_S,
    DIGEST_BYTES,
    PATIENT_BYTES,
    Answer,
    Digest,
    Here,
    Mark,
    Where,
    ask_first,
    ask_where,
    asked,
    check_marks,
    marks_of,
    read_question,
    read_told,
    say,
    say_where,
    tell,
)
from protocols.workspaces.entries import MAX_MEMBERS, MAX_SEQUENCE
from storage.cid import Cid
from storage.keys import PeerId

PROTOCOL: Final = "/covey/workspaces/1.0.0"
WHAT: Final = "workspace"

MAX_ASK_BYTES: Final = 96 << 10
MAX_HEADS: Final = 512
MAX_ANSWERS: Final = 1024
MAX_WAIT_S: Final = 20.0
MAX_CONTENT_BYTES: Final = 16 << 10
MAX_CONTENT_FRAME_BYTES: Final = MAX_CONTENT_BYTES + 64
CONTENT_TIMEOUT_S: Final = 15.0

Height = Annotated[int, Meta(ge=1, le=MAX_SEQUENCE + 1)]


class Ask(Message, frozen=True, tag="ask_workspace", kw_only=True):
    """What do you know of this workspace that I do not? `authors` are sorted; `heights` and `latest` are theirs."""

    workspace: Cid
    authors: Annotated[tuple[PeerId, ...], Meta(max_length=MAX_MEMBERS)] = ()
    heights: Annotated[tuple[Height, ...], Meta(max_length=MAX_MEMBERS)] = ()
    latest: Annotated[tuple[Digest, ...], Meta(max_length=MAX_MEMBERS)] = ()
    heads: Annotated[tuple[Cid, ...], Meta(max_length=MAX_HEADS)] = ()
    wait_s: Annotated[float, Meta(ge=0.0, le=MAX_WAIT_S)] = 0.0


class AskRoot(Message, frozen=True, tag="ask_root", kw_only=True):
    """How does this workspace begin? Answered by `Here` and one `Told`."""

    workspace: Cid


class AskMembers(Message, frozen=True, tag="ask_workers", kw_only=True):
    """Where are the members that you are connected to? Answered by `Here` and a `Where` for each."""

    workspace: Cid


class AskContent(Message, frozen=True, tag="ask_content", kw_only=True):
    """Give me this block, which agents of the workspace may read. Answered by `Here` and one `Content`, or none."""

    workspace: Cid
    cid: Cid


class Content(Message, frozen=True, tag="content", kw_only=True):
    """A block. Whether it is the one that was asked for, its hash says."""

    data: Annotated[bytes, Meta(max_length=MAX_CONTENT_BYTES)]


class Known(NamedTuple):
    """What an asker knows: how far of each author, and the entry blocks that nothing it knows links to."""

    marks: dict[PeerId, Mark]
    heads: tuple[Cid, ...] = ()


def digest_of(cid: Cid) -> bytes:
    """What names an entry block in a question: the first bytes of its SHA-256."""
    return cid.multihash[2 : 2 + DIGEST_BYTES]


async def _no_content(_cid: Cid) -> bytes | None:
    await trio.lowlevel.checkpoint()
    return None


class Desk(NamedTuple):
    """What answers questions about one workspace, for one asker who may know of it.

    `since` gives the entries that somebody lacks, each behind those that it links to, as they are asked of it: no more
    are taken than one answer holds, at once. `news` returns when there may be more. `content` gives a block that the
    asker may have as a member; None for all others, whether they are here or not.
    """

    root: Entry
    since: Callable[[Known], Iterable[Entry]]
    news: Callable[[], Awaitable[None]]
    where: Callable[[], Iterable[Where]]
    content: Callable[[Cid], Awaitable[bytes | None]] = _no_content


FindDesk = Callable[[PeerId, Cid], Desk | None]
Question = Ask | AskRoot | AskMembers | AskContent


def read_ask(data: bytes) -> Question:
    """A question in its one form. Raises: TooBig, Malformed."""
    question = cast(Question, decode(data, (Ask, AskRoot, AskMembers, AskContent), MAX_ASK_BYTES))
    if isinstance(question, Ask):
        check_marks(question.authors, question.heights, question.latest)
    return question


def question_of(workspace: Cid, known: Known, wait_s: float) -> Ask:
    """The question of somebody who knows this much."""
    authors = sorted(known.marks)[:MAX_MEMBERS]
    return Ask(
        workspace=workspace,
        authors=tuple(authors),
        heights=tuple(known.marks[peer].height for peer in authors),
        latest=tuple(known.marks[peer].latest for peer in authors),
        heads=known.heads[:MAX_HEADS],
        wait_s=float(min(wait_s, MAX_WAIT_S)),
    )


async def ask(
    network: Network,
    peer: PeerId,
    workspace: Cid,
    known: Known,
    wait_s: float,
    on_here: Callable[[], None],
    is_known: Callable[[Cid], bool] = lambda cid: False,
) -> Answer:
    """Ask `peer` for what is not known here, waiting up to `wait_s` for it. `on_here`: it gave a sign of life.

    `is_known`: was that entry block heard of another meanwhile?

    Raises: ProtocolRefused where the peer does not let us know of such a workspace; DialFailed, StreamBroken, TooBig,
    Malformed, Forged; trio.TooSlowError.
    """
    question = question_of(workspace, known, wait_s)
    with trio.fail_after(question.wait_s + ANSWER_TIMEOUT_S) as scope:
        async with asked(network, peer, PROTOCOL, encode(question, MAX_ASK_BYTES), MAX_ASK_BYTES, WHAT) as stream:
            on_here()
            return await read_told(stream, MAX_ANSWERS, patient(scope, PATIENT_BYTES), is_known)


async def ask_root(network: Network, peer: PeerId, workspace: Cid) -> Entry:
    """The root of a workspace, from `peer`. Raises: as `ask`."""
    question = encode(AskRoot(workspace=workspace), MAX_ASK_BYTES)
    return await ask_first(network, peer, PROTOCOL, question, MAX_ASK_BYTES, WHAT, workspace)


async def ask_members(network: Network, peer: PeerId, workspace: Cid) -> list[Where]:
    """Where `peer` knows members to be. Raises: as `ask`."""
    question = encode(AskMembers(workspace=workspace), MAX_ASK_BYTES)
    return await ask_where(network, peer, PROTOCOL, question, MAX_ASK_BYTES, WHAT, MAX_MEMBERS)


async def ask_content(network: Network, peer: PeerId, workspace: Cid, cid: Cid) -> bytes | None:
    """A block that agents of the workspace may read, if `peer` gives it. Raises: as `ask`; Tampered."""
    question = encode(AskContent(workspace=workspace, cid=cid), MAX_ASK_BYTES)
    with trio.fail_after(CONTENT_TIMEOUT_S):
        async with asked(network, peer, PROTOCOL, question, MAX_ASK_BYTES, WHAT) as stream:
            answered = await read_frame(stream, MAX_CONTENT_FRAME_BYTES)
    if answered is None:
        return None
    data = decode(answered, Content, MAX_CONTENT_FRAME_BYTES).data
    if not cid.matches(data):
        raise Tampered(f"{peer} gave other bytes than those that {cid} names")
    return data


async def answer(stream: Stream, desk_of: FindDesk) -> None:
    """Answer one question. Raises: what reading and writing raise."""
    data = await read_question(stream, MAX_ASK_BYTES)
    if data is None:
        return
    question = read_ask(data)
    desk = desk_of(stream.peer, question.workspace)
    if desk is None:
        await stream.finish()
        return
    with trio.move_on_after(MAX_WAIT_S + ANSWER_TIMEOUT_S) as scope:
        on_bytes = patient(scope, PATIENT_BYTES)
        await say(stream, Here())
        match question:
            case Ask():
                entries = await _lacking(desk, question)
                if desk_of(stream.peer, question.workspace) is not None:  # it may have been revoked while it waited
                    await tell(stream, entries, MAX_ANSWERS, on_bytes)
            case AskRoot():
                await tell(stream, [desk.root], 1, on_bytes)
            case AskMembers():
                await say_where(stream, desk.where(), MAX_MEMBERS)
            case AskContent(cid=cid):
                data = await desk.content(cid)
                if data is not None and len(data) <= MAX_CONTENT_BYTES:
                    await say(stream, Content(data=data))
        await stream.finish()


async def _lacking(desk: Desk, question: Ask) -> Sequence[Entry]:
    """What the asker lacks, once there is something of it."""
    marks = marks_of(question.authors, question.heights, question.latest)
    known = Known(marks, question.heads)
    found = list(islice(desk.since(known), MAX_ANSWERS))
    with trio.move_on_after(question.wait_s):
        while not found:
            await desk.news()
            found = list(islice(desk.since(known), MAX_ANSWERS))
    return found
