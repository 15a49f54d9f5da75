"""OpenAI's API as a client speaks it: from `Generate` to a body, and from the stream back to replies. Pure."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from agents.engine.messages import Finished, Generate, Logprob, Token
from agents.errors import AgentError, BackendBusy, BackendFailed, BackendRefused, TooLong, UnknownName

Kind = Literal["covey", "vllm", "llama.cpp", "generic"]

MAX_TEXT_CHARS: Final = 500  # of what a server says about an error
MAX_ANSWER_CHARS: Final = 16 << 20
DONE: Final = "[DONE]"

# What each kind of server calls the options that OpenAI has not. None: it has no such option.
_EXTRAS: Final[dict[Kind, dict[str, str | None]]] = {
    "covey": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
    "vllm": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
    "llama.cpp": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"},
    "generic": {"top_k": None, "min_p": None, "repetition_penalty": None},
}
_NEUTRAL: Final = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_MAX_SEED: Final[dict[Kind, int]] = {"llama.cpp": (1 << 31) - 1}  # it reads 32 bits, the greatest as "by chance"

_NO_ERROR: Final = msgspec.Raw(b"null")

Json = dict[str, Any]


class Entry(msgspec.Struct, frozen=True):
    """A model in a server's list. `root` is what the name stands for; `card` is there where the server is a Covey."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    card: dict[str, Any] | None = None


class _Listing(msgspec.Struct, frozen=True):
    data: tuple[Entry, ...]


