import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.exchange import (
    as_list,
    concat_blocks,
    even_starts,
    fetch_rows,
    fixed_starts,
    look_up,
    partition_rows,
    shuffle,
    split_keys,
    take_rows,
    unpack,
)
from hilander_dist.local_tasks import LocalTasks, put, put_all

STARTS = st.lists(st.integers(0, 60), min_size=0, max_size=5).map(lambda cuts: (0, *sorted(cuts), 60))
KEYS = st.lists(st.integers(-1, 59), max_size=80).map(lambda keys: np.array(keys, dtype=np.int64))


def pieces_of(result: object, count: int) -> list[np.ndarray]:
    pieces = as_list(result, count)
    assert len(pieces) == count
    return pieces


@given(keys=KEYS, starts=STARTS)
def test_split_keys_gives_each_owner_its_distinct_ascending_rows(keys: np.ndarray, starts: tuple[int, ...]) -> None:
    pieces = pieces_of(split_keys(keys, starts), len(starts) - 1)
    for piece, start, stop in zip(pieces, starts[:-1], starts[1:], strict=True):
        assert piece.tolist() == sorted({key for key in keys.tolist() if start <= key < stop})


def test_split_keys_takes_keys_of_any_shape() -> None:
    assert [piece.tolist() for piece in split_keys(np.array([[5, -1], [2, 5]]), (0, 4, 8))] == [[2], [5]]


@given(keys=KEYS, starts=STARTS)
def test_look_up_returns_what_was_served_for_each_key(keys: np.ndarray, starts: tuple[int, ...]) -> None:
    needs = pieces_of(split_keys(keys, starts), len(starts) - 1)
    wanted = keys[keys >= 0]
    np.testing.assert_array_equal(look_up(wanted, needs, [need * 7 for need in needs]), wanted * 7)


@given(keys=KEYS, starts=STARTS)
def test_partition_rows_keeps_every_row_once_and_in_order(keys: np.ndarray, starts: tuple[int, ...]) -> None:
    keys = np.abs(keys)
    row_N = np.arange(len(keys))
    block = {"row_N": row_N, "key_N2": np.stack([keys, keys], axis=1)}
    pieces = as_list(partition_rows(block, keys, starts), len(starts) - 1)
    for piece, start, stop in zip(pieces, starts[:-1], starts[1:], strict=True):
        np.testing.assert_array_equal(piece["row_N"], row_N[(keys >= start) & (keys < stop)])
        np.testing.assert_array_equal(piece["key_N2"][:, 1], keys[piece["row_N"]])
    assert sorted(concat_blocks(pieces)["row_N"].tolist()) == row_N.tolist()


@given(n=st.integers(0, 5000), shards=st.integers(1, 40), unit=st.sampled_from([1, 7, 512]))
def test_even_starts_cuts_whole_units_evenly(n: int, shards: int, unit: int) -> None:
    starts = even_starts(n, shards, unit)
    assert (starts[0], starts[-1]) == (0, n)
    assert len(starts) - 1 == max(1, min(shards, -(-n // unit)))
    assert all(start % unit == 0 for start in starts[:-1])
    sizes = [-(-(stop - start) // unit) for start, stop in itertools.pairwise(starts)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0 or n == 0


@given(n=st.integers(0, 300), width=st.integers(1, 50))
def test_fixed_starts_cuts_runs_of_one_width(n: int, width: int) -> None:
    starts = fixed_starts(n, width)
    assert (starts[0], starts[-1]) == (0, n)
    sizes = np.diff(starts)
    assert (sizes[:-1] == width).all()
    assert sizes[-1] <= width
    assert sizes[-1] > 0 or n == 0


def test_shuffle_hands_each_receiver_its_pieces_in_the_order_of_the_senders() -> None:
    assert shuffle([["a0", "a1"], ["b0", "b1"], ["c0", "c1"]], 2) == [["a0", "b0", "c0"], ["a1", "b1", "c1"]]
    assert shuffle(["a", "b"], 1) == [["a", "b"]]
    assert shuffle([], 2) == [[], []]


def test_unpack_returns_the_item_itself_where_there_is_one() -> None:
    assert unpack(["a"]) == "a"
    assert unpack(["a", "b"]) == ("a", "b")


@settings(max_examples=40)
@given(asked=st.lists(KEYS, min_size=1, max_size=4), starts=STARTS)
def test_fetch_rows_answers_every_asker_with_the_rows_of_the_table(
    asked: list[np.ndarray], starts: tuple[int, ...]
) -> None:
    tasks = LocalTasks()
    value_N = np.random.default_rng(0).integers(0, 1000, starts[-1])
    tables = put_all([{"value_N": value_N[a:b]} for a, b in itertools.pairwise(starts)])
    needs, answers = fetch_rows(tasks, put_all(asked), tables, starts, take_rows)
    assert tasks.calls.count("_serve_all") == len(tables)
    for keys, need, answer in zip(asked, needs, answers, strict=True):
        got = [block["value_N"] for block in tasks.get(answer)]
        wanted = keys[keys >= 0]
        np.testing.assert_array_equal(look_up(wanted, tasks.get(need), got), value_N[wanted])


def test_fetch_rows_serves_each_row_once_per_asker_and_counts_from_the_owners_first() -> None:
    served = []

    def serve(table: int, rows: np.ndarray) -> np.ndarray:
        served.append((table, rows.tolist()))
        return rows

    fetch_rows(LocalTasks(), [put(np.array([9, 4, 4, -1, 9]))], put_all([0, 1]), (0, 5, 10), serve)
    assert served == [(0, [4]), (1, [4])]


def test_concat_blocks_refuses_blocks_without_a_column() -> None:
    with pytest.raises(KeyError):
        concat_blocks([{"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.zeros(1)}])
