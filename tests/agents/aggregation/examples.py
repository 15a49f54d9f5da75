"""Updates to aggregate, made of whole numbers, so that they are the same everywhere; and settings for each rule."""

import hashlib
from functools import partial

import numpy as np

from agents.aggregation.aggregate import Aggregating, Recipe, aggregate
from agents.aggregation.arrays import HERE, Place
from agents.aggregation.registry import SERVER, before_of, rule_of, server_of
from agents.aggregation.updates import Update, Vector

SEED = bytes(range(32))
N_PARAMS = HERE.block + 77
PEERS = tuple(f"peer-{index:02}" for index in range(11))

RULES: dict[str, dict[str, object]] = {
    "bulyan": {"n_bad": 2},
    "centred_clipping": {},
    "fedavg": {"weights": "samples"},
    "fedbuff": {},
    "fednova": {},
    "flame": {"seed": SEED},
    "fltrust": {"trusted": PEERS[0]},
    "geometric_median": {},
    "krum": {"n_bad": 2},
    "median": {},
    "multi_krum": {"n_bad": 2},
    "norm_bound": {},
    "trimmed_mean": {"n_bad": 2},
}


def settings(rule: str) -> dict[str, object]:
    """A rule as a plan states it."""
    return {"rule": rule, **RULES[rule]}


def vector(n_params: int, name: str, scale: float = 2.0**-20) -> Vector:
    """Numbers from a hash: a common direction, and something of one's own."""
    own = np.frombuffer(hashlib.shake_128(name.encode()).digest(2 * n_params), "<i2").astype(np.float32)
    common = np.frombuffer(hashlib.shake_128(b"common").digest(2 * n_params), "<i2").astype(np.float32)
    return (common + own) * np.float32(scale)


def examples(n_params: int, n_updates: int = 11) -> list[Update]:
    """Updates with CIDs in no order of theirs, and all that may be known of one."""
    return [
        Update(
            cid=hashlib.sha256(peer.encode()).digest(),
            peer=peer,
            vector=vector(n_params, peer),
            weight=float(10 * index + 1),
            n_steps=index + 1,
            staleness=index % 3,
        )
        for index, peer in enumerate(PEERS[:n_updates])
    ]


RECIPES = {
    **{name: Recipe(rule_of(settings(name))) for name in sorted(RULES)},
    "nnm, trimmed_mean": Recipe(
        rule_of({"rule": "trimmed_mean", "n_bad": 2}), (before_of({"before": "nnm", "n_bad": 2}),)
    ),
    "bucketing, nnm, geometric_median": Recipe(
        rule_of({"rule": "geometric_median"}),
        (before_of({"before": "bucketing"}), before_of({"before": "nnm", "n_bad": 1})),
    ),
    **{f"fedavg, {name}": Recipe(rule_of({"rule": "fedavg"}), (), server_of({"server": name})) for name in SERVER},
    "fedavg, scaffold of some": Recipe(
        rule_of({"rule": "fedavg"}), (), server_of({"server": "scaffold", "rate": 0.7}).in_round(11, 17, 0.3)
    ),
}


def digest(
    updates: list[Update],
    recipe: Recipe,
    n_threads: int = 1,
    *,
    place: Place = HERE,
    is_finite: bool = True,
    aggregating: Aggregating | None = None,
) -> str:
    """The hash of what two rounds give, with the states that they leave; any NaN is one of them."""
    n_params = len(updates[0].vector)
    states = [np.zeros(n_params, np.float32) for _ in range(recipe.server.n_states if recipe.server else 0)]
    hashed = hashlib.sha256()
    aggregating = aggregating or partial(aggregate, n_threads=n_threads, place=place)
    for _ in range(2 if recipe.server else 1):
        out = np.empty(n_params, np.float32)
        aggregating(updates, recipe, out, seed=SEED, states=states)
        assert np.isfinite(out).all() or not is_finite
        hashed.update(_bytes(out))
    for state in states:
        hashed.update(_bytes(state))
    return hashed.hexdigest()


def _bytes(values: Vector) -> bytes:
    return np.where(np.isnan(values), np.float32(np.nan), values).astype("<f4").tobytes()
