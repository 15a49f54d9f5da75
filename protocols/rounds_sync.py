"""How members of an experiment bring each other up to date: each asks each for the events that it lacks.

`PROTOCOL`: one frame asks. To a member of the plan the answer is `Here`, the events that it lacks, each as the two
blocks of its entry, an author's in order, then the end of the stream. Where there is nothing to tell, the answer is
held open until there is something, or the asker's wait is over: an answered question is a sign of life. Who is no
member gets what one gets for an experiment that is not known: the end of the stream.

An author's events are counted from its first (`heights`), and the last of them is named by the first bytes of its
body's hash (`latest`): who knows another in its place tells it, and so the two entries that prove a forked history
meet. Authors whose fork is known are named in `forks`, so that the proof reaches everybody, and nobody twice.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Final, NamedTuple, cast

import trio
from msgspec import Meta

from protocols.entry import Entry, open_entry
from protocols.errors import Malformed
from protocols.framing import read_frame
from protocols.message import Message, decode, encode
from protocols.net import Network, Stream
from protocols.rounds import MAX_MEMBERS
from protocols.telling import (
    ANSWER_TIMEOUT_S,
    DIGEST_BYTES,
    MAX_TOLD_BYTES,
    MAX_WHERE_BYTES,
    Digest,
    Here,
    Mark,
    Told,
    Where,
    asked,
    read_told,
    say,
    tell,
)
from storage.cid import Cid
from storage.keys import PeerId

PROTOCOL: Final = "/covey/rounds/1.0.0"
WHAT: Final = "experiment"

MAX_ASK_BYTES: Final = 96 << 10
MAX_ANSWERS: Final = 256
MAX_ANSWER_BYTES: Final = 8 << 20  # of one answer; what is over it is asked for again
MAX_FORKS: Final = 256
MAX_WAIT_S: Final = 10.0
ASK_TIMEOUT_S: Final = 15.0
MAX_HEIGHT: Final = 1 << 16

Height = Annotated[int, Meta(ge=1, le=MAX_HEIGHT)]


class Ask(Message, frozen=True, tag="ask_rounds", kw_only=True):
    """What do you know of this experiment that I do not?

    `authors` and `forks` are sorted; `heights` and `latest` are theirs in the same order; others are at 0.
    """

    experiment: Cid
    authors: Annotated[tuple[PeerId, ...], Meta(max_length=MAX_MEMBERS)] = ()
    heights: Annotated[tuple[Height, ...], Meta(max_length=MAX_MEMBERS)] = ()
    latest: Annotated[tuple[Digest, ...], Meta(max_length=MAX_MEMBERS)] = ()
    forks: Annotated[tuple[PeerId, ...], Meta(max_length=MAX_FORKS)] = ()
    wait_s: Annotated[float, Meta(ge=0.0, le=MAX_WAIT_S)] = 0.0


class AskPlan(Message, frozen=True, tag="ask_plan", kw_only=True):
    """What is the plan of this experiment? Answered by `Here` and one `Told`."""

    experiment: Cid


class AskMembers(Message, frozen=True, tag="ask_members", kw_only=True):
    """Where are the members of this experiment that you are connected to? Answered by `Here` and a `Where` for each."""

    experiment: Cid


class Known(NamedTuple):
    """What an asker knows: how far of each author, and of whom that its history forks."""

    marks: Mapping[PeerId, Mark]
    forks: frozenset[PeerId] = frozenset()


def digest_of(entry: Entry) -> bytes:
    """What names an entry in a question: the first bytes of its body's SHA-256."""
    return entry.body_cid.multihash[2 : 2 + DIGEST_BYTES]


class Desk(NamedTuple):
    """What answers questions about one experiment, for one asker who may know of it.

    `since` gives the entries that somebody lacks, in the order in which they are to be told; `news` returns when there
    may be more.
    """

    plan: Entry
    since: Callable[[Known], Iterable[Entry]]
    news: Callable[[], Awaitable[None]]
    where: Callable[[], Iterable[Where]]


FindDesk = Callable[[PeerId, Cid], Desk | None]


def read_ask(data: bytes) -> Ask | AskPlan | AskMembers:
    """A question in its one form. Raises: TooBig, Malformed."""
    question = cast(Ask | AskPlan | AskMembers, decode(data, (Ask, AskPlan, AskMembers), MAX_ASK_BYTES))
    if isinstance(question, Ask):
        if any(left >= right for peers in (question.authors, question.forks) for left, right in pairwise(peers)):
            raise Malformed("the peers of a question are not sorted, or one stands twice")
        if not len(question.authors) == len(question.heights) == len(question.latest):
            raise Malformed("a question does not say of each author how far it is known")
    return question


