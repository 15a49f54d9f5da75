"""The chat's terminal when no line is being edited: what is printed, and Ctrl-C while the daemon is waited for."""

import select
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from daemon.cli.chat_core import Begin, Draw, Effect, End, Show, Style, Wipe, Write

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: Final[dict[Style, str]] = {"answerer": "bold green", "notice": "dim", "error": "red", "plain": ""}
_ERASE_LINE: Final = "\r\x1b[K"


class Wrap:
    """Breaks the lines of a text that comes in pieces between words, never in one; a word is held until its end."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""

    def begin(self, column: int) -> None:
        """A text begins at `column`."""
        self._column, self._word = column, ""

    def feed(self, text: str, width: int) -> str:
        """What to print now."""
        printed = ""
        for char in text:
            if char not in " \n":
                self._word += char
                continue
            printed += self.flush(width)
            if char == "\n":
                printed, self._column = printed + char, 0
            elif self._column < width:
                printed, self._column = printed + char, self._column + 1
        return printed

    def flush(self, width: int) -> str:
        """The last word."""
        from rich.cells import cell_len

        word, self._word = self._word, ""
        length = cell_len(word)
        must_break = self._column > 0 and self._column + length > width
        self._column = length if must_break else self._column + length
        return "\n" + word if must_break else word


class Screen:
    """Prints effects. On a terminal with roles in colour; elsewhere the answers to stdout and the rest to stderr."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self._rich: Console | None = None
        self._is_line_open = False
        self._is_drawn = False
        self._wrap = Wrap()

    def perform(self, effect: Effect) -> None:
        """Print one effect."""
        match effect:
            case Show(text, style):
                self._erase()
                self._line(text, style)
            case Begin(label) if self.is_terminal:
                self._erase()
                self._console().print(f"{label}>", style=_STYLES["answerer"], end=" ")
                self._wrap.begin(len(label) + 2)
            case Write(text):
                self._erase()
                self._write(self._wrap.feed(text, _width()) if self.is_terminal else text)
                self._is_line_open = not text.endswith("\n")
            case End():
                last = self._wrap.flush(_width()) if self.is_terminal else ""
                self._write(last + "\n" * self._is_line_open)
                self._is_line_open = False
            case Draw(text) if self.is_terminal:
                sys.stdout.write(_ERASE_LINE + text[: _width() - 1])
                sys.stdout.flush()
                self._is_drawn = True
            case Wipe() if self.is_terminal:
                sys.stdout.write("\x1b[2J\x1b[H")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _erase(self) -> None:
        if self._is_drawn:
            sys.stdout.write(_ERASE_LINE)
            self._is_drawn = False

    def _line(self, text: str, style: Style) -> None:
        if self.is_terminal:
            # Tables are left to the terminal, so that what is copied from them is whole; sentences break between words.
            self._console().print(text, style=_STYLES[style], soft_wrap=style == "plain")
        else:
            print(text, file=sys.stdout if style == "plain" else sys.stderr, flush=True)

    def _console(self) -> "Console":
        if self._rich is None:
            from rich.console import Console

            self._rich = Console(highlight=False, markup=False, emoji=False)
        return self._rich


@contextmanager
def without_echo() -> Iterator[None]:
    """What is typed while an answer comes stays out of it; the next prompt shows it."""
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


class Interrupts:
    """Ctrl-C as a thing to wait for. It interrupts `wait` and nothing else, and none that comes in time is missed.

    The interpreter's own way raises KeyboardInterrupt between any two steps, and misses a signal that comes just
    before a read begins. Here the signal writes to a socket, which is waited for together with the answer.
    """

    def __init__(self) -> None:
        self._pressed, self._signal = socket.socketpair()
        self._pressed.setblocking(False)
        self._signal.setblocking(False)
        self._before = signal.signal(signal.SIGINT, lambda _number, _frame: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give Ctrl-C back to the interpreter."""
        signal.signal(signal.SIGINT, self._before)
        self._pressed.close()
        self._signal.close()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """For the length of the block, Ctrl-C ends a `wait`. What was pressed before is forgotten."""
        self._forget()
        before = signal.set_wakeup_fd(self._signal.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def wait(self, source: socket.socket) -> None:
        """Wait until `source` can be read. Raises: KeyboardInterrupt."""
        while True:
            ready, _, _ = select.select([self._pressed, source], [], [])
            if self._pressed in ready and signal.SIGINT in self._forget():
                raise KeyboardInterrupt
            if source in ready:
                return

    def _forget(self) -> bytes:
        try:
            return self._pressed.recv(4096)
        except BlockingIOError:
            return b""


def _width() -> int:
    return shutil.get_terminal_size().columns
