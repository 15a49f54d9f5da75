"""A participant's training in the engine, for tasks that need one."""

from agents.engine.client import Engine
from agents.engine.messages import Train, Trained
from agents.errors import EngineFailed
from agents.federation.tasks import BadTask, Training
from agents.models import Desk
from storage.catalog import Catalog


async def train_round(catalog: Catalog, desk: Desk, engine: Engine, wish: Training) -> tuple[int, float]:
    """Train on the base model of that fingerprint, which has to be here; tokens and loss. Raises: AgentError."""
    row = next((row for row in catalog.models.list() if wish.base in row.accepts), None)
    if row is None:
        raise BadTask(
            f"the base model {wish.base} is not here. Bring it in with `covey model import`; it is tried again"
        )
    async with desk.using(row):
        reply = await engine.one(
            Train(
                id=0,
                data=str(wish.data),
                kind=wish.kind,
                initial=str(wish.initial),
                out=str(wish.out),
                rank=wish.rank,
                alpha=wish.alpha,
                targets=wish.targets,
                n_steps=wish.n_steps,
                batch=wish.batch,
                context_tokens=wish.context_tokens,
                learning_rate=wish.learning_rate,
                seed=wish.seed,
            )
        )
    if not isinstance(reply, Trained):
        raise EngineFailed(f"the engine answered a training with {type(reply).__name__}")
    return reply.n_tokens, reply.loss_after
