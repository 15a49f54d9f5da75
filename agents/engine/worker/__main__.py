"""The worker process: frames in on stdin, frames out on stdout, many requests at a time, cancellation at any time.

The main thread computes: a little for each answer and embedding in turn, whatever else in one piece. One thread reads,
so that a `Cancel` is heard and a `Status` answered meanwhile. When stdin ends, the daemon is gone or wants us gone: the
process ends at once, whatever it is doing.
"""

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from agents.engine.framing import BrokenFrame, Unframer, encode
from agents.engine.messages import (
    Cancel,
    EngineStatus,
    Ping,
    Pong,
    Reply,
    Request,
    Status,
)
from agents.engine.worker.endings import cancelled, failed, unforeseen
from agents.errors import AgentError, EngineFailed, EngineMissing

if TYPE_CHECKING:
    from agents.engine.worker.session import Session

_READ_BYTES: Final = 1 << 16
STATUS_S: Final = 0.1
"""A worker that is busy with many things says anew what it does so often; during a long piece it says what was."""


class Pipes:
    """The two ends that the daemon holds. Libraries that print get stderr, those that read get nothing."""

    def __init__(self) -> None:
        self._in, self._out = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """The next bytes of the daemon; empty at the end."""
        return os.read(self._in, _READ_BYTES)

    def send(self, reply: Reply) -> None:
        """Write one reply; without a daemon to read it the process ends."""
        left = memoryview(encode(reply))
        try:
            with self._lock:
                while left:
                    left = left[os.write(self._out, left) :]
        except BrokenPipeError:
            os._exit(0)


class Inbox:
    """Requests that wait for the main thread, and which of those in hand are cancelled."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._in_hand: dict[int, threading.Event] = {}
        # Not bounded here: the daemon bounds its calls in hand.
        self._waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._n_steps = 0  # of the main thread; written by it, read by the one that listens
        self.status = EngineStatus(
            model=None, device="", dtype="", resident_bytes=0, cache_bytes=0, cache_budget_bytes=0, n_running=0,
            n_waiting=0, tokens_per_s=0.0, adapters=(),
        )  # fmt: skip
        """What the main thread last said of itself; set by it, read by the thread that listens."""

    def listen(self) -> None:
        """Take in frames until stdin ends; then end the process, as whatever goes wrong here does."""
        unframer = Unframer()
        code = 2
        try:
            while data := self._pipes.read():
                for value in unframer.feed(data):
                    self._take(value)
            code = 0
        except BrokenFrame as error:
            print(f"the daemon sent garbage: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def next(self, *, wait: bool) -> Request | None:
        """The next request; None where there is none and none is to be waited for."""
        self._n_steps += 1
        try:
            return self._waiting.get(block=wait)
        except queue.Empty:
            return None

    def is_cancelled(self, request: Request) -> bool:
        """Does nobody want the answer any more? That it is asked is a step of the main thread."""
        self._n_steps += 1
        return self._in_hand[request.id].is_set()

    def reply(self, reply: Reply) -> None:
        """Send a reply; with the final one the request is done."""
        if reply.is_final:
            self._in_hand.pop(reply.id, None)
        self._pipes.send(reply)

    def _take(self, value: dict[str, object]) -> None:
        try:
            request = msgspec.convert(value, Request)
        except msgspec.ValidationError as error:
            number = value["id"]
            assert isinstance(number, int)
            self._pipes.send(failed(max(0, number), EngineFailed(f"the request is not valid: {error}")))
            return
        match request:
            case Cancel():
                if event := self._in_hand.get(request.id):
                    event.set()
            case Ping():
                self._pipes.send(Pong(id=request.id, n_steps=self._n_steps, cpu_s=time.process_time()))
            case Status():
                self._pipes.send(msgspec.structs.replace(self.status, id=request.id))
            case _:
                self._in_hand[request.id] = threading.Event()
                self._waiting.put(request)


class Worker:
    """The main thread's loop: a session, and the one place where what goes wrong becomes a reply."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._session: Session | None = None
        self._status_s = 0.0

    def turn(self) -> None:
        """Take in what has come, and do a little for all that is in hand; wait only where nothing is."""
        is_busy = self._session is not None and self._session.is_busy
        while request := self._inbox.next(wait=not is_busy):
            self._begin(request)
            is_busy = self._session is not None and self._session.is_busy
        if self._session is not None:
            self._session.work(self._guard)
            self._note_status(self._session)

    def _note_status(self, session: "Session") -> None:
        now_s = time.perf_counter()
        if not session.is_busy or now_s >= self._status_s + STATUS_S:
            self._status_s = now_s
            self._inbox.status = session.status()

    def _begin(self, request: Request) -> None:
        if self._inbox.is_cancelled(request):
            self._inbox.reply(cancelled(request))
            return

        def begin() -> None:
            self._session = self._session or _new_session()
            self._session.begin(request, self._inbox.reply, lambda: self._inbox.is_cancelled(request))

        if error := self._guard(begin):
            self._inbox.reply(failed(request.id, error))

    def _guard(self, action: Callable[[], None]) -> AgentError | None:
        """Do it; return what went wrong. The one supervisor here: a request fails, the worker lives on."""
        try:
            action()
        except ModuleNotFoundError as error:
            return EngineMissing(f"{error}. Run: pip install 'covey[engine]' torch==2.13.0")
        except AgentError as error:
            return error
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            return unforeseen(error)
        return None


def main() -> None:
    """Answer requests until stdin ends."""
    inbox = Inbox(Pipes())
    threading.Thread(target=inbox.listen, daemon=True).start()
    worker = Worker(inbox)
    while True:
        worker.turn()


def _new_session() -> "Session":
    from agents.engine.worker.session import Session  # here, for it imports torch: seconds

    return Session()


if __name__ == "__main__":
    main()
