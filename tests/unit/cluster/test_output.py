import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster import output as output_module
from hilander_dist.cluster.hierarchy.levels import Hierarchy, LevelOutput, Nodes, run_levels
from hilander_dist.cluster.hierarchy.links import link_by_model
from hilander_dist.cluster.output import cluster_table, extend_chain, write_assignments, write_outputs
from hilander_dist.config import InputConfig
from hilander_dist.evaluate import evaluate_tables
from hilander_dist.ingest import ingest
from hilander_dist.knn.layout import CHUNK
from hilander_dist.local_tasks import LocalTasks, put, put_all
from hilander_dist.run import Run
from hilander_dist.source import Unit, open_source
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block
from tests.points import clustered
from tests.unit.cluster.small import options, random_model

DIM = 6


def random_hierarchy(seed: int, sizes: list[int]) -> list[np.ndarray]:
    """For each level the label of each of its nodes, every label of the level taken by one at least."""
    rng = np.random.default_rng(seed)
    maps = []
    for n, m in itertools.pairwise(sizes):
        maps.append(rng.permutation(np.concatenate([np.arange(m), rng.integers(0, m, n - m)])))
    return maps


def level_outputs(seed: int, maps: list[np.ndarray], shards: int) -> list[LevelOutput]:
    """A hierarchy as the level loop leaves it: nodes and trees in any order, cut into shards."""
    rng = np.random.default_rng(seed)
    outputs = []
    sample_N = np.arange(len(maps[0]))
    id_N = sample_N
    for index, label_N in enumerate(maps):
        sample_N = label_N if index == 0 else label_N[sample_N]
        peaks = np.array([rng.choice(np.flatnonzero(label_N == tree)) for tree in range(label_N.max() + 1)])
        members: Block = {
            "id_N": id_N,
            "at_N": np.arange(len(label_N)),
            "label_N": label_N,
            "density_N": rng.normal(size=len(label_N)).astype(np.float32),
            "confidence_N": np.where(np.isin(np.arange(len(label_N)), peaks), np.nan, 0.75).astype(np.float32),
        }
        trees: Block = {
            "rank_N": np.arange(len(peaks)),
            "id_N": id_N[peaks],
            "count_N": np.bincount(sample_N),
            "cohesion_N": rng.random(len(peaks)).astype(np.float32),
        }
        # Shards of their own random orders: files must not show them.
        cut = np.random.default_rng(seed + 100 * shards)
        outputs.append(
            LevelOutput(
                (),
                len(peaks),
                put_all([take(members, rows) for rows in np.array_split(cut.permutation(len(label_N)), shards)]),
                put_all([take(trees, rows) for rows in np.array_split(cut.permutation(len(peaks)), shards)]),
                {},
            )
        )
        id_N = id_N[peaks]
    return outputs


def take(block: Block, rows: np.ndarray) -> Block:
    return {name: array[rows] for name, array in block.items()}


def answering(levels: list[LevelOutput], chosen: int, tree: Block | None = None) -> Hierarchy:
    return Hierarchy(levels, chosen, put(tree) if tree else None, {})


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5).map(lambda sizes: sorted(sizes, reverse=True)),
    data=st.data(),
)
def test_chains_are_the_composition_of_the_levels(seed: int, sizes: list[int], data: st.DataObject) -> None:
    maps = random_hierarchy(seed, sizes)
    levels = level_outputs(seed, maps, 1)
    chosen = data.draw(st.integers(0, len(levels) - 1))
    chain: Block = {}
    for index in reversed(range(len(levels))):
        members, trees = (levels[index].members[0].value, levels[index].trees[0].value)
        above = [levels[index + 1].members[0].value] if index + 1 < len(levels) else []
        table = cluster_table([trees], above, 0, levels[index].clusters)
        np.testing.assert_array_equal(table["peak_N"][trees["rank_N"]], trees["id_N"])
        np.testing.assert_array_equal(table["count_N"][trees["rank_N"]], trees["count_N"])
        expected_parent = maps[index + 1] if above else np.full(levels[index].clusters, -1)
        np.testing.assert_array_equal(table["parent_N"], expected_parent)
        asked = np.unique(table["parent_N"])
        chain = extend_chain(0, table, [asked], [take(chain, asked)] if above else [], index == chosen)
    samples = take(chain, maps[0])
    at = np.arange(sizes[0])
    for index, label_N in enumerate(maps):
        at = label_N[at]
        np.testing.assert_array_equal(samples["chain_NL"][:, index], at)
        if index == chosen:
            trees = levels[index].trees[0].value
            np.testing.assert_array_equal(samples["peak_N"], trees["id_N"][np.argsort(trees["rank_N"])][at])
    assert members.keys() >= {"at_N", "label_N"}


