"""Patterns of keys: a key, or the beginning of one with `*` behind it."""

from collections.abc import Iterable


def matches(patterns: Iterable[str], key: str) -> bool:
    """Does one of the patterns cover the key?"""
    return any(key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern for pattern in patterns)


def contains(outer: Iterable[str], inner: Iterable[str]) -> bool:
    """Does `outer` cover every key that `inner` does?"""
    wide = list(outer)
    return all(_covers(wide, pattern) for pattern in inner)


def _covers(outer: list[str], pattern: str) -> bool:
    if not pattern.endswith("*"):
        return matches(outer, pattern)
    return any(one.endswith("*") and pattern[:-1].startswith(one[:-1]) for one in outer)
