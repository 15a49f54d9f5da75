"""Does the worker still live, and does its work go on? The core of the engine's supervision: no IO, no clock.

A worker hangs in one of three ways: it gives no sign of life (stopped, or stuck in one call that holds everything); its
reader lives, but its main thread neither takes steps nor computes (a lock that nobody opens); or it computes and takes
no step for very long. A long prefill, import or training step does compute, and trips none of them.
"""

from typing import Final

HANG_S: Final = 60.0
START_S: Final = 60.0
"""The least that a worker gets for its first sign of life: on a busy machine Python alone takes seconds."""
STILL_FACTOR: Final = 2.0
"""Standing still is borne so many times as long as silence: the worker may wait for a disk or a network."""
NO_STEP_FACTOR: Final = 10.0
PULSES_PER_LIMIT: Final = 6
MISSED_PULSES: Final = 3
BUSY_FRAC: Final = 0.02


class Watchdog:
    """One worker's signs of life. `hang_s`: how long it may give none while there is work in hand."""

    def __init__(self, hang_s: float, now_s: float) -> None:
        self._hang_s = hang_s
        self._silence_s = max(hang_s, START_S)
        self._asked_s: float | None = None  # the first question that is not answered yet
        self._n_steps = -1
        self._cpu_s = 0.0
        self._pong_s = now_s
        self._step_s = now_s
        self._moved_s = now_s  # the last step, or the last time that it was seen to compute
        self._looked_s = now_s

    @property
    def pulse_s(self) -> float:
        """How often to ask."""
        return self._hang_s / PULSES_PER_LIMIT

    def begin(self, now_s: float) -> None:
        """There is work in hand again, after a time without."""
        self._asked_s = None
        self._pong_s = self._step_s = self._moved_s = self._looked_s = now_s

    def asked(self, now_s: float) -> None:
        """The worker was asked for a sign of life."""
        if self._asked_s is None:
            self._asked_s = now_s

    def heard(self, now_s: float) -> None:
        """Something came from it, be it what it may."""
        self._asked_s = None
        self._silence_s = self._hang_s

    def pong(self, n_steps: int, cpu_s: float, now_s: float) -> None:
        """It told how many steps its main thread has taken and how long its processors have worked, since its start."""
        self.heard(now_s)
        if n_steps != self._n_steps:
            self._n_steps, self._step_s, self._moved_s = n_steps, now_s, now_s
        elif cpu_s - self._cpu_s > BUSY_FRAC * (now_s - self._pong_s):
            self._moved_s = now_s
        self._cpu_s, self._pong_s = cpu_s, now_s

    def complaint(self, now_s: float, *, is_long: bool) -> str | None:
        """What is wrong with it, if anything; to be asked every `pulse_s`.

        Who asks much later was away itself (a daemon that was stopped, a machine that slept): the worker's answers may
        lie unread, so its time begins anew. `is_long`: what is in hand may take one step for hours.
        """
        was_away = now_s - self._looked_s > self.pulse_s * MISSED_PULSES
        self._looked_s = now_s
        if was_away:
            self.begin(now_s)
            return None
        if self._asked_s is not None and now_s - self._asked_s >= self._silence_s:
            return f"it gave no sign of life for {now_s - self._asked_s:.0f} s and was ended"
        if self._n_steps < 0:
            return None  # it has told nothing of steps
        if now_s - self._moved_s >= self._hang_s * STILL_FACTOR:
            return f"it stood still for {now_s - self._moved_s:.0f} s and was ended"
        if not is_long and now_s - self._step_s >= self._hang_s * NO_STEP_FACTOR:
            return f"it computed for {now_s - self._step_s:.0f} s without a step and was ended"
        return None
