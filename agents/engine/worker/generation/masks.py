"""Who may look at what: rows of different lengths in one step, in models with and without sliding windows."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from agents.errors import EngineFailed

_FULL: Final = "full_attention"
_SLIDING: Final = "sliding_attention"


class Masks:
    """Makes the masks of a model's steps. Raises: EngineFailed when it is of a kind that is not served."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self._dtype = model.dtype
        self._window: int | None = getattr(config, "sliding_window", None)
        self._kinds: frozenset[str] = frozenset(getattr(config, "layer_types", None) or ())
        if others := self._kinds - {_FULL, _SLIDING}:
            raise EngineFailed(f"this model's layers of the kind {', '.join(sorted(others))} are not served")

    def make(self, positions: Tensor, starts: Sequence[int], widths: Sequence[int]) -> Any:
        """What transformers takes as a mask for tokens at `positions`, (rows, width), flush right. None: the plain one.

        Tokens see the columns of their row up to themselves; what is padded in front sees the first.
        """
        extent = max(start + width for start, width in zip(starts, widths, strict=True))
        is_alike = all(start == starts[0] and width == widths[0] for start, width in zip(starts, widths, strict=True))
        if is_alike and (widths[0] == 1 or starts[0] == 0):
            return None
        columns = torch.arange(extent, device=positions.device)
        is_seen = columns <= positions[:, None, :, None]  # (rows, 1, width, extent)
        full = self._additive(is_seen)
        if self._window is None or extent <= self._window or (self._kinds and _SLIDING not in self._kinds):
            return full if _SLIDING not in self._kinds else dict.fromkeys(self._kinds, full)
        near = self._additive(is_seen & (columns > positions[:, None, :, None] - self._window))
        return {kind: near if kind == _SLIDING else full for kind in self._kinds} if self._kinds else near

    def _additive(self, is_seen: Tensor) -> Tensor:
        return torch.zeros(is_seen.shape, dtype=self._dtype, device=is_seen.device).masked_fill_(~is_seen, -torch.inf)
