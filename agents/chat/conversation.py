"""The core of a chat: history within the model's context, the adapter of each turn, and sources with citations.

A turn goes: `choose` who answers, then `switched` or `refuse`; `begin` gives the prompt; `heard` takes the pieces of
the answer; `finish` keeps it, `interrupt` keeps the part that was said, `abandon` forgets the turn. What a turn began
with, it ends with: a new adapter waits for the next turn.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from agents.chat.events import Adapter, Cited, Finished, Offered, Source
from agents.engine.messages import Turn
from agents.errors import AgentError, TooLong
from agents.retrieval.index import Passage

LATEST: Final = "latest"
DEFAULT_SYSTEM: Final = "You are a helpful assistant."
MAX_TURNS: Final = 1_000
MAX_ANSWER_CHARS: Final = 1 << 20

# Role marks of a chat template; the first answer corrects the estimate.
_TURN_OVERHEAD_BYTES: Final = 24
_FIRST_TOKENS_PER_BYTE: Final = 0.4
_MARGIN: Final = 1.1

_CITATION: Final = re.compile(r"\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is asked in one turn."""

    turns: tuple[Turn, ...]
    sources: tuple[Source, ...]
    n_forgotten_turns: int


def cited_numbers(answer: str) -> set[int]:
    """The numbers that an answer cites, written [1], [1][2] or [1, 2]."""
    return {int(number) for group in _CITATION.findall(answer) for number in re.findall(r"\d+", group)}


def with_sources(question: str, passages: Sequence[Passage]) -> str:
    """The question with its numbered sources before it, and the instruction to cite them."""
    if not passages:
        return question
    sources = "\n\n".join(
        f"[{number}] {passage.path}, lines {passage.first_line}-{passage.last_line}:\n{passage.text}"
        for number, passage in enumerate(passages, 1)
    )
    return (
        f"Sources:\n\n{sources}\n\nAnswer the question from these sources. After each statement cite the source it "
        f"comes from by its number, like [1]. If they do not answer it, say so.\n\nQuestion: {question}"
    )


def _size_bytes(turns: Sequence[Turn]) -> int:
    return sum(len(turn.content.encode()) + _TURN_OVERHEAD_BYTES for turn in turns)


