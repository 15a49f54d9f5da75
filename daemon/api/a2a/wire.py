"""A2A 1.0 as JSON-RPC says it: requests read, tasks written. What is not read here is passed over, as the norm asks.

Source: A2A protocol specification 1.0, JSON-RPC binding.
"""

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

MAX_PARTS: Final = 64
MAX_TEXT_CHARS: Final = 16_000

PARSE: Final = -32700
BAD_REQUEST: Final = -32600
NO_METHOD: Final = -32601
BAD_PARAMS: Final = -32602
INTERNAL: Final = -32603
NO_TASK: Final = -32001
NOT_CANCELABLE: Final = -32002
NO_PUSH: Final = -32003
UNSUPPORTED: Final = -32004
BAD_CONTENT: Final = -32005

Json = dict[str, Any]
T = TypeVar("T")
Id = Annotated[str, Meta(max_length=128)]
STATES: Final = {
    "running": "TASK_STATE_WORKING",
    "waiting": "TASK_STATE_WORKING",
    "done": "TASK_STATE_COMPLETED",
    "failed": "TASK_STATE_FAILED",
    "cancelled": "TASK_STATE_CANCELED",
}


class RpcError(Exception):
    """What a client is told instead of a result."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Call(msgspec.Struct, frozen=True):
    """A request."""

    method: Annotated[str, Meta(max_length=64)]
    jsonrpc: str = ""
    id: Annotated[str, Meta(max_length=256)] | int | None = None
    params: Json = {}


class Part(msgspec.Struct, frozen=True):
    """A piece of a message."""

    text: str | None = None


class Message(msgspec.Struct, frozen=True, rename="camel"):
    """What is said to an agent."""

    message_id: Annotated[str, Meta(min_length=1, max_length=128)]
    parts: Annotated[list[Part], Meta(min_length=1, max_length=MAX_PARTS)]
    context_id: Id = ""
    task_id: Id = ""
    role: str = "ROLE_USER"


class Configuration(msgspec.Struct, frozen=True, rename="camel"):
    """How it is to be answered."""

    return_immediately: bool = False


class Send(msgspec.Struct, frozen=True):
    """The parameters of SendMessage and SendStreamingMessage."""

    message: Message
    configuration: Configuration = Configuration()

    @property
    def text(self) -> str:
        """The message as a prompt. Raises: RpcError for one that is no text."""
        texts = [part.text for part in self.message.parts]
        if any(text is None for text in texts):
            raise RpcError(BAD_CONTENT, "agents here take text parts only")
        joined = "\n".join(text for text in texts if text)
        if not joined or len(joined) > MAX_TEXT_CHARS:
            raise RpcError(BAD_PARAMS, f"a message has 1 to {MAX_TEXT_CHARS} characters")
        return joined


class Which(msgspec.Struct, frozen=True):
    """The parameters of what is about one task."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]


def read_call(data: bytes) -> Call:
    """Raises: RpcError."""
    try:
        call = msgspec.json.decode(data, type=Call)
    except msgspec.ValidationError as error:
        raise RpcError(BAD_REQUEST, f"that is no JSON-RPC request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RpcError(PARSE, "that is no JSON") from None
    if call.jsonrpc != "2.0":
        raise RpcError(BAD_REQUEST, "this server speaks JSON-RPC 2.0")
    return call


def read_send(params: Json) -> Send:
    """Raises: RpcError."""
    return _read(params, Send)


def read_which(params: Json) -> Which:
    """Raises: RpcError."""
    return _read(params, Which)


def _read(params: Json, form: type[T]) -> T:
    try:
        return msgspec.convert(params, form)
    except msgspec.ValidationError as error:
        raise RpcError(BAD_PARAMS, str(error)) from None


def result(call: Call, value: Json) -> Json:
    """An answer."""
    return {"jsonrpc": "2.0", "id": call.id, "result": value}


def failure(id_: str | int | None, error: RpcError) -> Json:
    """An answer that says what went wrong."""
    return {"jsonrpc": "2.0", "id": id_, "error": {"code": error.code, "message": str(error)}}


def status(state: str, why: str, task: str, context: str) -> Json:
    """The status of a task."""
    found: Json = {"state": STATES[state]}
    if why:
        found["message"] = {
            "messageId": f"{task}-status",
            "taskId": task,
            "contextId": context,
            "role": "ROLE_AGENT",
            "parts": [{"text": why}],
        }
    return found


def artifact(text: str, commit: str) -> Json:
    """What came of a task. Its id is the entry that says so, whose signature anybody can check."""
    return {"artifactId": commit, "name": "answer", "parts": [{"text": text, "mediaType": "text/plain"}]}
