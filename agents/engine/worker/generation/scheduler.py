"""Which requests run, and what is computed next: continuous batching within a memory budget. Pure; knows no torch.

The running requests are the rows of one rectangle of keys and values, rows times columns. Those that have one token
left to compute before they choose the next (`ready`) stand in front of those whose prompt is still being read
(`filling`), so that each step works on a slice. A request joins when the rectangle with it is within the budget; when
running ones grow beyond it, the youngest gives up its row and computes its tokens again later. The oldest never does,
and a request that could not run alone is refused at once: everybody comes to an end.

Source: Yu et al., Orca (OSDI 2022), for batching step by step; Kwon et al. (arXiv 2309.06180) for preemption by
recomputation; Agrawal et al., Sarathi-Serve (arXiv 2403.02310), for prompts read in parts beside running answers.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

BLOCK_TOKENS: Final = 64
"""The rectangle's columns come in blocks of so many tokens."""
MAX_WAITING: Final = 256
ALONE_PREFILL_TOKENS: Final = 512
"""Tokens of prompts in one step while no answer is being written; with some, fewer, so that those do not stall."""
SHARED_PREFILL_TOKENS: Final = 64
JOINT_TOKENS: Final = (15, 32, 96)
"""Tokens in a step in which answers and prompts go together; the fewest with which the prompts take few steps. Up to 15
cost hardly more than the answers alone, 32 hardly more than 16."""
JOINT_STEPS: Final = 8


class NoRoom(Exception):
    """The request needs more columns than the whole budget has."""


class QueueFull(Exception):
    """As many requests wait as may."""


class Step(NamedTuple):
    """Compute the next `widths[n]` tokens of row `first + n`."""

    first: int
    widths: tuple[int, ...]


@dataclass(eq=False)
class _Entry:
    """What is known of a request: its tokens so far, how many of them are computed, and how many there may be."""

    key: int
    n_known: int
    n_done: int
    n_limit: int

    @property
    def n_todo(self) -> int:
        return self.n_known - self.n_done


