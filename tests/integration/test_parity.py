"""Whole jobs against the oracle: the same graph, parents, labels and trees at every level, and the same bytes for any sharding.

Every seed was chosen so that the oracle's margins exceed the network's float32 error; the tests assert it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from hilander_dist.cluster.hierarchy import links as cluster_links
from hilander_dist.cluster.hierarchy.label_links import link_by_labels, training_path
from hilander_dist.cluster.hierarchy.levels import LevelOptions, Nodes, run_levels
from hilander_dist.cluster.hierarchy.links import Linker, link_by_model
from hilander_dist.config import Config, RawModel, RawTrain
from hilander_dist.jobs import cluster as job
from hilander_dist.jobs.train import run_train_job
from hilander_dist.knn.layout import Level
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.local_tasks import held
from hilander_dist.monitor.progress import Progress
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from hilander_dist.tasks import Ref, Tasks
from hilander_dist.training.level_graphs import LevelGraph, load_level_graph
from tests import oracle, points
from tests.integration.conftest import make_weights, read_assignments, read_clusters, result_bytes, write_points

pytestmark = pytest.mark.usefixtures("local_ray")

MARGIN = 2e-6
"""Above the network's float32 error (1.3e-6 was seen): where the oracle's margin is larger, its decision must be met."""

GCN = {"encoder": "gcn"}
GAT = {"encoder": "gat", "heads": 2, "cluster_features": False}


@dataclass(frozen=True)
class Case:
    """Points and random weights of one seed, and the options that differ from the defaults."""

    x: Callable[[], oracle.Array]
    seed: int
    weights: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "gcn, 8 levels": Case(
        lambda: points.clustered(6, 1500, 32, 100)[0], 6, GCN, {"compat": "reference", "num_shards": 3}
    ),
    "gcn, max_levels": Case(
        lambda: points.clustered(6, 1500, 32, 100)[0], 6, GCN, {"compat": "reference", "max_levels": 2}
    ),
    "gcn, random points": Case(lambda: points.random_rows(6, 1100, 16), 6, GCN, {"num_shards": 2}),
    "gat, two heads": Case(lambda: points.clustered(6, 1100, 24, 60)[0], 6, GAT, {"num_shards": 3}),
    "gat with cluster features": Case(
        lambda: points.random_rows(1, 700, 16), 1, {"encoder": "gat"}, {"compat": "reference", "k": 5, "num_shards": 2}
    ),
    "gcn, two layers, early stop": Case(
        lambda: points.clustered(5, 1200, 16, 60)[0],
        5,
        GCN | {"num_conv": 2},
        {"compat": "reference", "early_stop": True, "num_shards": 3},
    ),
    "gat, two layers": Case(
        lambda: points.clustered(2, 800, 16, 60)[0], 2, GAT | {"num_conv": 2}, {"k": 6, "num_shards": 2}
    ),
    "several cells": Case(
        lambda: points.clustered(1, 8600, 16, 1200)[0],
        1,
        GCN,
        {"compat": "reference", "k": 4, "max_levels": 2, "num_shards": 5},
    ),
    "clinc150": Case(lambda: points.real("clinc150_minilm", 700, 1)[0], 1, GCN, {"compat": "reference"}),
    "caltech101": Case(lambda: points.real("caltech101_efflite0", 500, 1)[0], 1, GAT | {"heads": 1}, {}),
}


@dataclass(frozen=True)
class Links:
    """What one level's links were chosen from, and the links, by ascending id; neighbours and parents are ids."""

    id_N: oracle.Array
    nbr_NK: oracle.Array
    sim_NK: oracle.Array
    density_N: oracle.Array
    parent_N: oracle.Array
    order_N: oracle.Array
    """Positions of the nodes in the level's canonical order."""
    shards: int


