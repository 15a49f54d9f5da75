"""Write a model of the Llama family as one GGUF file, for llama.cpp and what is built on it; with an adapter in it, if
one is given. Whole numbers of 8 bits (`int8`) are GGUF's Q8_0: blocks of 32 weights with a scale each.

Source: the GGUF specification (ggml, docs/gguf.md) and its names of tensors and keys.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import gguf
import numpy
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from agents.engine.gguf_header import MERGED_KEYS
from agents.engine.messages import Export, Exported, ModelCard
from agents.engine.model_folder import merged_of, read_object
from agents.engine.worker.merge import Deltas, tensors_of
from agents.engine.worker.models import read_card
from agents.errors import EngineFailed
from storage import unixfs
from storage.durable import sync_folder
from storage.unixfs import COVEY_WEIGHTS

ARCHITECTURES: Final = ("LlamaForCausalLM", "MistralForCausalLM")
KINDS: Final = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "int8": Kind.Q8_0}
_FILE_TYPES: Final = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_BLOCK: Final = 32  # weights that share a scale in Q8_0
_NAMES: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER: Final = re.compile(r"model\.layers\.(\d{1,5})\.(.+)\.weight")
_PARTS: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(request: Export, is_cancelled: Callable[[], bool]) -> Exported:
    """Write the file, whole or not at all. Raises: EngineFailed, BadAdapter, WrongBase, OSError."""
    model, out = Path(request.model), Path(request.out)
    if out.exists():
        raise EngineFailed(f"{out} is there already: choose another name, or move it away")
    card = read_card(model)
    config = read_object(model / "config.json")
    _refuse_unlike(config, card)
    deltas = Deltas(Path(request.adapter), card) if request.adapter else None
    part = out.with_name(f".{out.name}.part")
    writer = gguf.GGUFWriter(part, "llama")
    try:
        _describe(writer, config, card, request)
        _add_tokenizer(writer, model)
        n_tensors = 0
        for name, values, kind in _tensors(model, deltas, config, KINDS[request.dtype]):
            if is_cancelled():
                raise EngineFailed("the export was cancelled; nothing was written")
            writer.add_tensor(name, values, raw_dtype=kind)
            n_tensors += 1
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with part.open("rb") as file:
            os.fsync(file.fileno())
        n_bytes = part.stat().st_size
        part.rename(out)
        sync_folder(out.parent)
    finally:
        part.unlink(missing_ok=True)
    return Exported(id=request.id, path=str(out), n_bytes=n_bytes, n_tensors=n_tensors)


def _refuse_unlike(config: dict[str, Any], card: ModelCard) -> None:
    """Raises: EngineFailed for what a Llama in GGUF has no place for."""
    if card.architecture not in ARCHITECTURES:
        raise EngineFailed(f"{card.name} is a {card.architecture}; only {' and '.join(ARCHITECTURES)} are exported")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise EngineFailed(f"{card.name} has biases in its layers, which are not exported")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise EngineFailed(f"{card.name} stretches its positions by {str(kind)[:40]}, which is not exported")


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any], card: ModelCard, request: Export) -> None:
    try:
        n_heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        rope = config.get("rope_parameters") or {}
        writer.add_name(request.name or card.name)
        writer.add_context_length(int(config["max_position_embeddings"]))
        writer.add_embedding_length(width)
        writer.add_block_count(int(config["num_hidden_layers"]))
        writer.add_feed_forward_length(int(config["intermediate_size"]))
        writer.add_head_count(n_heads)
        writer.add_head_count_kv(int(config.get("num_key_value_heads") or n_heads))
        writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
        writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
        writer.add_rope_dimension_count(int(config.get("head_dim") or width // n_heads))
        writer.add_vocab_size(int(config["vocab_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise EngineFailed(f"config.json of {card.name} does not tell {error}: import the model again") from None
    for fact, value in _made_of(card, request).items():
        writer.add_string(MERGED_KEYS[fact], value)
    writer.add_file_type(_FILE_TYPES[request.dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if card.licence:
        writer.add_license(card.licence)


def _made_of(card: ModelCard, request: Export) -> dict[str, str]:
    """What the file says of its making: the model, and the adapter that is in it."""
    if request.adapter is None:
        return merged_of(card)
    return {
        "merged_base": card.base,
        "merged_base_name": card.name,
        "merged_adapter": str(unixfs.cid_of_path(Path(request.adapter), COVEY_WEIGHTS)),
        "merged_adapter_name": request.adapter_name,
    }


def _add_tokenizer(writer: gguf.GGUFWriter, model: Path) -> None:
    """A byte-level BPE, as GPT-2's. Raises: EngineFailed for others."""
    whole = read_object(model / "tokenizer.json")
    bpe = whole.get("model") or {}
    pre = _pre_tokenizer(whole.get("pre_tokenizer"))
    if bpe.get("type") != "BPE" or bpe.get("byte_fallback") or pre is None:
        raise EngineFailed("its tokenizer is no byte-level BPE, and only those are exported")
    n_words = int(read_object(model / "config.json")["vocab_size"])
    words = [f"[PAD{number}]" for number in range(n_words)]
    kinds = [gguf.TokenType.UNUSED] * n_words
    added = {token["id"]: token for token in whole.get("added_tokens", ())}
    for word, number in [*bpe["vocab"].items(), *((token["content"], number) for number, token in added.items())]:
        if not 0 <= number < n_words:
            raise EngineFailed(f"its tokenizer has a token {number}, its vocabulary {n_words}")
        words[number] = word
        kinds[number] = gguf.TokenType.NORMAL
    for number, token in added.items():
        kinds[number] = gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_add_bos_token(False)
    _add_special(writer, model, {word: number for number, word in enumerate(words)})


