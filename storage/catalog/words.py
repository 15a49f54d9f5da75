"""What a user types into a search, as a query that SQLite's full-text index takes: never its syntax, always words."""

import re
from typing import Final

MAX_SEARCH_CHARS: Final = 256
MAX_SEARCH_WORDS: Final = 16

_WORD: Final = re.compile(r"\w+")


def match_of(search: str) -> str | None:
    """The query for rows that hold every word of `search`, each from its beginning; None where there is no word.

    Operators, quotes, columns and wildcards mean nothing here: what is not a letter, digit or underscore parts words.
    """
    words = _WORD.findall(search[:MAX_SEARCH_CHARS])[:MAX_SEARCH_WORDS]
    return " ".join(f'"{word}"*' for word in words) or None
