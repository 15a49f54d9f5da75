"""Peers as those who answer: from what a user names to a model, its adapters and an engine."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from agents.ask.convert import options_of, turns_of
from agents.ask.offers import RemoteModel
from agents.ask.recording import RecordedEngine
from agents.ask.records import Said, keep_record, store_record
from agents.ask.remote import RemoteEngine, describe
from agents.chat.answer import Engine
from agents.chat.events import Adapter
from agents.engine.messages import Finished, Generate
from agents.models import card_of
from protocols.ask.record import SignedAnswer
from protocols.ask.wire import Turn
from protocols.net import PeerInfo
from storage.catalog.models import ModelRow
from storage.cid import Cid

if TYPE_CHECKING:
    from daemon.app import Node

_SHOWN_OF_PEER_ID: Final = 8


async def remote_model(node: "Node", name: str) -> RemoteModel:
    """Ask the peer of that id or name what it answers with. Raises: NotFoundHere, Unfit, AgentError."""
    from daemon.api.operations.peer import resolve

    peer = await resolve(node, name)
    row = await trio.to_thread.run_sync(node.catalog.peers.get, peer)
    info = PeerInfo(peer, row.addresses if row else ())
    label = row.name if row and row.name else f"…{str(peer)[-_SHOWN_OF_PEER_ID:]}"
    return RemoteModel(info, label, await describe(node.network, info))


async def again(node: "Node", remote: RemoteModel) -> RemoteModel:
    """The same peer, with what it offers now. Raises: AgentError."""
    return RemoteModel(remote.info, remote.label, await describe(node.network, remote.info))


def engine_of(node: "Node", remote: RemoteModel, timeout_s: float, recorded: list[Cid] | None = None) -> RemoteEngine:
    """The peer's model as an engine. With `recorded`, each answer's signed record is kept, and its CID put there."""

    async def keep(signed: SignedAnswer, turns: Sequence[Turn], answer: str) -> None:
        await trio.to_thread.run_sync(partial(keep_record, node.adapters.ports, signed, turns, answer))
        assert recorded is not None
        recorded.append(signed.entry.cid)

    return RemoteEngine(node.network, remote.info, timeout_s=timeout_s, keep=None if recorded is None else keep)


def recorded_here(
    node: "Node", engine: Engine, model: ModelRow, adapter: Adapter | None, recorded: list[Cid]
) -> RecordedEngine:
    """This node's engine, with a signed record of each answer kept, and its CID put in `recorded`."""

    async def keep(request: Generate, answer: str, finished: Finished) -> None:
        said = Said(
            model=model.name,
            base=Cid.parse(card_of(model).base),
            adapter=Cid.parse(adapter.cid) if adapter else None,
            options=options_of(request),
            reason=finished.reason,
            n_prompt_tokens=finished.n_prompt_tokens,
            n_tokens=finished.n_tokens,
        )
        store = partial(store_record, node.adapters.ports, said, turns_of(request), answer, None, is_kept=True)
        signed = await trio.to_thread.run_sync(store)
        recorded.append(signed.entry.cid)

    return RecordedEngine(engine, keep)
