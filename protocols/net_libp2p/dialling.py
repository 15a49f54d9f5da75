"""A peer's addresses are tried one after another, each with a head start on the next (RFC 8305)."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import trio
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from protocols.errors import DialFailed
from protocols.net_libp2p.addresses import for_protected, is_circuit, parse, to_id
from protocols.net_libp2p.sockets import came_up
from storage.keys import PeerId

DIAL_TIMEOUT_S: Final = 10.0
HEAD_START_S: Final = 0.25
MAX_REASON_CHARS: Final = 300


async def dial(swarm: Any, peer: PeerId, texts: Sequence[str], *, is_protected: bool) -> str:
    """Returns: the address that led to the peer; there is a connection then. Raises: DialFailed."""
    ends = [f"{text}/p2p/{peer}" if is_circuit(text) else text for text in texts]
    targets = [(text, address) for text, end in zip(texts, ends, strict=True) if (address := parse(end)) is not None]
    if not targets:
        raise DialFailed(f"no address of {peer} is known: give one that ends with /p2p/{peer}")
    reached: list[str] = []
    failures: dict[str, str] = {}
    opened: list[str] = []

    def where(text: str) -> str | None:
        """Of which flock the other side may be, where TCP stood and what followed did not."""
        is_open = any(there.startswith(f"{text}/") for there in opened)
        return _other_flock(swarm.psk is not None) if is_open else None

    async def attempt(text: str, address: Any, over: trio.Event, others: trio.Nursery) -> None:
        came_up.set(opened)
        for_protected.set(is_protected)
        try:
            await swarm.dial_addr(address, to_id(peer))
        except Exception as error:  # noqa: BLE001 - whatever libp2p raises, this address led nowhere
            failures[text] = _reason(error, where(text))
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
        led: dict[str, list[str]] = {}
        for text, _ in targets:  # those without a failure were waited for till the end
            why = failures.get(text) or _told(f"no answer within {DIAL_TIMEOUT_S:g} s", where(text))
            led.setdefault(why, []).append(text)
        reasons = "; ".join(f"at {', '.join(ends)}: {why}" for why, ends in led.items())
        raise DialFailed(f"{peer} cannot be reached {reasons}")
    return reached[0]


def _reason(error: BaseException, where: str | None) -> str:
    """Why an address led nowhere: what the system says, where it was the system."""
    first = error
    while (below := _below(first)) is not None:
        first = below
    if isinstance(first, PeerIDMismatchesPubkey):
        return "another peer is there"
    system = os.strerror(first.errno) if isinstance(first, OSError) and first.errno else None
    text = system or str(error.__cause__ or error)[:MAX_REASON_CHARS] or "it hung up"
    return _told(text, where)


def _told(text: str, where: str | None) -> str:
    return f"{text} in the handshake: {where}" if where else text


def _below(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):  # of a name with several addresses; trio makes one of one, too
        return error.exceptions[0]
    return error.__cause__


def _other_flock(is_private: bool) -> str:
    """Two keys, or one and none, look like this: whoever has a key ends the connection at the first words."""
    kind = "another private flock than this node, or in none" if is_private else "a private flock"
    return f"it may be in {kind} (`covey status` tells)"
