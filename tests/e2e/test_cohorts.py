"""Robust and masked at once, by commands: cohorts add up under masks, and their results meet under a robust rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.federation.updates.tensors import flush, new_vector, read_layout, read_vector
from tests.e2e.village import Village, is_over

pytestmark = [pytest.mark.e2e, pytest.mark.long]

HEADS = ("ada", "bob", "cleo")
EVERYWHERE = ("dan", "eve")  # a cohort has three members: to keep processes few, two of them are in each
COHORT = (
    'rounds = 1\nmin_participants = 3\nmembers = ["dan", "eve"]\ndeadline_s = 60\nlease_s = 15\nmax_norm = 8.0\n'
    'evaluated = false\n[task]\ntask = "softmax"\nn_features = 16\nn_classes = 4\nn_epochs = 4\n[secure]\n'
)
ABOVE = (
    'title = "above"\nrounds = 1\nmin_participants = 3\nmembers = ["bob", "cleo"]\ndeadline_s = 60\nlease_s = 15\n'
    'evaluated = false\nrule = { rule = "trimmed_mean", n_bad = 1 }\ntask = "given"\n'
)


def values(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(read_vector(path, read_layout(path)), np.float64)


def spoiled(path: Path) -> Path:
    """What a bad head carries up in place of its cohort's result."""
    layout, out = read_layout(path), path.with_name("spoiled.safetensors")
    vector = new_vector(out, layout)
    vector[:] = read_vector(path, layout) * np.float32(-1000.0)
    flush(vector, out)
    return out


class Cohorts:
    """Commands on five nodes."""

    def __init__(self, village: Village, folder: Path) -> None:
        self.village, self.folder = village, folder
        self.centres = np.random.default_rng(0).normal(size=(4, 16))

    def data(self, name: str) -> Path:
        noise, path = np.random.default_rng(sum(name.encode())), self.folder / f"{name}.npz"
        labels = noise.integers(0, 4, 100)
        np.savez(path, x=(self.centres[labels] + noise.normal(size=(100, 16))).astype("f4"), y=labels)
        return path

    def run(self, author: str, text: str, data: dict[str, Path], *options: str) -> Any:
        """One experiment from its plan to its end, proved by each member: what `fl plan` said."""
        plan = self.folder / "plan.toml"
        plan.write_text(text)
        village = self.village
        planned = village.nodes[author].ask("fl", "plan", str(plan), *options)
        village.experiment = planned["experiment"]
        for name, file in data.items():
            village.nodes[name].ok(
                "fl", "join", village.experiment, "--from", village.nodes[author].address, "--data", str(file)
            )
        village.wait(village.nodes[author], lambda now: now["n_joined"] == 3 and now["n_reachable"] == 2)
        village.nodes[author].ok("fl", "start", village.experiment)
        for name in data:
            village.wait(village.nodes[name], is_over)
            assert village.nodes[name].ask("fl", "verify", village.experiment)["verdict"] == "proved"
        return planned

    def result(self, name: str, experiment: str) -> tuple[str, Path]:
        out = self.folder / f"{experiment}.safetensors"
        found = self.village.nodes[name].ask("fl", "result", experiment, "--out", str(out))
        return found["tensors"], out


def test_cohorts_results_are_carried_up_and_the_bad_one_is_left_out_and_they_go_on_from_what_came_of_it(
    new_node: Callable[[str], Any], tmp_path: Path
) -> None:
    village = Village({name: new_node(name) for name in (*HEADS, *EVERYWHERE)}, "")
    village.up()
    cohorts = Cohorts(village, tmp_path)
    files, initials = {}, set()
    for head in HEADS:
        data = {name: cohorts.data(name) for name in (head, *EVERYWHERE)}
        planned = cohorts.run(head, f'title = "cohort of {head}"\n{COHORT}', data)
        initials.add(planned["initial"])
        files[head] = cohorts.result(head, planned["experiment"])[1]
    (initial,) = initials
    good, bad = [values(files[head]) for head in HEADS[:2]], spoiled(files["cleo"])
    above = cohorts.run("ada", f'initial = "{initial}"\n{ABOVE}', {**files, "cleo": bad})
    tensors, file = cohorts.result("ada", above["experiment"])
    robust, spoils = values(file), values(bad)
    assert ((np.minimum(*good) - 1e-6 <= robust) & (robust <= np.maximum(*good) + 1e-6)).all()
    assert np.abs(spoils).max() > 100 * np.abs(robust).max() > 0.0

    # And down again: another cohort's head has the tensors from the experiment above, and plans from there.
    data = {name: cohorts.data(name) for name in ("bob", *EVERYWHERE)}
    again = cohorts.run("bob", f'title = "on"\ninitial = "{tensors}"\n{COHORT}', data)
    assert again["initial"] == tensors
    assert (values(cohorts.result("bob", again["experiment"])[1]) != robust).any()
