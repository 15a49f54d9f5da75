"""The forward pass of Llama-type models, written out for steps over rows of different lengths.

The tokens of a step lie one after the other without padding, so that one product a layer serves all of them: the next
tokens of running answers and a part of a new prompt share the reading of the weights. Attention, and adapters where
rows differ in theirs, go by groups of rows of the same width. The layers are the loaded model's own; only what stands
between them is written anew, with fewer and cheaper operations, and compared with transformers before it is used.

Source: Agrawal et al., Sarathi-Serve (arXiv 2403.02310), for prompts read in parts together with running answers.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from agents.engine.worker.generation.cache import KvCache, LayerShape
from agents.engine.worker.lora import LoraLinear

KINDS: Final = frozenset({"llama", "mistral", "qwen2"})
"""transformers' names of the architectures that are so computed."""
TOLERANCE: Final = 1e-4
"""How far the output may be from transformers', as a share of its greatest value."""


class _Group(NamedTuple):
    """Rows one after the other that have equally many tokens in a step."""

    first: int
    n_rows: int
    width: int
    tokens: slice
    extent: int
    mask: Tensor | None  # (rows, 1, width, extent), unless the plain one serves


class Decoder:
    """Computes steps of a model. Raises: AttributeError when the model is not built as expected."""

    def __init__(self, model: Any) -> None:
        inner = model.model
        self._model = model
        self._embed = inner.embed_tokens
        self._rotary = inner.rotary_emb
        self._layers = tuple(inner.layers)
        self._norm = inner.norm
        self._groups: list[_Group] = []
        self._base = 0
        self._turn: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def step(
        self, cache: KvCache, ids: Sequence[Sequence[int]], first: int, starts: Sequence[int], wanted: Sequence[int]
    ) -> Tensor:
        """Take `ids[n]` into row `first + n`, which holds `starts[n]` tokens.

        Returns the output after the last token of the rows `first + n` for n in `wanted`. Shape: (wanted, vocabulary).
        """
        device = self._embed.weight.device
        widths = [len(part) for part in ids]
        cache.prepare(first, starts, widths)
        positions = [start + at for start, width in zip(starts, widths, strict=True) for at in range(width)]
        self._groups = _groups(first, starts, widths, device)
        self._base = first
        hidden = self._embed(torch.tensor([token for part in ids for token in part], device=device))  # (tokens, n)
        cos, sin = self._rotary(hidden[None], torch.tensor([positions], device=device))
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)
        self._turn = cos[0, :, None], sin[:, None]  # (tokens, 1, head width)
        for number, layer in enumerate(self._layers):
            hidden = self._attend(cache, number, layer.self_attn, _norm(layer.input_layernorm, hidden)).add_(hidden)
            mlp, x = layer.mlp, _norm(layer.post_attention_layernorm, hidden)
            x = mlp.act_fn(self._apply(mlp.gate_proj, x)).mul_(self._apply(mlp.up_proj, x))
            hidden = self._apply(mlp.down_proj, x).add_(hidden)
        ends = torch.tensor(widths).cumsum(0) - 1
        last = hidden[ends[list(wanted)].to(device)]  # (wanted, n)
        return self._judged(_norm(self._norm, last), wanted)

    def _attend(self, cache: KvCache, number: int, part: Any, x: Tensor) -> Tensor:
        """Attention of one layer. Shape: x (tokens, n), and so what is returned."""
        size = part.head_dim
        q = self._rotated(self._apply(part.q_proj, x).view(len(x), -1, size))  # (tokens, heads, size)
        k = self._rotated(self._apply(part.k_proj, x).view(len(x), -1, size))
        cache.put(number, k.flatten(1), self._apply(part.v_proj, x))
        n_shared = part.num_key_value_groups
        outs = []
        for group in self._groups:
            keys, values = cache.held(number, group.first, group.n_rows, group.extent)  # (rows, heads, extent, size)
            some = q[group.tokens].view(group.n_rows, group.width, -1, size).transpose(1, 2)
            if group.width == 1:  # the heads that share keys are as good as tokens
                some = some.view(group.n_rows, -1, n_shared, size)
            out = functional.scaled_dot_product_attention(
                some,
                keys,
                values,
                attn_mask=group.mask,
                is_causal=group.mask is None and group.width > 1,
                scale=part.scaling,
                enable_gqa=n_shared > 1 and group.width > 1,
            )
            if group.width > 1:
                out = out.transpose(1, 2)
            outs.append(out.reshape(group.n_rows * group.width, -1))
        return self._apply(part.o_proj, outs[0] if len(outs) == 1 else torch.cat(outs))

    def _judged(self, x: Tensor, wanted: Sequence[int]) -> Tensor:
        """The output layer, for one token of each row in `wanted`. Shape: x (wanted, n)."""
        head = self._model.lm_head  # looked up each time: an adapter may have wrapped it since
        rows = head.rows if isinstance(head, LoraLinear) else None
        if rows is None:
            out: Tensor = head(x)
            return out
        some = torch.tensor(wanted, device=x.device)
        a, b = rows[0][some], rows[1][some]  # (wanted, rank, n), (wanted, rank, vocabulary)
        down = torch.bmm(a, x[:, :, None])  # (wanted, rank, 1)
        out = head.base(x)
        out[:, None].baddbmm_(down.transpose(1, 2), b)
        return out

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary position embedding. Shape: (tokens, heads, head width)."""
        cos, sin = self._turn
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    def _apply(self, linear: Any, x: Tensor) -> Tensor:
        """A linear layer with what adapters add to it. Shape: x (tokens, n_in)."""
        rows = linear.rows if isinstance(linear, LoraLinear) else None
        if rows is None:
            out: Tensor = linear.forward(x)
            return out
        out = linear.base.forward(x)
        for first, n_rows, width, tokens, _, _ in self._groups:
            at = slice(first - self._base, first - self._base + n_rows)
            a, b = rows[0][at], rows[1][at]  # (rows, rank, n_in), (rows, rank, n_out)
            down = torch.bmm(a, x[tokens].view(n_rows, width, -1).transpose(1, 2))  # twice as fast as x a^T
            out[tokens].view(n_rows, width, -1).baddbmm_(down.transpose(1, 2), b)
        return out


def decoder_for(model: Any, shapes: Sequence[LayerShape]) -> Decoder | None:
    """A decoder that computes what `model` does; None when it is of another kind, or the two were seen to differ."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    is_windowed = bool(kinds - {"full_attention"}) or (not kinds and getattr(config, "sliding_window", None))
    # In half precision transformers rounds at points of its own.
    if config.model_type not in KINDS or is_windowed or model.dtype != torch.float32:
        return None
    try:
        decoder = Decoder(model)
        with torch.inference_mode():
            is_right = _agrees(decoder, model, shapes)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return decoder if is_right else None


