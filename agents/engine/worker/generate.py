"""Answer a chat, token by token."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from agents.engine.messages import Finished, Generate, Turn
from agents.engine.worker.models import LoadedModel
from agents.engine.worker.text import TextStream
from agents.errors import EngineFailed, TooLong

PREFILL_TOKENS: Final = 512
PLAIN_STOP: Final = ("\nUser:", "\nSystem:")

_NAMES: Final = {"system": "System", "user": "User", "assistant": "Assistant"}


def generate(
    loaded: LoadedModel, request: Generate, emit: Callable[[str], None], is_cancelled: Callable[[], bool]
) -> Finished:
    """Answer with the adapter that is worn; `emit` gets the text as it grows. Raises: EngineFailed, TooLong."""
    began_s = time.perf_counter()
    prompt = loaded.encode(render(loaded, request.turns, is_open=True))
    room = loaded.card.context_tokens - len(prompt)
    if room < 1:
        raise TooLong(
            f"the prompt has {len(prompt)} tokens, {loaded.card.name} takes {loaded.card.context_tokens}: shorten it"
        )
    stop = request.stop if loaded.card.has_chat_template else request.stop + PLAIN_STOP
    stream = TextStream(loaded.decode, stop)
    n_tokens, first_s = 0, 0.0
    reason: Literal["stop", "length", "cancelled"] = "length"
    with torch.inference_mode():
        for token in _tokens(loaded, prompt, request, min(request.max_tokens, room), is_cancelled):
            first_s = first_s or time.perf_counter() - began_s
            if token is None or token in loaded.end_tokens:
                reason = "cancelled" if token is None else "stop"
                break
            n_tokens += 1
            if text := stream.feed(token):
                emit(text)
            if stream.is_stopped:
                reason = "stop"
                break
    if text := stream.finish():
        emit(text)
    return Finished(
        id=request.id,
        reason=reason,
        n_prompt_tokens=len(prompt),
        n_tokens=n_tokens,
        first_token_s=first_s,
        total_s=time.perf_counter() - began_s,
    )


def render(loaded: LoadedModel, turns: Sequence[Turn], *, is_open: bool) -> str:
    """The chat as the model was taught to read it; `is_open` leaves it at the point where the assistant speaks.

    A model without a chat template gets the turns as plain `User:` and `Assistant:` lines. Raises: EngineFailed.
    """
    if not loaded.card.has_chat_template:
        lines = [f"{_NAMES[turn.role]}: {turn.content}\n" for turn in turns]
        return "".join(lines) + ("Assistant:" if is_open else "")
    from jinja2 import TemplateError

    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_open)
    except TemplateError as error:
        raise EngineFailed(f"the model's chat template refuses this chat: {error}") from None
    return text


def _tokens(
    loaded: LoadedModel, prompt: list[int], request: Generate, n_max: int, is_cancelled: Callable[[], bool]
) -> Iterator[int | None]:
    """Yield up to `n_max` tokens; None, and no more, when cancelled."""
    generator = torch.Generator().manual_seed(request.seed)
    seen = torch.tensor(prompt)  # (n_seen)
    todo, cache = seen, None
    for _ in range(n_max):
        for part in todo.split(PREFILL_TOKENS):
            if is_cancelled():
                yield None
                return
            out = loaded.model(
                input_ids=part[None].to(loaded.device), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = out.past_key_values
        token = choose(out.logits[0, -1].float().cpu(), seen, request, generator)
        todo = torch.tensor([token])
        seen = torch.cat((seen, todo))
        yield token


def choose(logits: Tensor, seen: Tensor, request: Generate, generator: torch.Generator) -> int:
    """Pick the next token as `request` says.

    Shape: logits (vocabulary), seen (n_seen).
    Source: Keskar et al., CTRL (arXiv 1909.05858) for the penalty; Holtzman et al. (arXiv 1904.09751) for top-p.
    """
    if request.repetition_penalty != 1.0:
        old = logits[seen]
        logits[seen] = torch.where(old > 0, old / request.repetition_penalty, old * request.repetition_penalty)
    if request.temperature == 0.0:
        return int(logits.argmax())
    chances = torch.softmax(logits / request.temperature, -1)
    if request.top_p < 1.0:
        ordered, order = chances.sort(descending=True)
        is_beyond = ordered.cumsum(-1) - ordered >= request.top_p  # the first stays, whatever its chance
        chances[order[is_beyond]] = 0.0
    return int(torch.multinomial(chances, 1, generator=generator))