def recording(link: Linker, seen: list[Links]) -> Linker:
    """The same linker, which also keeps what it saw."""

    def record(tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> cluster_links.Links:
        links = link(tasks, level, graph, prefix)
        node_id, nbr, sim, density, parent = (
            np.concatenate([block[name] for block in tasks.get(blocks)])
            for blocks, name in (
                (level.nodes, "id_N"),
                (graph, "nbr_NK"),
                (graph, "sim_NK"),
                (links.blocks, "density_N"),
                (links.blocks, "parent_N"),
            )
        )
        order = np.argsort(node_id)
        nbr_id = np.where(nbr >= 0, node_id[nbr], -1)
        parent_id = node_id[parent]
        columns = (node_id[order], nbr_id[order], sim[order], density[order], parent_id[order])
        seen.append(Links(*columns, order, level.shards))
        return links

    return record


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Links]:
    """The levels of the job that this test runs, bottom first."""
    levels: list[Links] = []
    monkeypatch.setattr(job, "link_by_model", lambda *args: recording(link_by_model(*args), levels))
    return levels


def make_config(weights: dict[str, Any], tau: float, **options: Any) -> Config:
    """An exact run with a model of the shape of ``conftest.make_weights``."""
    model = {"hidden": 16, "cluster_features": True, **weights}
    return Config(**{"tau": tau, "target_recall": 1.0, "model": RawModel(**model), **options})


def assert_links(seen: list[Links], levels: list[oracle.Level]) -> None:
    """Every level has the oracle's nodes, graph bit for bit, densities and parents."""
    assert len(seen) <= len(levels)
    assert not any(level.edges for level in levels[len(seen) :])
    for mine, level in zip(seen, levels, strict=False):
        np.testing.assert_array_equal(mine.id_N, level.ids)
        np.testing.assert_array_equal(mine.nbr_NK[:, : level.nbr.shape[1]], id_or_pad(level.ids, level.nbr))
        np.testing.assert_array_equal(mine.sim_NK[:, : level.sim.shape[1]], level.sim)
        assert (mine.nbr_NK[:, level.nbr.shape[1] :] == -1).all()
        np.testing.assert_allclose(mine.density_N, level.density, atol=MARGIN)
        np.testing.assert_array_equal(mine.parent_N, level.parent)


def assert_files(output: Path, levels: list[oracle.Level]) -> None:
    """The files hold the oracle's labels and trees at every level that added an edge."""
    linked = [level for level in levels if level.edges] or levels[:1]
    rows, trees = read_assignments(output), read_clusters(output)
    assert rows["id"].tolist() == list(range(len(linked[0].ids)))
    assert list(rows.filter(like="level_")) == [f"level_{i}" for i in range(len(linked))]
    np.testing.assert_array_equal(rows["cluster_id"], linked[-1].sample_label)
    np.testing.assert_array_equal(np.flatnonzero(rows["is_peak"]), linked[-1].peak)
    np.testing.assert_allclose(rows["density"], linked[0].density, atol=MARGIN)
    np.testing.assert_array_equal(rows["confidence"].isna(), linked[0].parent == linked[0].ids)
    assert sorted(trees["level"].unique()) == list(range(len(linked)))
    for i, level in enumerate(linked):
        np.testing.assert_array_equal(rows[f"level_{i}"], level.sample_label)
        tree = trees[trees["level"] == i]
        np.testing.assert_array_equal(tree["cluster_id"], np.arange(len(level.peak)))
        np.testing.assert_array_equal(tree["peak_id"], level.peak)
        np.testing.assert_array_equal(tree["size"], np.bincount(level.sample_label))
        above = linked[i + 1].label if i + 1 < len(linked) else np.full(len(tree), -1)
        np.testing.assert_array_equal(tree["parent_id"].fillna(-1), above)


def id_or_pad(id_N: oracle.Array, nbr_NK: oracle.Array) -> oracle.Array:
    return np.where(nbr_NK >= 0, id_N[nbr_NK], -1)


