"""Rows of many lengths into batches in which little is padding. Pure, and torch-free."""

from collections.abc import Iterator, Sequence


def by_length(lengths: Sequence[int], n_tokens: int, n_rows: int) -> Iterator[list[int]]:
    """The places of all rows, in batches: at most `n_rows` of them, and `n_tokens` when padded to the longest.

    The shortest come first, so that neighbours differ little. A row over `n_tokens` is a batch of its own.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == n_rows or (len(batch) + 1) * lengths[place] > n_tokens):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def padding_frac(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of all places, each batch padded to its longest row, that holds no token."""
    n_padded = sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
    return 1 - sum(lengths[place] for batch in batches for place in batch) / n_padded if n_padded else 0.0
