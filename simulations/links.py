"""The connections of the network in memory."""

import math
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from simulations.streams import SimStream

if TYPE_CHECKING:
    from simulations.net import SimNetwork, SimWorld

JITTER_FRAC: Final = 0.1


class SimLink:
    """A connection between two nodes: frames arrive in order, until it is cut."""

    def __init__(self, world: "SimWorld", ends: tuple["SimNetwork", "SimNetwork"]) -> None:
        self._world = world
        self.ends = ends
        self.is_up = True
        self.streams: set[SimStream] = set()
        self.random = random.Random(f"{world.seed}/{'/'.join(sorted(map(str, (end.peer_id for end in ends))))}")
        self.latency_s = self.random.uniform(*world.latency_s)
        self._last_s = dict.fromkeys(ends, -math.inf)
        self.received = dict.fromkeys(ends, 0)

    def other(self, end: "SimNetwork") -> "SimNetwork":
        """Who is at the other end."""
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    def is_bounded(self, sender: "SimNetwork") -> bool:
        """Do bytes that this end sends wait for others?"""
        return sender.up.is_bounded or self.other(sender).down.is_bounded

    def send(self, sender: "SimNetwork", deliver: Callable[[], None], n_bytes: int = 0) -> None:
        """Call `deliver` at the other end when the bytes are through, behind what was sent before."""
        sender.up.put(self, n_bytes, partial(self._depart, sender, deliver, n_bytes))

    def _depart(self, sender: "SimNetwork", deliver: Callable[[], None], n_bytes: int) -> None:
        delay_s = self.latency_s * (1 + self.random.uniform(0, JITTER_FRAC))
        self._last_s[sender] = max(self._last_s[sender], trio.current_time() + delay_s)
        self._world.at(self._last_s[sender], partial(self._enter, self.other(sender), deliver, n_bytes))

    def _enter(self, receiver: "SimNetwork", deliver: Callable[[], None], n_bytes: int) -> None:
        if self.is_up:
            self.received[receiver] += n_bytes
            receiver.down.put(self, n_bytes, partial(self._arrive, deliver))

    def _arrive(self, deliver: Callable[[], None]) -> None:
        if self.is_up:
            deliver()

    def cut(self) -> None:
        """Break the connection and everything on it."""
        if self.is_up:
            self.is_up = False
            for stream in list(self.streams):
                stream.break_off("the connection broke")
            for end in self.ends:
                end.unlink(self)
