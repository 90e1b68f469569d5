"""Scores that are equal up to rounding, and the order of scores in which these keep their places."""

import math
from collections.abc import Mapping
from functools import cmp_to_key
from typing import TypeVar

__all__ = ["nearly_equal", "ranked"]

# Accuracies, and differences of them, may come in float32. One image of ImageNet's 50,000 is 2e-5.
_ROUNDING = 1e-6

_Key = TypeVar("_Key")


def nearly_equal(first: float, second: float) -> bool:
    """Return whether two accuracies, as fractions, or two differences of them are equal up to rounding."""
    return math.isclose(first, second, rel_tol=0.0, abs_tol=_ROUNDING)


def ranked(scores: Mapping[_Key, float]) -> list[_Key]:
    """Return the keys by score, the highest first; those with equal scores, up to rounding, keep their order.

    >>> ranked({"a": 0.8, "b": 0.9, "c": 0.9 + 1e-16, "d": 0.95})
    ['d', 'b', 'c', 'a']
    """

    def compare(first: _Key, second: _Key) -> int:
        if nearly_equal(scores[first], scores[second]):
            return 0
        return -1 if scores[first] > scores[second] else 1

    return sorted(scores, key=cmp_to_key(compare))
