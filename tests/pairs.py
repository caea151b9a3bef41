"""Test cases with all pairs of values instead of all products: most faults need two values to meet, rarely three."""

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns cases in which any two values of different names meet, as few as a greedy search finds.

    Each case begins with a missing pair; every other name takes the value that adds the most missing pairs.
    The same values give the same cases.

    >>> for case in pairwise(a=[1, 2], b="xy", c=[False, True]):
    ...     print(*case.values())
    1 x False
    1 y True
    2 x True
    2 y False
    """
    missing = {  # a dict keeps the order
        ((a, i), (b, j)): None
        for a, b in combinations(values, 2)
        for i, j in product(range(len(values[a])), range(len(values[b])))
    }
    cases = []
    while missing:
        chosen = dict(next(iter(missing)))
        for name in values:
            if name not in chosen:
                chosen[name] = max(range(len(values[name])), key=lambda i: len(_new(chosen | {name: i}, missing)))
        for pair in _new(chosen, missing):
            del missing[pair]
        cases.append({name: values[name][chosen[name]] for name in values})
    return cases


def _new(chosen: dict[str, int], missing: dict) -> list:
    """Returns the pairs of a complete or partial case that no case before it has."""
    return [p for pair in combinations(chosen.items(), 2) for p in (pair, pair[::-1]) if p in missing]


def by_turns(rows: Iterable[Any], columns: Sequence[Any], quick: int) -> list:
    """Returns parameters (row, column): each row runs with `quick` alternating columns; the others are marked slow."""
    return [
        pytest.param(row, column, marks=[] if (j - quick * i) % len(columns) < quick else pytest.mark.slow)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
