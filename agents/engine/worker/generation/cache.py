"""The keys and values of all running requests: one rectangle a layer, a row a request, each row as long as it is.

transformers' models write to it and read from it as from a cache of their own; what they get is the slice of rows and
columns that the step at hand is about. Columns beyond a row's end are masked, and hold zeros: rows are cleared when
they are left.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from agents.errors import EngineFailed


class LayerShape(NamedTuple):
    """Numbers of one layer's keys and values for one token, as (heads, width of a head)."""

    keys: tuple[int, int]
    values: tuple[int, int]


class Span(NamedTuple):
    """A request's keys and values, all layers: (tokens, numbers a token) each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def n_bytes(self) -> int:
        """What it takes in memory."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class KvCache(Cache):  # type: ignore[misc]  # transformers is not read by mypy here
    """The rectangle. `shapes`: of each layer; `like`: a tensor of the right device and dtype."""

    def __init__(self, shapes: Sequence[LayerShape], like: Tensor) -> None:
        super().__init__(layers=[])
        self._shapes: Final = tuple(shapes)
        self._like = like
        self._keys = [like.new_zeros(0, 0, heads * width) for (heads, width), _ in shapes]
        self._values = [like.new_zeros(0, 0, heads * width) for _, (heads, width) in shapes]
        self.n_rows = 0
        self.n_columns = 0
        # Of the step at hand.
        self._first = 0
        self._n_rows = 0
        self._width = 0
        self._extent = 0
        self._targets = torch.empty(0, dtype=torch.long)
        self._sources: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """What it takes in memory."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes."""
        return token_bytes(self._shapes, self._like.itemsize)

    def resize(self, n_rows: int, n_columns: int) -> None:
        """Have so many rows and columns; what stands within both stays. One layer at a time: little is held twice."""
        if n_rows and (n_rows, n_columns) == (self.n_rows, self.n_columns):
            return  # but not where nothing is wanted: growth that failed halfway has left some layers larger
        kept_rows, kept_columns = min(n_rows, self.n_rows), min(n_columns, self.n_columns)
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                new = self._like.new_zeros(n_rows, n_columns, old.shape[2])  # zeros: garbage may be NaN
                new[:kept_rows, :kept_columns] = old[:kept_rows, :kept_columns]
                buffers[layer] = new
                del old
        self.n_rows, self.n_columns = n_rows, n_columns

    def swap(self, one: int, other: int, n_tokens: int) -> None:
        """Exchange the first `n_tokens` of two rows."""
        for buffer in (*self._keys, *self._values):
            held = buffer[one, :n_tokens].clone()
            buffer[one, :n_tokens] = buffer[other, :n_tokens]
            buffer[other, :n_tokens] = held

    def move(self, source: int, target: int) -> None:
        """Copy a row over another, as wide as they are."""
        for buffer in (*self._keys, *self._values):
            buffer[target] = buffer[source]

    def clear(self, row: int) -> None:
        """Zero a row that somebody has left: what it held may not be finite, and a mask does not hide that."""
        for buffer in (*self._keys, *self._values):
            buffer[row].zero_()

    def read(self, row: int, n_tokens: int) -> Span:
        """A copy of a row's first `n_tokens`."""
        return Span(
            tuple(buffer[row, :n_tokens].clone() for buffer in self._keys),
            tuple(buffer[row, :n_tokens].clone() for buffer in self._values),
        )

    def write(self, row: int, span: Span, n_tokens: int) -> None:
        """Begin a row with the first `n_tokens` of `span`."""
        for buffers, parts in ((self._keys, span.keys), (self._values, span.values)):
            for buffer, part in zip(buffers, parts, strict=True):
                buffer[row, :n_tokens] = part[:n_tokens]

    def prepare(self, first: int, starts: Sequence[int], widths: Sequence[int]) -> None:
        """The next forward pass brings `widths[n]` tokens, flush right, for row `first + n`, which has `starts[n]`."""
        self._first, self._n_rows = first, len(starts)
        self._width = max(widths)
        self._extent = max(start + width for start, width in zip(starts, widths, strict=True))
        assert first + self._n_rows <= self.n_rows and self._extent <= self.n_columns
        columns = self.n_columns
        device = self._like.device
        if self._width == 1:
            targets = [(first + n) * columns + start for n, start in enumerate(starts)]
            self._targets, self._sources = torch.tensor(targets, device=device), None
            return
        pairs = list(zip(starts, widths, strict=True))
        targets = [(first + n) * columns + start + at for n, (start, width) in enumerate(pairs) for at in range(width)]
        sources = [(n + 1) * self._width - width + at for n, (_, width) in enumerate(pairs) for at in range(width)]
        self._targets = torch.tensor(targets, device=device)
        is_full = len(sources) == self._width * self._n_rows
        self._sources = None if is_full else torch.tensor(sources, device=device)

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Take in a layer's keys and values of the step's tokens, all rows' without padding: (tokens, numbers)."""
        for buffer, new in ((self._keys[layer], keys), (self._values[layer], values)):
            buffer.view(-1, buffer.shape[2]).index_copy_(0, self._targets, new)

    def held(self, layer: int, first: int, n_rows: int, extent: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of some rows, (rows, heads, extent, head width)."""
        shape = self._shapes[layer]
        keys = self._keys[layer][first : first + n_rows, :extent]
        values = self._values[layer][first : first + n_rows, :extent]
        return (
            keys.view(n_rows, extent, *shape.keys).transpose(1, 2),
            values.view(n_rows, extent, *shape.values).transpose(1, 2),
        )

    # What transformers calls.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in a layer's new keys and values, (rows, heads, width, head width); return all of these rows'."""
        return (
            self._put(self._keys[layer_idx], key_states, self._shapes[layer_idx].keys),
            self._put(self._values[layer_idx], value_states, self._shapes[layer_idx].values),
        )

    def _put(self, buffer: Tensor, new: Tensor, shape: tuple[int, int]) -> Tensor:
        size = shape[0] * shape[1]
        flat = new.transpose(1, 2).reshape(-1, size)  # (rows * width, heads * head width)
        if self._sources is not None:
            flat = flat.index_select(0, self._sources)
        buffer.view(-1, size).index_copy_(0, self._targets, flat)
        held = buffer[self._first : self._first + self._n_rows, : self._extent]
        return held.view(self._n_rows, self._extent, *shape).transpose(1, 2)  # (rows, heads, extent, head width)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in front of those of the step at hand."""
        return self._extent - self._width

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The same."""
        return self._extent - self._width

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Columns that are read, and the first of them."""
        return self._extent, 0

    def get_max_length(self, layer_idx: int = 0) -> int:
        """It grows."""
        return -1


class _Probe(Cache):  # type: ignore[misc]
    """Notes what a model hands to its cache."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.shapes: dict[int, LayerShape] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.shapes[layer_idx] = LayerShape(
            (key_states.shape[1], key_states.shape[3]), (value_states.shape[1], value_states.shape[3])
        )
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self, layer_idx: int = 0) -> int:
        return -1


def probe(model: Any) -> list[LayerShape]:
    """What each layer of `model` keeps for a token, seen by running it on one. Raises: EngineFailed."""
    noted = _Probe()
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=ids, past_key_values=noted, use_cache=True)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise EngineFailed(f"{_UNSERVED}: {type(error).__name__}: {str(error)[:200]}") from None
    if not noted.shapes or sorted(noted.shapes) != list(range(len(noted.shapes))):
        raise EngineFailed(f"{_UNSERVED}: it keeps nothing, or not in every layer")
    return [noted.shapes[layer] for layer in sorted(noted.shapes)]


_UNSERVED: Final = "this model cannot be served: its layers do not keep keys and values as decoders with attention do"


def token_bytes(shapes: Sequence[LayerShape], item_bytes: int) -> int:
    """What one token of one row takes in memory."""
    return sum(heads * width for shape in shapes for heads, width in shape) * item_bytes
