"""A peer's model as chats know models, and its adapters as they know adapters."""

from dataclasses import dataclass
from typing import Final

import msgspec

from agents.adapters.select import Ready, choose, parse_policy
from agents.chat.events import Adapter
from agents.engine.messages import ModelCard
from agents.errors import UnknownName
from protocols.ask.wire import Offer
from protocols.net import PeerInfo
from storage.catalog.models import ModelRow

PEER_SOURCE: Final = "peer"
UNKNOWN_DTYPE: Final = "unknown"
_MAX_NAMED: Final = 8


def card_of_offer(offer: Offer) -> ModelCard:
    """What a chat has to know of the model that a peer offers."""
    return ModelCard(
        name=offer.model,
        fingerprint=str(offer.base),
        architecture=offer.architecture,
        n_params=offer.n_params,
        n_layers=0,
        hidden_size=0,
        vocabulary=0,
        context_tokens=offer.context_tokens,
        dtype=UNKNOWN_DTYPE,
        has_chat_template=True,
    )


@dataclass(frozen=True)
class RemoteModel:
    """A peer that answers, and what it offered when it was last asked."""

    info: PeerInfo
    label: str
    offer: Offer

    @property
    def row(self) -> ModelRow:
        """Its model, as chats know models; it has no folder here."""
        card = card_of_offer(self.offer)
        return ModelRow(
            name=f"{self.offer.model} on {self.label}",
            fingerprint=card.fingerprint,
            folder="",
            source=PEER_SOURCE,
            card=msgspec.to_builtins(card),
            added_unix_s=0.0,
        )

    def adapters(self) -> list[Adapter]:
        """The adapters that it offers, the newest first; each is asked for by its manifest's CID."""
        return [
            Adapter(
                name=one.name,
                version=one.version,
                cid=str(one.manifest),
                publisher=self.label,
                folder=str(one.manifest),
            )
            for one in self.offer.adapters
        ]

    def resolve(self, wish: str) -> Adapter | None:
        """The adapter that the policy `wish` asks for; None is its base model. Raises: UnknownName."""
        n_offered = len(self.offer.adapters)
        ready = [
            Ready(one.manifest, one.name, one.version, self.info.peer, float(n_offered - place), {})
            for place, one in enumerate(self.offer.adapters)
        ]
        try:
            chosen = choose(parse_policy(wish), ready)
        except UnknownName:
            names = ", ".join(sorted({one.name for one in self.offer.adapters})[:_MAX_NAMED]) or "none"
            raise UnknownName(f"{self.label} offers no adapter {wish!r}; it offers: {names}") from None
        return None if chosen is None else next(one for one in self.adapters() if one.cid == str(chosen.cid))
