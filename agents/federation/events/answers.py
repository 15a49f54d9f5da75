"""What a book has worked out already, kept as long as nothing is heard that it depends on."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, Protocol, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
Key = tuple[Any, ...]

JUDGED: Final = "judged"  # says itself for which setting it was found: see `secure_stages`


class Answers(dict[Key, Any]):
    """Answers by the name of the method that gives them, and what it was asked. Those named in `kept` are kept right by
    whoever holds this.
    """

    def __init__(self, kept: frozenset[str]) -> None:
        super().__init__()
        self._kept = kept
        self._unknown: set[Key] = set()

    def note(self, key: Key, answer: Any) -> None:
        """Remember an answer. Those that say nothing are known by themselves: many an event drops them."""
        self[key] = answer
        if not answer and key[0] not in self._kept:
            self._unknown.add(key)

    def forget(self) -> None:
        """Work everything out again, but for what is kept."""
        self.drop(*[key for key in self if key[0] not in self._kept])
        self._unknown.clear()

    def forget_unknown(self) -> None:
        """What was not known may be known now, and with it what had to be empty for that."""
        if self._unknown:
            self.drop(*self._unknown)
            self._unknown.clear()

    def drop(self, *keys: Key) -> None:
        """Work these out again."""
        for key in keys:
            self.pop(key, None)


class Answering(Protocol):
    """What has methods whose answers are remembered."""

    answers: Answers


def remembered(method: F) -> F:
    """What a method answers stays true until something is added that it depends on: it is worked out once."""

    @wraps(method)
    def answer(one: Answering, *args: Any) -> Any:
        key = (method.__name__, *args)
        if key not in one.answers:
            one.answers.note(key, method(one, *args))
        return one.answers[key]

    return cast(F, answer)
