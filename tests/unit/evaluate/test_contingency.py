from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.evaluate import Contingency, contingency, merge

pairs = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), max_size=40)


def _columns(items: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    both = np.array(items, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _equal(left: Contingency, right: Contingency) -> bool:
    return all(a.dtype == b.dtype == np.int64 and np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@given(pairs)
def test_counts_every_pair_in_order(items: list[tuple[int, int]]) -> None:
    table = contingency(*_columns(items))
    expected = sorted(Counter(items).items())
    assert [((c, g), n) for c, g, n in zip(*(a.tolist() for a in table), strict=True)] == expected
    assert all(column.dtype == np.int64 for column in table)


@given(pairs, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_merge_does_not_depend_on_the_division(items: list[tuple[int, int]], part_of: list[int]) -> None:
    parts = [[item for item, p in zip(items, part_of, strict=False) if p == part] for part in range(4)]
    merged = merge(contingency(*_columns(part)) for part in parts)
    assert _equal(merged, contingency(*_columns(items)))


def test_merge_of_nothing_is_empty() -> None:
    assert [column.tolist() for column in merge([])] == [[], [], []]


def test_merge_keeps_counts_beyond_32_and_53_bits() -> None:
    one = Contingency(np.array([7]), np.array([1]), np.array([2**53 + 1]))
    assert merge([one, one, one]).count_E.tolist() == [3 * (2**53 + 1)]


def test_ids_of_the_whole_int64_range_stay_apart() -> None:
    extremes = np.array([2**63 - 1, -(2**63), 2**63 - 2, 2**63 - 1])
    table = contingency(extremes, np.zeros(4, np.int64))
    assert table.cluster_E.tolist() == [-(2**63), 2**63 - 2, 2**63 - 1]
    assert table.count_E.tolist() == [1, 1, 2]
