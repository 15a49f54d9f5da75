"""What happens in a chat, as data: the daemon sends these as NDJSON, a terminal shows them."""

from typing import Literal

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """Base of all events of a chat."""


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An adapter that can answer: a version of a name by a publisher, complete in `folder`."""

    name: str
    version: int
    cid: str
    publisher: str
    folder: str


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A place that the model was given to read. `number` is what the answer cites."""

    number: int
    path: str
    first_line: int
    last_line: int
    score: float
    cited: bool = False


class Loading(Event, frozen=True, tag="loading"):
    """The model is not in the engine yet: the answer begins when it is, which takes some seconds."""

    model: str


class Switched(Event, frozen=True, tag="switched"):
    """From this turn on, `now` answers; `was` did before. None is the base model."""

    now: Adapter | None
    was: Adapter | None
    swap_s: float


class Offered(Event, frozen=True, tag="offered"):
    """The policy would switch to `adapter`, and this chat asks first. Said once for each adapter."""

    adapter: Adapter | None


class Refused(Event, frozen=True, tag="refused"):
    """`adapter` could not be loaded; the chat stays with `staying` and does not try it again."""

    adapter: Adapter
    staying: Adapter | None
    reason: str


class Token(Event, frozen=True, tag="token"):
    """The next piece of the answer."""

    text: str


class Cited(Event, frozen=True, tag="cited"):
    """The sources given to the model for this answer, in order; `cited` marks those that the answer names.

    `invented` are the numbers that the answer cites and that no source has.
    """

    sources: tuple[Source, ...]
    invented: tuple[int, ...] = ()


class Finished(Event, frozen=True, tag="finished"):
    """The answer is complete.

    `cache`: it was given before, to the same question or to a similar one at that `distance`, within the `threshold`.
    """

    reason: Literal["stop", "length", "cancelled"]
    n_prompt_tokens: int
    n_tokens: int
    first_token_s: float
    total_s: float
    n_forgotten_turns: int = 0
    cache: Literal["none", "exact", "semantic"] = "none"
    distance: float | None = None
    threshold: float | None = None


class Failed(Event, frozen=True, tag="failed"):
    """There is no (whole) answer. `code` is stable; `text` says what to do next. The chat goes on."""

    code: str
    text: str


ChatEvent = Loading | Switched | Offered | Refused | Token | Cited | Finished | Failed
