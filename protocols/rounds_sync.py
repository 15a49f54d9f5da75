"""How members of an experiment bring each other up to date: each asks each for the events that it lacks.

`PROTOCOL`: one frame asks. To a member the answer is `Here`, the events that it lacks, each as the two
blocks of its entry, an author's in order, then the end of the stream. Where there is nothing to tell, the answer is
held open until there is something, or the asker's wait is over: an answered question is a sign of life. Who is no
member gets what one gets for an experiment that is not known: the end of the stream.

An author's events are counted from its first (`heights`), and the last of them is named by the first bytes of its
block's hash (`latest`): who knows another in its place tells it, and so the two entries that prove a forked history
meet. Authors whose fork is known are named in `forks`, so that the proof reaches everybody, and nobody twice.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Final, NamedTuple, cast

import trio
from msgspec import Meta

from protocols.entry import Entry
from protocols.framing import patient
from protocols.message import Message, decode, encode
from protocols.net import Network, Stream
from protocols.rounds import MAX_MEMBERS
from protocols.telling import (
    ANSWER_TIMEOUT_S,
    DIGEST_BYTES,
    PATIENT_BYTES,
    Digest,
    Here,
    Mark,
    Where,
    ask_first,
    ask_where,
    asked,
    check_marks,
    check_sorted,
    marks_of,
    read_question,
    read_told,
    say,
    say_where,
    tell,
)
from storage.cid import Cid
from storage.keys import PeerId

PROTOCOL: Final = "/covey/rounds/1.0.0"
WHAT: Final = "experiment"

MAX_ASK_BYTES: Final = 96 << 10
MAX_ANSWERS: Final = 256
MAX_FORKS: Final = 256
MAX_WAIT_S: Final = 10.0
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
    """What names an entry in a question: the first bytes of its block's SHA-256."""
    return entry.cid.multihash[2 : 2 + DIGEST_BYTES]


class Desk(NamedTuple):
    """What answers questions about one experiment, for one asker who may know of it.

    `since` gives the entries that somebody lacks, in the order in which they are to be told; `news` returns when there
    may be more. `may_wait`: is an answer held open until there is something to tell?
    """

    plan: Entry
    since: Callable[[Known], Iterable[Entry]]
    news: Callable[[], Awaitable[None]]
    where: Callable[[], Iterable[Where]]
    may_wait: bool = True


FindDesk = Callable[[PeerId, Cid], Desk | None]


def read_ask(data: bytes) -> Ask | AskPlan | AskMembers:
    """A question in its one form. Raises: TooBig, Malformed."""
    question = cast(Ask | AskPlan | AskMembers, decode(data, (Ask, AskPlan, AskMembers), MAX_ASK_BYTES))
    if isinstance(question, Ask):
        check_marks(question.authors, question.heights, question.latest)
        check_sorted(question.forks)
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
    network: Network,
    peer: PeerId,
    experiment: Cid,
    known: Known,
    wait_s: float,
    on_here: Callable[[], None],
    is_known: Callable[[Cid], bool] = lambda cid: False,
) -> list[Entry]:
    """Ask `peer` for what is not known here, waiting up to `wait_s` for it. `on_here`: it gave a sign of life.

    `is_known`: of an entry block; what came from others meanwhile is not verified again.

    Raises: ProtocolRefused where the peer does not let us know of such an experiment; DialFailed, StreamBroken,
    TooBig, Malformed, Forged; trio.TooSlowError.
    """
    question = question_of(experiment, known, wait_s)
    with trio.fail_after(question.wait_s + ANSWER_TIMEOUT_S) as scope:
        async with asked(network, peer, PROTOCOL, encode(question, MAX_ASK_BYTES), MAX_ASK_BYTES, WHAT) as stream:
            on_here()
            return (await read_told(stream, MAX_ANSWERS, patient(scope, PATIENT_BYTES), is_known)).entries


async def ask_plan(network: Network, peer: PeerId, experiment: Cid) -> Entry:
    """The plan whose body is `experiment`, from `peer`. Raises: as `ask`."""
    question = encode(AskPlan(experiment=experiment), MAX_ASK_BYTES)
    return await ask_first(network, peer, PROTOCOL, question, MAX_ASK_BYTES, WHAT, experiment)


async def ask_members(network: Network, peer: PeerId, experiment: Cid) -> list[Where]:
    """Where `peer` knows members to be. Raises: as `ask`."""
    question = encode(AskMembers(experiment=experiment), MAX_ASK_BYTES)
    return await ask_where(network, peer, PROTOCOL, question, MAX_ASK_BYTES, WHAT, MAX_MEMBERS)


async def answer(stream: Stream, desk_of: FindDesk) -> None:
    """Answer one question. Raises: what reading and writing raise."""
    data = await read_question(stream, MAX_ASK_BYTES)
    if data is None:
        return
    question = read_ask(data)
    desk = desk_of(stream.peer, question.experiment)
    if desk is None:
        await stream.finish()
        return
    with trio.move_on_after(MAX_WAIT_S + ANSWER_TIMEOUT_S) as scope:
        on_bytes = patient(scope, PATIENT_BYTES)
        await say(stream, Here())
        match question:
            case Ask():
                await tell(stream, await _lacking(desk, question), MAX_ANSWERS, on_bytes)
            case AskPlan():
                await tell(stream, [desk.plan], 1, on_bytes)
            case AskMembers():
                await say_where(stream, desk.where(), MAX_MEMBERS)
        await stream.finish()


async def _lacking(desk: Desk, question: Ask) -> Iterable[Entry]:
    """What the asker lacks, once there is something of it."""
    marks = marks_of(question.authors, question.heights, question.latest)
    known = Known(marks, frozenset(question.forks))
    with trio.move_on_after(question.wait_s if desk.may_wait else 0.0):
        while not any(True for _ in desk.since(known)):
            await desk.news()
    return desk.since(known)