def test_a_range_of_clusters_is_found_among_the_trees_of_all_shards() -> None:
    def trees(*ranks: int) -> Block:
        rank_N = np.array(ranks)
        return {"rank_N": rank_N, "id_N": rank_N * 10, "count_N": rank_N + 1, "cohesion_N": rank_N.astype(np.float32)}

    parents = [
        {"at_N": np.array([7]), "label_N": np.array([2])},
        {"at_N": np.array([6, 5]), "label_N": np.array([0, 1])},
    ]
    table = cluster_table([trees(7, 5), trees(6)], parents, 5, 8)
    assert table["peak_N"].tolist() == [50, 60, 70]
    assert table["count_N"].tolist() == [6, 7, 8]
    assert table["cohesion_N"].tolist() == [5, 6, 7]
    assert table["parent_N"].tolist() == [1, 0, 2]
    assert "similarity_N" not in table
    top = extend_chain(5, table, [], [], True)
    assert top["chain_NL"].tolist() == [[5], [6], [7]]
    assert top["peak_N"].tolist() == [50, 60, 70]


def test_parents_of_several_owners_are_looked_up_in_their_order() -> None:
    table = {"parent_N": np.array([9, 2, 9]), "peak_N": np.array([4, 5, 6]), "count_N": np.array([7, 8, 9])}
    answers = [
        {"chain_NL": np.array([[2, 0]]), "peak_N": np.array([20]), "size_N": np.array([25])},
        {"chain_NL": np.array([[9, 1]]), "peak_N": np.array([90]), "size_N": np.array([95])},
    ]
    needs = [np.array([2]), np.array([9])]
    chain = extend_chain(4, table, needs, answers, False)
    assert chain["chain_NL"].tolist() == [[4, 9, 1], [5, 2, 0], [6, 9, 1]]
    assert chain["peak_N"].tolist() == [90, 20, 90]
    assert chain["size_N"].tolist() == [95, 25, 95]
    answer = extend_chain(4, table, needs, answers, True)
    assert answer["chain_NL"].tolist() == chain["chain_NL"].tolist()
    assert answer["peak_N"].tolist() == [4, 5, 6]
    assert answer["size_N"].tolist() == [7, 8, 9]


def new_run(directory: Path) -> Run:
    return Run(Storage(str(directory)), {})


def files(run: Run) -> dict[str, bytes]:
    return {
        info.path: run.output.read_bytes(info.path) for info in run.output.list() if not info.path.startswith("_work")
    }


def read(run: Run, folder: str) -> pa.Table:
    return pa.concat_tables([run.output.read_table(info.path) for info in run.output.list(folder)])


