"""The requests of OpenAI's API, as bodies that are checked whole: an option that is not known here is refused by name.

What is accepted beyond OpenAI's own: `top_k`, `min_p` and `repetition_penalty`, as vLLM calls them. OPENAI.md lists
what is taken, what is ignored (and told in the header `x-covey-ignored`), and what is refused.
"""

import re
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from daemon.api.openai.problems import Refusal, invalid

MAX_CHOICES: Final = 16
MAX_PARTS: Final = 1000
MAX_INPUTS: Final = 2048
MAX_STOPS: Final = 16
MAX_SCHEMA_BYTES: Final = 1 << 16

# They say something about the client, or how OpenAI bills, keeps or speeds up: the answer is the same without them.
IGNORED: Final = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Not done here; these values ask for nothing.
NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "best_of": (1,),
    "suffix": ("",),
}
_NEUTRAL_IN_MESSAGE: Final[dict[str, tuple[object, ...]]] = {"tool_calls": ([],), "annotations": ([],)}

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_AT: Final = re.compile(r" - at `\$(.*)`\Z")

ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Tokens = Annotated[int, Meta(ge=1, le=1 << 20)]
Stop = Annotated[str, Meta(min_length=1, max_length=200)]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a request."""


class Part(Body, frozen=True, kw_only=True):
    """A part of a message; only text is read here."""

    type: Literal["text"]
    text: str


class Message(Body, frozen=True, kw_only=True):
    """A message of a chat. `name` tells people apart for those models that were taught to."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[tuple[Part, ...], Meta(max_length=MAX_PARTS)]
    name: Annotated[str, Meta(max_length=64)] | None = None

    @property
    def text(self) -> str:
        """All that it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Body, frozen=True, kw_only=True):
    """`include_obfuscation` is OpenAI's padding against traffic analysis; nothing is padded here."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Body, frozen=True, kw_only=True):
    """A schema by a name. It is always kept to, `strict` or not."""

    name: Annotated[str, Meta(max_length=64)]
    schema: dict[str, Any] = {}
    description: Annotated[str, Meta(max_length=4096)] | None = None
    strict: bool = False


class ResponseFormat(Body, frozen=True, kw_only=True):
    """Free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampling(Body, frozen=True, kw_only=True):
    """What every kind of generation takes. Without a seed each answer is another."""

    model: ModelName
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=1 << 20)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | Annotated[tuple[Stop, ...], Meta(max_length=MAX_STOPS)] = ()
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Where the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def has_usage(self) -> bool:
        """Does the stream end with the counts of tokens?"""
        return self.stream_options is not None and self.stream_options.include_usage


class Chat(Sampling, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=1000)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat = ResponseFormat(type="text")


class Completion(Sampling, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_CHOICES)]
    max_tokens: Tokens = 16
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool = False

    @property
    def prompts(self) -> tuple[str, ...]:
        """What to go on from."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt


class Embedding(Body, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    model: ModelName
    input: str | Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=1 << 16)] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """What to embed."""
        return (self.input,) if isinstance(self.input, str) else self.input


B = TypeVar("B", Chat, Completion, Embedding)


def read(raw: bytes, kind: type[B]) -> tuple[B, list[str]]:
    """A request's body, and which of its options are ignored. Raises: Refusal, naming what is wrong in it."""
    try:
        said = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise invalid("the body is not a JSON object")
    for name in ("prompt", "input"):
        if _holds_tokens(said.get(name)):
            raise invalid(
                f"{name}: arrays of tokens are not read by this server, whose models each count tokens in a way of "
                "their own: send the text, a string or an array of strings",
                name,
                code="unsupported",
            )
    ignored = sorted(IGNORED & said.keys())
    asked = _asked(said, NEUTRAL, "")
    messages = asked.get("messages")
    if isinstance(messages, list):
        asked["messages"] = [
            _asked(message, _NEUTRAL_IN_MESSAGE, f"messages[{at}].") if isinstance(message, dict) else message
            for at, message in enumerate(messages)
        ]
    try:
        body = msgspec.convert(asked, kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None
    return body, ignored


def _holds_tokens(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(part, int | list) for part in value)


def _asked(said: dict[str, Any], neutral: dict[str, tuple[object, ...]], where: str) -> dict[str, Any]:
    """What was said, without what asks for nothing: null is the default of every option."""
    asked = {}
    for name, value in said.items():
        if value is None or (not where and name in IGNORED):
            continue
        if name in neutral:
            if value not in neutral[name]:
                raise invalid(f"{where}{name} is not supported by this server", f"{where}{name}", code="unsupported")
            continue
        asked[name] = value
    return asked


def _wrong(text: str) -> Refusal:
    at = _AT.search(text)
    place = at.group(1).lstrip(".") if at else ""
    said = text[: at.start()] if at else text
    for pattern, words in ((_UNKNOWN, "unknown option: {}"), (_MISSING, "missing option: {}")):
        if found := pattern.fullmatch(said):
            name = f"{place}.{found.group(1)}" if place else found.group(1)
            return invalid(words.format(name), name, code="unknown_parameter" if pattern is _UNKNOWN else None)
    place = place.replace("[...]", "")
    return invalid(f"{place}: {said}" if place else said, place or None)
