"""A peer's model as an engine: what a chat needs of one, over `/covey/ask/1.0.0`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

import trio

from agents.ask.convert import options_of, turns_of
from agents.ask.errors import BY_CODE, AnsweredWrongly, BadOption, BrokeOff, NoRecord, PeerFailed, PeerRefuses
from agents.engine import messages
from agents.errors import AgentError, EngineFailed, TooLong
from protocols.ask import shell, wire
from protocols.ask.record import SignedAnswer, check_answer, open_record
from protocols.ask.shell import PeerRefused
from protocols.ask.wire import Accepted, Answered, Ask, Offer, Piece, Refused, Turn
from protocols.errors import (
    DialFailed,
    Forged,
    Malformed,
    ProtocolRefused,
    Remote,
    StreamBroken,
    TimedOut,
    TooBig,
)
from protocols.net import Network, PeerInfo
from storage.keys import PeerId

RETRIES_WITHIN_S: Final = 3600.0

Keep = Callable[[SignedAnswer, Sequence[Turn], str], Awaitable[None]]


async def describe(network: Network, info: PeerInfo) -> Offer:
    """Which model the peer answers with, and with which adapters. Raises: AgentError, in words for people."""
    try:
        await _connect(network, info)
        return await shell.describe(network, info.peer)
    except Remote as error:
        raise _in_words(info.peer, error, n_chars=0) from None


class RemoteEngine:
    """Answers by asking a peer: a stand-in for the engine of this node. `adapter`s are named by their manifests' CIDs.

    Args:
        timeout_s: how long one answer may take.
        keep: where the peer shall sign a record of each answer: takes it, checked.
    """

    def __init__(self, network: Network, info: PeerInfo, *, timeout_s: float, keep: Keep | None = None) -> None:
        self._network = network
        self._info = info
        self._timeout_s = min(timeout_s, wire.MAX_DEADLINE_S)
        self._keep = keep

    @asynccontextmanager
    async def call(self, request: messages.Request) -> AsyncIterator[AsyncIterator[messages.Reply]]:
        """Ask. Leaving the block early takes the question back. Raises: AgentError."""
        if not isinstance(request, messages.Generate):
            raise EngineFailed(f"a peer answers questions only, not a {type(request).__name__}")
        async with aclosing(self._replies(request)) as replies:  # type: ignore[type-var]  # it is a generator
            yield replies

    async def one(self, request: messages.Request) -> messages.Reply:
        """An adapter is staged where the peer is: nothing to do here."""
        if isinstance(request, messages.Stage):
            return messages.Staged(id=request.id, stage_s=0.0)
        raise EngineFailed(f"a peer answers questions only, not a {type(request).__name__}")

    async def _replies(self, request: messages.Generate) -> AsyncIterator[messages.Reply]:
        question = self._question(request)
        began_s, first_s = trio.current_time(), 0.0
        said: list[str] = []
        try:
            await _connect(self._network, self._info)
            async with aclosing(shell.ask(self._network, self._info.peer, question)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    if isinstance(reply, Accepted):
                        self._check(question, reply)
                    elif isinstance(reply, Piece):
                        first_s = first_s or trio.current_time() - began_s
                        said.append(reply.text)
                        yield messages.Token(id=request.id, text=reply.text)
                    elif isinstance(reply, Answered):
                        await self._take_record(question, "".join(said), reply)
                        yield messages.Finished(
                            id=request.id,
                            reason=reply.reason,
                            n_prompt_tokens=reply.n_prompt_tokens,
                            n_tokens=reply.n_tokens,
                            first_token_s=first_s,
                            total_s=trio.current_time() - began_s,
                            cache=reply.cache,
                        )
        except Remote as error:
            raise _in_words(self._info.peer, error, n_chars=len("".join(said))) from None

    def _question(self, request: messages.Generate) -> Ask:
        if request.n_logprobs is not None or request.text is not None:
            raise BadOption("a peer answers chats only, without log probabilities")
        if request.max_tokens > wire.MAX_TOKENS:
            raise BadOption(f"max_tokens is {request.max_tokens:,}; no peer gives over {wire.MAX_TOKENS:,}")
        if len(request.turns) > wire.MAX_TURNS:
            raise TooLong(f"the chat has {len(request.turns)} messages, a peer takes {wire.MAX_TURNS}: begin a new one")
        n_bytes = sum(len(turn.content.encode()) for turn in request.turns)
        if n_bytes > wire.MAX_ASK_BYTES // 2:
            raise TooLong(f"the chat has {n_bytes:,} bytes, a peer takes {wire.MAX_ASK_BYTES // 2:,}: shorten it")
        return Ask(
            turns=turns_of(request),
            adapter=request.adapter or wire.NO_ADAPTER,
            options=options_of(request),
            deadline_s=self._timeout_s,
            wants_record=self._keep is not None,
        )

    def _check(self, question: Ask, accepted: Accepted) -> None:
        answers_with = wire.NO_ADAPTER if accepted.adapter is None else str(accepted.adapter)
        if answers_with != question.adapter:
            raise AnsweredWrongly(f"{self._info.peer} answers with another adapter than it was asked for")

    async def _take_record(self, question: Ask, answer: str, reply: Answered) -> None:
        """Raises: NoRecord."""
        if self._keep is None:
            return
        if reply.record is None:
            raise NoRecord(f"{self._info.peer} did not sign its answer")
        try:
            signed = open_record(reply.record.entry, reply.record.body)
            check_answer(signed, self._info.peer, self._network.peer_id, question.turns, answer)
        except (Forged, Malformed, TooBig) as error:
            raise NoRecord(f"the record that {self._info.peer} signed does not fit its answer: {error}") from None
        await self._keep(signed, question.turns, answer)


async def _connect(network: Network, info: PeerInfo) -> None:
    if info.peer in network.peers():
        return
    with trio.move_on_after(shell.DIAL_LIMIT_S):
        await network.connect(info)
        return
    raise TimedOut(f"{info.peer} could not be reached within {shell.DIAL_LIMIT_S:g} s")


def _in_words(peer: PeerId, error: Remote, *, n_chars: int) -> AgentError:
    """What happened, for the asker's user. Text of the peer's is marked as such."""
    got = f" after {n_chars:,} characters of its answer" if n_chars else ""
    match error:
        case PeerRefused(refused=Refused() as refused):
            kind = BY_CODE.get(refused.code, PeerFailed)
            again = "" if refused.retry_s is None else f". Try again in {_time(refused.retry_s)}"
            return kind(f"{peer} refused{got} ({refused.code}): {refused.text}{again}")
        case ProtocolRefused():
            return PeerRefuses(
                f"{peer} answers no questions: its owner turns that on with: covey config set ask.is_enabled true"
            )
        case DialFailed():
            return PeerFailed(f"{peer} cannot be reached: check that it runs, and its address: covey peer ls")
        case TimedOut():
            return BrokeOff(f"{peer} fell silent{got}: {error}")
        case StreamBroken():
            return BrokeOff(f"{peer} went away{got}: ask again")
        case _ if n_chars == 0 and isinstance(error, Malformed) and "finished before" in str(error):
            return BrokeOff(f"{peer} ended the conversation without an answer: ask again")
        case _:
            return AnsweredWrongly(f"{peer} broke the protocol{got}: {error}")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 2 * RETRIES_WITHIN_S else f"{seconds / 3600:.1f} h"