@pytest.mark.parametrize("name", CASES)
def test_levels_are_those_of_the_oracle(name: str, seen: list[Links], tmp_path: Path) -> None:
    case = CASES[name]
    x_ND = case.x()
    model, weights = make_weights(tmp_path / "model.pth", case.seed, x_ND.shape[1], **case.weights)
    k = case.options.get("k", 10)
    config = make_config(case.weights, oracle.middle_tau(x_ND, weights, k), **case.options)
    levels = oracle.hierarchy(
        x_ND, weights, k, config.tau, config.max_levels or job.RAW_LEVELS, config.early_stop, config.compat
    )
    assert min(level.margin.min() for level in levels) > MARGIN
    assert len(levels) > 1

    points_file = write_points(tmp_path / "points.parquet", x_ND)
    manifest = job.run_cluster_job(str(points_file), str(model), str(tmp_path / "run"), config)

    assert_links(seen, levels)
    assert_files(tmp_path / "run", levels)
    assert manifest["shards"] == case.options.get("num_shards", 1)
    assert manifest["recall"]["recall"] == 1


@pytest.mark.parametrize(
    ("x", "k", "target_recall"),
    [
        pytest.param(lambda: points.clustered(0, 2700, 24, 150)[0], 10, 1.0, id="flat"),
        pytest.param(lambda: points.clustered(1, 8600, 16, 1200)[0], 6, 0.9, id="probed cells"),
    ],
)
def test_any_number_of_shards_gives_the_same_bytes(
    x: Callable[[], oracle.Array], k: int, target_recall: float, tmp_path: Path
) -> None:
    x_ND = x()
    model, weights = make_weights(tmp_path / "model.pth", 0, x_ND.shape[1], **GAT)
    tau = oracle.middle_tau(x_ND[:1000], weights, k)
    points_file = write_points(tmp_path / "points.parquet", x_ND, rows_per_group=1000)

    found = []
    for shards in (1, 2, 5):
        output = tmp_path / f"run-{shards}"
        config = make_config(GAT, tau, k=k, target_recall=target_recall, num_shards=shards)
        manifest = job.run_cluster_job(str(points_file), str(model), str(output), config)
        assert len(manifest["levels"][0]["starts"]) == shards + 1
        found.append(result_bytes(output))
        assert (manifest["recall"]["nprobe"] < manifest["recall"]["nlist"]) == (target_recall < 1)

    assert len(read_assignments(tmp_path / "run-1").filter(like="level_").columns) > 1
    assert found[0]
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.parametrize(("compat", "clusters"), [("default", 1), ("reference", 40)])
def test_exact_copies_join_in_default_and_stay_apart_in_reference(
    compat: Literal["default", "reference"], clusters: int, tmp_path: Path
) -> None:
    others_ND = points.clustered(0, 600, 16, 40)[0]
    x_ND = np.concatenate([others_ND[:300], points.all_equal(40, 16), others_ND[300:]])
    model, weights = make_weights(tmp_path / "model.pth", 0, 16)
    points_file = write_points(tmp_path / "points.parquet", x_ND)

    config = make_config({}, 0.0, compat=compat, num_shards=2)
    job.run_cluster_job(str(points_file), str(model), str(tmp_path / "run"), config)

    assert read_assignments(tmp_path / "run")["level_0"][300:340].nunique() == clusters
    # Their ties are exact in both, so that all labels agree although the margins are 0.
    assert_files(tmp_path / "run", oracle.hierarchy(x_ND, weights, 10, 0.0, 10, False, compat))


@pytest.mark.parametrize("merge_across_labels", [False, True])
def test_training_hierarchy_is_the_oracles(merge_across_labels: bool, tmp_path: Path) -> None:
    x_ND, y_N = points.clustered(0, 1300, 16, 90)
    graphs = oracle.training_hierarchy(x_ND, y_N, 6, 3, merge_across_labels)
    assert min(graph.margin.min() for graph in graphs) > MARGIN

    seen, saved = training_levels(x_ND, y_N, 6, 3, merge_across_labels, tmp_path)
    assert len(graphs) == 3
    for mine, level, graph in zip(seen, saved, graphs, strict=True):
        np.testing.assert_array_equal(mine.id_N, graph.ids)
        np.testing.assert_array_equal(mine.nbr_NK, id_or_pad(graph.ids, graph.nbr))
        np.testing.assert_array_equal(mine.parent_N, graph.parent)
        np.testing.assert_array_equal(level.x_ND[mine.order_N], graph.x)
        np.testing.assert_array_equal(level.c_ND[mine.order_N], graph.cluster)
        np.testing.assert_array_equal(level.sim_NK[mine.order_N], graph.sim)
        np.testing.assert_array_equal(level.label_N[mine.order_N], graph.y)
        np.testing.assert_array_equal(level.gt_density_N[mine.order_N], graph.density)


