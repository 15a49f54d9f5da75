"""What is made smaller: the loss on a micro-batch of rows.

Source: Rafailov et al., Direct Preference Optimization (arXiv 2305.18290); the model without the adapter is its
reference.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from agents.engine.worker.training.examples import IGNORED, Example, Tokens

Row = Sequence[Example]
"""Examples that stand in one row, one after the other."""


class Batch(NamedTuple):
    """Rows as the model takes them. Without `mask`, each row is one text, padded on its right.

    Shape: ids, labels, positions (n_rows, width); mask (n_rows, 1, width, width), added to the attention scores.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor | None
    mask: Tensor | None


def count_labels(rows: Sequence[Row]) -> int:
    """What the loss of the rows is a sum over: tokens, or pairs of answers."""
    return sum(1 if example.worse else example.tokens.n_learned for row in rows for example in row)


def lay_out(rows: Sequence[Sequence[Tokens]], device: torch.device, dtype: torch.dtype) -> Batch:
    """Rows of one or several texts. Each text sees itself alone, and counts its places from 0."""
    width = max(sum(len(text.ids) for text in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    texts = torch.full((len(rows), width), -1)  # which text of its row a token belongs to; -1 for none
    for row, parts in enumerate(rows):
        at = 0
        for number, part in enumerate(parts):
            end = at + len(part.ids)
            ids[row, at:end] = torch.tensor(part.ids, dtype=torch.long)
            labels[row, at:end] = torch.tensor(part.labels, dtype=torch.long)
            labels[row, at] = IGNORED  # nothing of its own stands before it
            positions[row, at:end] = torch.arange(end - at)
            texts[row, at:end] = number
            at = end
    if max(len(row) for row in rows) == 1:
        # Causal attention: what is padded on the right changes nothing to its left, and its labels are ignored.
        return Batch(ids.to(device), labels.to(device), None, None)
    sees = (texts[:, :, None] == texts[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    mask = torch.zeros(len(rows), 1, width, width, dtype=dtype).masked_fill_(~sees[:, None], torch.finfo(dtype).min)
    return Batch(ids.to(device), labels.to(device), positions.to(device), mask.to(device))


def _logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits where something is learned, and what is wanted there.

    Shape: (n_rows, n_kept, vocabulary), (n_rows, n_kept).
    """
    wanted = batch.labels[:, 1:]
    kept = (wanted != IGNORED).any(0).nonzero()[:, 0]  # (n_kept); the others' logits are never computed
    placed = {} if batch.mask is None else {"attention_mask": batch.mask, "position_ids": batch.positions}
    logits = model(input_ids=batch.ids, use_cache=False, logits_to_keep=kept, **placed).logits
    return logits.float(), wanted[:, kept]


def token_loss(model: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The summed loss in nats over what the rows teach."""
    return _summed(*_judged(model, rows, device, dtype))


def token_score(model: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """The summed loss, and how many of the learned tokens are those that the model thinks likeliest."""
    logits, wanted = _judged(model, rows, device, dtype)
    return float(_summed(logits, wanted)), int((logits.argmax(-1) == wanted)[wanted != IGNORED].sum())


def _judged(model: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the model says of the rows: see `_logits`."""
    return _logits(model, lay_out([[example.tokens for example in row] for row in rows], device, dtype))


def _summed(logits: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")


Reference = Callable[[], AbstractContextManager[None]]
"""Within it the model is the one to stay near."""


def preference_loss(
    model: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype, reference: Reference, beta: float
) -> Tensor:
    """The summed loss in nats over the pairs of the rows."""
    return _regret(_gains(model, rows, device, dtype, reference), beta)


def preference_score(
    model: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype, reference: Reference, beta: float
) -> tuple[float, int]:
    """The summed loss, and in how many pairs the better answer gains on the worse one."""
    gains = _gains(model, rows, device, dtype, reference)
    return float(_regret(gains, beta)), int((gains > 0).sum())


def _regret(gains: Tensor, beta: float) -> Tensor:
    return -functional.logsigmoid(beta * gains).sum()


def _gains(model: Any, rows: Sequence[Row], device: torch.device, dtype: torch.dtype, reference: Reference) -> Tensor:
    """By how much more than the reference the model prefers the better answer. Shape: (n_pairs)."""
    pairs = [example for row in rows for example in row]
    better = [[example.tokens] for example in pairs]
    worse = [[example.worse] for example in pairs if example.worse is not None]
    batch = lay_out([*better, *worse], device, dtype)
    chances = _log_chances(model, batch)
    with torch.no_grad(), reference():
        before = _log_chances(model, batch)
    chances = chances - before
    return chances[: len(pairs)] - chances[len(pairs) :]


def _log_chances(model: Any, batch: Batch) -> Tensor:
    """The log probability of what each row teaches. Shape: (n_rows)."""
    logits, wanted = _logits(model, batch)
    losses = functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    return -losses.sum(1)
