"""What the applications of all HTTP faces do alike: mind a client that goes away, and end a reply."""

from typing import Final

import trio
from starlette.types import Message, Receive, Send

FINISH_LIMIT_S: Final = 5.0


async def cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """End the work for a client that goes away."""
    message: Message = {"type": "http.request"}
    while message["type"] != "http.disconnect":
        message = await receive()
    scope.cancel()


async def finish(send: Send, data: bytes = b"") -> None:
    """Send the last part of a body."""
    # The server tells the app that the client is gone as soon as this is out, and only then closes what is to be
    # closed: being ended in between would leave the connection open.
    with trio.move_on_after(FINISH_LIMIT_S, shield=True):
        await send({"type": "http.response.body", "body": data, "more_body": False})
