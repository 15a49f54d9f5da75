"""The engine's device, where there is one that is free, as rounds ask it to aggregate."""

from collections.abc import Callable
from typing import Final

import structlog
import trio

from agents.engine.aggregation import Aggregate, Aggregated
from agents.errors import AgentError
from agents.models import Engine as Trainer

LIMIT_S: Final = 600.0
MIN_NUMBERS: Final = 1 << 25
"""Of all updates together: of fewer, numpy has made a result before a device has begun."""

log = structlog.get_logger(__name__)


class Device:
    """Answers whether it did what it was asked. One that failed once is not asked again: numpy does it from then on.

    Args:
        trainer: the engine that has the device.
        is_free: has it a device, with nothing else in hand? What waited behind a training would hold up a round.
        min_numbers: of how many it is asked at least.
    """

    def __init__(self, trainer: Trainer, is_free: Callable[[], bool], min_numbers: int = MIN_NUMBERS) -> None:
        self._trainer = trainer
        self._is_free = is_free
        self._min_numbers = min_numbers
        self._has_failed = False

    def is_for(self, n_numbers: int) -> bool:
        """Is it worth asking, for so many?"""
        return n_numbers >= self._min_numbers and not self._has_failed and self._is_free()

    async def aggregate(self, request: Aggregate) -> bool:
        """Have it done there; False where it is to be done here."""
        with trio.move_on_after(LIMIT_S):
            try:
                reply = await self._trainer.one(request)
                return isinstance(reply, Aggregated) and not reply.refused
            except AgentError as error:
                log.warning("device_left_alone", text=str(error))
        self._has_failed = True
        return False
