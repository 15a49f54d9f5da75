"""Answers of a given form: which tokens may come next so that the whole becomes JSON of a schema, by llguidance."""

import json
from typing import Any, Final

import numpy
import torch
from torch import Tensor

from agents.errors import BadRequest, EngineFailed

# One form of white space: small models otherwise go on with it for ever.
_FORM: Final[Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Matcher:
    """Follows one answer."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def masked(self, logits: Tensor) -> Tensor:
        """`logits` with what is not allowed at minus infinity. Shape: (vocabulary). Raises: EngineFailed."""
        bits = self._matcher.compute_bitmask()
        self._check()
        flags = numpy.unpackbits(numpy.frombuffer(bits, numpy.uint8), count=self._vocabulary, bitorder="little")
        is_allowed = torch.from_numpy(flags.astype(bool))
        return torch.where(is_allowed, logits, -torch.inf)

    def accept(self, token: int) -> None:
        """The answer goes on with this token. Raises: EngineFailed."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_over(self) -> bool:
        """Is the answer complete, with nothing that may follow?"""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineFailed(f"the JSON schema cannot be followed any further: {_line(self._matcher.get_error())}")


class Grammars:
    """Compiles schemas for one model's tokens. `tokenizer`: of transformers; `vocabulary`: width of its output."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = sorted(end_tokens)
        self._compiled: Any = None

    def matcher(self, schema: str) -> Matcher:
        """Begin an answer of this JSON schema. Raises: BadRequest, with what is wrong with the schema."""
        import llguidance  # here, for few requests need it

        try:
            if not isinstance(json.loads(schema), dict):
                raise BadRequest("the JSON schema is not an object")
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_FORM)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the JSON schema is not JSON: {_line(str(error))}") from None
        if self._compiled is None:
            backend = self._tokenizer.backend_tokenizer.to_str()
            self._compiled = llguidance.LLTokenizer(backend, n_vocab=self._vocabulary, eos_token=self._end_tokens)
        matcher = llguidance.LLMatcher(self._compiled, grammar, log_level=0)
        if matcher.is_error():
            raise BadRequest(f"the JSON schema cannot be used: {_line(matcher.get_error())}")
        return Matcher(matcher, self._vocabulary)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
