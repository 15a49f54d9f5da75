"""Which rows each step learns from, and on which the loss is taken. A step's rows follow from its number alone."""

from collections.abc import Sequence
from typing import NamedTuple

from agents.engine.worker.training.examples import Example
from agents.training.packing import pack
from agents.training.schedule import order
from agents.training.settings import Settings, count_steps
from agents.training.split import Split

Rows = list[list[Example]]


class Plan(NamedTuple):
    """Rows to learn from, rows held out, and how many steps there are."""

    train: Rows
    held_out: Rows
    n_steps: int


def make_plan(examples: Sequence[Example], parts: Split, settings: Settings) -> Plan:
    """Lay out what was split. Preferences are not packed: a pair is compared as a whole."""
    train = [examples[place] for place in parts.train]
    every = max(1, -(-len(parts.held_out) // settings.n_eval))
    held_out = [examples[place] for place in parts.held_out[::every]]
    is_packed = settings.pack and not any(example.worse for example in examples)
    rows = _packed(train, settings.context_tokens) if is_packed else [[example] for example in train]
    by_length = sorted(held_out, key=lambda example: -example.n_tokens)  # less is padded
    return Plan(rows, [[example] for example in by_length], count_steps(settings, len(rows)))


def _packed(examples: Sequence[Example], n_row: int) -> Rows:
    return [
        [examples[place] for place in row] for row in pack([len(example.tokens.ids) for example in examples], n_row)
    ]


class Feed:
    """Hands out rows, pass after pass, each in an order of its own."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._pass = -1
        self._order: list[int] = []

    def take(self, at: int, n: int) -> Rows:
        """Rows `at` to `at + n` of all that are ever handed out."""
        taken = []
        for place in range(at, at + n):
            n_pass, within = divmod(place, len(self._rows))
            if n_pass != self._pass:
                self._pass, self._order = n_pass, order(len(self._rows), self._seed, n_pass)
            taken.append(self._rows[self._order[within]])
        return taken
