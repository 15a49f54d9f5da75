"""What asker and answerer say to each other, and in which order the asker may hear it.

One stream, one question. The asker sends `Ask` (or `Describe`) and nothing more; the end of its side takes the
question back. The answerer sends `Accepted`, then `Piece`s, then `Answered`; `Waiting` comes in between whenever
nothing else did for a while, and `Refused` may end it at any point.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from protocols.adapters import Name, Version
from protocols.entry import MAX_BODY_BYTES, MAX_ENTRY_BYTES
from protocols.errors import Malformed, TooBig
from protocols.message import Message, decode_form
from storage.cid import Cid

PROTOCOL: Final = "/covey/ask/1.0.0"

MAX_ASK_BYTES: Final = 512 << 10
MAX_REPLY_BYTES: Final = MAX_BODY_BYTES + MAX_ENTRY_BYTES + (4 << 10)  # the final one, with a record in it
MAX_TURNS: Final = 512
MAX_PIECE_BYTES: Final = 32 << 10
MAX_ANSWER_BYTES: Final = 1 << 20
MAX_REPLIES: Final = 1 << 17
MAX_TOKENS: Final = 1 << 16
MAX_SCHEMA_CHARS: Final = 64 << 10
MAX_STOPS: Final = 16
MAX_DEADLINE_S: Final = 3600.0
MAX_RETRY_S: Final = 86_400.0
MAX_OFFERED: Final = 256
NO_ADAPTER: Final = "none"

Role = Literal["system", "user", "assistant"]
Label = Annotated[str, Meta(max_length=128)]
Code = Annotated[str, Meta(pattern=r"^[a-z][a-z_]{0,31}\Z")]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
AdapterWish = Annotated[str, Meta(min_length=1, max_length=256)]


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One message of a chat."""

    role: Role
    content: Annotated[str, Meta(max_length=MAX_ASK_BYTES)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are drawn. The same options, prompt, model and adapter ask the same question."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 256
    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=MAX_STOPS)] = ()
    json_schema: Annotated[str, Meta(max_length=MAX_SCHEMA_CHARS)] | None = None


class Describe(Message, frozen=True, tag="describe"):
    """Which model answers, and with which adapters? Answered with `Offer`."""


class Ask(Message, frozen=True, tag="ask", kw_only=True):
    """Answer this chat.

    `base` is the fingerprint of the model that shall answer, None for the one that stands there. `adapter` is a
    manifest's CID, NAME, NAME@VERSION, `latest` or `none`. After `deadline_s` the asker no longer listens.
    """

    turns: Annotated[tuple[Turn, ...], Meta(min_length=1, max_length=MAX_TURNS)]
    base: Cid | None = None
    adapter: AdapterWish = NO_ADAPTER
    options: Options = Options()
    deadline_s: Annotated[float, Meta(gt=0.0, le=MAX_DEADLINE_S)] = 300.0
    wants_record: bool = False


class OfferedAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An adapter that may be asked for."""

    name: Name
    version: Version
    manifest: Cid


class Offer(Message, frozen=True, tag="offer", kw_only=True):
    """The model that answers, the most tokens of one answer, and the adapters, the newest first."""

    model: Label
    base: Cid
    architecture: Label
    n_params: Count
    context_tokens: Annotated[int, Meta(ge=1, le=1 << 40)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    adapters: Annotated[tuple[OfferedAdapter, ...], Meta(max_length=MAX_OFFERED)] = ()


class Accepted(Message, frozen=True, tag="accepted", kw_only=True):
    """The question is taken, behind `n_ahead` others; `base` and `adapter` (a manifest, or None) will answer."""

    model: Label
    base: Cid
    adapter: Cid | None
    n_ahead: Count


class Waiting(Message, frozen=True, tag="waiting", kw_only=True):
    """A sign of life while there is nothing to say: the model is loaded, reads, or answers `n_ahead` others first."""

    n_ahead: Count


class Piece(Message, frozen=True, tag="piece", kw_only=True):
    """The next piece of the answer."""

    text: Annotated[str, Meta(max_length=MAX_PIECE_BYTES)]


class SignedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The two blocks of a record (`protocols.ask.record`)."""

    entry: Annotated[bytes, Meta(max_length=MAX_ENTRY_BYTES)]
    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]


class Answered(Message, frozen=True, tag="answered", kw_only=True):
    """The answer is complete. `cache` tells whether it was given before, to the same question or to a similar one."""

    reason: Literal["stop", "length"]
    n_prompt_tokens: Count
    n_tokens: Count
    cache: Literal["none", "exact", "semantic"] = "none"
    record: SignedRecord | None = None


class Refused(Message, frozen=True, tag="refused", kw_only=True):
    """There is no (whole) answer. `code` is stable, `text` for people; `retry_s` says when to ask again, None never."""

    code: Code
    text: Annotated[str, Meta(max_length=1024)]
    retry_s: Annotated[float, Meta(ge=0.0, le=MAX_RETRY_S)] | None = None


Question = Ask | Describe
Reply = Accepted | Waiting | Piece | Answered | Refused


class Dialogue:
    """The asker's side of one question: which replies may come, and how many. No IO.

    Args:
        max_answer_bytes: an answer over it is refused, be it complete or not.
    """

    def __init__(self, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._n_left_bytes = max_answer_bytes
        self._n_replies = 0
        self._is_accepted = False
        self.is_over = False

    def heard(self, frame: bytes) -> Reply:
        """The next reply. Raises: TooBig, Malformed (also for a reply out of turn)."""
        reply: Reply = decode_form(frame, Reply, MAX_REPLY_BYTES)
        self._n_replies += 1
        if self.is_over:
            raise Malformed(f"a {_kind(reply)} behind the end of the answer")
        if self._n_replies > MAX_REPLIES:
            raise TooBig(f"more than {MAX_REPLIES} replies to one question")
        if isinstance(reply, Accepted) and self._is_accepted:
            raise Malformed("the question was accepted twice")
        if isinstance(reply, Piece | Answered) and not self._is_accepted:
            raise Malformed(f"a {_kind(reply)} before the question was accepted")
        if isinstance(reply, Piece):
            self._n_left_bytes -= len(reply.text.encode())
            if self._n_left_bytes < 0:
                raise TooBig("the answer is over the limit of bytes")
        self._is_accepted = self._is_accepted or isinstance(reply, Accepted)
        self.is_over = isinstance(reply, Answered | Refused)
        return reply


def pieces(text: str) -> list[str]:
    """`text` cut into what one `Piece` may hold."""
    n_chars = MAX_PIECE_BYTES // 4  # a character takes four bytes at most
    return [text[at : at + n_chars] for at in range(0, len(text), n_chars)]


def _kind(reply: Reply) -> str:
    return str(reply.__struct_config__.tag)
