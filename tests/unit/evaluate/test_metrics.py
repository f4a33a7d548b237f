import itertools
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score, v_measure_score
from sklearn.metrics.cluster import pair_confusion_matrix

from hilander_dist.errors import InputError
from hilander_dist.evaluate import Contingency, Scores, contingency, evaluate_tables, format_scores, scores

clusterings = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 6), min_size=n, max_size=n), st.lists(st.integers(0, 5), min_size=n, max_size=n)
    )
)


def _score(cluster: list[int], label: list[int]) -> Scores:
    return scores(contingency(np.array(cluster, np.int64), np.array(label, np.int64)))


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


@given(clusterings)
def test_pairwise_equals_the_pair_confusion_matrix(both: tuple[list[int], list[int]]) -> None:
    cluster, label = both
    (_, only_cluster), (only_label, together) = pair_confusion_matrix(label, cluster).tolist()
    precision = together / (together + only_cluster) if together + only_cluster else 1.0
    recall = together / (together + only_label) if together + only_label else 1.0
    pairwise = _score(cluster, label).pairwise
    assert (pairwise.precision, pairwise.recall) == (precision, recall)
    assert pairwise.f == pytest.approx(_harmonic(precision, recall), abs=1e-15)


@given(clusterings)
def test_bcubed_equals_the_mean_over_items(both: tuple[list[int], list[int]]) -> None:
    items = list(zip(*both, strict=True))
    precision = recall = Fraction(0)
    for cluster, label in items:
        same = sum(item == (cluster, label) for item in items)
        precision += Fraction(same, sum(c == cluster for c, _ in items))
        recall += Fraction(same, sum(g == label for _, g in items))
    bcubed = _score(*both).bcubed
    expected = float(precision / len(items)), float(recall / len(items))
    assert (bcubed.precision, bcubed.recall) == pytest.approx(expected, abs=1e-14)
    assert bcubed.f == pytest.approx(_harmonic(*expected), abs=1e-14)


@given(clusterings)
def test_nmi_equals_scikit_learn_and_the_v_measure(both: tuple[list[int], list[int]]) -> None:
    cluster, label = both
    score = _score(cluster, label)
    assert score.nmi == pytest.approx(normalized_mutual_info_score(label, cluster), abs=1e-9)
    # scikit-learn's V-measure of two clusterings without information is 1 or, by its rounding, 0.
    if len(set(cluster)) > 1 or len(set(label)) > 1:
        assert score.nmi == pytest.approx(v_measure_score(label, cluster), abs=1e-9)
    assert (score.clusters, score.items) == (len(set(cluster)), len(cluster))


@given(clusterings)
def test_scores_are_symmetric_and_between_0_and_1(both: tuple[list[int], list[int]]) -> None:
    forth, back = _score(*both), _score(*both[::-1])
    for kind in ("pairwise", "bcubed"):
        one, other = getattr(forth, kind), getattr(back, kind)
        assert (one.precision, one.recall) == pytest.approx((other.recall, other.precision), abs=1e-14)
        assert 0 <= one.f <= 1
        assert max(one.precision, one.recall) <= 1
    assert 0 <= forth.nmi <= 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_the_labels_themselves_score_1(label: list[int]) -> None:
    score = _score([9 - g for g in label], label)
    assert (score.pairwise.f, score.bcubed.f) == (1, 1)
    assert score.nmi == pytest.approx(1)


def test_singletons_have_precision_1_and_finite_f() -> None:
    score = _score([0, 1, 2, 3], [5, 5, 6, 6])
    assert (score.pairwise.precision, score.pairwise.recall, score.pairwise.f) == (1, 0, 0)
    assert (score.bcubed.precision, score.bcubed.recall) == (1, 0.5)


def test_no_common_pair_has_f_0() -> None:
    score = _score([0, 0, 1, 1], [5, 6, 5, 6])
    assert (score.pairwise.precision, score.pairwise.recall, score.pairwise.f, score.nmi) == (0, 0, 0, 0)


def test_one_cluster_of_distinct_labels_has_recall_1() -> None:
    score = _score([0, 0, 0], [1, 2, 3])
    assert (score.pairwise.precision, score.pairwise.recall, score.pairwise.f) == (0, 1, 0)