def _agrees(decoder: Decoder, model: Any, shapes: Sequence[LayerShape]) -> bool:
    """Compute two short rows both ways, by a step over whole prompts and one over the rest."""
    n_words = model.get_output_embeddings().weight.shape[0]
    rows = [[(7 + 31 * at + 17 * row) % n_words for at in range(5)] for row in range(2)]
    wanted = model(input_ids=torch.tensor(rows, device=model.device), use_cache=False).logits[:, -1]
    cache = KvCache(shapes, torch.empty(0, device=model.device, dtype=model.dtype))
    cache.resize(2, len(rows[0]))
    decoder.step(cache, [rows[0][:4], rows[1][:2]], 0, [0, 0], [0])
    made = decoder.step(cache, [rows[0][4:], rows[1][2:]], 0, [4, 2], [0, 1])
    return bool((made - wanted).abs().max() <= TOLERANCE * wanted.abs().max())


def _groups(first: int, starts: Sequence[int], widths: Sequence[int], device: torch.device) -> list[_Group]:
    groups, n_tokens = [], 0
    for width, members in groupby(range(len(widths)), key=lambda n: widths[n]):
        numbers = list(members)
        some = [starts[n] for n in numbers]
        extent = max(some) + width
        mask = None
        if min(some) != max(some) or (width > 1 and max(some) > 0):
            ends = torch.tensor(some, device=device)[:, None] + torch.arange(width, device=device)  # (rows, width)
            hidden = torch.arange(extent, device=device) > ends[:, None, :, None]
            mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
        tokens = slice(n_tokens, n_tokens + width * len(numbers))
        groups.append(_Group(first + numbers[0], len(numbers), width, tokens, extent, mask))
        n_tokens = tokens.stop
    return groups


def _norm(norm: Any, x: Tensor) -> Tensor:
    return torch.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
