"""A peer's addresses are tried one after another, each with a head start on the next (RFC 8305)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import trio

from protocols.errors import DialFailed
from protocols.net_libp2p.addresses import is_circuit, parse, to_id
from storage.keys import PeerId

DIAL_TIMEOUT_S: Final = 10.0
HEAD_START_S: Final = 0.25
MAX_REASON_CHARS: Final = 300


async def dial(swarm: Any, peer: PeerId, texts: Sequence[str]) -> str:
    """Returns: the address that led to the peer; there is a connection then. Raises: DialFailed."""
    ends = [f"{text}/p2p/{peer}" if is_circuit(text) else text for text in texts]
    targets = [(text, address) for text, end in zip(texts, ends, strict=True) if (address := parse(end)) is not None]
    if not targets:
        raise DialFailed(f"no address of {peer} is known: give one that ends with /p2p/{peer}")
    reached: list[str] = []
    failures: list[str] = []

    async def attempt(text: str, address: Any, over: trio.Event, others: trio.Nursery) -> None:
        try:
            await swarm.dial_addr(address, to_id(peer))
        except Exception as error:  # noqa: BLE001 - whatever libp2p raises, this address led nowhere
            failures.append(str(error.__cause__ or error)[:MAX_REASON_CHARS])
        else:
            reached.append(text)
            others.cancel_scope.cancel()
        over.set()

    with trio.move_on_after(DIAL_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for text, address in targets:
                over = trio.Event()
                nursery.start_soon(partial(attempt, text, address, over, nursery))
                with trio.move_on_after(HEAD_START_S):
                    await over.wait()
    if not reached:
        why = "; ".join(failures) or f"no answer within {DIAL_TIMEOUT_S:g} s"
        raise DialFailed(f"{peer} cannot be reached at {', '.join(texts)}: {why}")
    return reached[0]
