"""Run one of Flower's aggregators once, in its environment: `-m tests.benchmarks.flower_driver TASK CLIENTS PARAMS`.

Prints CPU and wall seconds, and the megabytes that it took beyond its inputs, as JSON.
"""

import json
import sys

import numpy as np

from tests.benchmarks.metering import metered

SIDE = 500


def clients(n_clients: int, n_params: int) -> list[list[np.ndarray]]:
    chance = np.random.default_rng(0)
    n_tensors = n_params // (SIDE * SIDE)
    base = [chance.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(n_tensors)]
    return [
        [tensor + chance.standard_normal(tensor.shape, dtype=np.float32) * np.float32(0.01) for tensor in base]
        for _ in range(n_clients)
    ]


def task(name: str, updates: list[list[np.ndarray]]) -> object:
    from flwr.common import ArrayRecord, MetricRecord, RecordDict
    from flwr.server.strategy import aggregate as legacy
    from flwr.serverapp.strategy import multikrum, strategy_utils

    n_bad = len(updates) // 5
    if name in ("median", "trimmed_mean"):
        results = [(arrays, 1) for arrays in updates]
        if name == "median":
            return lambda: legacy.aggregate_median(results)
        return lambda: legacy.aggregate_trimmed_avg(results, 0.2)
    records = [
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}) for arrays in updates
    ]
    if name == "mean":
        return lambda: strategy_utils.aggregate_arrayrecords(records, "num-examples")
    return lambda: strategy_utils.aggregate_arrayrecords(
        multikrum.select_multikrum(records, n_bad, len(updates) - n_bad - 2), "num-examples"
    )


def secure(n_params: int, n_masks: int) -> object:
    """A client's step: quantise, and add a mask for each neighbour."""
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    update = np.random.default_rng(0).standard_normal(n_params, dtype=np.float32)

    def step() -> object:
        (levels,) = quantize([update], 8.0, 1 << 22)
        for index in range(n_masks):
            (mask,) = pseudo_rand_gen(index.to_bytes(32, "big"), 1 << 32, [(n_params,)])
            levels = levels + mask
        return levels & 0xFFFFFFFF

    return step


def main() -> None:
    name, n_clients, n_params = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    work = secure(n_params, n_clients) if name == "secure" else task(name, clients(n_clients, n_params))
    sys.stdout.write(json.dumps(metered(work)))


if __name__ == "__main__":
    main()
