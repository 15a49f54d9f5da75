"""The ranks and alphas of single layers are those that PEFT takes."""

from itertools import permutations

import msgspec
import pytest

from agents.adapters.inspect import parse_config
from agents.adapters.safetensors_header import Tensor

pytestmark = pytest.mark.engine

LAYERS = [
    f"model.layers.{i}.{kind}" for i in (1, 11) for kind in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
]
KEYS = ["q_proj", "self_attn.q_proj", "layers.1.self_attn.q_proj", r"^model\.layers\.11\.mlp\.up_proj", "1.mlp.up_proj"]


def test_patterns_pick_the_key_that_peft_picks_in_whatever_order_they_stand():
    other = pytest.importorskip("peft.utils.other", reason="pip install 'covey[engine]'")
    n_picked = 0
    for keys in permutations(KEYS, 3):
        ranks = {key: 10 + at for at, key in enumerate(keys)}
        text = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["x"], "rank_pattern": ranks}
        config = parse_config(msgspec.json.encode(text))
        for layer in LAYERS:
            rank = ranks.get(other.get_pattern_key(ranks.keys(), layer), 2)
            n_picked += rank != 2
            down, up = Tensor("a", "F32", (rank, 8), 0, 1), Tensor("b", "F32", (8, rank), 1, 2)
            assert config.pair_of(layer, down, up).scale == 2 / rank
    assert n_picked > 50
