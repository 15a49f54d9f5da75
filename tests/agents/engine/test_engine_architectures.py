"""With torch: models of other makes than the tiny one's, small and random, beside transformers' own loop."""

import dataclasses

import pytest

from agents.engine.messages import Generate, Token
from agents.errors import EngineFailed

pytestmark = pytest.mark.engine

SIZE = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MAKES = {
    "Mistral": {"sliding_window": 12},
    "Qwen2": {"sliding_window": 12, "use_sliding_window": True, "max_window_layers": 1},
    "Qwen3": {"head_dim": 32},
    "Gemma2": {"sliding_window": 12, "head_dim": 16},
    "Gemma3": {"sliding_window": 12, "head_dim": 16},
    "Phi3": {},
    "GPT2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}


def model_of(make):
    import torch
    import transformers

    config_name = {"Gemma3": "Gemma3TextConfig"}.get(make, f"{make}Config")
    model_name = {"GPT2": "GPT2LMHeadModel"}.get(make, f"{make}ForCausalLM")
    config = getattr(transformers, config_name)(**SIZE | MAKES[make])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return getattr(transformers, model_name)(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    from agents.engine.worker.models import load_model

    return load_model(tiny_model)


@pytest.mark.parametrize("make", MAKES)
def test_rows_of_many_lengths_say_what_transformers_says_of_each(loaded, make):
    import torch

    from agents.engine.worker.generation.batch import Batch, Limits
    from agents.engine.worker.lora import Adapters

    model = model_of(make)
    batch = Batch(dataclasses.replace(loaded, model=model, adapters=Adapters(model)), Limits(64 << 20))
    prompts = ["The", "The import statement finds a module", "a " * 20 + "class", "An exception is raised when it is"]
    replies = {n: [] for n in range(len(prompts))}
    for n, text in enumerate(prompts):
        batch.start(Generate(id=n, text=text, max_tokens=20), replies[n].append, lambda: False)
        batch.step()
    while not batch.is_idle:
        batch.step()
    for n, text in enumerate(prompts):
        ids = torch.tensor([loaded.encode(text)])
        out = model.generate(input_ids=ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        said = "".join(reply.text for reply in replies[n] if isinstance(reply, Token))
        expected = [token for token in out.tolist() if token not in loaded.end_tokens]
        assert said == loaded.decode(expected).rstrip("\ufffd"), text


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(loaded):
    import transformers

    from agents.engine.worker.generation.batch import Batch, Limits

    size = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**size)).eval()
    with pytest.raises(EngineFailed, match=r"cannot be served|are not served"):
        Batch(dataclasses.replace(loaded, model=mamba), Limits(64 << 20))
