"""Answer many requests at once on one model, each with an adapter of its own: the shell around the scheduler."""

import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from agents.engine.messages import Generate, Reply
from agents.engine.worker.endings import failed, unforeseen
from agents.engine.worker.generation.cache import KvCache, Span, probe
from agents.engine.worker.generation.decoder import decoder_for
from agents.engine.worker.generation.grammar import Grammars
from agents.engine.worker.generation.masks import Masks
from agents.engine.worker.generation.prefix import Prefixes
from agents.engine.worker.generation.prompt import prompt_tokens, stops
from agents.engine.worker.generation.sampling import Choice, Sampler, choose_all
from agents.engine.worker.generation.scheduler import NoRoom, QueueFull, Scheduler, Step, shape
from agents.engine.worker.generation.sequence import Reason, Sequence
from agents.engine.worker.generation.stacked import Stack
from agents.engine.worker.models import LoadedModel
from agents.engine.worker.text import TextStream
from agents.errors import AgentError, BadRequest, EngineBusy, EngineFailed

MAX_ROWS: Final = 32
RATE_S: Final = 5.0
LEAST_STACK_SHARE: Final = 4
"""Stacked adapters are within the budget of keys and values; where those take it all, they get one part of so many."""


@dataclass(frozen=True)
class Limits:
    """What the batch may use, and whether it may let one request's numbers depend on another's company."""

    cache_bytes: int
    max_rows: int = MAX_ROWS
    is_deterministic: bool = False