def question_of(experiment: Cid, known: Known, wait_s: float) -> Ask:
    """The question of somebody who knows this much."""
    return Ask(
        experiment=experiment,
        authors=tuple(sorted(known.marks)),
        heights=tuple(known.marks[peer].height for peer in sorted(known.marks)),
        latest=tuple(known.marks[peer].latest for peer in sorted(known.marks)),
        forks=tuple(sorted(known.forks))[:MAX_FORKS],
        wait_s=float(min(wait_s, MAX_WAIT_S)),
    )


async def ask(
    network: Network, peer: PeerId, experiment: Cid, known: Known, wait_s: float, on_here: Callable[[], None]
) -> list[Entry]:
    """Ask `peer` for what is not known here, waiting up to `wait_s` for it. `on_here`: it gave a sign of life.

    Raises: ProtocolRefused where the peer does not let us know of such an experiment; DialFailed, StreamBroken,
    TooBig, Malformed, Forged; trio.TooSlowError.
    """
    question = question_of(experiment, known, wait_s)
    with trio.fail_after(question.wait_s + ANSWER_TIMEOUT_S):
        async with asked(network, peer, PROTOCOL, encode(question, MAX_ASK_BYTES), MAX_ASK_BYTES, WHAT) as stream:
            on_here()
            return await read_told(stream, MAX_ANSWERS, MAX_ANSWER_BYTES)


async def ask_plan(network: Network, peer: PeerId, experiment: Cid) -> Entry:
    """The plan whose body is `experiment`, from `peer`. Raises: as `ask`."""
    with trio.fail_after(ANSWER_TIMEOUT_S):
        async with asked(
            network, peer, PROTOCOL, encode(AskPlan(experiment=experiment), MAX_ASK_BYTES), MAX_ASK_BYTES, WHAT
        ) as stream:
            data = await read_frame(stream, MAX_TOLD_BYTES)
    if data is None:
        raise Malformed(f"{peer} did not give the plan {experiment}")
    told = decode(data, Told, MAX_TOLD_BYTES)
    entry = open_entry(told.entry, told.body)
    if entry.body_cid != experiment:
        raise Malformed(f"{peer} gave another plan than {experiment}")
    return entry


async def ask_members(network: Network, peer: PeerId, experiment: Cid) -> list[Where]:
    """Where `peer` knows members to be. Raises: as `ask`."""
    found: list[Where] = []
    with trio.fail_after(ANSWER_TIMEOUT_S):
        async with asked(
            network, peer, PROTOCOL, encode(AskMembers(experiment=experiment), MAX_ASK_BYTES), MAX_ASK_BYTES, WHAT
        ) as stream:
            while len(found) < MAX_MEMBERS and (data := await read_frame(stream, MAX_WHERE_BYTES)) is not None:
                found.append(decode(data, Where, MAX_WHERE_BYTES))
    return found


async def answer(stream: Stream, desk_of: FindDesk) -> None:
    """Answer one question. Raises: what reading and writing raise."""
    with trio.move_on_after(ASK_TIMEOUT_S) as patience:
        data = await read_frame(stream, MAX_ASK_BYTES)
    if patience.cancelled_caught or data is None:
        return
    question = read_ask(data)
    desk = desk_of(stream.peer, question.experiment)
    if desk is None:
        await stream.finish()
        return
    with trio.move_on_after(MAX_WAIT_S + ANSWER_TIMEOUT_S):
        await say(stream, Here())
        match question:
            case Ask():
                await tell(stream, await _lacking(desk, question), MAX_ANSWERS, MAX_ANSWER_BYTES)
            case AskPlan():
                await tell(stream, [desk.plan], 1, MAX_ANSWER_BYTES)
            case AskMembers():
                for _, where in zip(range(MAX_MEMBERS), desk.where(), strict=False):
                    await say(stream, where)
        await stream.finish()


async def _lacking(desk: Desk, question: Ask) -> Iterable[Entry]:
    """What the asker lacks, once there is something of it."""
    marks = map(Mark, question.heights, question.latest)
    known = Known(dict(zip(question.authors, marks, strict=True)), frozenset(question.forks))
    with trio.move_on_after(question.wait_s):
        while not any(True for _ in desk.since(known)):
            await desk.news()
    return desk.since(known)
