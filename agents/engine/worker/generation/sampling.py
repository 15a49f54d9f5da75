"""From a model's output to the next token, as each request says; who wants only the likeliest is served in one go.

The order of the options: penalties, what a grammar allows, temperature, top-k, top-p, min-p. Chance comes from a
generator of the request's own, one number a token, so that what others draw changes nothing.

Source: Keskar et al., CTRL (arXiv 1909.05858) for the repetition penalty; Holtzman et al. (arXiv 1904.09751) for top-p;
Nguyen et al. (arXiv 2407.01082) for min-p.
"""

import traceback
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from agents.engine.messages import Generate
from agents.engine.worker.endings import unforeseen
from agents.engine.worker.generation.grammar import Matcher
from agents.errors import EngineFailed

N_CANDIDATES: Final = 1024
"""So many of the likeliest are sorted at first; nearly always the ones that count are among them."""

_GREATEST_SCORE: Final = 1e30


class Choice(NamedTuple):
    """A token, and where they were asked for, the logarithm of its chance and of the likeliest ones'."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses one request's tokens. `matcher`: what its grammar allows, where it has one."""

    def __init__(self, request: Generate, prompt: Iterable[int], vocabulary: int, matcher: Matcher | None) -> None:
        self._request = request
        self._matcher = matcher
        self._generator = torch.Generator().manual_seed(request.seed)
        self._has_counts = request.presence_penalty != 0.0 or request.frequency_penalty != 0.0
        has_seen = request.repetition_penalty != 1.0
        self._seen = torch.zeros(vocabulary, dtype=torch.bool) if has_seen else None
        self._counts = torch.zeros(vocabulary) if self._has_counts else None
        if self._seen is not None:
            self._seen[torch.tensor(list(prompt), dtype=torch.long)] = True
        self.is_plain = (
            request.temperature == 0.0
            and not (has_seen or self._has_counts)
            and request.n_logprobs is None
            and matcher is None
        )

    def choose(self, logits: Tensor) -> Choice:
        """The next token. Shape: logits (vocabulary), float32 on the CPU."""
        request = self._request
        scores = self._penalised(logits)
        if self._matcher is not None:
            scores = self._matcher.masked(scores)
        token = int(scores.argmax()) if request.temperature == 0.0 else self._draw(_cooled(scores, request.temperature))
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        if request.n_logprobs is None:
            return Choice(token)
        chances = torch.log_softmax(logits, -1)
        best, ids = chances.topk(min(request.n_logprobs, len(chances)))
        return Choice(token, float(chances[token]), tuple(zip(ids.tolist(), best.tolist(), strict=True)))

    def _penalised(self, logits: Tensor) -> Tensor:
        """Repetition counts the prompt too; presence and frequency count the answer alone."""
        request = self._request
        if self._seen is not None:
            penalty = request.repetition_penalty
            logits = torch.where(self._seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        if self._counts is not None:
            logits = logits - self._counts * request.frequency_penalty - (self._counts > 0) * request.presence_penalty
        return logits

    def _draw(self, scores: Tensor) -> int:
        request = self._request
        if not request.top_k and request.top_p == 1.0 and request.min_p == 0.0:
            return self._pick(torch.softmax(scores, -1))
        n = min(request.top_k or N_CANDIDATES, len(scores))
        chances, ids = _likeliest(scores, n, is_all=bool(request.top_k))
        if not request.top_k and n < len(scores) and not self._is_cut(chances):
            chances, ids = _likeliest(scores, len(scores), is_all=True)
        is_kept = chances.cumsum(-1) - chances < request.top_p  # the first stays, whatever its chance
        is_kept &= chances >= request.min_p * chances[0]
        return int(ids[self._pick(chances * is_kept)])

    def _is_cut(self, chances: Tensor) -> bool:
        """Do top-p or min-p leave out the last of the candidates, and so all that come after?"""
        return bool(chances.sum() >= self._request.top_p or chances[-1] < self._request.min_p * chances[0])

    def _pick(self, chances: Tensor) -> int:
        """One of them by its share."""
        sums = chances.cumsum(-1)
        at = torch.rand(1, generator=self._generator, dtype=torch.float64) * sums[-1]
        return int(torch.searchsorted(sums, at, right=True).clamp(max=int(chances.nonzero()[-1])))


def _cooled(scores: Tensor, temperature: float) -> Tensor:
    """The scores at this temperature, the greatest 0: it may be as low, and a penalty as odd, as floats can be."""
    scores = scores.double().clamp(max=_GREATEST_SCORE)
    return (scores - scores.max()) / temperature


def _likeliest(scores: Tensor, n: int, *, is_all: bool) -> tuple[Tensor, Tensor]:
    """The chances of the `n` likeliest, in order, and which they are; `is_all`: as if there were no others."""
    best, ids = scores.topk(n)
    total = best.logsumexp(-1) if is_all else scores.logsumexp(-1)
    return (best - total).exp(), ids


def choose_all(logits: Tensor, samplers: Sequence[Sampler]) -> list[Choice | EngineFailed]:
    """The next token of each row, or what is wrong with that row alone. Shape: logits (rows, vocabulary)."""
    best, ids = logits.max(-1)
    chosen: list[Choice | EngineFailed] = []
    for row, (token, is_sound) in enumerate(zip(ids.tolist(), best.isfinite().tolist(), strict=True)):
        sampler = samplers[row]
        if not is_sound:
            chosen.append(EngineFailed(_NOT_FINITE))
        elif sampler.is_plain:
            chosen.append(Choice(token))
        else:
            chosen.append(_choice(sampler, logits[row].float().cpu()))
    return chosen


def _choice(sampler: Sampler, logits: Tensor) -> Choice | EngineFailed:
    try:
        return sampler.choose(logits)
    except EngineFailed as error:
        return error
    except Exception as error:  # noqa: BLE001  # whatever one row's options lead to, the others go on
        traceback.print_exc()
        return unforeseen(error)


_NOT_FINITE: Final = (
    "the model's output is not a number: its weights or the adapter's are broken, or too large for engine.dtype"
)
