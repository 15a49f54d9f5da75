"""The worker process: frames in on stdin, frames out on stdout, one request at a time, cancellation at any time.

One thread reads, so that a `Cancel` is heard while the main thread computes. When stdin ends, the daemon is gone or
wants us gone: the process ends at once, whatever it is doing.
"""

import os
import queue
import sys
import threading
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from agents.engine.framing import BrokenFrame, Unframer, encode
from agents.engine.messages import Cancel, Failed, Finished, Generate, Ping, Pong, Reply, Request
from agents.errors import AgentError, EngineFailed, EngineMissing

if TYPE_CHECKING:
    from agents.engine.worker.session import Session

_READ_BYTES: Final = 1 << 16


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

    def next(self) -> tuple[Request, threading.Event]:
        """Wait for a request; the event is set once it is cancelled."""
        request = self._waiting.get()
        self._n_steps += 1
        return request, self._in_hand[request.id]

    def is_cancelled(self, cancelled: threading.Event) -> bool:
        """Has the request been cancelled? That it is asked is a step of the main thread."""
        self._n_steps += 1
        return cancelled.is_set()

    def done(self, request: Request) -> None:
        """The request has its final reply."""
        del self._in_hand[request.id]

    def _take(self, value: dict[str, object]) -> None:
        try:
            request = msgspec.convert(value, Request)
        except msgspec.ValidationError as error:
            number = value["id"]
            assert isinstance(number, int)
            self._pipes.send(
                Failed(id=max(0, number), code=EngineFailed.code, text=f"the request is not valid: {error}")
            )
            return
        if isinstance(request, Ping):
            self._pipes.send(Pong(id=request.id, n_steps=self._n_steps, cpu_s=time.process_time()))
            return
        if isinstance(request, Cancel):
            if event := self._in_hand.get(request.id):
                event.set()
            return
        self._in_hand[request.id] = threading.Event()
        self._waiting.put(request)


def main() -> None:
    """Answer requests until stdin ends."""
    pipes = Pipes()
    inbox = Inbox(pipes)
    threading.Thread(target=inbox.listen, daemon=True).start()
    session: Session | None = None
    while True:
        request, cancelled = inbox.next()
        try:
            if cancelled.is_set():
                reply = _cancelled(request)
            else:
                session = session or _new_session()
                reply = session.answer(request, pipes.send, partial(inbox.is_cancelled, cancelled))
        except ModuleNotFoundError as error:
            reply = _failed(request, EngineMissing(f"{error}. Run: pip install 'covey[engine]' torch==2.13.0"))
        except AgentError as error:
            reply = _failed(request, error)
        except Exception as error:  # noqa: BLE001  # the one supervisor here: a request fails, the worker lives on
            traceback.print_exc()
            reply = _failed(request, EngineFailed(f"{type(error).__name__}: {error}"))
        inbox.done(request)
        pipes.send(reply)


def _new_session() -> "Session":
    from agents.engine.worker.session import Session  # here, for it imports torch: seconds

    return Session()


def _cancelled(request: Request) -> Reply:
    if isinstance(request, Generate):
        return Finished(
            id=request.id, reason="cancelled", n_prompt_tokens=0, n_tokens=0, first_token_s=0.0, total_s=0.0
        )
    return _failed(request, EngineFailed("cancelled before it began"))


def _failed(request: Request, error: AgentError) -> Failed:
    return Failed(id=request.id, code=error.code, text=str(error)[:2000])


if __name__ == "__main__":
    main()