@pytest.mark.parametrize(("labelled", "chosen"), [(False, 2), (True, 2), (True, 1), (False, 0)])
def test_a_made_up_hierarchy_is_written_in_input_order(
    tmp_path: Path, labelled: bool, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "CLUSTERS_PER_FILE", 7)
    n = 60
    ids = [f"row{i}" for i in range(n)]
    label = [None if i % 10 == 0 else f"class{i % 4}" for i in range(n)]
    columns: dict[str, Any] = {"id": ids, "embedding": [[1.0, 2.0]] * n, **({"label": label} if labelled else {})}
    for name, (start, stop) in {"a.parquet": (0, 25), "b.parquet": (25, 60)}.items():
        pq.write_table(pa.table(columns).slice(start, stop - start), tmp_path / name)
    source = open_source(str(tmp_path), InputConfig())
    maps = random_hierarchy(5, [n, 20, 9, 3])
    written = []
    for shards in (1, 3):
        run = new_run(tmp_path / f"out{shards}")
        tasks = LocalTasks(run.work)
        data = ingest(tasks, run, source)
        found = answering(level_outputs(5, maps, shards), chosen)
        write_outputs(tasks, run.output, run.work, data, found)
        written.append(files(run))
    assert written[0] == written[1]
    assert not any(path.startswith("tree") for path in written[0])
    assert [path for path in written[0] if path.startswith("assignments")] == [
        "assignments/part-00000.parquet",
        "assignments/part-00001.parquet",
    ]
    assert sum(path.startswith("clusters/level-00") for path in written[0]) == 3

    (one,) = level_outputs(5, maps, 1)[0].members
    rows = read(run, "assignments").to_pylist()
    answer = level_outputs(5, maps, 1)[chosen].trees[0].value
    peaks = set(answer["id_N"].tolist())
    members = take(one.value, np.argsort(one.value["id_N"]))
    for i, row in enumerate(rows):
        chain = [maps[0][i], maps[1][maps[0][i]], maps[2][maps[1][maps[0][i]]]]
        assert (row["id"], row["level_0"], row["level_1"], row["level_2"]) == (ids[i], *chain)
        assert row["cluster_id"] == chain[chosen]
        assert row["is_peak"] == (i in peaks)
        assert row["density"] == members["density_N"][i]
        assert row["confidence"] == (None if np.isnan(members["confidence_N"][i]) else 0.75)

    clusters = read(run, "clusters").to_pylist()
    assert clusters[0].keys() == {"level", "cluster_id", "parent_id", "size", "peak_id", "cohesion"}
    assert [(row["level"], row["cluster_id"]) for row in clusters] == [
        (level, cluster) for level, count in enumerate((20, 9, 3)) for cluster in range(count)
    ]
    sample_N = np.arange(n)
    for level, label_N in enumerate(maps):
        sample_N = label_N[sample_N]
        here = [row for row in clusters if row["level"] == level]
        assert [row["size"] for row in here] == np.bincount(sample_N).tolist()
        assert [row["parent_id"] for row in here] == (maps[level + 1].tolist() if level < 2 else [None] * 3)
        for row in here:  # the peak is a member of its cluster
            assert sample_N[ids.index(row["peak_id"])] == row["cluster_id"]

    assert ("metrics.json" in written[0]) == labelled
    if labelled:
        known = pa.table({"id": ids, "label": pa.array(label, pa.string())})
        assert run.output.read_json("metrics.json") == evaluate_tables([read(run, "assignments")], known)


def test_a_path_with_joined_means_above_it_tells_shifts_similarities_margins_and_the_tree(tmp_path: Path) -> None:
    maps = random_hierarchy(3, [30, 12, 5, 1])
    pq.write_table(pa.table({"id": list(range(30)), "embedding": [[1.0, 2.0]] * 30}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path), InputConfig())
    low, high, joined = level_outputs(3, maps, 1)
    rows = low.members[0].value
    margin_N = np.where(rows["id_N"] % 7 == 0, np.nan, rows["id_N"] / 64).astype(np.float32)
    low = replace(low, members=put_all([{**rows, "margin_N": margin_N}]), numbers={"shift": -0.5})
    high = replace(high, numbers={"shift": 1.0})
    similar = {**joined.trees[0].value, "similarity_N": np.array([0.25], dtype=np.float32)}
    joined = replace(joined, trees=put_all([similar]))
    tree = {f"{name}_M": np.arange(4) + at for at, name in enumerate(("first", "second", "distance", "count", "level"))}
    run = new_run(tmp_path / "out")
    tasks = LocalTasks(run.work)
    data = ingest(tasks, run, source)
    write_outputs(tasks, run.output, run.work, data, answering([low, high, joined], 1, tree))
    told = {(row["level"], row["shift"], row["similarity"]) for row in read(run, "clusters").to_pylist()}
    assert told == {(0, -0.5, None), (1, 1.0, None), (2, None, 0.25)}
    assigned = read(run, "assignments").to_pylist()
    assert [row["margin"] for row in assigned] == [None if row % 7 == 0 else row / 64 for row in range(30)]
    written = read(run, "tree").to_pydict()
    assert written == {name.removesuffix("_M"): column.tolist() for name, column in tree.items()}