class _Told(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _ToldWithOthers(_Told, frozen=True):
    top_logprobs: tuple[_Told, ...] = ()


class _Logprobs(msgspec.Struct, frozen=True):
    """`content` in a chat, the others in a completion."""

    content: tuple[_ToldWithOthers, ...] | None = None
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    text: str = ""
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


Count = Annotated[int, Meta(ge=0, le=1 << 40)]  # budgets are kept by what a server says: nothing below 0


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: msgspec.Raw = _NO_ERROR


def path_of(ask: Generate) -> str:
    """The endpoint below /v1."""
    return "completions" if ask.text is not None else "chat/completions"


def body_of(ask: Generate, model: str, kind: Kind) -> bytes:
    """The request's body. A penalty on repetition is left out where the server has none.

    Raises: BackendRefused for another option that the server has not.
    """
    body: Json = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "seed": ask.seed % (_MAX_SEED.get(kind, (1 << 63) - 1) + 1),
    }
    if ask.text is not None:
        body["prompt"] = ask.text
    else:
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in ask.turns]
    if ask.stop:
        body["stop"] = list(ask.stop)
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(ask, name):
            body[name] = value
    body |= _extras(ask, kind)
    if ask.n_logprobs is not None:
        body |= {"logprobs": ask.n_logprobs} if ask.text is not None else _chat_logprobs(ask.n_logprobs)
    if ask.json_schema is not None:
        schema = {"name": "answer", "schema": msgspec.json.decode(ask.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return msgspec.json.encode(body)


def _extras(ask: Generate, kind: Kind) -> Json:
    made = {}
    for name, theirs in _EXTRAS[kind].items():
        value = getattr(ask, name)
        if value == _NEUTRAL[name]:
            continue
        if theirs is not None:
            made[theirs] = value
        elif name != "repetition_penalty":
            raise BackendRefused(f"a server of kind {kind} takes no {name}: leave it away, or set backend.kind")
    return made


def _chat_logprobs(n: int) -> Json:
    return {"logprobs": True, **({"top_logprobs": n} if n else {})}


def read_models(raw: bytes) -> dict[str, Entry]:
    """A server's list of models, by id. Raises: BackendFailed."""
    try:
        return {entry.id: entry for entry in msgspec.json.decode(raw, type=_Listing).data}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendFailed(f"its list of models is none: {error}") from None


class Reading:
    """The answer to one request, event by event. `began_s` is when it was sent."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._first_s = 0.0
        self._n_pieces = 0
        self._n_chars = 0
        self._usage: _Usage | None = None
        self._reason: Literal["stop", "length"] | None = None
        self.is_over = False

    def event(self, data: str, now_s: float) -> Token | None:
        """Take an event's data; return what it adds to the answer. Raises: AgentError."""
        if data.strip() == DONE:
            self.is_over = True
            return None
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BackendFailed(f"the server sent an event that is no part of an answer: {error}") from None
        if bytes(chunk.error) != bytes(_NO_ERROR):
            raise error_of(500, b'{"error":' + bytes(chunk.error) + b"}")
        self._usage = chunk.usage or self._usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if choice.finish_reason is not None:
            self._reason = "length" if choice.finish_reason == "length" else "stop"
        return self._piece(choice, now_s)

    def _piece(self, choice: _Choice, now_s: float) -> Token | None:
        text = choice.delta.content or choice.text
        logprobs = _read_logprobs(choice.logprobs)
        if not text and not logprobs:
            return None
        self._first_s = self._first_s or now_s
        self._n_pieces += 1
        self._n_chars += len(text)
        if self._n_chars > MAX_ANSWER_CHARS:
            raise BackendFailed(f"the server's answer is over {MAX_ANSWER_CHARS} characters")
        return Token(text=text, logprobs=logprobs)

    def end(self, now_s: float) -> Finished:
        """The stream has ended. A server that counts no tokens: its pieces count. Raises: BackendFailed in mid-answer.

        Some servers end without [DONE]: a reason to stop is an end too.
        """
        if self._reason is None and not self.is_over:
            raise BackendFailed("the server's answer broke off: ask again")
        usage = self._usage or _Usage(completion_tokens=self._n_pieces)
        details = usage.prompt_tokens_details
        return Finished(
            reason=self._reason or "stop",
            n_prompt_tokens=usage.prompt_tokens,
            n_tokens=usage.completion_tokens,
            first_token_s=max(0.0, self._first_s - self._began_s) if self._first_s else 0.0,
            total_s=now_s - self._began_s,
            n_cached_tokens=(details.cached_tokens or 0) if details else 0,
        )


def _read_logprobs(said: _Logprobs | None) -> tuple[Logprob, ...]:
    if said is None:
        return ()
    if said.content is not None:
        return tuple(
            Logprob(_bytes(one), one.logprob, tuple((_bytes(top), top.logprob) for top in one.top_logprobs))
            for one in said.content
        )
    others = said.top_logprobs or (None,) * len(said.tokens)
    return tuple(
        Logprob(token.encode(), logprob, tuple((text.encode(), top) for text, top in (tops or {}).items()))
        for token, logprob, tops in zip(said.tokens, said.token_logprobs, others, strict=False)
        if logprob is not None
    )


def _bytes(told: _Told) -> bytes:
    if told.bytes is not None and all(0 <= value <= 255 for value in told.bytes):
        return bytes(told.bytes)
    return told.token.encode("utf-8", "replace")


class _Problem(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | int | None = None


class _Refusal(msgspec.Struct, frozen=True):
    """OpenAI's errors lie below `error`; older servers have them on top, and frameworks their own as `detail`."""

    error: _Problem | str | None = None
    message: str = ""
    detail: Any = None
    code: str | int | None = None


def said_of(raw: bytes) -> tuple[str, str]:
    """What a server says went wrong, and its code for it."""
    try:
        refusal = msgspec.json.decode(raw, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return raw.decode("utf-8", "replace")[:MAX_TEXT_CHARS].strip(), ""
    problem = refusal.error
    if isinstance(problem, _Problem):
        return problem.message[:MAX_TEXT_CHARS], str(problem.code or "")
    text = problem or refusal.message or str(refusal.detail or "")
    return text[:MAX_TEXT_CHARS], str(refusal.code or "")


def error_of(status: int, raw: bytes) -> AgentError:
    """The error that an answer other than 200 stands for."""
    text, code = said_of(raw)
    told = f"the server says: {text or f'HTTP status {status}'}"
    if status in (401, 403):
        return BackendRefused(f"the server does not accept the token: set backend.token_file or token_env ({told})")
    if status == 429:
        return BackendBusy(f"{told}: try again soon")
    if code == "context_length_exceeded" or "maximum context length" in text or status == 413:
        return TooLong(told)
    if status == 404 or code == "model_not_found":
        return UnknownName(told)
    return BackendRefused(told) if 400 <= status < 500 else BackendFailed(told)
