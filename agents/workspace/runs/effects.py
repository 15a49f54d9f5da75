"""What steps of a run may do. An effect gets its input and an idempotency key, the same at every attempt.

Nothing here touches more than its input: a plan comes from a peer.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from agents.errors import AgentError

Effect = Callable[[Any, str], Awaitable[Any]]


class EffectFailed(AgentError):
    """A step of a run failed. It is tried again, as often as its plan says; `covey events` on its host tells why."""

    code = "effect_failed"


async def scripted(given: Any, _key: str) -> Any:
    """The scripted model: {"prompt": text, "answers": {prompt: answer}}; where none fits, it counts words."""
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
        raise EffectFailed("the scripted model takes {prompt, answers}")
    answers = given.get("answers", {})
    prompt = given["prompt"]
    if isinstance(answers, dict) and prompt in answers:
        return answers[prompt]
    return f"[{len(prompt.split())} words] {prompt}"


async def echo(given: Any, _key: str) -> Any:
    """Its input."""
    return given


async def approval(_given: Any, _key: str) -> Any:
    """Nothing: it is performed once somebody has approved."""
    return "approved"


EFFECTS: Final[Mapping[str, Effect]] = {"scripted": scripted, "echo": echo, "approval": approval}