class Scheduler:
    """Decides; the caller computes and reports. In turn: `admit`, `step`, `computed`, and `chosen` or `drop` for each.

    Args:
        budget_tokens: how many columns times rows there may be.
        max_rows: requests that run at once.
        max_waiting: requests that wait; more are refused.
        is_pinned: each step is one row alone and nobody gives up a row, so that what a request computes, and in what
            shapes, is the same whatever else runs. Each request then reserves all that it may need.
        is_joint: rows of different widths are computed without padding, so that a part of a prompt and the next tokens
            of running answers go into one step.
    """

    def __init__(
        self,
        budget_tokens: int,
        *,
        max_rows: int = 32,
        max_waiting: int = MAX_WAITING,
        is_pinned: bool = False,
        is_joint: bool = False,
    ) -> None:
        self.budget_tokens = budget_tokens
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._is_pinned = is_pinned
        self._is_joint = is_joint and not is_pinned
        self._waiting: deque[_Entry] = deque()
        self._rows: list[_Entry] = []  # ready ones first
        self._ages: list[_Entry] = []  # the same, the oldest first
        self._was_prefill = False
        self._turn = 0

    @property
    def rows(self) -> tuple[int, ...]:
        """The keys of the running requests, row by row."""
        return tuple(entry.key for entry in self._rows)

    @property
    def n_waiting(self) -> int:
        """How many requests wait for a row."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Is there nothing to do?"""
        return not (self._rows or self._waiting)

    @property
    def columns(self) -> int:
        """How many columns the rectangle needs for the next step."""
        return _columns(max((entry.n_known for entry in self._rows), default=0))

    def submit(self, key: int, n_prompt: int, n_limit: int) -> None:
        """A request of `n_prompt` tokens that may grow to `n_limit`. Raises: NoRoom, QueueFull."""
        if _columns(n_limit) > self.budget_tokens:
            raise NoRoom(f"{n_limit} tokens; there is room for {self.budget_tokens}")
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull(f"{self._max_waiting} requests wait already")
        self._waiting.append(_Entry(key, n_prompt, 0, n_limit))

    def drop(self, key: int) -> None:
        """The request is over, for whatever reason. The last row of its kind moves into its place."""
        for entry in self._waiting:
            if entry.key == key:
                self._waiting.remove(entry)
                return
        self._take_out(self._find(key))

    def admit(self) -> list[int]:
        """Let the youngest go whose tokens no longer fit, then those in who wait and fit; return the keys of these.

        Who is in `rows` afterwards and was before keeps what was computed.
        """
        while self._area() > self.budget_tokens:
            youngest = self._ages[-1]
            self._take_out(youngest)
            youngest.n_done = 0
            self._waiting.appendleft(youngest)
        admitted = []
        while self._waiting and self._fits(self._waiting[0]):
            entry = self._waiting.popleft()
            self._ages.append(entry)
            self._rows.append(entry)
            admitted.append(entry.key)
        self._order()
        return admitted

    def reuse(self, key: int, n_tokens: int) -> None:
        """The first `n_tokens` of a request just admitted were computed for another; the last is always computed."""
        entry = self._find(key)
        assert entry.n_done == 0 and n_tokens < entry.n_known
        entry.n_done = n_tokens
        self._order()

    def step(self) -> Step | None:
        """What to compute next; None when there is nothing. Prompts and answers take turns, or go together."""
        n_ready = sum(entry.n_todo == 1 for entry in self._rows)
        filling = self._rows[n_ready:]
        if self._is_joint and self._rows:
            return Step(0, (1,) * n_ready + self._packed(filling, n_ready))
        if filling and not (n_ready and self._was_prefill):
            self._was_prefill = True
            is_shared = n_ready and not self._is_pinned
            return Step(n_ready, self._group(filling, SHARED_PREFILL_TOKENS if is_shared else ALONE_PREFILL_TOKENS))
        self._was_prefill = False
        if not n_ready:
            return None
        if self._is_pinned:
            self._turn = (self._turn + 1) % n_ready
            return Step(self._turn, (1,))
        return Step(0, (1,) * n_ready)

    def ends(self, step: Step) -> list[int]:
        """Which rows of `step`, counted from its first, will be able to choose their next token."""
        rows = self._rows[step.first : step.first + len(step.widths)]
        return [at for at, (entry, width) in enumerate(zip(rows, step.widths, strict=True)) if entry.n_todo == width]

    def computed(self, step: Step) -> list[int]:
        """`step` was carried out. Return the keys of those that can choose their next token, row by row."""
        rows = self._rows[step.first : step.first + len(step.widths)]
        for entry, width in zip(rows, step.widths, strict=True):
            entry.n_done += width
        return [entry.key for entry in rows if entry.n_todo == 0]

    def chosen(self, key: int) -> None:
        """The request has one token more. It has to be below its limit, or else to be dropped."""
        entry = self._find(key)
        assert entry.n_todo == 0 and entry.n_known < entry.n_limit
        entry.n_known += 1

    def n_done(self, key: int) -> int:
        """How many tokens of a running request are computed."""
        return self._find(key).n_done

    def _find(self, key: int) -> _Entry:
        return next(entry for entry in self._rows if entry.key == key)

    def _take_out(self, entry: _Entry) -> None:
        self._ages.remove(entry)
        at = self._rows.index(entry)
        last = self._rows.pop()
        if last is not entry:
            self._rows[at] = last
        self._order()

    def _order(self) -> None:
        """Bring ready rows to the front with as few exchanges as there can be: each moves a row's keys and values."""
        n_ready = sum(entry.n_todo <= 1 for entry in self._rows)
        late = [at for at in range(n_ready, len(self._rows)) if self._rows[at].n_todo <= 1]
        early = [at for at in range(n_ready) if self._rows[at].n_todo > 1]
        for to, at in zip(early, late, strict=True):
            self._rows[to], self._rows[at] = self._rows[at], self._rows[to]

    def _group(self, filling: list[_Entry], n_max: int) -> tuple[int, ...]:
        """How many tokens of the first prompts to read: short ones together, as long as little of it is padding."""
        widths: list[int] = []
        for entry in filling:
            width = min(entry.n_todo, n_max)
            area = max(width, *widths, 0) * (len(widths) + 1)
            if widths and (self._is_pinned or area > n_max or area > 2 * (sum(widths) + width)):
                break
            widths.append(width)
        return tuple(widths)

    def _packed(self, filling: list[_Entry], n_ready: int) -> tuple[int, ...]:
        """The same where nothing is padded and `n_ready` answers go along: what there is room for, the last in part."""
        n_todo = sum(entry.n_todo for entry in filling)
        rooms = [size - n_ready for size in JOINT_TOKENS] if n_ready else [ALONE_PREFILL_TOKENS]
        n_left = next((room for room in rooms if room * JOINT_STEPS >= n_todo), max(rooms[-1], 1))
        widths: list[int] = []
        for entry in filling:
            if not n_left:
                break
            widths.append(min(entry.n_todo, n_left))
            n_left -= widths[-1]
        return tuple(widths)

    def _need(self, entry: _Entry) -> int:
        return entry.n_limit if self._is_pinned else entry.n_known

    def _area(self) -> int:
        return len(self._rows) * _columns(max((self._need(entry) for entry in self._rows), default=0))

    def _fits(self, entry: _Entry) -> bool:
        if len(self._rows) >= self._max_rows:
            return False
        # Room for a block more than now: who joins shall not be the one to leave a moment later.
        longest = max(min(self._need(each) + BLOCK_TOKENS, each.n_limit) for each in (*self._rows, entry))
        return not self._rows or (len(self._rows) + 1) * _columns(longest) <= self.budget_tokens


def shape(now: tuple[int, int], n_rows: int, n_columns: int, budget_tokens: int) -> tuple[int, int]:
    """The rows and columns to have for `n_rows` and `n_columns` in use, when there are `now` so many.

    Some slack in rows spares a copy for each request that joins; what is far too large is given back.
    """
    if not n_rows:
        return 0, 0
    wanted = (1 << (n_rows - 1).bit_length(), n_columns)
    if wanted[0] * wanted[1] > budget_tokens:
        wanted = (n_rows, n_columns)
    grown = (max(now[0], wanted[0]), max(now[1], wanted[1]))
    area = grown[0] * grown[1]
    return wanted if area > budget_tokens or area >= 4 * wanted[0] * wanted[1] else grown


def _columns(n_tokens: int) -> int:
    return -(-n_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
