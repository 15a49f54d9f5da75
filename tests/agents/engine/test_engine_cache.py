"""With torch: the rectangle of keys and values by itself."""

import pytest

from agents.engine.messages import Generate, Token

pytestmark = pytest.mark.engine


def test_growth_that_fails_halfway_leaves_nothing_behind_once_all_is_given_back():
    import torch

    from agents.engine.worker.generation.cache import KvCache, LayerShape

    absurd = 1 << 46
    cache = KvCache([LayerShape((1, 8), (1, 8)), LayerShape((1, absurd), (1, absurd))], torch.empty(0))
    with pytest.raises(RuntimeError):
        cache.resize(2, 64)
    cache.resize(0, 0)
    assert cache.n_bytes == 0


@pytest.mark.parametrize("is_plain", [False, True])
def test_numbers_that_overflowed_do_not_stay_for_the_next_in_the_row(tiny_model, make_adapter, tmp_path, is_plain):
    import safetensors.torch

    from agents.engine.worker.generation.batch import Batch, Limits
    from agents.engine.worker.models import load_model

    wild = make_adapter(tmp_path / "wild", lora_alpha=1e6)
    file = wild / "adapter_model.safetensors"
    tensors = {name: tensor * 1e25 for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file)
    batch = Batch(load_model(tiny_model), Limits(64 << 20))
    if is_plain:
        batch._decoder, batch._scheduler = None, batch._new_scheduler()
        batch._scheduler._is_joint = False
    replies, cancelled = {n: [] for n in range(4)}, set()

    def ask(n, text, n_tokens, adapter=None):
        request = Generate(id=n, text=text, adapter=adapter and str(adapter), max_tokens=n_tokens)
        batch.start(request, replies[n].append, lambda: n in cancelled)

    ask(0, "The class statement", 200)
    batch.step()
    ask(1, " the" * 500, 3, wild)
    for _ in range(4):
        batch.step()
    assert batch.n_running == 2 and not replies[1], "its prompt is still being read"
    cancelled.add(1)
    ask(2, "A list is", 40)
    while not batch.is_idle:
        batch.step()
    ask(3, "A list is", 40)
    while not batch.is_idle:
        batch.step()
    said = ["".join(reply.text for reply in replies[n] if isinstance(reply, Token)) for n in (2, 3)]
    assert [replies[n][-1].reason for n in (0, 1, 2)] == ["length", "cancelled", "length"]
    assert said[0] == said[1]
