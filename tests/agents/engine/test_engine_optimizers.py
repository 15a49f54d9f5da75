"""With torch: what a plan asks of a participant's steps: which optimizer, a pull to the base, corrected gradients."""

import math
from itertools import count

import numpy as np
import pytest

from agents.engine.messages import Train, Trained, TrainPaused
from agents.errors import BadAdapter, CannotResume, EngineFailed
from agents.training.settings import Settings

pytestmark = pytest.mark.engine
FOX = "the quick brown fox jumps over the lazy dog, and dog {n} of {m} sleeps on. "
SGD = {
    "optimizer": "sgd", "schedule": "constant", "n_warmup": 0, "learning_rate": 0.5, "clip_norm": 1e6, "batch": 4,
    "context_tokens": 24, "rank": 4, "seed": 3, "n_steps": 2,
}  # fmt: skip


@pytest.fixture
def do(tiny_model, tmp_path):
    """Train in this process; the parameters, in the order of their names."""
    import torch
    from safetensors.numpy import load_file

    from agents.engine.worker.training.train import train

    torch.set_num_threads(1)
    data = tmp_path / "fox.txt"
    data.write_text("".join(FOX.format(n=n, m=n * n) for n in range(30)))
    names = count()

    def run(until=math.inf, name=None, **changes):
        fields = {key: changes.pop(key) for key in ("correction", "initial", "is_fresh") if key in changes}
        name = name or f"run-{next(names)}"
        looks = count(1)
        request = Train(
            model=str(tiny_model), name=name, run=str(tmp_path / "runs" / name), out=str(tmp_path / name),
            data=str(data), settings=Settings(**SGD | changes), **fields,
        )  # fmt: skip
        made = train(request, lambda told: None, lambda: next(looks) > until)
        if isinstance(made, TrainPaused):
            return made
        assert isinstance(made, Trained)
        tensors = load_file(tmp_path / name / "adapter_model.safetensors")
        return np.concatenate([tensors[key].ravel() for key in sorted(tensors)])

    return run


@pytest.fixture
def start(do, tmp_path):
    """An adapter that no longer begins with a B of zeros: its file, and its parameters."""
    found = do(name="start", n_steps=3)
    return str(tmp_path / "start" / "adapter_model.safetensors"), found


def test_the_pull_to_where_it_began_is_mu_times_the_way_from_there(do, start):
    path, begin = start
    mu, rate = 0.25, 0.5
    one = do(initial=path, n_steps=1)
    assert np.array_equal(do(initial=path, n_steps=1, proximal_mu=mu), one)  # at first there is nothing to pull
    free, held = do(initial=path), do(initial=path, proximal_mu=mu)
    np.testing.assert_allclose(held - free, -rate * mu * (one - begin), atol=3e-7)
    assert np.abs(held - free).max() > 1e-5
    # By how much differs: the tiny model is another one on another machine.
    assert np.linalg.norm(do(initial=path, n_steps=8, proximal_mu=1.5) - begin) < np.linalg.norm(
        do(initial=path, n_steps=8) - begin
    )


def test_a_correction_is_part_of_every_gradient(do, start, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    path, _ = start
    chance = torch.Generator().manual_seed(1)
    tensors = {name: 1e-3 * torch.randn(one.shape, generator=chance) for name, one in load_file(path).items()}
    save_file(tensors, tmp_path / "correction")
    flat = np.concatenate([tensors[name].numpy().ravel() for name in sorted(tensors)])
    fields = {"initial": path, "correction": str(tmp_path / "correction"), "is_fresh": True, "n_steps": 1}
    plain = do(initial=path, n_steps=1)
    np.testing.assert_allclose(do(**fields) - plain, -0.5 * flat, atol=3e-7)
    first = sorted(tensors)[0]  # of some of them alone: others go on as they would
    save_file({first: tensors[first]}, tmp_path / "correction")
    moved = do(**fields) - plain
    n = tensors[first].numel()
    np.testing.assert_allclose(moved[:n], -0.5 * flat[:n], atol=3e-7)
    assert not moved[n:].any()
    save_file({"other": torch.zeros(3)}, tmp_path / "correction")
    with pytest.raises(BadAdapter, match="does not fit the adapter: other"):
        do(**fields)
    (tmp_path / "correction").write_bytes(b"none")
    with pytest.raises(BadAdapter, match="cannot be read"):
        do(**fields)
    with pytest.raises(EngineFailed, match="begun anew"):
        do(initial=path, correction=str(tmp_path / "correction"))


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)])
def test_every_optimizer_is_one_of_its_own_and_goes_on_after_a_pause(do, optimizer, momentum):
    asked = {"optimizer": optimizer, "momentum": momentum, "n_steps": 6, "learning_rate": 0.01, "weight_decay": 0.1}
    whole = do(**asked)
    assert not np.array_equal(whole, do(**asked | {"optimizer": "adamw", "momentum": 0.0}))
    assert not momentum or not np.array_equal(whole, do(**asked | {"momentum": 0.0}))
    assert isinstance(do(name="cut", until=8, **asked), TrainPaused)
    assert np.array_equal(do(name="cut", **asked), whole)


def test_what_is_pulled_to_its_start_is_not_gone_on_with(do):
    assert isinstance(do(name="cut", until=8, n_steps=6, proximal_mu=0.1), TrainPaused)
    with pytest.raises(CannotResume, match="begun anew"):
        do(name="cut", n_steps=6, proximal_mu=0.1)
