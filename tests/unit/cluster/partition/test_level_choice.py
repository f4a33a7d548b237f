"""Each branch of the rule, in its order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.cluster.partition.level_choice import LevelStats, choose_level
from hilander_dist.lander.inference import Inference

RULE = Inference(closed_weight=0.2, closed_share=0.999, least_linked=0.4)


def path(*levels: tuple[int, ...], step: float = 0.5, first: float = -3.0) -> list[LevelStats]:
    """Levels of (closed, above, below[, code length[, clusters]])."""
    found = []
    for at, (closed, above, below, *more) in enumerate(levels):
        length, clusters = more[0] if more else None, more[1] if len(more) > 1 else 100 - at
        found.append(LevelStats(first + step * at, clusters, closed, above, below, 10 * at, 10 * at, length))
    return found


def choose(levels: list[LevelStats], linked: float = 1.0, inference: Inference = RULE) -> tuple[int, str]:
    choice = choose_level(levels, linked, inference)
    sure = choice.reason in ("agreement", "components", "asked for")
    assert (choice.doubtful is None) == sure
    return choice.level, choice.reason


def test_the_first_level_with_fewer_companions_than_expected_for_most_rows_is_the_answer() -> None:
    assert choose(path((0, 70, 30), (0, 51, 49), (0, 49, 51), (0, 60, 40), (0, 10, 90))) == (2, "agreement")


def test_as_many_below_as_above_is_agreement() -> None:
    assert choose(path((0, 70, 30), (0, 50, 50), (0, 10, 90))) == (1, "agreement")


def test_rows_that_have_found_all_their_neighbours_count_a_little_for_going_on() -> None:
    # 40 closed rows count as 8 of those above.
    assert choose(path((0, 70, 30), (40, 27, 34), (40, 26, 34), (40, 0, 60))) == (2, "agreement")
    assert choose(path((0, 70, 30), (40, 27, 34)), inference=Inference(closed_weight=0.0)) == (1, "agreement")


def test_levels_before_clusters_have_begun_are_passed_over() -> None:
    # Nobody has company at low shifts: fewer than expected, but nothing has begun.
    levels = path((0, 5, 95), (0, 20, 80), (0, 70, 30), (0, 30, 70))
    assert choose(levels) == (3, "agreement")


def test_half_of_the_rows_closed_is_no_beginning() -> None:
    levels = path((50, 0, 50), (50, 40, 10), (50, 10, 40))
    assert choose(levels) == (2, "agreement")
    assert choose([levels[0]._replace(closed=51, below=49), *levels[1:]]) == (0, "agreement")


def test_a_level_that_begins_by_its_companions_is_not_yet_the_answer() -> None:
    # 45 closed and above together are more than those below: begun, but the answer only from the next one on.
    assert choose(path((6, 45, 49), (0, 40, 60))) == (1, "agreement")


def test_a_level_where_most_rows_are_closed_has_begun_and_may_be_the_answer_itself() -> None:
    # One cluster of all that is closed: nothing comes together later.
    levels = path((60, 0, 40), (100, 0, 0, 0, 1))
    assert choose(levels) == (0, "agreement")


def test_where_most_rows_are_closed_classes_that_come_together_later_are_waited_for() -> None:
    levels = path((0, 70, 30), (60, 0, 40), (65, 0, 35), (1000, 0, 0, 0, 7), (1000, 0, 0, 0, 7))
    levels = [
        level._replace(closed=level.closed * 10, above=level.above * 10, below=level.below * 10) for level in levels[:3]
    ] + levels[3:]
    assert choose(levels) == (3, "components")
    # All in one cluster is no class.
    assert choose([*levels[:3], *(level._replace(clusters=1) for level in levels[3:])]) == (1, "agreement")
    # Half or fewer closed: the rows agree, and nothing is waited for.
    half = levels[1]._replace(closed=500, below=500)
    after = levels[2]._replace(closed=550, below=450)
    assert choose([levels[0], half, after, *levels[3:]]) == (1, "agreement")


def test_no_level_is_the_answer_while_the_next_one_brings_more_edges_together_than_its_shift_lets_expect() -> None:
    # Small classes are complete at once; half of the rows are of large ones, which come together at the third level.
    levels = path((0, 60, 40), (10, 30, 60), (40, 5, 55), (45, 0, 55), (46, 0, 54))
    assert choose(levels) == (1, "agreement")
    together = [level._replace(inside=level.inside + (5 if at > 1 else 0)) for at, level in enumerate(levels)]
    assert choose(together) == (2, "agreement")
    # One cluster of all holds all edges for nothing.
    assert choose([*levels[:2], together[2]._replace(clusters=1)]) == (1, "agreement")


def test_components_are_the_first_level_with_nearly_all_rows_closed() -> None:
    levels = path((0, 1000, 0), (998, 2, 0), (999, 1, 0), (1000, 0, 0))
    assert choose(levels) == (2, "components")
    assert choose(levels, linked=0.0) == (2, "components")


def test_the_last_level_stands_for_components_where_most_rows_are_closed() -> None:
    levels = path((0, 100, 0), (51, 49, 0))
    assert choose(levels) == (1, "components")
    assert choose(path((0, 100, 0), (50, 50, 0)))[1] != "components"


@pytest.mark.parametrize(("first", "expected"), [(-1.0, 2), (-0.75, 1), (-0.6, 1), (3.0, 0)])
def test_without_agreement_the_scores_of_linked_rows_are_taken_as_they_are(first: float, expected: int) -> None:
    # Of equally near shifts the lower one.
    levels = path((0, 100, 0), (0, 100, 0), (0, 100, 0), first=first)
    assert choose(levels, linked=0.4) == (expected, "scores as they are")


def test_without_probable_edges_the_shortest_description_is_the_answer() -> None:
    levels = path((0, 0, 100), (0, 0, 100, 9), (0, 0, 100, -5), (0, 0, 100, -5), (0, 0, 100))
    assert choose(levels, linked=0.39) == (2, "code length")
    assert choose(levels, linked=0.4)[1] == "scores as they are"


def test_rows_without_edges_are_left_at_the_first_level() -> None:
    assert choose(path((0, 0, 0), (0, 0, 0)), linked=0.0) == (0, "no edges")


@pytest.mark.parametrize(("shift", "expected"), [(-9.0, 0), (-2.75, 0), (-2.7, 1), (-2.0, 2), (7.0, 3)])
def test_a_tuned_shift_is_taken_before_all_else(shift: float, expected: int) -> None:
    levels = path((0, 70, 30), (0, 10, 90), (0, 0, 0), (100, 0, 0))
    assert choose(levels, inference=Inference(shift=shift)) == (expected, "asked for")
    empty = path((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0))
    assert choose(empty, inference=Inference(shift=shift)) == (expected, "asked for")


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=9),
    st.floats(0, 1),
)
def test_an_agreeing_level_has_no_more_above_than_below_and_none_before_it_agreed(
    rows: list[tuple[int, int, int]], linked: float
) -> None:
    # As on a path, all levels have the same rows.
    total = sum(rows[0])
    shares = [np.array(row) / max(sum(row), 1) for row in rows]
    counts = [(int(share[0] * total), int(share[1] * total)) for share in shares]
    levels = path(*((closed, above, total - closed - above) for closed, above in counts))
    level, reason = choose(levels, linked)
    if reason == "agreement":
        chosen = levels[level]
        assert chosen.below >= chosen.above + RULE.closed_weight * chosen.closed
        begun = False
        for before in levels[:level]:
            begun = begun or 2 * before.closed > total
            assert not (begun and before.below >= before.above + RULE.closed_weight * before.closed)
            begun = begun or before.closed + before.above > before.below