def test_labels_that_are_all_null_give_no_metrics(tmp_path: Path) -> None:
    columns = {"id": [1, 2], "embedding": [[1.0], [2.0]], "label": pa.array([None, None], pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = open_source(str(tmp_path), InputConfig())
    run = new_run(tmp_path / "out")
    tasks = LocalTasks(run.work)
    found = answering(level_outputs(0, [np.array([0, 1])], 1), 0)
    write_outputs(tasks, run.output, run.work, ingest(tasks, run, source), found)
    assert [path.partition("/")[0] for path in files(run)] == ["assignments", "clusters"]
    assert read(run, "assignments")["id"].type == pa.int64()


def test_assignments_that_do_not_match_the_rows_of_the_unit_are_not_written(tmp_path: Path) -> None:
    work = Storage(str(tmp_path / "work"))
    work.write_table("ingest/ids-00000.parquet", pa.table({"id": ["a", "b"], "row": [0, 1]}))
    inbox = [
        {
            "id_N": np.array([0, 2]),
            "chain_NL": np.zeros((2, 1), np.int64),
            "density_N": np.zeros(2, np.float32),
            "confidence_N": np.zeros(2, np.float32),
            "is_peak_N": np.zeros(2, bool),
        }
    ]
    output = Storage(str(tmp_path / "out"))
    with pytest.raises(AssertionError, match="unit 0: assignments do not match its rows"):
        write_assignments(output, work, Unit(0, "a", "parquet", 0, 0, 3, (0, 1)), inbox, None, 1, 0)
    assert output.list() == []


def test_a_run_writes_the_same_files_for_any_sharding_and_loses_no_row(tmp_path: Path) -> None:
    n = 2 * CHUNK + 60
    x_ND, y_N = clustered(1, n, DIM, 30)
    embedding = [row.tolist() for row in x_ND]
    embedding[10], embedding[700] = None, [0.0] * DIM
    ids = [f"row{i}" for i in range(n)]
    ids[900] = "row5"
    columns = {"id": ids, "embedding": pa.array(embedding, pa.list_(pa.float32())), "label": y_N}
    for name, (start, stop) in {"a.parquet": (0, 400), "b.parquet": (400, n)}.items():
        pq.write_table(pa.table(columns).slice(start, stop - start), tmp_path / name)
    source = open_source(str(tmp_path), InputConfig())
    model = random_model(DIM, "gcn")
    written = []
    for shards in (1, 3):
        run = new_run(tmp_path / f"out{shards}")
        tasks = LocalTasks()
        tasks.store = run.work
        data = ingest(tasks, run, source)
        nodes = Nodes(data.parts, data.rows, source.dim, source.rows)
        link = link_by_model(model, put(model), 0.2, "default")
        levels = run_levels(tasks, run, nodes, options(shards=shards), link)
        write_outputs(tasks, run.output, run.work, data, answering(levels, len(levels) - 1))
        written.append(files(run))
    assert len(levels) >= 2
    assert written[0].keys() == written[1].keys()
    assert written[0] == written[1]
    assigned = read(run, "assignments")["id"].to_pylist()
    assert assigned == [f"row{i}" for i in range(n) if i not in {10, 700, 900}]
    bad = read(run, "bad_rows").to_pylist()
    assert sorted((row["row"], row["reason"]) for row in bad) == [
        (10, "null embedding"),
        (300, "zero vector"),
        (500, "duplicate id"),
    ]
    clusters = read(run, "clusters")
    for level in range(len(levels)):
        sizes = clusters.filter(pc.equal(clusters["level"], level))["size"].to_numpy()
        counted = np.bincount(read(run, "assignments")[f"level_{level}"].to_numpy())
        np.testing.assert_array_equal(sizes, counted)
