"""Rankings of items that fit a question, by words and by meaning, merged by their ranks.

Ranks are merged, not scores: BM25 and cosines have no common measure. Of equals the lesser CID goes first, so the same
items give the same answer in whatever order they came to be known.

Source of the merging: Cormack, Clarke, Buettcher, "Reciprocal rank fusion", SIGIR 2009; K is theirs.
"""

from collections.abc import Sequence
from typing import Final

from agents.memory.items import Item

K: Final = 60
MAX_RANKED: Final = 64  # of each ranking
MAX_QUESTION_CHARS: Final = 2000


def merged(*rankings: Sequence[Item]) -> list[tuple[float, Item]]:
    """The items of several rankings with their scores, the best first."""
    scores: dict[str, float] = {}
    items: dict[str, Item] = {}
    for ranking in rankings:
        for place, item in enumerate(ranking[:MAX_RANKED], 1):
            name = str(item.cid)
            items[name] = item
            scores[name] = scores.get(name, 0.0) + 1 / (K + place)
    return [(score, items[name]) for name, score in sorted(scores.items(), key=lambda one: (-one[1], one[0]))]