class Batch:
    """The requests that run on a model. `start` takes one in; each `step` computes a little for some of them.

    With `is_deterministic` each request is computed alone and without reuse, in shapes that depend on nothing else:
    the same request gives the same answer to the bit on the same machine and thread count. Without it the products of
    several rows may round otherwise than those of one, which can turn the balance between two nearly equal tokens.
    """

    def __init__(self, loaded: LoadedModel, limits: Limits) -> None:
        self._loaded = loaded
        self._limits = limits
        self._masks = Masks(loaded.model)
        shapes = probe(loaded.model)
        self._decoder = decoder_for(loaded.model, shapes)
        self._cache = KvCache(shapes, torch.empty(0, device=loaded.device, dtype=loaded.model.dtype))
        self._budget_tokens = limits.cache_bytes // self._cache.token_bytes
        self._scheduler = self._new_scheduler()
        self._stack = Stack(loaded.adapters)
        self._prefixes: Prefixes[Span] = Prefixes()
        self._grammars = Grammars(loaded.tokenizer, loaded.width, loaded.end_tokens)
        self._sequences: dict[int, Sequence] = {}
        self._placed: list[int] = []  # whose keys and values stand in which row
        self._made: deque[tuple[float, int]] = deque()  # when how many tokens were made

    @property
    def is_idle(self) -> bool:
        """Is there nothing to compute?"""
        return not self._sequences

    @property
    def n_running(self) -> int:
        """Requests that have a row."""
        return len(self._scheduler.rows)

    @property
    def n_waiting(self) -> int:
        """Requests that wait for one."""
        return self._scheduler.n_waiting

    @property
    def cache_bytes(self) -> int:
        """What keys and values take, of running requests and of beginnings kept, and the stacked adapters."""
        return self._cache.n_bytes + self._prefixes.n_bytes + self._stack.n_bytes

    @property
    def tokens_per_s(self) -> float:
        """Over the last seconds in which tokens were made."""
        if len(self._made) < 2:
            return 0.0
        return sum(n for _, n in list(self._made)[1:]) / (self._made[-1][0] - self._made[0][0])

    def running(self) -> list[Sequence]:
        """Those that have a row."""
        return [self._sequences[key] for key in self._scheduler.rows]

    def start(self, request: Generate, emit: Callable[[Reply], None], is_cancelled: Callable[[], bool]) -> None:
        """Take a request in; `emit` will get all of its replies. Raises: AgentError when it cannot be served."""
        began_s = time.perf_counter()
        loaded = self._loaded
        context = loaded.card.context_tokens
        if request.max_tokens > context:
            raise BadRequest(
                f"max_tokens is {request.max_tokens}, {loaded.card.name} takes {context} in all: ask for fewer"
            )
        ids = prompt_tokens(loaded, request)
        adapter = loaded.adapters.stage(Path(request.adapter)) if request.adapter else None
        matcher = self._grammars.matcher(request.json_schema) if request.json_schema is not None else None
        n_limit = min(len(ids) + request.max_tokens, context)
        sampler = Sampler(request, ids, loaded.width, matcher)
        stream = TextStream(loaded.decode, stops(loaded, request))
        try:  # the last that may fail: what is submitted has its sequence
            self._scheduler.submit(request.id, len(ids), n_limit)
        except NoRoom:
            raise BadRequest(self._no_room(n_limit)) from None
        except QueueFull as error:
            raise EngineBusy(f"the engine is busy: {error}. Ask again in a while.") from None
        self._sequences[request.id] = Sequence(
            request, ids, adapter, n_limit, sampler, matcher, stream, emit, is_cancelled, began_s
        )

    def step(self) -> None:
        """Let go who was cancelled, let in who fits, and compute one step for some."""
        for sequence in list(self._sequences.values()):
            if sequence.is_cancelled():
                self._end(sequence)
                sequence.finish("cancelled")
        admitted = self._scheduler.admit()
        self._arrange()
        for key in admitted:
            self._reuse(key)
        self._arrange()
        step = self._scheduler.step()
        if step is None:
            return
        with torch.inference_mode():
            self._choose(step, self._compute(step, self._scheduler.ends(step)))
        if self.is_idle:
            self._arrange()

    def fail(self, error: AgentError) -> None:
        """A step went wrong in a way that is nobody's in particular: all end with it, and nothing of them is kept."""
        sequences, self._sequences = list(self._sequences.values()), {}
        self._scheduler = self._new_scheduler()
        self._placed = []
        self._cache.resize(0, 0)
        self._stack.release()
        for sequence in sequences:
            sequence.emit(failed(sequence.request.id, error))

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(
            self._budget_tokens,
            max_rows=self._limits.max_rows,
            is_pinned=self._limits.is_deterministic,
            is_joint=self._decoder is not None,
        )

    def _no_room(self, n_tokens: int) -> str:
        needed, budget = n_tokens * self._cache.token_bytes, self._limits.cache_bytes
        return (
            f"{n_tokens} tokens need {needed / 1e6:.0f} MB of keys and values, the engine has {budget / 1e6:.0f} MB: "
            "shorten the prompt, ask for fewer tokens, or raise engine.cache_gb"
        )

    def _arrange(self) -> None:
        """Bring keys and values into the rows that the scheduler has, in a rectangle of the right size."""
        rows, cache, scheduler = self._scheduler.rows, self._cache, self._scheduler
        alive = set(rows)
        for at in range(len(self._placed) - 1, -1, -1):
            if self._placed[at] not in alive:
                last = self._placed.pop()
                if at < len(self._placed):
                    self._placed[at] = last
                    cache.move(len(self._placed), at)
                cache.clear(len(self._placed))
        if (wanted := shape((cache.n_rows, cache.n_columns), len(rows), scheduler.columns, self._budget_tokens)) != (
            cache.n_rows,
            cache.n_columns,
        ):
            self._prefixes.shrink(self._limits.cache_bytes - wanted[0] * wanted[1] * cache.token_bytes)
            cache.resize(*wanted)
        self._placed += [key for key in rows if key not in self._placed]
        for at, key in enumerate(rows):
            if (other := self._placed[at]) != key:
                where = self._placed.index(key)
                cache.swap(at, where, max(scheduler.n_done(key), scheduler.n_done(other)))
                self._placed[at], self._placed[where] = key, other
        if not rows:
            self._stack.release()

    def _reuse(self, key: int) -> None:
        """Begin a row with what was computed for an earlier prompt."""
        sequence = self._sequences[key]
        if self._limits.is_deterministic:
            return
        found = self._prefixes.find(_owner(sequence), sequence.ids)
        if found is None:
            return
        n_tokens = min(found[0], len(sequence.ids) - 1)
        self._cache.write(self._placed.index(key), found[1], n_tokens)
        self._scheduler.reuse(key, n_tokens)
        sequence.n_cached = sequence.n_cached or min(n_tokens, sequence.n_prompt)

    def _compute(self, step: Step, wanted: list[int]) -> Tensor:
        """The model's output after the last token of the rows of `step` that are wanted. Shape: (rows, vocabulary).

        In one go, unless the adapters of its rows are too large to be stacked.
        """
        rows = [sequence.adapter for sequence in self.running()]
        cache_bytes = self._limits.cache_bytes
        room_bytes = max(cache_bytes - self._cache.n_bytes, cache_bytes // LEAST_STACK_SHARE)
        outs = []
        for first, n in self._stack.parts(rows, step.first, len(step.widths), room_bytes):
            at = first - step.first
            some = [row - at for row in wanted if at <= row < at + n]
            outs.append(self._compute_part(Step(first, step.widths[at : at + n]), some))
        self._prefixes.shrink(max(0, cache_bytes - self._cache.n_bytes - self._stack.n_bytes))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _compute_part(self, step: Step, wanted: list[int]) -> Tensor:
        running = self.running()
        first, widths = step
        sequences = running[first : first + len(widths)]
        starts = [self._scheduler.n_done(sequence.request.id) for sequence in sequences]
        self._stack.wear([sequence.adapter for sequence in running], first, len(widths))
        if self._decoder is not None:
            parts = [each.ids[start : start + n] for each, start, n in zip(sequences, starts, widths, strict=True)]
            return self._decoder.step(self._cache, parts, first, starts, wanted)
        width = max(widths)
        ids, positions = [], []
        for sequence, start, n in zip(sequences, starts, widths, strict=True):
            padding = [0] * (width - n)
            ids.append(padding + sequence.ids[start : start + n])
            positions.append(padding + list(range(start, start + n)))
        device = self._loaded.device
        position_ids = torch.tensor(positions, device=device)  # (rows, width)
        self._cache.prepare(first, starts, widths)
        out = self._loaded.model(
            input_ids=torch.tensor(ids, device=device),  # (rows, width)
            position_ids=position_ids,
            attention_mask=self._masks.make(position_ids, starts, widths),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        return logits if len(wanted) == len(widths) else logits[wanted]

    def _choose(self, step: Step, logits: Tensor) -> None:
        """Give a token to each that can have one, and end those for whom it is the last."""
        sequences = [self._sequences[key] for key in self._scheduler.computed(step)]
        if not sequences:
            return
        choices = choose_all(logits, [each.sampler for each in sequences])
        self._count(len(sequences))
        for sequence, choice in zip(sequences, choices, strict=True):
            reason = choice if isinstance(choice, EngineFailed) else self._taken(sequence, choice)
            if isinstance(reason, AgentError):
                self._end(sequence)
                sequence.emit(failed(sequence.request.id, reason))
                continue
            if reason is None:
                self._scheduler.chosen(sequence.request.id)
                continue
            self._keep(sequence)
            self._end(sequence)
            sequence.finish(reason)

    def _taken(self, sequence: Sequence, choice: Choice) -> Reason | AgentError | None:
        """Why the answer ends with this token, where it does, or what went wrong: with it alone, the others go on."""
        try:
            return sequence.take(choice, self._loaded)
        except AgentError as error:
            return error
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            return unforeseen(error)

    def _keep(self, sequence: Sequence) -> None:
        """Keep what was computed for the next prompt that begins like this one and its answer."""
        if self._limits.is_deterministic:
            return
        n_tokens = self._scheduler.n_done(sequence.request.id)
        max_bytes = self._limits.cache_bytes - self._cache.n_bytes - self._stack.n_bytes
        if n_tokens * self._cache.token_bytes <= max_bytes:
            span = self._cache.read(self._placed.index(sequence.request.id), n_tokens)
            self._prefixes.put(_owner(sequence), sequence.ids[:n_tokens], span, span.n_bytes, max_bytes)

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.id]
        self._scheduler.drop(sequence.request.id)

    def _count(self, n: int) -> None:
        now_s = time.perf_counter()
        if self._made and now_s - self._made[-1][0] > RATE_S:
            self._made.clear()
        self._made.append((now_s, n))
        while now_s - self._made[0][0] > RATE_S:
            self._made.popleft()


def _owner(sequence: Sequence) -> tuple[object, ...]:
    return sequence.adapter.version if sequence.adapter else ()
