"""Write yamux.json, conversations of one side of a connection: `python -m tests.vectors.make_yamux`, from the root.

A vector is what the side does and hears, step by step, and after each step all that it sends. Steps are `open`,
`accept`, `write`, `read`, `finish`, `close`, `reset` with the number of a stream, `hear` with bytes, `go_away`. Frames
are built here by hand, from the specification (hashicorp/yamux, spec.md), not by the code that the vectors check. The
first thing that a side ever sends is a ping; the vectors leave it out.
"""

import json
from pathlib import Path
from typing import Any

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WINDOW_BYTES = 262144

Step = dict[str, Any]
REFUSED = "000300000000000000000001"  # it goes away with the code of a protocol error


def frame(kind: int, flags: int, stream: int, length: int, payload: bytes = b"", version: int = 0) -> str:
    head = bytes((version, kind)) + flags.to_bytes(2, "big") + stream.to_bytes(4, "big") + length.to_bytes(4, "big")
    return (head + payload).hex()


def data(stream: int, payload: bytes, flags: int = 0) -> str:
    return frame(DATA, flags, stream, len(payload), payload)


def conversations() -> dict[str, tuple[str, list[Step]]]:
    """By name: the side, and its steps."""
    return {
        "a client opens, writes, and both finish": ("client", [
            {"do": "open", "stream": 1, "sends": frame(WINDOW, SYN, 1, 0)},
            {"do": "hear", "bytes": frame(WINDOW, ACK, 1, 0), "sends": ""},
            {"do": "write", "stream": 1, "bytes": b"hello".hex(), "sends": data(1, b"hello")},
            {"do": "finish", "stream": 1, "sends": frame(WINDOW, FIN, 1, 0)},
            {"do": "hear", "bytes": data(1, b"bye") + frame(WINDOW, FIN, 1, 0), "sends": ""},
            {"do": "read", "stream": 1, "gives": b"bye".hex(), "sends": ""},
        ]),
        "a server accepts a stream that opens with data and an end": ("server", [
            {"do": "hear", "bytes": data(1, b"all of it", SYN | FIN), "sends": ""},
            {"do": "accept", "stream": 1, "sends": frame(WINDOW, ACK, 1, 0)},
            {"do": "read", "stream": 1, "gives": b"all of it".hex(), "sends": ""},
            {"do": "finish", "stream": 1, "sends": frame(WINDOW, FIN, 1, 0)},
        ]),
        "a server's own streams have even numbers": ("server", [
            {"do": "open", "stream": 2, "sends": frame(WINDOW, SYN, 2, 0)},
            {"do": "open", "stream": 4, "sends": frame(WINDOW, SYN, 4, 0)},
        ]),
        "a window that is used up holds the rest back until it opens": ("client", [
            {"do": "open", "stream": 1, "sends": frame(WINDOW, SYN, 1, 0)},
            {"do": "hear", "bytes": frame(WINDOW, ACK, 1, 0), "sends": ""},
            {"do": "write", "stream": 1, "zeros": WINDOW_BYTES + 3, "sends_bytes": WINDOW_BYTES + 5 * 12},
            {"do": "hear", "bytes": frame(WINDOW, 0, 1, 2), "sends": data(1, b"\0\0")},
            {"do": "hear", "bytes": frame(WINDOW, 0, 1, 1000), "sends": data(1, b"\0")},
        ]),
        "half a window read is granted again, and the window doubles": ("server", [
            {"do": "hear", "bytes": frame(DATA, SYN, 1, WINDOW_BYTES // 2), "zeros": WINDOW_BYTES // 2, "sends": ""},
            {"do": "accept", "stream": 1, "sends": frame(WINDOW, ACK, 1, 0)},
            {"do": "read", "stream": 1, "gives_zeros": WINDOW_BYTES // 2,
             "sends": frame(WINDOW, 0, 1, WINDOW_BYTES + WINDOW_BYTES // 2)},
        ]),
        "a ping is answered with its value": ("client", [
            {"do": "hear", "bytes": frame(PING, SYN, 0, 0xDEADBEEF), "sends": frame(PING, ACK, 0, 0xDEADBEEF)},
        ]),
        "a stream that is reset says so once": ("client", [
            {"do": "open", "stream": 1, "sends": frame(WINDOW, SYN, 1, 0)},
            {"do": "reset", "stream": 1, "sends": frame(WINDOW, RST, 1, 0)},
            {"do": "hear", "bytes": data(1, b"on its way") + frame(WINDOW, RST, 1, 0), "sends": ""},
        ]),
        "who goes away says so last": ("server", [
            {"do": "go_away", "sends": frame(GO_AWAY, 0, 0, 0)},
        ]),
        "version 1 is refused": ("server", [
            {"do": "hear", "bytes": frame(DATA, SYN, 1, 0, version=1), "error": "malformed", "sends": REFUSED},
        ]),
        "an unknown type is refused": ("server", [
            {"do": "hear", "bytes": frame(4, 0, 0, 0), "error": "malformed", "sends": REFUSED},
        ]),
        "unknown flags are refused": ("server", [
            {"do": "hear", "bytes": frame(DATA, SYN | 16, 1, 0), "error": "malformed", "sends": REFUSED},
        ]),
        "data of no stream is refused": ("server", [
            {"do": "hear", "bytes": frame(DATA, SYN, 0, 0), "error": "malformed", "sends": REFUSED},
        ]),
        "a stream with a number of ours is refused": ("server", [
            {"do": "hear", "bytes": frame(WINDOW, SYN, 2, 0), "error": "malformed", "sends": REFUSED},
        ]),
        "a stream that is opened twice is refused": ("server", [
            {"do": "hear", "bytes": frame(WINDOW, SYN, 1, 0), "sends": ""},
            {"do": "hear", "bytes": frame(WINDOW, SYN, 1, 0), "error": "malformed", "sends": REFUSED},
        ]),
        "a frame of a stream that nobody opened is refused": ("server", [
            {"do": "hear", "bytes": frame(WINDOW, 0, 3, 1), "error": "malformed", "sends": REFUSED},
        ]),
        "more than was granted is refused by its head alone": ("server", [
            {"do": "hear", "bytes": frame(DATA, SYN, 1, WINDOW_BYTES + 1), "error": "malformed", "sends": REFUSED},
        ]),
        "data behind the end is refused": ("server", [
            {"do": "hear", "bytes": data(1, b"", SYN | FIN), "sends": ""},
            {"do": "hear", "bytes": data(1, b"x"), "error": "malformed", "sends": REFUSED},
        ]),
        "a window beyond 32 bits is refused": ("client", [
            {"do": "open", "stream": 1, "sends": frame(WINDOW, SYN, 1, 0)},
            {"do": "hear", "bytes": frame(WINDOW, ACK, 1, 0xFFFFFFFF), "error": "malformed", "sends": REFUSED},
        ]),
        "a ping of a stream is refused": ("client", [
            {"do": "hear", "bytes": frame(PING, SYN, 1, 0), "error": "malformed", "sends": REFUSED},
        ]),
        "who goes away from one stream is refused": ("client", [
            {"do": "hear", "bytes": frame(GO_AWAY, 0, 1, 0), "error": "malformed", "sends": REFUSED},
        ]),
    }  # fmt: skip


def main() -> None:
    vectors = [{"name": name, "side": side, "steps": steps} for name, (side, steps) in conversations().items()]
    (Path(__file__).parent / "yamux.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
