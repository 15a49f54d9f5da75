"""Answers in the shapes of OpenAI's API, whole and in pieces. Pure: the engine's replies in, JSON out."""

import struct
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from agents.engine.messages import Finished, Logprob, Token
from agents.errors import EngineFailed

DONE: Final = b"data: [DONE]\n\n"
FLOAT_BYTES: Final = 4

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What every piece of an answer repeats. `fingerprint` is the CID of the adapter's manifest, or of the base."""

    key: str
    created: int
    model: str
    fingerprint: str


@dataclass
class Choice:
    """One of the answers to a request, as far as it has come.

    Args:
        prompt: the number of the prompt that it answers.
        echo: what is repeated before it.
        n_chars: how much of it was told in pieces.
    """

    prompt: int = 0
    echo: str = ""
    texts: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finished: Finished | None = None
    n_chars: int = 0
    is_heard: bool = False

    def take(self, reply: Token | Finished) -> None:
        """Add what the engine said. Raises: EngineFailed where it gave up without a word."""
        self.is_heard = True
        if isinstance(reply, Token):
            self.texts.append(reply.text)
            self.logprobs += reply.logprobs
            return
        if reply.reason == "cancelled":
            raise EngineFailed("the engine stopped before the answer was complete: ask again")
        self.finished = reply

    @property
    def reason(self) -> str:
        """Why it ended."""
        assert self.finished is not None, "the engine ends every answer"
        return self.finished.reason


class Shape(Protocol):
    """How one of the endpoints says it."""

    key: str
    whole_object: str
    piece_object: str

    def whole(self, index: int, choice: Choice, *, has_logprobs: bool) -> Json:
        """A complete choice."""
        ...

    def begins(self, index: int, choice: Choice) -> Json | None:
        """What comes before the first piece of a choice."""
        ...

    def piece(self, index: int, choice: Choice, token: Token, *, has_logprobs: bool) -> Json:
        """The next piece of a choice."""
        ...

    def ends(self, index: int, reason: str) -> Json:
        """What comes after the last piece of a choice."""
        ...


class ChatShape:
    """/v1/chat/completions."""

    key = "chatcmpl"
    whole_object = "chat.completion"
    piece_object = "chat.completion.chunk"

    def whole(self, index: int, choice: Choice, *, has_logprobs: bool) -> Json:
        """A message."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
            "logprobs": _chat_logprobs(choice.logprobs) if has_logprobs else None,
            "finish_reason": choice.reason,
        }

    def begins(self, index: int, choice: Choice) -> Json | None:
        """Who speaks."""
        return _chat_piece(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, choice: Choice, token: Token, *, has_logprobs: bool) -> Json:
        """What is said."""
        logprobs = _chat_logprobs(token.logprobs) if has_logprobs else None
        return _chat_piece(index, {"content": token.text}, logprobs)

    def ends(self, index: int, reason: str) -> Json:
        """Why nothing more comes."""
        return _chat_piece(index, {}, reason=reason)


class TextShape:
    """/v1/completions. With `echo` the prompt stands before the answer."""

    key = "cmpl"
    whole_object = "text_completion"
    piece_object = "text_completion"

    def whole(self, index: int, choice: Choice, *, has_logprobs: bool) -> Json:
        """A text."""
        logprobs = _text_logprobs(choice.logprobs, 0) if has_logprobs else None
        return _text_piece(index, choice.echo + "".join(choice.texts), logprobs, choice.reason)

    def begins(self, index: int, choice: Choice) -> Json | None:
        """The prompt, where it is to be repeated."""
        return _text_piece(index, choice.echo, None) if choice.echo else None

    def piece(self, index: int, choice: Choice, token: Token, *, has_logprobs: bool) -> Json:
        """The next piece."""
        logprobs = _text_logprobs(token.logprobs, choice.n_chars) if has_logprobs else None
        choice.n_chars += len(token.text)
        return _text_piece(index, token.text, logprobs)

    def ends(self, index: int, reason: str) -> Json:
        """Why nothing more comes."""
        return _text_piece(index, "", None, reason)


def whole(shape: Shape, head: Head, choices: Sequence[Choice], *, has_logprobs: bool) -> Json:
    """The whole answer."""
    made = [shape.whole(index, choice, has_logprobs=has_logprobs) for index, choice in enumerate(choices)]
    return {**_headed(shape.whole_object, head), "choices": made, "usage": usage(choices)}


def chunk(shape: Shape, head: Head, choice: Json, *, has_usage: bool) -> bytes:
    """A piece of a stream. With usage asked for, each piece but the last says that it has none."""
    return _event({**_headed(shape.piece_object, head), "choices": [choice], **({"usage": None} if has_usage else {})})


def usage_chunk(shape: Shape, head: Head, choices: Sequence[Choice]) -> bytes:
    """The piece of a stream that counts the tokens."""
    return _event({**_headed(shape.piece_object, head), "choices": [], "usage": usage(choices)})


def error_chunk(body: bytes) -> bytes:
    """What ends a stream that cannot be finished; no [DONE] follows."""
    return b"data: " + body + b"\n\n"


def usage(choices: Sequence[Choice]) -> Json:
    """Tokens read and written. Each choice of a prompt was asked for on its own; OpenAI counts the prompt once."""
    done = [choice.finished for choice in choices if choice.finished]
    prompts = {choice.prompt: choice.finished for choice in choices if choice.finished}
    n_prompt = sum(finished.n_prompt_tokens for finished in prompts.values())
    n_answer = sum(finished.n_tokens for finished in done)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": sum(finished.n_cached_tokens for finished in prompts.values())},
    }


def embeddings(vectors: bytes, width: int, model: str, n_tokens: int, *, as_base64: bool) -> Json:
    """The answer of /v1/embeddings: rows of little-endian float32, as lists or as base64."""
    row_bytes = width * FLOAT_BYTES
    rows = [vectors[at : at + row_bytes] for at in range(0, len(vectors), row_bytes)]
    data = [
        {"object": "embedding", "index": index, "embedding": b64encode(row).decode() if as_base64 else _floats(row)}
        for index, row in enumerate(rows)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _floats(row: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(row) // FLOAT_BYTES}f", row))


def _headed(kind: str, head: Head) -> Json:
    return {
        "id": head.key,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
    }


def _event(value: Json) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _chat_piece(index: int, delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _text_piece(index: int, text: str, logprobs: Json | None, reason: str | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _chat_logprobs(logprobs: Sequence[Logprob]) -> Json:
    content = [
        {**_told(one.token, one.logprob), "top_logprobs": [_told(token, logprob) for token, logprob in one.top]}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _told(token: bytes, logprob: float) -> Json:
    return {"token": _text(token), "logprob": logprob, "bytes": list(token)}


def _text_logprobs(logprobs: Sequence[Logprob], offset: int) -> Json:
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(_text(one.token))
    return {
        "tokens": [_text(one.token) for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [{_text(token): logprob for token, logprob in one.top} for one in logprobs],
        "text_offset": offsets,
    }


def _text(token: bytes) -> str:
    """A token as text; one that is half a character shows as such."""
    return token.decode("utf-8", "replace")
