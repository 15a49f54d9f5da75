"""One request on its way: the tokens it has, the text it has sent, and how it ends."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from agents.engine.messages import Finished, Generate, Logprob, Reply, Token
from agents.engine.worker.generation.grammar import Matcher
from agents.engine.worker.generation.sampling import Choice, Sampler
from agents.engine.worker.lora import StagedAdapter
from agents.engine.worker.models import LoadedModel
from agents.engine.worker.text import TextStream

Reason = Literal["stop", "length", "cancelled"]


@dataclass(eq=False)
class Sequence:
    """A request from its first token to its last. `emit` takes its replies, the final one included."""

    request: Generate
    ids: list[int]
    adapter: StagedAdapter | None
    n_limit: int
    sampler: Sampler
    matcher: Matcher | None
    stream: TextStream
    emit: Callable[[Reply], None]
    is_cancelled: Callable[[], bool]
    began_s: float
    n_prompt: int = 0
    n_cached: int = 0
    first_token_s: float = 0.0
    _logprobs: list[Logprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.ids)

    def take(self, choice: Choice, loaded: LoadedModel) -> Reason | None:
        """Go on with this token; return why the answer ends with it, where it does. Raises: EngineFailed."""
        self.first_token_s = self.first_token_s or time.perf_counter() - self.began_s
        if choice.token in loaded.end_tokens:
            return "stop"
        if self.matcher is not None:
            self.matcher.accept(choice.token)
        self.ids.append(choice.token)
        if choice.logprob is not None:
            top = tuple((loaded.token_bytes(token), logprob) for token, logprob in choice.top)
            self._logprobs.append(Logprob(loaded.token_bytes(choice.token), choice.logprob, top))
        self._send(self.stream.feed(choice.token))
        if self.stream.is_stopped or (self.matcher is not None and self.matcher.is_over):
            return "stop"
        return "length" if len(self.ids) >= self.n_limit else None

    def finish(self, reason: Reason) -> None:
        """Send what was held back, and the final reply."""
        self._send(self.stream.finish())
        self.emit(
            Finished(
                id=self.request.id,
                reason=reason,
                n_prompt_tokens=self.n_prompt,
                n_tokens=len(self.ids) - self.n_prompt,
                first_token_s=self.first_token_s,
                total_s=time.perf_counter() - self.began_s,
                n_cached_tokens=self.n_cached,
            )
        )

    def _send(self, text: str) -> None:
        if text or self._logprobs:
            self.emit(Token(id=self.request.id, text=text, logprobs=tuple(self._logprobs)))
            self._logprobs = []
