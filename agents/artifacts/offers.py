"""Find a base model by name or fingerprint among the peers that are trusted with models, and answer those who ask."""

from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from agents.adapters.announce import Turnstile
from agents.adapters.ports import Ports
from agents.artifacts.keep import pin_name
from agents.artifacts.models import CAPABILITY, KIND, model_in
from agents.artifacts.obtain import TRUST_KINDS
from agents.errors import UnknownName
from protocols import models as wire
from protocols.errors import Remote
from protocols.models import Ask, Offer
from protocols.net import PeerInfo, Stream
from storage.cid import Cid
from storage.errors import StorageError
from storage.keys import PeerId
from storage.pins import PinState

MAX_LOOKED_AT: Final = 256
ANSWER_EVERY_S: Final = 5.0
ANSWER_BURST: Final = 8
ANSWER_TIMEOUT_S: Final = 15.0
ASK_TIMEOUT_S: Final = 5.0
MAX_ASKED: Final = 64
MAX_NAMED: Final = 3


def serve_offers(ports: Ports) -> None:
    """Answer peers that ask which models this node offers."""
    turnstile = Turnstile(ANSWER_EVERY_S, ANSWER_BURST)

    async def handle(stream: Stream) -> None:
        async def offered(question: Ask) -> list[Offer]:
            return await ports.exchange.work(partial(offers, ports, question, stream.peer))

        if turnstile.admits(stream.peer, trio.current_time()):
            with trio.move_on_after(ANSWER_TIMEOUT_S):
                await wire.answer(stream, offered)

    ports.network.serve(wire.PROTOCOL, handle)


def offers(ports: Ports, question: Ask, asker: PeerId) -> list[Offer]:
    """The models that fit, whose blocks are all held here, and that the asker may see; the newest first."""
    found: list[Offer] = []
    for row in ports.catalog.artifacts.find(kind=KIND, name=question.name, capability=CAPABILITY, limit=MAX_LOOKED_AT):
        pin = ports.pins.get(row.files, pin_name(row.manifest)) if row.files else None
        if pin is None or pin.state is not PinState.COMPLETE or not ports.exchange.visible(asker, [row.manifest]):
            continue
        try:
            model = model_in(ports, row)
        except (Remote, StorageError):  # its blocks are damaged: no offer
            continue
        assert model.base is not None
        if question.base in (None, model.base.fingerprint, model.derived_from):
            base = model.base.fingerprint
            found.append(
                Offer(manifest=row.manifest, name=row.name, version=row.version, n_bytes=row.n_bytes, base=base)
            )
    return found


async def find_offer(ports: Ports, question: Ask, version: int | None = None) -> tuple[Offer, list[PeerInfo]] | None:
    """The newest model that fits (of this version, where one is given), and who has it; None where nobody offers one.

    Raises: UnknownName where several different models fit.
    """
    trusted = await ports.exchange.work(partial(_trusted, ports))
    found: dict[PeerId, list[Offer]] = {}

    async def ask(peer: PeerId) -> None:
        try:
            with trio.move_on_after(ASK_TIMEOUT_S):
                found[peer] = await wire.ask(ports.network, peer, question)
        except Remote:
            return  # an older Covey, another program, or one that went away

    async with trio.open_nursery() as nursery:
        for peer in trusted[:MAX_ASKED]:
            nursery.start_soon(ask, peer)
    every = [offer for each in found.values() for offer in each if version in (None, offer.version)]
    if not every:
        return None
    _refuse_several(every)
    best = max(every, key=lambda offer: (offer.version, offer.manifest))
    return best, [PeerInfo(peer) for peer, each in found.items() if any(one.manifest == best.manifest for one in each)]


def _trusted(ports: Ports) -> list[PeerId]:
    return [peer for peer in ports.network.peers() if ports.catalog.peers.is_trusted(peer, TRUST_KINDS[KIND])]


def _refuse_several(every: Iterable[Offer]) -> None:
    by_base: dict[Cid, Offer] = {offer.base: offer for offer in every}
    if len(by_base) > 1:
        cids = ", ".join(str(offer.manifest) for offer in [*by_base.values()][:MAX_NAMED])
        raise UnknownName(f"peers offer {len(by_base)} different models of that name. Give a manifest instead: {cids}")
