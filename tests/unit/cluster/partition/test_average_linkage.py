"""Average linkage against scipy's, and against its definition over all pairs of members."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import is_monotonic, is_valid_linkage, linkage

from hilander_dist.cluster.hierarchy.features import FIXED_POINT
from hilander_dist.cluster.partition import average_linkage as module
from hilander_dist.cluster.partition.average_linkage import Merges, average_linkage, cut, heights, scipy_linkage


def unit_rows(rng: np.random.Generator, rows: int, dimensions: int) -> np.ndarray:
    x_ND = rng.normal(size=(rows, dimensions))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND


def fixed(x_ND: np.ndarray) -> np.ndarray:
    return np.rint(x_ND * FIXED_POINT).astype(np.int64)


def given_clusters(rng: np.random.Generator, C: int, most: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of clusters of 1 to ``most`` rows."""
    rows = [unit_rows(rng, int(rng.integers(1, most + 1)), dimensions) for _ in range(C)]
    return np.array([fixed(x_ND).sum(axis=0) for x_ND in rows]), np.array([len(x_ND) for x_ND in rows])


def singles(x_ND: np.ndarray, groups: Sequence[np.ndarray] = ()) -> Merges:
    return average_linkage(fixed(x_ND), np.ones(len(x_ND), dtype=np.int64), groups)


def made(first: Sequence[int], second: Sequence[int], C: int) -> list[frozenset[int]]:
    """The given clusters in what each merge made."""
    sets = [frozenset([c]) for c in range(C)]
    for a, b in zip(first, second, strict=True):
        assert max(a, b) < len(sets)
        assert not sets[a] & sets[b]
        sets.append(sets[a] | sets[b])
    return sets[C:]


def tree(merges: Merges, C: int) -> list[frozenset[int]]:
    return made(merges.first_M.tolist(), merges.second_M.tolist(), C)


def one_at_a_time(
    sum_CD: np.ndarray, count_C: np.ndarray, groups: Sequence[np.ndarray]
) -> dict[frozenset[int], tuple[float, int]]:
    """By definition: of all pairs that may merge the nearest does; the similarity and the stage of what is made."""
    clusters, merged = [frozenset([c]) for c in range(len(count_C))], {}

    def similarity(pair: tuple[frozenset[int], frozenset[int]]) -> float:
        a, b = (sum_CD[list(c)].sum(axis=0) / count_C[list(c)].sum() / FIXED_POINT for c in pair)
        return float(a @ b)

    for stage, group_C in enumerate((*groups, np.zeros(len(count_C), dtype=np.int64))):
        while pairs := [(a, b) for a, b in combinations(clusters, 2) if group_C[min(a)] == group_C[min(b)]]:
            a, b = max(pairs, key=similarity)
            clusters = [c for c in clusters if c not in (a, b)] + [a | b]
            merged[a | b] = similarity((a, b)), stage
    return merged


def check_form(merges: Merges, count_C: np.ndarray) -> None:
    C = len(count_C)
    sets = tree(merges, C)
    assert len(sets) == max(C - 1, 0)
    assert [column.dtype for column in merges] == [np.int64, np.int64, np.float64, np.int64]
    assert (merges.first_M < merges.second_M).all()
    assert merges.count_M.tolist() == [count_C[list(c)].sum() for c in sets]


