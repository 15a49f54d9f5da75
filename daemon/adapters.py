"""The adapter services of a node, as operations use them."""

from dataclasses import dataclass

import trio

from agents.adapters.ports import Ports
from storage.cid import Cid


@dataclass(frozen=True, slots=True)
class Adapters:
    """`published` takes manifests that are to be announced, `bases` fingerprints of models to hear of adapters for."""

    ports: Ports
    published: trio.MemorySendChannel[Cid]
    bases: trio.MemorySendChannel[Cid]

    async def listen(self) -> None:
        """Hear of adapters for every model that is here by now; those that are known already cost nothing."""
        models = await trio.to_thread.run_sync(self.ports.catalog.models.list)
        for base in sorted({base for model in models for base in model.accepts}):
            await self.bases.send(Cid.parse(base))
