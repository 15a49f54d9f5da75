"""From a request of OpenAI's API to what the engine is asked: one `Generate` for each choice."""

from typing import Final

import msgspec

from agents.engine.message import MAX_TEXT_CHARS
from agents.engine.messages import Generate, ModelCard, Turn
from daemon.api.openai.problems import invalid
from daemon.api.openai.wire import MAX_CHOICES, MAX_SCHEMA_BYTES, Chat, Completion, Sampling

SEEDS: Final = 1 << 63
_LEAST_TOP_P: Final = 1e-6  # 0 asks for the likeliest token alone
_ANY_OBJECT: Final = '{"type":"object"}'


def chat_asks(body: Chat, card: ModelCard, folder: str | None, chance: int) -> list[Generate]:
    """The choices of a chat. `chance` seeds them where the request does not. Raises: Refusal."""
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    wanted, name = body.max_completion_tokens, "max_completion_tokens"
    if wanted is None:
        wanted, name = body.max_tokens, "max_tokens"
    turns = tuple(
        Turn("system" if message.role == "developer" else message.role, _readable(message.text, "messages"))
        for message in body.messages
    )
    ask = msgspec.structs.replace(
        _sampled(body, folder, _tokens(wanted, name, card)),
        turns=turns,
        n_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=_schema(body),
    )
    return _choices(ask, body, chance)


def completion_asks(body: Completion, card: ModelCard, folder: str | None, chance: int) -> list[Generate]:
    """The choices for each prompt of a completion, in order. Raises: Refusal."""
    n_choices = body.n * len(body.prompts)
    if n_choices > MAX_CHOICES:
        raise invalid(f"{len(body.prompts)} prompts with n = {body.n} are over {MAX_CHOICES} choices", "n")
    if body.echo and body.logprobs is not None:
        raise invalid("echo with logprobs is not supported by this server: leave one of them away", "echo")
    ask = _sampled(body, folder, _tokens(body.max_tokens, "max_tokens", card))
    asks = [
        msgspec.structs.replace(ask, text=_readable(prompt, "prompt"), n_logprobs=body.logprobs)
        for prompt in body.prompts
    ]
    return [choice for one in asks for choice in _choices(one, body, chance)]


def _readable(text: str, name: str) -> str:
    """The text, where any model could read it. Raises: Refusal."""
    if len(text) > MAX_TEXT_CHARS:
        said = f"{len(text):,} characters are more than any model reads: {MAX_TEXT_CHARS:,} are the most"
        raise invalid(said, name, code="context_length_exceeded")
    return text


def _choices(ask: Generate, body: Sampling, chance: int) -> list[Generate]:
    first = chance if body.seed is None else body.seed
    return [msgspec.structs.replace(ask, seed=(first + number) % SEEDS) for number in range(body.n)]


def _sampled(body: Sampling, folder: str | None, max_tokens: int) -> Generate:
    return Generate(
        adapter=folder,
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=max(body.top_p, _LEAST_TOP_P),
        top_k=max(0, body.top_k),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        stop=body.stops,
    )


def _tokens(wanted: int | None, name: str, card: ModelCard) -> int:
    """The longest answer; without a wish, what the model's context leaves (the engine knows the prompt's length)."""
    if wanted is None:
        return card.context_tokens
    if wanted > card.context_tokens:
        raise invalid(f"{name} is {wanted}: {card.name} takes {card.context_tokens} tokens, prompt included", name)
    return wanted


def _schema(body: Chat) -> str | None:
    asked = body.response_format
    if asked.type == "text":
        return None
    if asked.type == "json_object":
        return _ANY_OBJECT
    if asked.json_schema is None:
        raise invalid("response_format of type json_schema needs json_schema", "response_format.json_schema")
    text = msgspec.json.encode(asked.json_schema.schema).decode()
    if len(text) > MAX_SCHEMA_BYTES:
        raise invalid(f"the schema is over {MAX_SCHEMA_BYTES} bytes", "response_format.json_schema.schema")
    return text
