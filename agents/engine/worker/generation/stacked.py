"""Several adapters in one batch: their matrices stacked row by row, so that a layer adds all of them in two products.

The matrices of a batch lie in one buffer a layer, preallocated for its rows at the greatest rank among them; adapters
of lower rank are padded with zeros, and layers that nobody in the batch targets are skipped. A row is written when its
adapter changes, never while tokens are made. Where all rows of a step wear one adapter, or none, the stack is not used.

Source: Chen et al., Punica (arXiv 2310.18547), for one batched product over many adapters.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from agents.engine.worker.lora import Adapters, StagedAdapter


class _Layer(NamedTuple):
    a: Tensor  # (rows, rank, n_in)
    b: Tensor  # (rows, rank, n_out)


class Stack:
    """The stacked matrices of a batch's rows, and what the model wears in a step."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._layers: dict[str, _Layer] = {}
        self._rank = 0
        self._capacity = 0
        self.n_bytes = 0
        """What the stacked matrices take in memory."""
        self._rows: list[StagedAdapter | None] = []
        self._span: tuple[int, int] | None = None
        self._views: dict[str, tuple[Tensor, Tensor]] = {}

    def parts(self, rows: Sequence[StagedAdapter | None], first: int, n: int, max_bytes: int) -> list[tuple[int, int]]:
        """How to compute rows `first` to `first + n` of the batch `rows`, as the first and number of each part.

        Together where the stack that they need is within `max_bytes`; else each run of rows with the same adapter.
        """
        wanted = rows[first : first + n]
        if all(adapter is wanted[0] for adapter in wanted) or self._needs(rows) <= max_bytes:
            return [(first, n)]
        self._forget()
        runs = [list(run) for _, run in groupby(range(n), key=lambda at: id(wanted[at]))]
        return [(first + run[0], len(run)) for run in runs]

    def wear(self, rows: Sequence[StagedAdapter | None], first: int, n: int) -> None:
        """Compute rows `first` to `first + n` of the batch `rows` with their adapters from now on."""
        wanted = rows[first : first + n]
        if all(adapter is wanted[0] for adapter in wanted):
            if all(adapter is wanted[0] for adapter in rows):
                self._forget()
            self._adapters.wear(wanted[0])
            return
        self._assign(rows)
        if self._span != (first, n):
            self._span = (first, n)
            self._views = {name: (a[first : first + n], b[first : first + n]) for name, (a, b) in self._layers.items()}
        self._adapters.wear_rows(self._views)

    def release(self) -> None:
        """Give the memory back, and let no adapter be held."""
        self._forget()
        self._adapters.wear(None)

    def _forget(self) -> None:
        self._layers, self._rows, self._rank, self._capacity, self.n_bytes = {}, [], 0, 0, 0
        self._span, self._views = None, {}

    def _assign(self, rows: Sequence[StagedAdapter | None]) -> None:
        """Write the rows that changed, into new buffers where the old ones do not hold them."""
        worn = [adapter for adapter in rows if adapter is not None]
        rank = max(adapter.rank for adapter in worn)
        names = {name for adapter in worn for name in adapter.layers}
        if rank != self._rank or names != self._layers.keys() or len(rows) > self._capacity:
            self._allocate(rank, names, len(rows), worn[0])
        for row, adapter in enumerate(rows):
            if adapter is not self._rows[row]:
                self._write(row, adapter, self._rows[row])
                self._rows[row] = adapter
        for row in range(len(rows), self._capacity):
            if self._rows[row] is not None:
                self._write(row, None, self._rows[row])  # its stream has ended: it is held no longer
                self._rows[row] = None

    def _needs(self, rows: Sequence[StagedAdapter | None]) -> int:
        """How many bytes the stack of these rows takes."""
        if len(rows) <= self._capacity and all(new is old for new, old in zip(rows, self._rows, strict=False)):
            return self.n_bytes
        worn = [adapter for adapter in rows if adapter is not None]
        sizes: dict[str, int] = {}
        for each in worn:
            sizes |= {name: (low.a.shape[1] + low.b.shape[0]) * low.a.itemsize for name, low in each.layers.items()}
        return sum(sizes.values()) * max(adapter.rank for adapter in worn) * _capacity(len(rows))

    def _allocate(self, rank: int, names: set[str], n_rows: int, like: StagedAdapter) -> None:
        self._layers, self._span, self._views = {}, None, {}  # the old ones make room first
        self._rank, self._capacity = rank, _capacity(n_rows)
        self._rows = [None] * self._capacity
        some = next(iter(like.layers.values())).a
        for name in sorted(names):
            linear = self._adapters.linear(name)
            assert linear is not None, f"{name} was checked when the adapter was read"
            self._layers[name] = _Layer(
                some.new_zeros(self._capacity, rank, linear.in_features),
                some.new_zeros(self._capacity, rank, linear.out_features),
            )
        self.n_bytes = sum(layer.a.nbytes + layer.b.nbytes for layer in self._layers.values())

    def _write(self, row: int, adapter: StagedAdapter | None, before: StagedAdapter | None) -> None:
        layers = adapter.layers if adapter else {}
        for name in before.layers if before else ():
            if name in self._layers and name not in layers:
                self._layers[name].b[row].zero_()  # half is enough: the product is zero
        for name, low in layers.items():
            a, b = self._layers[name]
            n = low.a.shape[0]
            a[row, :n] = low.a
            b[row, :n] = low.b.T
            if n < self._rank:
                b[row, n:].zero_()


def _capacity(n_rows: int) -> int:
    return 1 << (n_rows - 1).bit_length()