def _pre_tokenizer(spec: Any) -> str | None:
    """What llama.cpp calls this way of cutting text into words; None for one that is not byte-level."""
    parts = (spec or {}).get("pretokenizers", [spec] if spec else [])
    kinds = [part.get("type") for part in parts]
    if "ByteLevel" not in kinds:
        return None
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    return "default"


def _add_special(writer: gguf.GGUFWriter, model: Path, numbers: dict[str, int]) -> None:
    config = model / "tokenizer_config.json"
    said = read_object(config) if config.exists() else {}
    adders = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "pad_token": writer.add_pad_token_id,
        "unk_token": writer.add_unk_token_id,
    }
    for name, add in adders.items():
        value = said.get(name)
        word = value.get("content") if isinstance(value, dict) else value
        if word in numbers:
            add(numbers[word])
    template = model / "chat_template.jinja"
    text = template.read_text() if template.exists() else said.get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)


def _tensors(
    model: Path, deltas: Deltas | None, config: dict[str, Any], kind: Kind
) -> Iterator[tuple[str, "numpy.ndarray[Any, Any]", Kind]]:
    """The tensors under GGUF's names, quantised."""
    n_heads = int(config["num_attention_heads"])
    n_kv_heads = int(config.get("num_key_value_heads") or n_heads)
    for _, tensors in tensors_of(model, deltas):
        for name, tensor in tensors.items():
            if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            target = _target(name)
            values = tensor.float()
            if target.endswith("attn_q.weight"):
                values = _interleave(values, n_heads)
            elif target.endswith("attn_k.weight"):
                values = _interleave(values, n_kv_heads)
            chosen = Kind.F32 if values.ndim == 1 else kind
            if chosen is Kind.Q8_0 and values.shape[-1] % _BLOCK:
                chosen = Kind.F16
            yield target, gguf.quants.quantize(values.contiguous().numpy(), chosen), chosen


def _target(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    found = _LAYER.fullmatch(name)
    if found is None or found[2] not in _PARTS:
        raise EngineFailed(f"the tensor {name[:100]!r} has no place in a Llama's GGUF")
    return f"blk.{found[1]}.{_PARTS[found[2]]}.weight"


def _interleave(weight: Tensor, n_heads: int) -> Tensor:
    """The rows of each head in the order that GGUF's rotary positions want: pairs side by side, not halves apart."""
    half = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, 2, half, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
