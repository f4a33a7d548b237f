"""Points that broke the official code. Bn in a test's name is its bug (algorithm.md 3).

B1 and B8 to B11 are of its own imports, training and GPU code; B12 is in test_parity.py, B5 in test_bad_input.py.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hilander_dist.knn import layout
from hilander_dist.storage import Storage
from tests import oracle, points
from tests.integration.conftest import (
    DIM,
    Outcome,
    labels,
    read_assignments,
    rows,
    write_points,
)

pytestmark = pytest.mark.usefixtures("local_ray")

COMPATS = pytest.mark.parametrize("compat", ["default", "reference"])
"""Both ways of stopping and of breaking ties."""


@COMPATS
@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_b3_no_more_rows_than_k(
    compat: str, n: int, cluster: Callable[..., Outcome], weights: tuple[Path, oracle.Weights], tmp_path: Path
) -> None:
    x_ND = rows(10)[:n]
    outcome = cluster(write_points(tmp_path / "in.parquet", x_ND), "--set", f"compat={compat}")
    assert outcome.code == 0, outcome.err

    levels = oracle.hierarchy(x_ND, weights[1], 10, 0.3, 10, False, "default")
    linked = [level.sample_label.tolist() for level in levels if level.edges]
    alone = [list(range(n))]
    assert labels(tmp_path / "run") == ((linked or alone) if compat == "default" else alone)


@COMPATS
def test_b2_b3_two_opposite_groups_collapse_to_fewer_than_k(
    compat: str, cluster: Callable[..., Outcome], tmp_path: Path
) -> None:
    x_ND, y_N = points.antipodal(0, 80, DIM)
    outcome = cluster(write_points(tmp_path / "in.parquet", x_ND), "--tau", 0, "--set", f"compat={compat}")
    assert outcome.code == 0, outcome.err

    final = read_assignments(tmp_path / "run")["cluster_id"].to_numpy()
    assert len(np.unique(final)) <= 10
    assert not set(final[y_N == 0]) & set(final[y_N == 1])


@COMPATS
def test_b2_only_negative_similarities(compat: str, cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    x_ND = points.negative_only(DIM)
    outcome = cluster(write_points(tmp_path / "in.parquet", x_ND), "--k", 4, "--tau", 0, "--set", f"compat={compat}")
    assert outcome.code == 0, outcome.err
    assert labels(tmp_path / "run") == [list(range(DIM + 1))]
    found = read_assignments(tmp_path / "run")
    assert (found["density"] == 0).all()
    assert found["confidence"].isna().all()


@COMPATS
def test_b4_forty_equal_rows(compat: str, cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    file = write_points(tmp_path / "in.parquet", points.all_equal(40, DIM))
    outcome = cluster(file, "--tau", 0, "--set", f"compat={compat}", "--num-shards", 3)
    assert outcome.code == 0, outcome.err
    assert labels(tmp_path / "run") == [[0] * 40 if compat == "default" else list(range(40))]


@COMPATS
def test_b6_the_last_row_has_no_neighbour(
    compat: str, cluster: Callable[..., Outcome], weights: tuple[Path, oracle.Weights], tmp_path: Path
) -> None:
    others_ND = np.abs(points.random_rows(0, 100, DIM))
    x_ND = np.concatenate([others_ND, -others_ND.mean(axis=0, keepdims=True)])
    outcome = cluster(write_points(tmp_path / "in.parquet", x_ND), "--set", f"compat={compat}")
    assert outcome.code == 0, outcome.err

    levels = oracle.hierarchy(x_ND, weights[1], 10, 0.3, 10, False, "reference" if compat == "reference" else "default")
    assert labels(tmp_path / "run") == [level.sample_label.tolist() for level in levels if level.edges]
    last = read_assignments(tmp_path / "run").iloc[-1]
    assert last["is_peak"]
    assert last["density"] == 0


def test_b7_cells_with_fewer_rows_than_k_give_short_rows(
    cluster: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: max(1, n // 10))
    x_ND = rows(1200)
    outcome = cluster(
        write_points(tmp_path / "in.parquet", x_ND), "--target-recall", 0.05, "--k", 30, "--max-levels", 1
    )
    assert outcome.code == 0, outcome.err

    work = Storage(str(tmp_path / "run" / "_work" / "level-0"))
    nodes, graph = (work.read_block(f"{name}-00000.safetensors") for name in ("nodes", "graph"))
    pad_NK = graph["nbr_NK"] < 0
    assert pad_NK.any(axis=1).mean() > 0.5
    assert not (pad_NK[:, :-1] & ~pad_NK[:, 1:]).any()
    assert (graph["sim_NK"][pad_NK] == 0).all()
    near_NK = oracle.pair_sims(nodes["x_ND"], nodes["x_ND"])[np.arange(1200)[:, None], graph["nbr_NK"]]
    np.testing.assert_array_equal(graph["sim_NK"][~pad_NK], near_NK[~pad_NK])
    assert (graph["nbr_NK"] != np.arange(1200)[:, None]).all()
    assert len(read_assignments(tmp_path / "run")) == 1200
