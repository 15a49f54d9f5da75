"""The chat's terminal itself: prints effects, edits lines, and shows news above the line that is being edited."""

import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from daemon.cli.chat_core import Begin, Draw, Effect, End, Show, Style, Wipe, Write

if TYPE_CHECKING:
    from rich.console import Console

HISTORY_LINES: Final = 1000
REPEAT_S: Final = 0.5
_STYLES: Final[dict[Style, str]] = {"answerer": "bold green", "notice": "dim", "error": "red", "plain": ""}
_ERASE_LINE: Final = "\r\x1b[K"
# Make room for one line above the cursor's without moving the cursor in its own: index and up scroll where needed,
# then save, insert a line, print, restore, down.
_ABOVE: Final = "\x1bD\x1b[A\x1b7\r\x1b[L{}\x1b8\x1b[B"


class Screen:
    """Prints effects. On a terminal with roles in colour; elsewhere the answers to stdout and the rest to stderr."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self._rich: Console | None = None
        self._is_line_open = False
        self._is_drawn = False

    def perform(self, effect: Effect) -> None:
        """Print one effect."""
        match effect:
            case Show(text, style):
                self._erase()
                self._line(text, style)
            case Begin(label) if self.is_terminal:
                self._erase()
                self._console().print(f"{label}>", style=_STYLES["answerer"], end=" ")
            case Write(text):
                self._erase()
                sys.stdout.write(text)
                sys.stdout.flush()
                self._is_line_open = not text.endswith("\n")
            case End() if self._is_line_open:
                sys.stdout.write("\n")
                sys.stdout.flush()
                self._is_line_open = False
            case Draw(text) if self.is_terminal:
                sys.stdout.write(_ERASE_LINE + text[: _width() - 1])
                sys.stdout.flush()
                self._is_drawn = True
            case Wipe() if self.is_terminal:
                sys.stdout.write("\x1b[2J\x1b[H")

    def _erase(self) -> None:
        if self._is_drawn:
            sys.stdout.write(_ERASE_LINE)
            self._is_drawn = False

    def _line(self, text: str, style: Style) -> None:
        if self.is_terminal:
            self._console().print(text, style=_STYLES[style], soft_wrap=True)
        else:
            print(text, file=sys.stdout if style == "plain" else sys.stderr, flush=True)

    def _console(self) -> "Console":
        if self._rich is None:
            from rich.console import Console

            self._rich = Console(highlight=False, markup=False, emoji=False)
        return self._rich

    def prompt(self, text: str) -> str:
        """A prompt in colour; readline is told which characters have no width."""
        if self._console().color_system is None:
            return text
        return f"\001\x1b[1;36m\002{text}\001\x1b[0m\002"


class LineEditor:
    """Lines from the user, by readline: editing, completion, and a history that survives."""

    def __init__(self, history: Path, complete: Callable[[str, str], list[str]]) -> None:
        import readline

        self._readline = readline
        self._history = history
        self._complete = complete
        self._found: list[str] = []
        self._news: deque[str] = deque()
        self._prompt: str | None = None  # while a line is being edited
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._completion)
        readline.set_auto_history(False)
        os.close(os.open(history, os.O_RDWR | os.O_CREAT, 0o600))
        readline.read_history_file(history)
        readline.set_history_length(HISTORY_LINES)

    def read(self, prompt: str, shown: str) -> str:
        """One line. `shown` is `prompt` as it is printed, with colour. Raises: EOFError, KeyboardInterrupt."""
        self._prompt = prompt
        try:
            line = input(shown)
        finally:
            self._prompt = None
        if line.strip():
            self._readline.add_history(line)
            self._readline.write_history_file(self._history)
        return line

    def _completion(self, word: str, state: int) -> str | None:
        if state == 0:
            line = self._readline.get_line_buffer()[: self._readline.get_endidx()]
            self._found = self._complete(line.lstrip(), word)
        return self._found[state] if state < len(self._found) else None

    def show_above(self, text: str) -> bool:
        """Print a line above the one that is being edited, which stays as it is. False where that cannot be done."""
        if self._prompt is None:
            return False
        from rich.cells import cell_len, set_cell_size

        width = _width()
        # A line that is wrapped would be cut in two: its news waits.
        if cell_len(self._prompt + self._readline.get_line_buffer()) >= width:
            return False
        os.write(sys.stdout.fileno(), _ABOVE.format(set_cell_size(text, width - 1).rstrip()).encode())
        return True


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


class NewsDesk:
    """Brings news from a thread to the main thread, also while that waits for a key.

    A signal wakes the main thread: its handler runs between two keys, so that nothing is printed into an edit.
    """

    def __init__(self, show: Callable[[Any], bool]) -> None:
        self._show = show
        self._waiting: deque[Any] = deque()
        signal.signal(signal.SIGUSR1, self._on_signal)

    def bring(self, item: Any) -> None:
        """Have an item shown, now or before the next line is read. Called from another thread; returns when it was.

        A signal that comes just before readline begins to wait is noticed with the next key only: so it is repeated.
        """
        self._waiting.append(item)
        pause = threading.Event()
        while self._waiting:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            pause.wait(REPEAT_S)

    def drain(self) -> list[Any]:
        """The items that could not be shown yet."""
        items = list(self._waiting)
        self._waiting.clear()
        return items

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        while self._waiting and self._show(self._waiting[0]):
            self._waiting.popleft()


def _width() -> int:
    return shutil.get_terminal_size().columns
