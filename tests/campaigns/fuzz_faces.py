"""Readers of what programs say over HTTP to a node's faces, and of the small messages between nodes."""

from typing import Final

from daemon.api.a2a import wire as a2a
from daemon.api.http import _params
from daemon.api.openai import wire as openai
from daemon.api.openai.problems import Refusal
from daemon.api.operation import operations
from daemon.errors import BadRequest
from protocols import adapters, kubo_rpc, message, models
from protocols.ask import wire as ask
from protocols.errors import Remote
from storage.cid import DAG_CBOR, Cid
from tests.campaigns.fuzz_reader import Reader

_BASE: Final = Cid.of(b"base", DAG_CBOR)
_CHAT: Final = (
    b'{"model": "tiny", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type":'
    b' "text", "text": "why?"}]}], "temperature": 0.5, "stop": ["x"], "stream": true, "stream_options":'
    b' {"include_usage": true}, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}'
)
_COMPLETION: Final = b'{"model": "tiny", "prompt": ["once", "twice"], "max_tokens": 9, "seed": 5, "n": 2, "echo": true}'
_EMBEDDING: Final = b'{"model": "tiny", "input": ["a", "b"], "encoding_format": "base64", "user": "x"}'
_CALL: Final = (
    b'{"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": {"message": {"messageId": "m", "parts": [{"text":'
    b' "do it"}], "contextId": "c", "taskId": "t", "role": "ROLE_USER"}, "configuration": {"returnImmediately": true}}}'
)
_WHICH: Final = b'{"jsonrpc": "2.0", "id": "x", "method": "GetTask", "params": {"id": "task"}}'
_PARAMS: Final = (
    ("peer/trust", b'{"peer": "ann", "kinds": ["adapters", "rounds"]}'),
    ("peer/ban", b'{"peer": "ann", "reason": "lies"}'),
    ("net/bench", b'{"peer": "ann", "mb": 5}'),
    ("events/read", b"{}"),
)
_SMALL: Final = (
    adapters.Ask(bases=(_BASE,)),
    adapters.Answer(base=_BASE, envelope=b"sealed"),
    models.Ask(name="name", base=_BASE),
    models.Offer(manifest=_BASE, name="name", version=2, n_bytes=5, base=_BASE),
    ask.Describe(),
    ask.Offer(
        model="tiny", base=_BASE, architecture="llama", n_params=5, context_tokens=9, max_tokens=5,
        adapters=(ask.OfferedAdapter(name="poet", version=1, manifest=_BASE),),
    ),
)  # fmt: skip


def _called(data: bytes) -> object:
    """A call, and its parameters as any method reads them."""
    call = a2a.read_call(data)
    if call.method == "SendMessage":
        return a2a.read_send(call.params).text
    return a2a.read_which(call.params)


def _control(data: bytes) -> object:
    """The first byte says of which operation; the rest is the body."""
    name = _PARAMS[data[0] % len(_PARAMS)][0] if data else _PARAMS[0][0]
    return _params(operations()[name], data[1:])


def _small(data: bytes) -> object:
    return message.decode(data, tuple(map(type, _SMALL)), ask.MAX_REPLY_BYTES)


def _refused(data: bytes) -> object:
    return str(kubo_rpc.refusal("/api/v0/version", 500, data))


READERS: Final = (
    Reader("openai-chat", lambda data: openai.read(data, openai.Chat), (Refusal,), (_CHAT,)),
    Reader("openai-completion", lambda data: openai.read(data, openai.Completion), (Refusal,), (_COMPLETION,)),
    Reader("openai-embedding", lambda data: openai.read(data, openai.Embedding), (Refusal,), (_EMBEDDING,)),
    Reader("a2a-call", _called, (a2a.RpcError,), (_CALL, _WHICH)),
    Reader(
        "control-params", _control, (BadRequest,),
        tuple(bytes([number]) + body for number, (_, body) in enumerate(_PARAMS)),
    ),
    Reader(
        "small-messages", _small, (Remote,), tuple(message.encode(one, ask.MAX_REPLY_BYTES) for one in _SMALL)
    ),
    Reader("kubo-refusal", _refused, (), (b'{"Message": "no such block", "Code": 0, "Type": "error"}',)),
)  # fmt: skip
