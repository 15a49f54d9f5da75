"""LoRA on a base model that each participant has: the engine trains on, from the round's adapter.

The tensors are an adapter's, under PEFT's names. The first ones are given, for only the engine could make them: train
an adapter for a step (`covey train FILE --name first --n-steps 1`) and name its adapter_model.safetensors in the plan.

Source: Hu et al., LoRA (arXiv 2106.09685); its two matrices averaged each by itself, as FedIT does: Zhang et al.,
Towards Building the Federated GPT (arXiv 2305.05644). Not exact: the mean of products is not the product of means.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import trio
from msgspec import Meta

from agents.federation.tasks import BadTask, Made, Task, Training, Work
from agents.federation.tensors import canonical, flush, new_vector, read_layout, read_vector

SEED_BYTES: Final = 7
WEIGHTS_FILE: Final = "adapter_model.safetensors"


class Lora(Task, frozen=True, tag="lora", kw_only=True):
    """Settings. `base` is the fingerprint of the base model; the rest is as `covey train` has it."""

    base: Annotated[str, Meta(max_length=128)]
    kind: Literal["auto", "text", "chat"] = "auto"
    rank: Annotated[int, Meta(ge=1, le=512)] = 8
    alpha: Annotated[float, Meta(gt=0.0, le=4096.0)] = 16.0
    targets: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(min_length=1, max_length=16)] = (
        "q_proj",
        "v_proj",
    )
    n_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    batch: Annotated[int, Meta(ge=1, le=1024)] = 4
    context_tokens: Annotated[int, Meta(ge=8, le=1 << 17)] = 64
    learning_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 2e-3

    def check(self, data: Path) -> None:
        """Raises: BadTask, OSError."""
        if not data.is_file() or not data.stat().st_size:
            raise BadTask(f"{data} is no file with a text or chats in it")

    async def train(self, work: Work) -> Made:
        """Train on from the base. Raises: BadTask, BadTensors, EngineFailed and its like, OSError."""
        if work.data is None or work.engine is None:
            raise BadTask("lora needs data and an engine: covey fl join --data FILE, on a node that has covey[engine]")
        folder = work.out.with_name("adapter")
        wish = Training(
            base=self.base,
            data=work.data,
            kind=self.kind,
            initial=work.base,
            out=folder,
            rank=self.rank,
            alpha=self.alpha,
            targets=self.targets,
            n_steps=self.n_steps,
            batch=self.batch,
            context_tokens=self.context_tokens,
            learning_rate=self.learning_rate,
            seed=int.from_bytes(work.seed[:SEED_BYTES]),
        )
        n_samples, loss = await work.engine(wish)
        await trio.to_thread.run_sync(partial(_write_update, work, folder / WEIGHTS_FILE))
        return Made(max(1, n_samples), self.n_steps, loss)


def _write_update(work: Work, weights: Path) -> None:
    """New minus base."""
    new = work.out.with_name("new")
    layout = canonical(weights, new)
    if difference := layout.differs_from(read_layout(work.base)):
        raise BadTask(f"the adapter does not fit the round's: {difference}")
    update = new_vector(work.out, layout)
    np.subtract(read_vector(new, layout), read_vector(work.base, layout), out=update)
    flush(update, work.out)
