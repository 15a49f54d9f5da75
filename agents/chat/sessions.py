"""The chats that are open on a node: a bounded number, each forgotten when it has been idle for long."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from agents.ask.offers import RemoteModel
from agents.chat.answer import Settings
from agents.chat.conversation import Conversation
from agents.errors import AgentError
from agents.retrieval.index import Index
from storage.catalog.models import ModelRow

MAX_SESSIONS: Final = 64
IDLE_S: Final = 12 * 3600.0


class UnknownChat(AgentError):
    """That chat is not open: it was idle for too long, or the daemon was restarted. Open a new one."""

    code = "unknown_chat"


class TooManyChats(AgentError):
    """Too many chats are open. End one with /exit and try again."""

    code = "too_many_chats"


@dataclass(eq=False)
class Chat:
    """An open chat. `on_new_adapter` is switch, ask or tell; `indexes` are what it answers from, by path.

    `remote` is the peer that answers, where it is not this node.
    """

    key: str
    model: ModelRow
    conversation: Conversation
    settings: Settings
    on_new_adapter: str
    indexes: dict[str, Index] = field(default_factory=dict)
    remote: RemoteModel | None = None
    is_busy: bool = False

    def close(self) -> None:
        """Let go of the indexes."""
        for index in self.indexes.values():
            index.close()


class Session(Protocol):
    """What is kept open. While it is busy it is never forgotten."""

    is_busy: bool

    def close(self) -> None:
        """Let go of what it holds."""


T = TypeVar("T", bound=Session)


class Sessions(Generic[T]):
    """Open sessions by id. No clock: the caller brings the time."""

    def __init__(self, *, limit: int = MAX_SESSIONS, idle_s: float = IDLE_S) -> None:
        self._limit = limit
        self._idle_s = idle_s
        self._sessions: dict[str, tuple[T, float]] = {}  # the longest unused first

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[T]:
        """Those that are open, the longest unused first."""
        return iter([session for session, _ in self._sessions.values()])

    def add(self, key: str, session: T, now_s: float) -> None:
        """Open a session; one that was idle for `idle_s` makes room. Raises: TooManyChats."""
        self.expire(now_s)
        if len(self._sessions) >= self._limit:
            raise TooManyChats(f"{self._limit} chats are open, which is the limit: end one with /exit and try again")
        self._sessions[key] = (session, now_s)

    def get(self, key: str, now_s: float) -> T:
        """The session by that id, now in use. Raises: UnknownChat."""
        self.expire(now_s)
        found = self._sessions.pop(key, None)
        if found is None:
            raise UnknownChat
        self._sessions[key] = (found[0], now_s)
        return found[0]

    def remove(self, key: str) -> None:
        """Close a session; one that is not there is closed already."""
        session, _ = self._sessions.pop(key, (None, 0.0))
        if session:
            session.close()

    def expire(self, now_s: float) -> list[str]:
        """Forget, and report, the sessions that were idle for `idle_s`."""
        gone = [
            key
            for key, (session, used_s) in self._sessions.items()
            if now_s - used_s >= self._idle_s and not session.is_busy
        ]
        for key in gone:
            self.remove(key)
        return gone
