"""A participant's training in the engine, for tasks that need one."""

from agents.federation.tasks import BadTask, Training
from storage.catalog import Catalog


async def train_round(catalog: Catalog, wish: Training) -> tuple[int, float]:
    """Train on the base model of that fingerprint; tokens and loss. Raises: BadTask.

    The engine's trainer begins every adapter anew: until its request has a field for the adapter to go on from
    (`wish.initial`), a round cannot be trained there, and says so.
    """
    if not any(wish.base in row.accepts for row in catalog.models.list()):
        raise BadTask(f"the base model {wish.base} is not here. Bring it in with `covey model pull`; it is tried again")
    raise BadTask("the engine cannot go on training from a round's adapter yet: take another task, such as softmax")
