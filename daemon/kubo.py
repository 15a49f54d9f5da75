"""A Kubo node beside this one: content from it, and what is published here sent to it too."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from daemon.api.faults import fault_of
from daemon.api.operation import Progress
from daemon.errors import Unfit
from protocols import kubo_rpc
from protocols.artifacts import describe
from protocols.entry import stored_entry
from protocols.errors import ProtocolError, Remote
from protocols.kubo_rpc import Ask, Post, Reply, Sent
from storage.blockstore import Block, Visibility
from storage.cid import DAG_CBOR, Cid
from storage.dag import reach
from storage.errors import StorageError

if TYPE_CHECKING:
    from daemon.app import Node

_BOUNDARY_BYTES: Final = 32

Report = Callable[[Progress], None]


def _untold(_progress: Progress) -> None:
    """Nobody wants to know."""


class Part(NamedTuple):
    """A DAG to send and pin, or, where it is not whole here by its nature, the one block."""

    cid: Cid
    is_recursive: bool = True


@asynccontextmanager
async def kubo_of(node: "Node") -> AsyncIterator[Post]:
    """The Kubo of the configuration; each of its answers, and each part of one, has to come in time.

    Raises: KuboUnreachable; TooSlowError where it does not.
    """
    from protocols.kubo_http import kubo_at

    async with kubo_at(node.config.kubo.api) as post:
        yield partial(_patient, post, node.config.kubo.timeout_s)


async def publish_to_kubo(node: "Node", root: Cid, *, name: str = "", report: Report = _untold) -> Sent:
    """Send what is below `root` to Kubo and have it pinned there. Of an artifact: its manifest and its files.

    Raises: Unfit for what is not here whole, Remote, StorageError, TooSlowError.
    """
    step = f"sending {root} to Kubo"

    def on_progress(sent: Sent) -> None:
        report(Progress(step=step, n_done=sent.n_bytes))

    parts = await trio.to_thread.run_sync(_parts, node, root)
    with node.store.lease():
        async with kubo_of(node) as post:
            blocks = _blocks(node, parts)
            sent = await kubo_rpc.send_blocks(post, blocks, secrets.token_hex(_BOUNDARY_BYTES), on_progress)
            for part in parts:
                await kubo_rpc.pin(post, part.cid, name=name, is_recursive=part.is_recursive)
    node.events.note("kubo_published", {"cid": str(root), "n_blocks": sent.n_blocks, "n_bytes": sent.n_bytes})
    return sent


async def publish_beside(
    node: "Node", root: Cid, level: Visibility, *, is_asked: bool | None = None, report: Report = _untold
) -> list[str]:
    """Send what was just published here to Kubo too: where that was asked for, or where it is public and configured.

    Whatever goes wrong there changes nothing here. Returns: what to warn of.
    """
    is_wanted = node.config.kubo.publish and level is Visibility.PUBLIC if is_asked is None else is_asked
    if not is_wanted:
        return []
    try:
        await publish_to_kubo(node, root, report=report)
    except (ProtocolError, StorageError, Unfit, trio.TooSlowError) as error:
        fault = fault_of(error)
        node.events.note("kubo_failed", {"cid": str(root), "code": fault.code, "text": fault.text})
        return [f"it is here, and was not sent to Kubo: {fault.text}. To try again: covey kubo publish {root}"]
    return []


def _parts(node: "Node", root: Cid) -> list[Part]:
    """What to send for a root: a manifest links to its parents and its base, which are no part of it."""
    if root.codec == DAG_CBOR:
        try:
            entry = stored_entry(node.store, root)
            return [Part(describe(entry).files), Part(entry.body_cid, False), Part(root, False)]
        except (Remote, StorageError):
            """No artifact: a DAG like any other."""
    return [Part(root)]


def _blocks(node: "Node", parts: list[Part]) -> Iterator[Block]:
    """Raises: Unfit for what is not here whole."""
    for part in parts:
        if not part.is_recursive:
            yield Block(part.cid, node.store.get(part.cid))
            continue
        for reached in reach(node.store, part.cid):
            if reached.n_bytes is None:
                raise Unfit(f"{part.cid} is not here whole. To fetch the rest: covey pin add {part.cid}")
            yield Block(reached.cid, node.store.get(reached.cid))


@asynccontextmanager
async def _patient(post: Post, idle_s: float, ask: Ask) -> AsyncIterator[Reply]:
    async with AsyncExitStack() as stack:
        with trio.fail_after(idle_s):
            reply = await stack.enter_async_context(post(ask))
        chunks = await stack.enter_async_context(aclosing(_each_in_time(reply.chunks, idle_s)))
        yield Reply(reply.status, chunks)


async def _each_in_time(chunks: AsyncIterator[bytes], idle_s: float) -> AsyncGenerator[bytes, None]:
    while True:
        with trio.fail_after(idle_s):  # closed again before anything is given out
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk
