"""Tensors that were trained elsewhere: the update is what stands in the participant's file, minus the round's base.

For who trains with a program of its own, and for results of one experiment that are taken further in another: the sums
of cohorts, say, among which a robust rule chooses. The file is safetensors, float32, with the base's names and shapes.
"""

from functools import partial
from pathlib import Path

import numpy as np
import trio

from agents.adapters.safetensors_header import read_header
from agents.errors import BadAdapter
from agents.federation.tasks import BadTask, Made, Task, Work
from agents.federation.updates.tensors import canonical, flush, new_vector, read_layout, read_vector


class Given(Task, frozen=True, tag="given", kw_only=True):
    """It has no settings. The first tensors are given with --initial; a result is taken out with --out."""

    def check(self, data: Path) -> None:
        """Raises: BadTask, OSError."""
        try:
            other = next((tensor for tensor in read_header(data).tensors if tensor.dtype != "F32"), None)
        except BadAdapter as error:
            raise BadTask(f"{data} holds no tensors for a round: {error}") from None
        if other is not None:
            raise BadTask(f"{data}: {other.name} is {other.dtype}, and rounds exchange F32 alone")

    async def train(self, work: Work) -> Made:
        """Nothing is trained. Raises: BadTask, BadTensors, OSError."""
        if work.data is None:
            raise BadTask("given needs data: covey fl join --data FILE.safetensors")
        await trio.to_thread.run_sync(partial(_write_update, work, work.data))
        return Made(1, 1, None)


def _write_update(work: Work, data: Path) -> None:
    new = work.out.with_name("new")
    layout = canonical(data, new)
    if difference := layout.differs_from(read_layout(work.base)):
        raise BadTask(f"the tensors do not fit the round's: {difference}")
    update = new_vector(work.out, layout)
    np.subtract(read_vector(new, layout), read_vector(work.base, layout), out=update)
    flush(update, work.out)