@pytest.mark.parametrize("scale", [10**6, 10**9, 10**12])
def test_pair_counts_are_exact_at_any_size(scale: int) -> None:
    # Squares of the last scale, 1e24, are far beyond int64.
    table = {(0, 0): 3 * scale + 1, (0, 1): scale, (1, 1): 2 * scale, (2, 1): 1}
    cluster, label = (np.array(column) for column in zip(*table, strict=True))
    score = scores(Contingency(cluster, label, np.array(list(table.values()))))
    items = 6 * scale + 2
    both = sum(n * n for n in table.values()) - items
    same_cluster = (4 * scale + 1) ** 2 + (2 * scale) ** 2 + 1 - items
    same_label = 2 * (3 * scale + 1) ** 2 - items
    assert score.pairwise.precision == float(Fraction(both, same_cluster))
    assert score.pairwise.recall == float(Fraction(both, same_label))
    bcubed = sum(Fraction(n * n, 3 * scale + 1) for n in table.values()) / items
    assert score.bcubed.recall == pytest.approx(float(bcubed), rel=1e-14)
    assert score.items == items
    # Information does not change with the scale, but for the two odd items.
    small = normalized_mutual_info_score([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1])
    assert score.nmi == pytest.approx(small, abs=1e-5)


# ---- tables ----

IDS = ["a", "b", "c", "d", "e", "f"]


def _assignments(ids: Any = IDS, **columns: Any) -> pa.Table:
    levels = {"cluster_id": [0, 0, 0, 3, 3, 3], "level_0": [0, 0, 2, 3, 3, 5], "level_1": [0, 0, 0, 3, 3, 3]}
    return pa.table({"id": ids} | levels | columns)


def _labels(ids: Any = IDS, label: Any = ("x", "x", "x", "y", "y", "x")) -> pa.Table:
    return pa.table({"id": ids, "label": list(label) if isinstance(label, tuple) else label})


def test_result_has_exactly_the_documented_fields() -> None:
    result = evaluate_tables([_assignments()], _labels())
    assert list(result) == ["final", "levels"]
    metrics = {"pairwise", "bcubed", "nmi", "clusters"}
    assert set(result["final"]) == metrics | {"items", "unlabelled"}
    assert [set(level) for level in result["levels"]] == [metrics | {"level"}] * 2
    for kind in ("pairwise", "bcubed"):
        assert list(result["final"][kind]) == ["precision", "recall", "f"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_each_column_gets_its_own_scores() -> None:
    result = evaluate_tables([_assignments()], _labels())
    label = [0, 0, 0, 1, 1, 0]
    for entry, cluster in [
        (result["final"], [0, 0, 0, 3, 3, 3]),
        (result["levels"][0], [0, 0, 2, 3, 3, 5]),
        (result["levels"][1], [0, 0, 0, 3, 3, 3]),
    ]:
        expected = _score(cluster, label)
        assert entry["pairwise"]["f"] == expected.pairwise.f
        assert entry["bcubed"]["precision"] == expected.bcubed.precision
        assert (entry["nmi"], entry["clusters"]) == (expected.nmi, expected.clusters)
    assert [level["level"] for level in result["levels"]] == [0, 1]


def test_levels_are_in_numeric_order() -> None:
    columns = {f"level_{level}": [level] * 6 for level in (10, 2)}
    result = evaluate_tables([_assignments(**columns)], _labels())
    assert [level["level"] for level in result["levels"]] == [0, 1, 2, 10]


@given(st.permutations(range(6)), st.permutations(range(6)), st.sets(st.integers(1, 5)))
def test_order_and_division_into_tables_do_not_matter(left: list[int], right: list[int], cuts: set[int]) -> None:
    shuffled = _assignments().take(left)
    tables = [shuffled.slice(a, b - a) for a, b in itertools.pairwise([0, *sorted(cuts), 6])]
    assert evaluate_tables(tables, _labels().take(right)) == evaluate_tables([_assignments()], _labels())


def test_many_tables_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    n = 5000
    table = pa.table(
        {"id": rng.permutation(n), "cluster_id": rng.integers(0, 300, n), "level_0": rng.integers(0, n, n)}
    )
    labels = pa.table({"id": np.arange(n), "label": rng.integers(0, 40, n)})
    parts = [table.slice(start, 37) for start in range(0, n, 37)]
    assert evaluate_tables(iter(parts), labels) == evaluate_tables([table], labels)


@pytest.mark.parametrize("label", [[-1, -1, -1, 7, 7, -1], pa.array([2, 2, 2, 7, 7, 2], pa.uint8())])
def test_labels_may_be_integers(label: Any) -> None:
    assert evaluate_tables([_assignments()], _labels(label=label)) == evaluate_tables([_assignments()], _labels())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (pa.array([5, 4, 3, 2, 1, 0], pa.int32()), pa.array([5, 4, 3, 2, 1, 0], pa.uint64())),
        (pa.array(IDS).dictionary_encode(), pa.array(IDS, pa.large_string())),
        (pa.array(IDS, pa.string_view()), pa.array(IDS)),
        (pa.chunked_array([IDS[:2], IDS[2:]]), pa.chunked_array([IDS[:5], IDS[5:]])),
    ],
    ids=["integers", "dictionary", "string_view", "chunked"],
)
def test_ids_match_across_widths_and_encodings(left: Any, right: Any) -> None:
    assert evaluate_tables([_assignments(left)], _labels(right)) == evaluate_tables([_assignments()], _labels())


