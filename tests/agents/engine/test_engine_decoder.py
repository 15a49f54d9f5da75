"""With torch: what is written anew for speed computes what torch and transformers compute."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.engine

SIZE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "tie_word_embeddings": True,
}  # fmt: skip


def model_of(make="Llama", **options):
    import torch
    import transformers

    config = getattr(transformers, f"{make}Config")(**SIZE | options)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return getattr(transformers, f"{make}ForCausalLM")(config).eval().requires_grad_(False)


def decoder_of(model):
    from agents.engine.worker.generation.cache import probe
    from agents.engine.worker.generation.decoder import decoder_for

    return decoder_for(model, probe(model))


@pytest.fixture(scope="module")
def llama():
    return model_of()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 9, 15, 16, 40])
def test_a_product_in_blocks_is_the_product(n_rows, has_bias):
    import torch

    from agents.engine.worker.blocks import MIN_WEIGHTS, BlockLinear

    linear = torch.nn.Linear(512, MIN_WEIGHTS // 512, bias=has_bias)
    x = torch.randn(n_rows, 1, 512)
    with torch.inference_mode():
        made = BlockLinear(linear)(x)
        assert made.shape == (n_rows, 1, linear.out_features)
        torch.testing.assert_close(made, linear(x), rtol=0, atol=1e-5)


def test_only_large_layers_of_full_precision_are_computed_in_blocks_and_keep_their_weights():
    import torch

    from agents.engine.worker.blocks import BlockLinear, use_blocks

    if not torch.backends.mkl.is_available():
        pytest.skip("this torch has no MKL")
    model = torch.nn.ModuleDict(
        {"large": torch.nn.Linear(1024, 512), "odd": torch.nn.Linear(1024, 520), "small": torch.nn.Linear(64, 64),
         "short": torch.nn.Linear(1024, 512).bfloat16()}
    )  # fmt: skip
    weight = model["large"].weight
    use_blocks(model)
    assert [name for name, module in model.items() if isinstance(module, BlockLinear)] == ["large"]
    assert model["large"].weight is weight


rows = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=5)


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_rows_computed_in_any_parts_give_what_transformers_gives_for_the_whole(llama, parts, chance):
    """Each row's widths, step by step; in each step a run of rows goes on."""
    import torch

    from agents.engine.worker.generation.cache import KvCache, probe

    decoder, shapes = decoder_of(llama), probe(llama)
    assert decoder is not None
    texts = [[chance.randrange(96) for _ in range(sum(widths))] for widths in parts]
    cache = KvCache(shapes, torch.empty(0))
    cache.resize(len(parts), max(len(text) for text in texts))
    done, left, last = [0] * len(parts), [list(widths) for widths in parts], {}
    with torch.inference_mode():
        while any(left):
            first = next(n for n, widths in enumerate(left) if widths)
            end = next((n for n in range(first, len(left)) if not left[n]), len(left))
            end = chance.randint(first + 1, end)
            widths = [left[n].pop(0) for n in range(first, end)]
            ids = [texts[n][done[n] : done[n] + width] for n, width in zip(range(first, end), widths, strict=True)]
            wanted = [n - first for n in range(first, end) if not left[n]]
            out = decoder.step(cache, ids, first, done[first:end], wanted)
            assert out.shape == (len(wanted), 96)
            last |= {first + n: row for n, row in zip(wanted, out, strict=True)}
            for n, width in zip(range(first, end), widths, strict=True):
                done[n] += width
        for n, text in enumerate(texts):
            expected = llama(input_ids=torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(last[n], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "options"),
    [("Llama", {"attention_bias": True}), ("Llama", {"head_dim": 16}), ("Llama", {"num_key_value_heads": 4}),
     ("Qwen2", {}), ("Mistral", {"sliding_window": None})],
)  # fmt: skip
def test_the_makes_that_are_built_alike_are_served(make, options):
    assert decoder_of(model_of(make, **options)) is not None


@pytest.mark.parametrize(
    ("make", "options"), [("Qwen3", {}), ("Phi3", {"pad_token_id": 0}), ("Mistral", {"sliding_window": 8})]
)
def test_others_are_left_to_transformers(make, options):
    assert decoder_of(model_of(make, **options)) is None


def test_a_model_that_computes_otherwise_than_it_is_named_is_left_to_transformers(llama):
    model = model_of()
    assert decoder_of(model) is not None
    forward = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: 1.01 * forward(x)
    assert decoder_of(model) is None


def test_half_precision_is_left_to_transformers_own_rounding():
    import torch

    assert decoder_of(model_of().to(torch.bfloat16)) is None