class Conversation:
    """One chat. No IO, no clock; see the module's text for the order of calls.

    `asks`: stay with the adapter that answers until the user agrees to a newer one (`agree`).
    """

    def __init__(self, *, system: str = DEFAULT_SYSTEM, wish: str = LATEST, asks: bool = False) -> None:
        self._system = (Turn("system", system),) if system else ()
        self._history: list[Turn] = []
        self._question: str | None = None
        self._answer: list[str] = []
        self._answer_chars = 0
        self._prompt: Prompt | None = None
        self._tokens_per_byte = _FIRST_TOKENS_PER_BYTE
        self._refused: set[str] = set()
        self._offered: str | None = None
        self._has_followed = False
        self._agreed = True  # the first adapter is what the user opened the chat with
        self.asks = asks
        self.wish = wish
        self.answering: Adapter | None = None

    @property
    def history(self) -> tuple[Turn, ...]:
        """What was said, without the system prompt and without sources."""
        return tuple(self._history)

    @property
    def in_turn(self) -> bool:
        """Is an answer under way?"""
        return self._prompt is not None

    @property
    def may_stay(self) -> bool:
        """May who answers now go on, where what the policy asks for cannot be used?

        Who names an adapter wants no other one's answer, nor the base's; an earlier version of it is what was wanted.
        """
        return self.wish == LATEST or self._has_followed

    def use(self, wish: str) -> None:
        """Follow another policy from the next turn on: `latest`, `none`, NAME, NAME@VERSION or a CID."""
        self.wish = wish
        self._has_followed = False
        self._refused.clear()
        self.agree()

    def agree(self) -> None:
        """Switch at the next turn, without asking."""
        self._agreed = True
        self._offered = None

    def choose(self, wanted: Adapter | None) -> tuple[Adapter | None, Offered | None]:
        """Who answers the next turn, when the policy resolves to `wanted`; and the question to the user, if any."""
        if wanted == self.answering:
            self._has_followed = True
            return wanted, None
        if wanted and wanted.cid in self._refused:
            return self.answering, None
        if not self.asks or self._agreed:
            return wanted, None
        cid = wanted.cid if wanted else ""
        is_news, self._offered = self._offered != cid, cid
        return self.answering, Offered(adapter=wanted) if is_news else None

    def switched(self, adapter: Adapter | None) -> None:
        """`adapter` is ready and answers from now on."""
        self.answering = adapter
        self._has_followed = True

    def refuse(self, adapter: Adapter) -> None:
        """`adapter` cannot be loaded: never choose it again, unless the user asks for it."""
        self._refused.add(adapter.cid)

    def begin(
        self, question: str, *, context_tokens: int, reply_tokens: int, passages: Sequence[Passage] = ()
    ) -> Prompt:
        """Open a turn. The oldest turns are forgotten first, then the last passages, until the prompt fits.

        Raises: TooLong when the question alone does not fit beside the system prompt and the reply.
        """
        assert self._prompt is None, "the turn before must end first"
        self._agreed = False
        budget_bytes = (context_tokens - reply_tokens) / self._tokens_per_byte
        kept, given = self._history[-MAX_TURNS:], list(passages)
        while True:
            turns = (*self._system, *kept, Turn("user", with_sources(question, given)))
            if _size_bytes(turns) <= budget_bytes:
                break
            if kept:
                del kept[:2]
            elif given:
                given.pop()
            else:
                raise TooLong(f"the message does not fit the model's context of {context_tokens} tokens: shorten it")
        n_forgotten = len(self._history) - len(kept)
        self._history = kept
        sources = tuple(
            Source(number=n, path=p.path, first_line=p.first_line, last_line=p.last_line, score=p.score)
            for n, p in enumerate(given, 1)
        )
        self._question, self._answer, self._answer_chars = question, [], 0
        self._prompt = Prompt(turns=turns, sources=sources, n_forgotten_turns=n_forgotten)
        return self._prompt

    def heard(self, text: str) -> None:
        """Note the next piece of the answer; past `MAX_ANSWER_CHARS` it is not remembered."""
        if self._answer_chars < MAX_ANSWER_CHARS:
            self._answer.append(text)
            self._answer_chars += len(text)

    def finish(self, finished: Finished) -> Cited | None:
        """Keep the turn, learn how many tokens its bytes were; return what it cites, None without sources."""
        assert self._prompt is not None, "no turn is open"
        if finished.n_prompt_tokens > 0:
            observed = finished.n_prompt_tokens / _size_bytes(self._prompt.turns)
            self._tokens_per_byte = max(0.05, min(2.0, observed * _MARGIN))
        numbers = cited_numbers("".join(self._answer))
        sources = tuple(msgspec.structs.replace(s, cited=s.number in numbers) for s in self._prompt.sources)
        invented = tuple(sorted(numbers - {source.number for source in sources}))
        self.interrupt()
        return Cited(sources=sources, invented=invented) if sources else None

    def interrupt(self) -> None:
        """End the turn and keep what was said of the answer; nothing said is a turn that never was."""
        answer = "".join(self._answer)
        if self._question is not None and answer:
            self._history += [Turn("user", self._question), Turn("assistant", answer)]
        self.abandon()

    def abandon(self) -> None:
        """End the turn and forget it."""
        self._question, self._answer, self._prompt = None, [], None

    def clear(self) -> None:
        """Forget what was said; the adapter and its policy stay. Raises: AgentError in mid-turn."""
        if self.in_turn:
            raise AgentError("an answer is under way: stop it first")
        self._history.clear()
