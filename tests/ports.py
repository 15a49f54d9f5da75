"""Ports that a test has to name before its server listens."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port for a server that reuses addresses, as servers do: the system gives it to nobody else meanwhile.

    A port that was only looked for is anybody's until the server comes, and a thousand connections of other tests may
    stand in as many. Until then nobody answers there.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
        yield held.getsockname()[1]
