"""Tuning: what labels are taken, and what F is told to be expected."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.cluster.local import f_scores
from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.jobs.tune import (
    best_level,
    choose_by_labels,
    expected_f,
    hash_table,
    item_counts,
    labelled_items,
)
from hilander_dist.lander.inference import Inference

SHIFTS = Inference().shifts()

some_items = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def test_tuning_picks_the_level_of_the_labels_and_tells_what_to_expect() -> None:
    class_M = np.repeat(np.arange(20), 10)
    found_LM = np.stack([np.arange(200) for _ in SHIFTS])
    for at in (5, 6, 7):
        found_LM[at] = class_M
    tuning = choose_by_labels(found_LM, class_M, SHIFTS)
    assert tuning["shift"] == SHIFTS[6]
    assert tuning["expected_pairwise_f"] == tuning["expected_bcubed_f"] == 1.0
    assert (tuning["labelled"], tuning["classes"]) == (200, 20)
    assert [level["shift"] for level in tuning["by_level"]] == SHIFTS
    assert [level["pairwise_f"] for level in tuning["by_level"]] == [
        float(at in (5, 6, 7)) for at in range(len(SHIFTS))
    ]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9))
def test_the_best_level_has_the_highest_mean_with_its_neighbours_counting_half(f: list[tuple[float, float]]) -> None:
    mean = [(pairwise + bcubed) / 2 for pairwise, bcubed in f]
    padded = [mean[0], *mean, mean[-1]]
    smooth = [padded[at] + 2 * padded[at + 1] + padded[at + 2] for at in range(len(mean))]
    assert smooth[best_level(np.array(f))] == pytest.approx(max(smooth))


@given(some_items)
def test_what_to_expect_of_one_clustering_is_its_f(items: list[tuple[int, int]]) -> None:
    cluster_M, class_M = np.array(items).T
    assert expected_f(item_counts(cluster_M, class_M)) == pytest.approx(f_scores(cluster_M, class_M))


def test_what_to_expect_does_not_hang_on_which_node_is_a_clusters_root() -> None:
    rng = np.random.default_rng(0)
    class_M = np.repeat(np.arange(20), 10)
    cluster_M = np.where(rng.random(200) < 0.2, rng.integers(0, 20, 200), class_M)
    # Folds choose among equals: whatever they choose, these are the same clusters.
    found_LM = np.stack([rng.permutation(1000)[cluster_M] for _ in SHIFTS])
    tuning = choose_by_labels(found_LM, class_M, SHIFTS)
    assert tuning["expected_pairwise_f"] == pytest.approx(f_scores(cluster_M, class_M)[0], abs=1e-4)


def written(where: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), where / "labels.parquet")
    return str(where / "labels.parquet")


def test_items_without_a_label_are_left_out(tmp_path: Path) -> None:
    label = pa.array(["b", None, "a", "b"]).dictionary_encode()
    items = labelled_items(written(tmp_path, id=["w", "x", "y", "z"], label=label), InputConfig())
    assert items.to_pydict() == {"id": ["w", "y", "z"], "class": [1, 0, 1]}
    other = labelled_items(written(tmp_path, id=["w", "y", "z"], label=["b", "a", "a"]), InputConfig())
    assert hash_table(items) != hash_table(other)
    in_two = pa.concat_tables([items.slice(0, 1), items.slice(1)])
    assert hash_table(items) == hash_table(in_two)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1, 2, 2], "label": [1, 1, 2]}, "id 2 occurs more than once"),
        ({"id": [1, None, 2], "label": [1, 1, 2]}, "row 1 has no id"),
        ({"id": [1, 2, 3], "label": pa.nulls(3)}, "0 items have a label, of 0 classes"),
        ({"id": [1, 2, 3], "label": [[1], [2], [3]]}, "column 'label' is list"),
        ({"id": [1, 2, 3], "label": [1.0, 1.0, 2.0]}, "column 'label' is double"),
        ({"id": [[1], [2]], "label": [1, 2]}, "column 'id' is list"),
        ({"id": [1, 2, 3], "label": [5, 5, None]}, "2 items have a label, of 1 classes: at least two"),
        ({"id": [1, 2, 3], "label": [5, 6, 7]}, "3 items have a label, of 3 classes: at least two"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_by_their_file(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    uri = written(tmp_path, **columns)
    with pytest.raises(InputError) as caught:
        labelled_items(uri, InputConfig())
    assert str(caught.value).startswith(uri)
    assert message in str(caught.value)
