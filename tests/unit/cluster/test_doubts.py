"""Each reason to doubt, and its remedy."""

from typing import Any

import pytest

from hilander_dist.cluster.doubts import COMMON, FAR, doubts
from hilander_dist.cluster.partition.level_choice import Choice, LevelStats
from hilander_dist.cluster.partition.log_odds import log_odds
from hilander_dist.lander.inference import Inference

SURE = Choice(0, "agreement", None)
UNSURE = Choice(0, "scores as they are", "no level agrees")
UNLINKED = Choice(0, "code length", "few rows have a probable neighbour")


def found(
    clusters: int = 7,
    rows: int = 50,
    choice: Choice = SURE,
    mean: float = 0.25,
    similarity: float = 0.5,
    **inference: Any,
) -> list[str]:
    levels = [LevelStats(0.0, clusters, 10, 20, 20, 5, 9, None), LevelStats(0.5, 1, 10, 20, 20, 5, 9, None)]
    return doubts(levels, choice, rows, mean, similarity, Inference(**{"base_rate": 0.25, **inference}))


def test_nothing_is_doubted_without_a_reason() -> None:
    assert found() == []


@pytest.mark.parametrize(("clusters", "message"), [(1, "all rows are in one"), (50, "every row is alone")])
def test_no_clusters_are_told_with_the_command_that_shows_others(clusters: int, message: str) -> None:
    (line,) = found(clusters, choice=UNSURE)
    assert line.startswith("no clusters found: ")
    assert message in line
    assert "`hilander cut`" in line


def test_the_level_that_was_chosen_is_looked_at() -> None:
    (line,) = found(choice=SURE._replace(level=1))
    assert "all rows are in one" in line


def test_one_row_is_no_reason_for_doubt() -> None:
    assert found(1, rows=1) == []


def test_a_doubtful_choice_is_told_with_its_reason_and_two_remedies() -> None:
    (line,) = found(choice=UNSURE)
    assert line == (
        "clusters may be too small or too large: no level agrees, or label a few hundred rows for `hilander tune`"
    )


def test_where_hardly_a_row_has_a_probable_neighbour_the_run_says_that_no_clusters_stand_out() -> None:
    assert found(choice=UNLINKED) == ["no clusters found that stand out: few rows have a probable neighbour"]


@pytest.mark.parametrize("base_rate", [0.25, 0.6])
def test_scores_far_from_trainings_are_told_unless_the_level_was_tuned(base_rate: float) -> None:
    for side, word in ((1, "above"), (-1, "below")):
        for distance, expected in ((FAR - 0.01, 0), (FAR + 0.01, 1)):
            odds = log_odds(base_rate) + side * distance
            mean = 1 / (1 + 2.718281828459045**-odds)
            lines = found(mean=mean, base_rate=base_rate)
            assert len(lines) == expected
            assert all(line.startswith(f"scores far {word} training's") for line in lines)
            assert found(mean=mean, base_rate=base_rate, shift=0.0) == []


def test_rows_that_hardly_differ_are_told() -> None:
    (line,) = found(similarity=COMMON + 0.001)
    assert line.startswith("rows hardly differ (mean similarity of neighbours 0.9910)")
    assert found(similarity=COMMON) == []


def test_several_reasons_are_all_told() -> None:
    assert len(found(1, mean=0.99, similarity=1.0)) == 3