def test_b12_copies_do_not_displace_self_in_the_ground_truth_density(tmp_path: Path) -> None:
    x_ND, group_N = points.with_duplicates(0, 300, 16)
    y_N = np.where(group_N >= 0, group_N, np.arange(300) % 7)
    graph = oracle.training_hierarchy(x_ND, y_N, 10, 1, False)[0]

    (mine,), (level,) = training_levels(x_ND, y_N, 10, 1, False, tmp_path)
    np.testing.assert_array_equal(mine.nbr_NK, graph.nbr)
    np.testing.assert_array_equal(level.gt_density_N[mine.order_N], graph.density)


def training_levels(
    x_ND: oracle.Array, y_N: oracle.Array, k: int, count: int, merge_across_labels: bool, folder: Path
) -> tuple[list[Links], list[LevelGraph]]:
    """One training hierarchy: what its links were chosen from, and the graphs that it saved for training."""
    unit_ND, id_N = oracle.unit_rows(x_ND), np.arange(len(x_ND))
    parts = [
        {"id_N": id_N[rows], "x_ND": unit_ND[rows], "class_N": y_N[rows]} for rows in (slice(0, 250), slice(250, None))
    ]
    run = Run(Storage(str(folder / "run")), {"job": "test"})
    tasks = Tasks(run.work, run.saved, Progress())
    options = LevelOptions(k, count, False, "default", 1.0, 0, 3)
    seen: list[Links] = []
    link = recording(link_by_labels(merge_across_labels), seen)
    run_levels(tasks, run, Nodes(held(parts), len(x_ND), x_ND.shape[1], len(x_ND)), options, link)
    paths = [[training_path(f"level-{i}", s) for s in range(level.shards)] for i, level in enumerate(seen)]
    return seen, [load_level_graph([run.work.read_block(path) for path in level]) for level in paths]


def test_trained_weights_on_real_data(seen: list[Links], tmp_path: Path) -> None:
    """Weights trained on some classes of clinc150 cluster other ones as the oracle does.

    A bit of another CPU may move the weights, hence the margins: nodes that the oracle is not sure of are left out, and
    the parents, not the labels made of all of them, are compared.
    """
    x_ND, y_N = points.real("clinc150_minilm", 900, 0)
    train = RawTrain(level_k=(10, 5), level_counts=(2, 2), epochs=40, batch_size=300, lr=0.03)
    model = RawModel(hidden=32)
    labelled = write_points(tmp_path / "train.parquet", x_ND, labels=y_N)
    run_train_job(str(labelled), str(tmp_path / "trained"), Config(model=model, train=train, target_recall=1.0))
    seen.clear()

    x_ND, _ = points.real("clinc150_minilm", 900, 1)
    unseen = write_points(tmp_path / "points.parquet", x_ND)
    config = Config(compat="reference", tau=0.5, max_levels=1, num_shards=2)
    job.run_cluster_job(str(unseen), str(tmp_path / "trained"), str(tmp_path / "run"), config)

    checkpoint = load_checkpoint((tmp_path / "trained" / "model.safetensors").read_bytes(), "trained", model)
    weights = {key: value.numpy() for key, value in checkpoint.state_dict().items()}
    (level,) = oracle.hierarchy(x_ND, weights, 10, config.tau, 1, False, "reference")
    sure_N = level.margin > MARGIN
    assert level.edges > 100
    assert sure_N.mean() > 0.9
    np.testing.assert_array_equal(seen[0].nbr_NK, level.nbr)
    np.testing.assert_allclose(seen[0].density_N, level.density, atol=MARGIN)
    np.testing.assert_array_equal(seen[0].parent_N[sure_N], level.parent[sure_N])
