"""A very small language model, trained on the spot: real enough to show what a LoRA does, in half a minute of CPU.

4 layers, width 128, 1,024 tokens, taught Python's own reference (comes with Python). The same Python, libraries, thread
count and machine make the same model. The matrices learn by Muon, which gets in 180 steps where AdamW needs thousands.

Source: Jordan et al., Muon (kellerjordan.github.io/posts/muon), its polynomial included.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from agents.engine.texts import python_reference
from agents.errors import EngineFailed

VOCABULARY: Final = 1024
CONTEXT: Final = 1024
N_STEPS: Final = 180
BATCH: Final = 8
BLOCK: Final = 128
WARMUP_STEPS: Final = 10
VECTOR_RATE: Final = 0.02
MATRIX_RATE: Final = 0.03
MOMENTUM: Final = 0.9
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tiny(folder: Path, is_cancelled: Callable[[], bool]) -> None:
    """Train the model and save it in `folder`. Raises: EngineFailed when cancelled."""
    text = python_reference()
    tokenizer = _train_tokenizer(text)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _new_model(tokenizer)
        _fit(model, ids, is_cancelled)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(text: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[TURN_START, TURN_END],
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=TURN_END, pad_token=TURN_END, bos_token=TURN_START, chat_template=TEMPLATE
    )


def _new_model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _fit(model: Any, ids: Tensor, is_cancelled: Callable[[], bool]) -> None:
    inner = [param for name, param in model.named_parameters() if param.ndim == 2 and "embed" not in name]
    momenta = [torch.zeros_like(param) for param in inner]
    outer = [param for name, param in model.named_parameters() if param.ndim == 1 or "embed" in name]
    optimizer = torch.optim.AdamW(outer, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(N_STEPS):
        if is_cancelled():
            raise EngineFailed("the training of the tiny model was cancelled")
        rate = min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / N_STEPS)
        starts = torch.randint(len(ids) - BLOCK, (BATCH,)).tolist()
        batch = torch.stack([ids[start : start + BLOCK] for start in starts])  # (BATCH, BLOCK)
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(outer, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = VECTOR_RATE * rate
        optimizer.step()
        _muon_step(inner, momenta, MATRIX_RATE * rate)
        model.zero_grad()


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not read by mypy here
def _muon_step(params: list[Tensor], momenta: list[Tensor], rate: float) -> None:
    for param, momentum in zip(params, momenta, strict=True):
        assert param.grad is not None
        momentum.mul_(MOMENTUM).add_(param.grad)
        rows, columns = param.shape
        param.sub_(_orthogonal(param.grad + MOMENTUM * momentum) * (rate * max(1.0, rows / columns) ** 0.5))


def _orthogonal(gradient: Tensor) -> Tensor:
    """The nearest matrix whose singular values are about 1, by five Newton-Schulz steps."""
    x = gradient / (gradient.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x
