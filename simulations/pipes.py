"""Bandwidth: the way out of a node, or into it, over which only so many bytes a second go. No clock of its own."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, NamedTuple, Protocol

PIECE_BYTES: Final = 128 << 10  # of a stream, sent in one turn where bandwidth is bounded


class Timeline(Protocol):
    """The time, and what is to happen at some time."""

    def now_s(self) -> float:
        """The time now."""

    def at(self, when_s: float, event: Callable[[], None]) -> None:
        """Call `event` then; events of one time happen in the order in which they were asked for."""


class _Frame(NamedTuple):
    n_bytes: int
    passed: Callable[[], None]


class Pipe:
    """A bound of bytes a second, shared fairly: frames of one link keep their order, links take turns.

    Attributes:
        n_bytes: How much went through.
    """

    def __init__(self, timeline: Timeline, bytes_per_s: float = math.inf) -> None:
        if not bytes_per_s > 0:
            raise ValueError(f"{bytes_per_s} bytes a second: nothing would ever pass")
        self.bytes_per_s = bytes_per_s
        self.n_bytes = 0
        self._timeline = timeline
        self._waiting: OrderedDict[Hashable, deque[_Frame]] = OrderedDict()
        self._is_busy = False
        self._free_s = -math.inf  # when what it took up last is through, whatever the timeline rounds that to

    @property
    def is_bounded(self) -> bool:
        """Does it ever make anything wait?"""
        return self.bytes_per_s < math.inf

    def put(self, link: Hashable, n_bytes: int, passed: Callable[[], None]) -> None:
        """Send so many bytes through, and call `passed` when the last one is."""
        if not self.is_bounded:
            self.n_bytes += n_bytes
            passed()
            return
        self._waiting.setdefault(link, deque()).append(_Frame(n_bytes, passed))
        if not self._is_busy:
            self._free_s = self._timeline.now_s()
            self._go_on()

    def _go_on(self) -> None:
        """Take up frames in turn; those without bytes pass at once, behind what was before them."""
        while self._waiting:
            link, frames = self._waiting.popitem(last=False)
            frame = frames.popleft()
            if frames:
                self._waiting[link] = frames
            if frame.n_bytes:
                self._is_busy = True
                self._free_s += frame.n_bytes / self.bytes_per_s
                self._timeline.at(self._free_s, partial(self._pass, frame))
                return
            frame.passed()

    def _pass(self, frame: _Frame) -> None:
        self._is_busy = False
        self.n_bytes += frame.n_bytes
        frame.passed()
        if not self._is_busy:
            self._go_on()
