"""With torch: the rectangle of keys and values by itself."""

import pytest

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
