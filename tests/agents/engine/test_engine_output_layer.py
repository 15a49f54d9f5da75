"""With torch: adapters on the output layer itself, in each way in which a step is computed, and PEFT as the oracle."""

import dataclasses

import pytest

from agents.engine.messages import Generate, Token

pytestmark = pytest.mark.engine

SIZE = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MAKES = ("Llama", "Mistral", "Qwen2", "Qwen3")  # the last one is left to transformers
TARGETS = (("lm_head",), ("lm_head",), ("q_proj", "lm_head"))
PROMPTS = ("The import statement", "An exception is raised when it is", "a", "def " * 9)


def model_of(make):
    import torch
    import transformers

    config = getattr(transformers, f"{make}Config")(**SIZE | ({"sliding_window": None} if make == "Mistral" else {}))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return getattr(transformers, f"{make}ForCausalLM")(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    from agents.engine.worker.models import load_model

    return load_model(tiny_model)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers by an old name
@pytest.mark.parametrize("make", MAKES)
def test_an_adapter_of_the_output_layer_says_what_peft_says_alone_and_in_company(loaded, tmp_path, make):
    import torch
    from peft import LoraConfig, get_peft_model

    from agents.engine.worker.generation.batch import Batch, Limits
    from agents.engine.worker.generation.decoder import KINDS
    from agents.engine.worker.lora import Adapters

    folders, expected = [], []
    for n, targets in enumerate(TARGETS):
        with torch.random.fork_rng():
            torch.manual_seed(n)
            config = LoraConfig(
                r=4 * (n + 1), target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM"
            )
            oracle = get_peft_model(model_of(make), config).eval()
        oracle.save_pretrained(tmp_path / str(n), save_embedding_layers=False)
        (tmp_path / str(n) / "README.md").unlink(missing_ok=True)
        folders.append(str(tmp_path / str(n)))
        expected.append([_greedy(oracle, loaded, text) for text in PROMPTS])
    model = model_of(make)
    expected.append([_greedy(model, loaded, text) for text in PROMPTS])
    folders.append(None)
    batch = Batch(dataclasses.replace(loaded, model=model, adapters=Adapters(model)), Limits(64 << 20))
    assert (batch._decoder is not None) == (model.config.model_type in KINDS)

    def said(*plan):
        replies = {n: [] for n in range(len(plan))}
        for n, (adapter, text) in enumerate(plan):
            request = Generate(id=n, text=PROMPTS[text], adapter=folders[adapter], max_tokens=12)
            batch.start(request, replies[n].append, lambda: False)
            batch.step()
        while not batch.is_idle:
            batch.step()
        return ["".join(each.text for each in replies[n] if isinstance(each, Token)) for n in range(len(plan))]

    assert said((0, 0)) == [expected[0][0]] and expected[0][0] != expected[3][0]
    assert said((0, 0), (0, 1)) == [expected[0][0], expected[0][1]], "one adapter for all"
    plan = [(n % 4, (n + n // 4) % 4) for n in range(8)]
    assert said(*plan) == [expected[adapter][text] for adapter, text in plan], "mixed"


def _greedy(model, loaded, text):
    import torch

    ids = torch.tensor([loaded.encode(text)])
    with torch.inference_mode():
        out = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    return loaded.decode([token for token in out.tolist() if token not in loaded.end_tokens]).rstrip("\ufffd")
