import pytest

from hilander_dist.cluster.memory import (
    bytes_per_row,
    check_memory,
    merge_bytes,
    mergeable_pairs,
    stored_bytes,
    task_bytes,
)
from hilander_dist.config import Config, RawModel
from hilander_dist.errors import ClusterError
from hilander_dist.lander.model import Lander

GCN = Lander(256, RawModel(hidden=512))
MB = 10**6


def cluster_of(monkeypatch: pytest.MonkeyPatch, *memory: float) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0, "memory": m, "object_store_memory": m}} for m in memory]
    dead = {"Alive": False, "Resources": {"CPU": 2.0, "memory": 1e15}}
    head = {"Alive": True, "Resources": {"memory": 1e15}}  # without CPUs no task runs there
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, dead, head])


def test_a_row_takes_the_most_of_the_stages() -> None:
    assert bytes_per_row(256, 10, GCN) == 8 * 256 + 8 * 512 + 8 * 256 + 2 * 12 * 9
    assert bytes_per_row(256, 10, None) == 24 * 256
    gat = Lander(256, RawModel(encoder="gat", hidden=512, heads=2))
    assert bytes_per_row(256, 10, gat) == 8 * 256 + 8 * 2 * 513 + 8 * 256 + 2 * 12 * 9


def test_vectors_of_half_the_width_take_half_of_the_store() -> None:
    wide, narrow = (stored_bytes(1000, 256, 10, None, Config(vectors=vectors)) for vectors in ("float32", "float16"))
    assert wide - narrow == 1000 * 256 * 3


def test_a_task_that_fits_no_node_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, 500 * MB, 600 * MB)
    with pytest.raises(ClusterError) as caught:
        check_memory(10**6, 256, 4, GCN, Config())
    text = str(caught.value)
    assert "a task on one of 4 shards (250000 rows of 256 dimensions) takes up to 2.5 GB" in text
    assert "the largest node of the Ray cluster offers 0.6 GB" in text
    shards = int(text.split("--num-shards ")[1])
    assert shards > 4
    check_memory(10**6, 256, shards, GCN, Config())
    assert task_bytes(-(-(10**6) // shards), bytes_per_row(256, 10, GCN)) <= 600 * MB


def test_no_number_of_shards_is_named_where_none_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, 300 * MB)
    with pytest.raises(ClusterError, match=r"use nodes with at least 2\.5 GB$"):
        check_memory(10**6, 256, 4, GCN, Config())


@pytest.mark.parametrize("pairs", [0, 1, 16_000_000])
def test_a_task_with_the_memory_for_so_many_pairs_merges_so_many(pairs: int) -> None:
    assert mergeable_pairs(merge_bytes(pairs)) == pairs
    assert mergeable_pairs(merge_bytes(pairs) - 1) == pairs - 1
