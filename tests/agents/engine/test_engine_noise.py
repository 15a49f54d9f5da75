"""With torch: a training that hides each example counts each one's gradient up to the bound, and no further."""

import msgspec
import numpy as np
import pytest

from agents.engine.messages import Train, Trained, TrainReady
from agents.errors import EngineFailed
from agents.training.settings import ExampleNoise, Settings

pytestmark = pytest.mark.engine
SETTINGS = Settings(n_steps=3, batch=4, context_tokens=24, seed=3, rank=4)
FAINT = ExampleNoise(bound=1e4, multiplier=1e-3)


@pytest.fixture
def plan_of(tiny_model, tmp_path):
    """A model, and rows to learn from."""
    from agents.engine.worker.models import load_model
    from agents.engine.worker.training.lowrank import LowRanks
    from agents.engine.worker.training.train import lay_out_data

    loaded = load_model(tiny_model)
    text = "".join(f"the quick brown fox jumps over dog {n} of {n * n}, and the other sleeps on. " for n in range(30))
    plan, _, _ = lay_out_data(loaded, "fox.txt", text.encode(), SETTINGS, is_each_alone=True)
    lora = LowRanks(loaded, SETTINGS)
    yield loaded, plan.train[:5], lora
    lora.take_off()


def loss_of(loaded, rows):
    from agents.engine.worker.training.objective import token_loss

    return token_loss(loaded.model, rows, loaded.device, loaded.model.dtype)


def noisy(found, noise, n_expected=9, frozen=""):
    from agents.engine.worker.training.noisy import add_noisy_gradients

    loaded, rows, lora = found
    add_noisy_gradients(rows, n_expected, lora, noise, frozen, lambda one: loss_of(loaded, one), lambda: None)
    return lora.flat.grad.numpy().copy()


def gradients(found):
    from agents.engine.worker.training.objective import count_labels

    loaded, rows, lora = found
    alone = []
    for row in rows:
        lora.flat.grad.zero_()
        (loss_of(loaded, [row]) / count_labels([row])).backward()
        alone.append(lora.flat.grad.numpy().copy())
    return np.array(alone)


def test_without_much_noise_a_step_is_the_mean_of_the_examples_gradients(plan_of):
    alone = gradients(plan_of)
    bound = float(np.linalg.norm(alone, axis=1).max()) * 1.01
    found = noisy(plan_of, ExampleNoise(bound=bound, multiplier=1e-5))
    expected = alone.sum(axis=0) / 9  # by what is expected, whoever was taken
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_each_gradient_is_shortened_by_itself(plan_of):
    alone = gradients(plan_of)
    norms = np.linalg.norm(alone, axis=1)
    bound = float(norms.min()) / 2  # how far apart they are differs: the tiny model is another one on another machine
    found = noisy(plan_of, ExampleNoise(bound=bound, multiplier=1e-5))
    expected = (alone * np.minimum(1.0, bound / norms)[:, None]).sum(axis=0) / 9
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    assert np.linalg.norm(alone.sum(axis=0) / 9 - expected) > 0.05 * np.linalg.norm(expected)


def test_the_noise_has_the_size_that_is_accounted_for(plan_of):
    found = noisy(plan_of, ExampleNoise(bound=1e6, multiplier=3.0))
    assert found.std() == pytest.approx(3e6 / 9, rel=0.05)


def test_a_half_that_is_frozen_takes_nothing_of_the_bound(plan_of):
    _, _, lora = plan_of
    with_b = gradients(plan_of)
    lora.flat.grad[:] = 1.0
    lora.still("a")
    is_b = lora.flat.grad.numpy() == 1.0
    bound = float(np.linalg.norm(with_b[:, is_b], axis=1).max()) * 1.01
    found = noisy(plan_of, ExampleNoise(bound=bound, multiplier=1e-5), frozen="a")
    expected = with_b[:, is_b].sum(axis=0) / 9
    assert np.linalg.norm(found[is_b] - expected) < 0.02 * np.linalg.norm(expected)


def test_what_is_left_in_the_middle_leaves_no_gradient(plan_of):
    from agents.engine.worker.training.noisy import add_noisy_gradients

    loaded, rows, lora = plan_of
    looks = iter([None, None])

    def check():
        if next(looks, "no more") is not None:
            raise EngineFailed("stopped")

    with pytest.raises(EngineFailed, match="stopped"):
        add_noisy_gradients(rows, 9, lora, FAINT, "", lambda one: loss_of(loaded, one), check)
    assert not lora.flat.grad.any()


def run(tiny_model, tmp_path, name, told, noise=FAINT, is_fresh=True, **changes):
    from agents.engine.worker.training.train import train

    (tmp_path / "fox.txt").write_text(
        "".join(f"the quick brown fox jumps over dog {n} of {n * n}. " for n in range(60))
    )
    settings = msgspec.structs.replace(SETTINGS, **changes)
    request = Train(
        model=str(tiny_model), name=name, run=str(tmp_path / f"{name}.run"), out=str(tmp_path / name),
        settings=settings, data=str(tmp_path / "fox.txt"), noise=noise, is_fresh=is_fresh,
    )  # fmt: skip
    return train(request, told.append, lambda: False)


def test_a_training_with_noise_ends_and_never_comes_to_the_same_twice(tiny_model, tmp_path):
    told = []
    done = [run(tiny_model, tmp_path, name, told, ExampleNoise(bound=0.5, multiplier=0.5)) for name in ("one", "two")]
    assert all(isinstance(one, Trained) and one.n_steps == 3 for one in done)
    assert next(one for one in told if isinstance(one, TrainReady)).n_train > 10
    assert done[0].cid != done[1].cid


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pack": True}, "leave out pack"),
        ({"patience": 1, "eval_every": 1}, "without noise"),
        ({"is_fresh": False}, "begun anew"),
    ],
)
def test_what_would_tell_of_examples_beside_the_noise_is_refused(tiny_model, tmp_path, fields, says):
    with pytest.raises(EngineFailed, match=says):
        run(tiny_model, tmp_path, "one", [], **fields)
