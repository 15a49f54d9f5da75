"""From a request to the tokens of its prompt."""

from collections.abc import Sequence
from typing import Final

from agents.engine.messages import Generate, Turn
from agents.engine.worker.models import LoadedModel
from agents.errors import BadModel, BadRequest, TooLong

PLAIN_STOP: Final = ("\nUser:", "\nSystem:")
PART_CHARS: Final = 1 << 15
_SEAM_TOKENS: Final = 16

_NAMES: Final = {"system": "System", "user": "User", "assistant": "Assistant"}


def prompt_tokens(loaded: LoadedModel, request: Generate) -> list[int]:
    """The tokens that the model shall go on from. Raises: BadRequest when there are none, TooLong, BadModel."""
    if (request.text is None) == (not request.turns):
        raise BadRequest("a request has either turns of a chat or a text to go on from")
    text = render(loaded, request.turns, is_open=True) if request.text is None else request.text
    _refuse_far_too_long(loaded, text)
    ids = loaded.encode(text)
    if not ids and loaded.start_token is not None:
        ids = [loaded.start_token]
    if not ids:
        raise BadRequest("the prompt is empty, and the model has no token to begin with: give it a word")
    if ids and max(ids) >= loaded.width:  # one row's step computes them all: it would fail everybody's
        raise BadModel(f"the tokenizer of {loaded.card.name} knows more tokens than the model: bring it in again whole")
    if len(ids) >= loaded.card.context_tokens:
        raise TooLong(_too_long(loaded, f"{len(ids)}"))
    return ids


def stops(loaded: LoadedModel, request: Generate) -> tuple[str, ...]:
    """What the answer ends before: a model that was taught no chat would go on with the other's words."""
    is_plain_chat = request.text is None and not loaded.card.has_chat_template
    return request.stop + PLAIN_STOP if is_plain_chat else request.stop


def render(loaded: LoadedModel, turns: Sequence[Turn], *, is_open: bool) -> str:
    """The chat as the model was taught to read it; `is_open` leaves it at the point where the assistant speaks.

    A model without a chat template gets the turns as plain `User:` and `Assistant:` lines. Raises: BadRequest.
    """
    if not loaded.card.has_chat_template:
        lines = [f"{_NAMES[turn.role]}: {turn.content}\n" for turn in turns]
        return "".join(lines) + ("Assistant:" if is_open else "")
    from jinja2 import TemplateError

    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_open)
    except TemplateError as error:
        raise BadRequest(f"the model's chat template refuses this chat: {error}") from None
    return text


def _refuse_far_too_long(loaded: LoadedModel, text: str) -> None:
    """Read a very long text only as far as it takes to know that it is too long: running answers wait meanwhile."""
    n_tokens = 0
    if len(text) <= max(PART_CHARS, loaded.card.context_tokens):
        return
    for start in range(0, len(text), PART_CHARS):
        # A cut in the middle of a word makes a few tokens more than there are.
        n_tokens += max(0, len(loaded.encode(text[start : start + PART_CHARS])) - _SEAM_TOKENS)
        if n_tokens > loaded.card.context_tokens:
            raise TooLong(_too_long(loaded, f"over {n_tokens}"))


def _too_long(loaded: LoadedModel, n: str) -> str:
    return f"the prompt has {n} tokens, {loaded.card.name} takes {loaded.card.context_tokens}: shorten it"
