"""The log: JSON lines in a file that rotates within bounds and, in the foreground, lines for people on stderr.

The program logs with structlog; what libraries log with the standard library comes in by the same door.
"""

import logging
import logging.handlers
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from daemon import jsons, wall
from daemon.cli.text import clean
from daemon.config import LogsConfig
from daemon.paths import Home

MAX_LINE_CHARS: Final = 16 << 10
CUT_CHARS: Final = 400  # of each end of a value, in a line that is too long
MAX_CUT_FIELDS: Final = 10
# They log what is normal on a network (a peer that hangs up) as warnings, some at each frame, or each request.
_LOUD_LIBRARIES: Final = ("libp2p", "multiaddr", "hypercorn", "asyncio", "zeroconf", "httpx", "httpcore")
_COLOURS: Final = {"debug": "2", "info": "0", "warning": "33", "error": "31", "critical": "31"}

Event = MutableMapping[str, Any]


def begin(home: Home, config: LogsConfig, *, foreground: bool) -> None:
    """Send all logging of this process to the home's log, and to stderr in the foreground."""
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, _stamp]
    file = logging.handlers.RotatingFileHandler(
        home.log, maxBytes=config.max_bytes, backupCount=config.n_kept, encoding="utf-8"
    )
    file.setFormatter(_formatter(shared, as_json))
    handlers: list[logging.Handler] = [file]
    if foreground:
        screen = logging.StreamHandler(sys.stderr)
        screen.setFormatter(_formatter(shared, as_line_in_colour if sys.stderr.isatty() else as_line))
        handlers.append(screen)
    logging.basicConfig(handlers=handlers, level=config.level.upper(), force=True)
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def end() -> None:
    """Write out and close what `begin` opened."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    structlog.reset_defaults()


def as_json(_logger: object, _method: str, event: Event) -> str:
    """One line of JSON; values that JSON lacks become text."""
    ordered = {"time": event.pop("time"), "level": event.pop("level"), "event": event.pop("event"), **event}
    line = jsons.encode(ordered, str).decode()
    if len(line) <= MAX_LINE_CHARS:
        return line
    short = {key: _ends(str(value)) for key, value in list(ordered.items())[:MAX_CUT_FIELDS]}
    return jsons.encode({**short, "cut_chars": len(line)}).decode()


def _ends(text: str) -> str:
    """Beginning and end: of a trace, what ran and what went wrong."""
    return text if len(text) <= 2 * CUT_CHARS else f"{text[:CUT_CHARS]} ... {text[-CUT_CHARS:]}"


def as_line(_logger: object, _method: str, event: Event) -> str:
    """One line for people: `12:34:56 event key=value`."""
    clock = event.pop("time")[11:19]
    level = event.pop("level")
    trace = event.pop("exception", None)
    text = _printable(str(event.pop("event")))
    pairs = "".join(f" {key}={_printable(str(value))}" for key, value in event.items())
    mark = "" if level == "info" else f"{level}: "
    return f"{clock} {mark}{text}{pairs}" + (f"\n{clean(trace, keep_lines=True)}" if trace else "")


def as_line_in_colour(logger: object, method: str, event: Event) -> str:
    """`as_line`, coloured by level."""
    colour = _COLOURS.get(str(event.get("level")), "0")
    return f"\x1b[{colour}m{as_line(logger, method, event)}\x1b[0m"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:MAX_LINE_CHARS]


def _formatter(shared: list[Any], render: Any) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            render,
        ],
    )


def _stamp(_logger: object, _method: str, event: Event) -> Event:
    event["time"] = wall.utc_text(wall.unix_s())
    return event