def test_large_integer_ids_are_not_rounded() -> None:
    ids = [2**53 + i for i in range(6)]
    expected = evaluate_tables([_assignments()], _labels())
    assert evaluate_tables([_assignments(ids)], _labels(ids)) == expected


def test_ids_match_exactly() -> None:
    ids = ["a", "A", "a ", "á", "a\u0301", "01"]
    result = evaluate_tables([_assignments(ids)], _labels(["1", "A", "x", "á", "y", "01"]))
    assert (result["final"]["items"], result["final"]["unlabelled"]) == (3, 3)


def test_rows_without_label_are_left_out_and_counted() -> None:
    labels = pa.table({"id": ["a", "b", "c", "d", "zzz"], "label": ["x", "x", None, "y", "y"]})
    final = evaluate_tables([_assignments()], labels)["final"]
    expected = _score([0, 0, 3], [0, 0, 1])
    assert (final["items"], final["unlabelled"], final["clusters"]) == (3, 3, 2)
    assert final["pairwise"]["f"] == expected.pairwise.f == 1


@pytest.mark.parametrize(
    ("assignments", "labels", "message"),
    [
        (_assignments(), _labels(list(range(6))), "assignments have string ids and labels have int64 ids"),
        (_assignments(list(range(6))), _labels(), "assignments have int64 ids and labels have string ids"),
        (_assignments(), _labels(["a", "b", "c", "b", "e", "f"]), "labels: id 'b' occurs more than once"),
        (_assignments([1, 2, 3, 4, 4, 5]), _labels([*range(6)]), "assignments: id 4 occurs more than once"),
        (_assignments(), _labels([f"{i}.jpg" for i in IDS]), "none of the 6 ids of the assignments has a label"),
        (_assignments(), _labels(label=pa.nulls(6, pa.string())), "none of the 6 ids of the assignments has a label"),
        (_assignments(), _labels(["a", "b", None, "d", "e", "f"]), "labels: row 2 has no id"),
        (_assignments(["a", None, "c", "d", "e", "f"]), _labels(), "assignments: row 1 has no id"),
        (_assignments(), _labels([0.5] * 6), "labels: column 'id' is of type double"),
        (_assignments(), _labels(label=[0.5] * 6), "labels: column 'label' is of type double"),
        (_assignments(), _labels(label=[True] * 6), "labels: column 'label' is of type bool"),
        (_assignments(), _labels(pa.array([2**63] * 6, pa.uint64())), r"labels: column 'id' has integers above 2\^63"),
        (_assignments(), _labels().drop_columns("label"), "labels: no column 'label'; the columns are id"),
        (_assignments().drop_columns("id"), _labels(), "assignments: no column 'id'"),
        (_assignments().drop_columns("cluster_id"), _labels(), "assignments: no column 'cluster_id'"),
        (_assignments(level_1=list("abcdef")), _labels(), "assignments: column 'level_1' must hold integers"),
        (_assignments(cluster_id=[0, 0, 0, 1, 1, None]), _labels(), "assignments: column 'cluster_id' must hold int"),
    ],
)
def test_input_errors_name_the_fault(assignments: pa.Table, labels: pa.Table, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate_tables([assignments], labels)
    assert "\n" not in str(caught.value)


def test_an_id_in_two_tables_is_an_error() -> None:
    with pytest.raises(InputError, match="assignments: id 'a' occurs more than once"):
        evaluate_tables([_assignments(), _assignments().slice(0, 1)], _labels())


def test_tables_with_other_levels_are_an_error() -> None:
    with pytest.raises(InputError, match="assignments: no column 'level_1'"):
        evaluate_tables([_assignments().slice(0, 3), _assignments().slice(3).drop_columns("level_1")], _labels())


def test_no_assignments_are_an_error() -> None:
    with pytest.raises(InputError, match="none of the 0 ids"):
        evaluate_tables([], _labels())


def test_empty_tables_among_others_change_nothing() -> None:
    tables = [_assignments().slice(0, 0), _assignments(), _assignments().slice(0, 0)]
    assert evaluate_tables(tables, _labels()) == evaluate_tables([_assignments()], _labels())


def test_format_shows_every_level_aligned() -> None:
    result = evaluate_tables([_assignments()], pa.table({"id": IDS[:5], "label": [1, 1, 1, 2, 2]}))
    lines = format_scores(result).splitlines()
    assert lines[2].split() == ["level", "0", "3", "1.0000", "0.5000", "0.6667", "1.0000", *lines[2].split()[7:]]
    assert lines[4].split() == ["final", "2", *["1.0000"] * 7]
    assert [line.split()[0] for line in lines[2:5]] == ["level", "level", "final"]
    assert len({len(line) for line in lines[1:5]}) == 1
    assert lines[5] == "5 labelled items scored, 1 without a label left out"
