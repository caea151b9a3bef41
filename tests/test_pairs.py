"""The cases of `pairwise` contain every pair, and are few."""

from itertools import combinations

from pairs import by_turns, pairwise


def test_any_two_values_meet_in_few_cases():
    values = {"a": range(6), "b": "vwxyz", "c": [None, (1,)], "d": [False, True], "e": [1.5, 2.5, 3.5]}
    cases = pairwise(**values)
    for one, other in combinations(values, 2):
        met = {(case[one], case[other]) for case in cases}
        assert len(met) == len(values[one]) * len(values[other])
    assert 30 <= len(cases) <= 36  # a and b alone have 30 pairs; the product has 360 cases
    assert cases == pairwise(**values)


def test_every_row_has_its_quick_columns_and_every_column_its_turn():
    cases = by_turns("abcd", range(5), quick=2)
    assert [case.values for case in cases] == [(row, column) for row in "abcd" for column in range(5)]
    quick = [case.values for case in cases if not case.marks]
    assert [row for row, _ in quick] == list("aabbccdd") and {column for _, column in quick} == set(range(5))
