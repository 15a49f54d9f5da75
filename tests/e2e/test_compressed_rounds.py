"""Fewer bytes, between real processes: a round with each codec, what `covey fl watch` says went up, and the proof."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.village import Village, is_over

pytestmark = [pytest.mark.e2e, pytest.mark.long]

NAMES = ("ada", "bob", "cleo")
N_FEATURES, N_ROUNDS = 512, 2
PLAN = (
    f'title = "few bytes"\nrounds = {N_ROUNDS}\nmin_participants = 3\nmembers = ["bob", "cleo"]\ndeadline_s = 60\n'
    'lease_s = 15\n[task]\ntask = "softmax"\nn_classes = 10\nbatch = 8\nn_epochs = 4\nlearning_rate = 0.05\n'
    f"n_features = {N_FEATURES}\n"
)
# What a codec leaves of 4 bytes a number, a header and all; and how far its result may be behind the best.
CODECS = {
    "none": ("", 1.0),
    "int8": ('compression = "int8"\n', 1 / 3),
    "top_k": ('compression = { codec = "top_k", part = 0.02 }\n', 1 / 10),
    "powersgd": ('compression = { codec = "powersgd", rank = 2 }\n', 1 / 3),
}


def test_each_codec_sends_what_it_says_learns_and_is_proved(new_node: Callable[[str], Any], tmp_path: Path) -> None:
    village = Village({name: new_node(name) for name in NAMES}, "")
    village.up()
    centres, data = np.random.default_rng(0).normal(size=(10, N_FEATURES)), {}
    for seed, name in enumerate(NAMES):
        noise = np.random.default_rng(seed + 1)
        labels = noise.integers(0, 10, 200)
        data[name] = tmp_path / f"{name}.npz"
        np.savez(data[name], x=(centres[labels] + noise.normal(size=(200, N_FEATURES))).astype("f4"), y=labels)
    sent, accuracy = {}, {}
    for codec, (line, _) in CODECS.items():
        plan = tmp_path / f"{codec}.toml"
        plan.write_text(line + PLAN)
        village.experiment = village.ada.ask("fl", "plan", str(plan))["experiment"]
        for name in NAMES:
            village.nodes[name].ok(
                "fl", "join", village.experiment, "--from", village.ada.address, "--data", str(data[name])
            )
        village.wait(village.ada, lambda now: now["n_joined"] == 3 and now["n_reachable"] == 2)
        village.ada.ok("fl", "start", village.experiment)
        for node in village.nodes.values():
            village.wait(node, is_over)
        now = village.wait(village.bob, lambda now: now["rounds"][-1]["n_scores"] == 3)
        assert all((one["n_submitted"], one["n_refused"]) == (3, 0) for one in now["rounds"])
        sent[codec] = [one["update_bytes"] for one in now["rounds"]]
        accuracy[codec] = now["rounds"][-1]["result_accuracy"]
        plain = 3 * (N_FEATURES + 1) * 10 * 4
        assert all(plain < n_bytes < plain * 1.05 for n_bytes in sent[codec]) or codec != "none"
        results = [village.results(node) for node in village.nodes.values()]
        assert results.count(results[0]) == 3 and None not in results[0]
        assert village.cleo.ask("fl", "verify", village.experiment)["verdict"] == "proved"
    for codec, (_, part) in CODECS.items():
        assert all(n_bytes <= part * most for n_bytes, most in zip(sent[codec], sent["none"], strict=True)), (
            codec,
            sent,
        )
        assert accuracy[codec] > 0.8, (codec, accuracy)  # of ten classes
