"""The language models that agents think with: anything that takes turns and gives a text."""

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

import msgspec
import trio

from agents.chat.answer import Engine
from agents.engine.messages import Finished, Generate, Token, Turn
from agents.errors import EngineFailed
from agents.roster.declaration import Model

MAX_SENTENCES: Final = 2
MAX_LEAD_CHARS: Final = 600
MAX_ANSWER_CHARS: Final = 24_000

_SENTENCE: Final = re.compile(r".+?[.!?](?=\s|$)")


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model said. `model`, `base` and `adapter` say which it was, as exactly as whoever runs it can tell."""

    text: str
    reason: Literal["stop", "length"] = "stop"
    n_prompt_tokens: int = 0
    n_tokens: int = 0
    model: str = ""
    base: str = ""
    adapter: str = ""
    by: str = ""


class LanguageModel(Protocol):
    """A model that is ready."""

    async def answer(self, turns: Sequence[Turn], max_tokens: int) -> Answer:
        """What it says next. Raises: AgentError, trio.TooSlowError."""
        ...


class Scripted:
    """No model: a rule whose words are in the prompt, or else something plain that depends on the prompt alone.

    A token is a word. `lead` repeats the beginning of the longest paragraph; `count` counts words.
    """

    def __init__(self, wish: Model) -> None:
        self._wish = wish

    async def answer(self, turns: Sequence[Turn], max_tokens: int) -> Answer:
        """What the script says."""
        await trio.sleep(self._wish.wait_s)
        prompt = turns[-1].content
        text = next((rule.say for rule in self._wish.rules if rule.has in prompt), None)
        if text is None:
            text = _lead(prompt) if self._wish.style == "lead" else f"[{len(prompt.split())} words] {prompt[:200]}"
        words = text.split(" ")
        is_cut = len(words) > max_tokens
        return Answer(
            text=" ".join(words[:max_tokens]),
            reason="length" if is_cut else "stop",
            n_prompt_tokens=sum(len(turn.content.split()) for turn in turns),
            n_tokens=min(len(words), max_tokens),
            model=self._wish.name or "scripted",
        )


def _lead(prompt: str) -> str:
    """The first sentences of the longest paragraph."""
    longest = " ".join(max(prompt.split("\n\n"), key=len).split())
    return "".join(_SENTENCE.findall(longest)[:MAX_SENTENCES]).strip()[:MAX_LEAD_CHARS] or longest[:MAX_LEAD_CHARS]


class Seat(NamedTuple):
    """Which model an engine has: its name and base, and the adapter by its folder and CID."""

    model: str
    base: str = ""
    adapter: str = ""
    folder: str | None = None
    by: str = ""


class EngineModel:
    """A model behind the engine's messages: this node's, a peer's, or an OpenAI-compatible server's."""

    def __init__(self, engine: Engine, seat: Seat, wish: Model) -> None:
        self._engine = engine
        self._seat = seat
        self._wish = wish

    async def answer(self, turns: Sequence[Turn], max_tokens: int) -> Answer:
        """What the engine's model says. Raises: AgentError, trio.TooSlowError."""
        request = Generate(
            turns=tuple(turns),
            adapter=self._seat.folder,
            max_tokens=max_tokens,
            temperature=self._wish.temperature,
            seed=self._wish.seed,
        )
        parts: list[str] = []
        n_chars = 0
        with trio.fail_after(self._wish.timeout_s):
            async with self._engine.call(request) as replies:
                async for reply in replies:
                    if isinstance(reply, Token):
                        n_chars += len(reply.text)
                        if n_chars <= MAX_ANSWER_CHARS:
                            parts.append(reply.text)
                    elif isinstance(reply, Finished):
                        return self._answer("".join(parts), reply)
        raise EngineFailed("the engine stopped without saying that the answer is complete: ask again")

    def _answer(self, text: str, finished: Finished) -> Answer:
        seat = self._seat
        return Answer(
            text=text.strip(),
            reason="length" if finished.reason == "length" else "stop",
            n_prompt_tokens=finished.n_prompt_tokens,
            n_tokens=finished.n_tokens,
            model=seat.model,
            base=seat.base,
            adapter=seat.adapter,
            by=seat.by,
        )
