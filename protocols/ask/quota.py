"""What each peer may ask of us: questions at once and a minute, tokens an hour and a day; and how long the line is.

Tokens are reserved when a question is admitted, the most that it may cost, and settled when it ends.
"""

import math
from typing import Final, NamedTuple

from protocols.bucket import Bucket
from storage.keys import PeerId

MAX_ACCOUNTS: Final = 4096
MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
BUSY_RETRY_S: Final = 5.0


class Limits(NamedTuple):
    """For one peer, but `n_running` (questions answered at once) and `n_queued` (waiting) for all of them."""

    n_at_once: int = 2
    n_per_minute: int = 20
    tokens_per_hour: int = 20_000
    tokens_per_day: int = 100_000
    n_running: int = 2
    n_queued: int = 8


class Denied(NamedTuple):
    """Why not, and when to ask again; None for never."""

    code: str
    text: str
    retry_s: float | None


class _Account:
    def __init__(self, limits: Limits, now_s: float) -> None:
        self.n_open = 0
        self.questions = Bucket(limits.n_per_minute, MINUTE_S, now_s)
        self.hour = Bucket(limits.tokens_per_hour, HOUR_S, now_s)
        self.day = Bucket(limits.tokens_per_day, DAY_S, now_s)

    def is_settled(self, now_s: float) -> bool:
        return not self.n_open and all(one.is_full(now_s) for one in (self.questions, self.hour, self.day))


class Ticket:
    """A question that was admitted; given back to `Quota.settle` once."""

    def __init__(self, peer: PeerId, n_tokens: int) -> None:
        self.peer = peer
        self.n_tokens = n_tokens
        self.is_open = True


class Quota:
    """Who may ask now? No IO, no clock. What is counted is forgotten by a restart, which no peer can cause."""

    def __init__(self, limits: Limits, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._limits = limits
        self._max_accounts = max_accounts
        self._accounts: dict[PeerId, _Account] = {}
        self._n_open = 0

    @property
    def n_open(self) -> int:
        """Questions that run or wait."""
        return self._n_open

    def admit(self, peer: PeerId, n_tokens: int, now_s: float) -> Ticket | Denied:
        """Let a question of `peer` in that may cost up to `n_tokens`, or say why not."""
        account = self._account(peer, now_s)
        limits = self._limits
        if account is None:
            return Denied("busy", "too many peers are asking", BUSY_RETRY_S)
        if account.n_open >= limits.n_at_once:
            return Denied("too_many_questions", f"{account.n_open} of your questions are under way", BUSY_RETRY_S)
        wait_s = account.questions.wait_s(1, now_s)
        if wait_s > 0:
            return Denied("too_many_questions", f"more than {limits.n_per_minute} questions a minute", wait_s)
        for bucket, most, time in (
            (account.hour, limits.tokens_per_hour, "an hour"),
            (account.day, limits.tokens_per_day, "a day"),
        ):
            wait_s = bucket.wait_s(n_tokens, now_s)
            if wait_s == math.inf:
                text = f"prompt and answer may take {n_tokens:,} tokens, and {most:,} {time} are yours: ask for less"
                return Denied("quota_spent", text, None)
            if wait_s > 0:
                return Denied("quota_spent", f"your {most:,} tokens {time} are spent", wait_s)
        if self._n_open >= limits.n_running + limits.n_queued:
            return Denied("busy", f"{self._n_open} questions are under way or waiting", BUSY_RETRY_S)
        account.n_open += 1
        self._n_open += 1
        account.questions.take(1, now_s)
        account.hour.take(n_tokens, now_s)
        account.day.take(n_tokens, now_s)
        return Ticket(peer, n_tokens)

    def settle(self, ticket: Ticket, n_tokens: int, now_s: float) -> None:
        """The question is over and cost `n_tokens`. A second time changes nothing."""
        if not ticket.is_open:
            return
        ticket.is_open = False
        self._n_open -= 1
        account = self._accounts[ticket.peer]
        account.n_open -= 1
        account.hour.take(n_tokens - ticket.n_tokens, now_s)
        account.day.take(n_tokens - ticket.n_tokens, now_s)

    def _account(self, peer: PeerId, now_s: float) -> _Account | None:
        """The peer's account; None when there are too many that still count for something."""
        account = self._accounts.get(peer)
        if account is None:
            if len(self._accounts) >= self._max_accounts:
                self._accounts = {one: kept for one, kept in self._accounts.items() if not kept.is_settled(now_s)}
            if len(self._accounts) >= self._max_accounts:
                return None
            account = self._accounts[peer] = _Account(self._limits, now_s)
        return account