@pytest.mark.parametrize("C", [2, 3, 40, 65, 700])
def test_single_rows_merge_as_scipy_merges_them(C: int) -> None:
    x_ND = unit_rows(np.random.default_rng(C), C, 12)
    merges = singles(x_ND)
    mean_ND = fixed(x_ND) / FIXED_POINT
    expected_M4 = linkage(1 - (mean_ND @ mean_ND.T)[np.triu_indices(C, 1)], "average")
    assert tree(merges, C) == made(expected_M4[:, 0].astype(int).tolist(), expected_M4[:, 1].astype(int).tolist(), C)
    np.testing.assert_allclose(heights(merges, C), expected_M4[:, 2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scipy_linkage(merges, C), expected_M4, rtol=0, atol=1e-9)


@pytest.mark.parametrize("small", [0, 64])
@given(st.integers(0, 10_000), st.integers(2, 16), st.integers(2, 8), st.booleans())
@settings(max_examples=25, deadline=None)
def test_given_clusters_merge_as_by_definition(small: int, seed: int, C: int, dimensions: int, grouped: bool) -> None:
    # None of a few similarities in a space of few dimensions are equal, and there are heights below the children's.
    rng = np.random.default_rng(seed)
    sum_CD, count_C = given_clusters(rng, C, 6, dimensions)
    fine_C = rng.integers(-5, 5, C)
    groups = [fine_C, fine_C // 3] if grouped else []
    expected = one_at_a_time(sum_CD, count_C, groups)
    with pytest.MonkeyPatch.context() as patch:
        if small == 0:
            patch.setattr(module, "_merge_small", lambda *_: (np.zeros(0, int), np.zeros(0, int), np.zeros(0)))
            patch.setattr(module, "_SMALL", 1)
        merges = average_linkage(sum_CD, count_C, groups)
    check_form(merges, count_C)
    sets = tree(merges, C)
    assert set(sets) == set(expected)
    np.testing.assert_allclose(merges.similarity_M, [expected[c][0] for c in sets], rtol=0, atol=1e-11)
    stage_M, height_M = np.array([expected[c][1] for c in sets]), heights(merges, C)
    assert (np.lexsort((height_M, stage_M)) == np.arange(C - 1)).all()
    for c, similarity, height in zip(sets, merges.similarity_M, height_M, strict=True):
        below = [height_M[m] for m, d in enumerate(sets) if d < c]
        assert height == max([1 - similarity, 0, *below])


@pytest.mark.parametrize("held", [(7, 11), (1024, 4096)])
def test_small_groups_and_rounds_with_blocks_give_the_same(
    held: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Groups of 1 to 200; the rows of a group share a direction, so that one cluster takes in many.
    rng = np.random.default_rng(3)
    fine_C = np.repeat(np.arange(12), [1, 2, 3, 10, 30, 63, 64, 65, 66, 100, 200, 1])[rng.permutation(605)]
    x_ND = unit_rows(rng, 12, 16)[fine_C] + rng.normal(size=(605, 16)) * rng.uniform(0.05, 0.4, (605, 1))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    monkeypatch.setattr(module, "_QUERIES", held[0])
    monkeypatch.setattr(module, "_OTHERS", held[1])
    merges = singles(x_ND, [fine_C, fine_C // 4])
    check_form(merges, np.ones(605))
    sets = tree(merges, 605)
    within = [frozenset(np.flatnonzero(fine_C == g).tolist()) for g in range(12)]
    assert set(sets[:593]) >= {c for c in within if len(c) > 1}
    assert set(sets[593:602]) >= {frozenset.union(*within[g : g + 4]) for g in (0, 4, 8)}
    for group in within:
        own = np.array(sorted(group))
        alone = tree(singles(x_ND[own]), len(own))
        assert {frozenset(own[list(c)].tolist()) for c in alone} == {c for c in sets if c <= group}


@given(st.integers(0, 10_000), st.integers(1, 90))
@settings(max_examples=25, deadline=None)
def test_rows_in_another_order_give_the_same_tree(seed: int, C: int) -> None:
    rng = np.random.default_rng(seed)
    sum_CD, count_C = given_clusters(rng, C, 3, 9)
    order = rng.permutation(C)
    merges, other = average_linkage(sum_CD, count_C), average_linkage(sum_CD[order], count_C[order])
    check_form(merges, count_C)
    assert tree(merges, C) == [frozenset(order[list(c)].tolist()) for c in tree(other, C)]
    np.testing.assert_array_equal(merges.similarity_M, other.similarity_M)


@given(st.integers(0, 10_000), st.integers(1, 120), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_copies_merge_first_and_by_their_numbers(seed: int, C: int, different: int) -> None:
    rng = np.random.default_rng(seed)
    label_C = rng.integers(different, size=C)
    count_C = np.ones(C, dtype=np.int64)
    merges = singles(unit_rows(rng, different, 5)[label_C])
    check_form(merges, count_C)
    sets = tree(merges, C)
    for same in (np.flatnonzero(label_C == g).tolist() for g in range(different)):
        for end in range(2, len(same) + 1):
            assert frozenset(same[:end]) in sets


def test_equal_similarities_of_many_kinds_end() -> None:
    # The axes and their opposites: all similarities are 0 or -1, and each of a merge equals many others.
    axes = np.tile(np.r_[np.eye(50), -np.eye(50)], (2, 1))
    merges = singles(axes)
    check_form(merges, np.ones(200))
    assert is_valid_linkage(scipy_linkage(merges, 200))
    assert sorted(merges.similarity_M.tolist())[-100:] == [1.0] * 100


def test_clusters_without_a_pair_that_name_each_other_merge_all_the_same() -> None:
    # Three that name each other in a ring, as rounding might have it.
    x_ND = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    near_NK = np.tile([0, 1, 2, -1], (3, 4))[:, : 2 * module._CANDIDATES]
    nearest_N = np.array([1, 2, 0])
    search = module._Search(x_ND, np.arange(3), near_NK, np.full(3, -np.inf), np.full(3, -1), nearest_N)
    first, second, similarity, query = module._merge_nearest(
        np.arange(3), fixed(x_ND), np.ones(3, dtype=np.int64), search
    )
    assert (first.tolist(), second.tolist(), query.tolist()) == ([1], [2], [])
    np.testing.assert_allclose(similarity, 0.8)
    assert search.nearest_N[[0, 1]].tolist() == [1, 0]


@given(st.integers(0, 10_000), st.integers(1, 90), st.booleans())
@settings(max_examples=25, deadline=None)
def test_cuts_are_nested_and_the_linkage_is_valid(seed: int, C: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    sum_CD, count_C = given_clusters(rng, C, 4, 3)
    group_C = rng.integers(10, size=C)
    merges = average_linkage(sum_CD, count_C, [group_C] if grouped else [])
    if C > 1:
        linkage_M4 = scipy_linkage(merges, C)
        assert is_valid_linkage(linkage_M4)
        assert is_monotonic(linkage_M4)
        np.testing.assert_array_equal(linkage_M4[:, 2], np.sort(heights(merges, C)))
        sets = made(linkage_M4[:, 0].astype(int).tolist(), linkage_M4[:, 1].astype(int).tolist(), C)
        assert set(sets) == set(tree(merges, C))
        assert linkage_M4[:, 3].tolist() == [len(c) for c in sets]
    linkage_M4 = scipy_linkage(merges, C)
    first_M, second_M = linkage_M4[:, 0].astype(np.int64), linkage_M4[:, 1].astype(np.int64)
    # Merges of a group are made before those of all, however high they are.
    label_C = group_C if grouped else np.zeros(C, dtype=np.int64)
    within_M = np.array(
        [len({*label_C[sorted(members)]}) == 1 for members in made(first_M.tolist(), second_M.tolist(), C)]
    )
    stage_M = np.where(within_M, 0, 1) if C > 1 else np.zeros(0, dtype=np.int64)
    groups = len(np.unique(label_C))
    assert [*zip(cut(first_M, second_M, stage_M, groups), strict=True)] == [
        *zip(
            np.argsort(np.argsort(np.unique(label_C, return_index=True)[1]))[
                np.unique(label_C, return_inverse=True)[1]
            ],
            strict=True,
        )
    ]
    finer_C = cut(first_M, second_M, stage_M, C)
    assert finer_C.tolist() == list(range(C))
    for clusters in range(C - 1, 0, -1):
        label_C = cut(first_M, second_M, stage_M, clusters)
        _, smallest = np.unique(label_C, return_index=True)
        assert label_C.dtype == np.int64
        assert label_C[smallest].tolist() == list(range(clusters))
        assert (np.diff(smallest) > 0).all()
        assert len({*zip(finer_C.tolist(), label_C.tolist(), strict=True)}) == clusters + 1
        finer_C = label_C


@pytest.mark.parametrize("C", [0, 1, 2])
def test_few_clusters(C: int) -> None:
    x_ND, none = np.eye(4)[:C], np.zeros(C, dtype=np.int64)
    sum_CD = fixed(x_ND)
    merges = average_linkage(sum_CD, none + 3, [none])
    check_form(merges, none + 3)
    assert scipy_linkage(merges, C).shape == (max(C - 1, 0), 4)
    np.testing.assert_array_equal(sum_CD, fixed(x_ND))
